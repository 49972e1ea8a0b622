//! Debian's etcd, started for a test on ports of its own and ended with it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tempfile::TempDir;

use super::Answered;

const START: Duration = Duration::from_secs(60);

pub struct Etcd {
    child: Child,
    url: String,
    client: Client<HttpConnector, Body>,
    _folder: TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Etcd {
    pub async fn start() -> Self {
        // Another test may take a port between its choice and its use.
        for _ in 0..5 {
            if let Some(etcd) = Self::try_start().await {
                return etcd;
            }
        }
        panic!("etcd did not start: are its ports taken each time?");
    }

    async fn try_start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let [ours, peers] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [url, peer] = [&ours, &peers].map(|held| format!("http://{}", held.local_addr().expect("bound")));
        drop((ours, peers));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args([
                "--name",
                "one",
                "--enable-grpc-gateway=true",
                "--initial-cluster",
                &format!("one={peer}"),
            ])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`etcd` is needed to compare with: install Debian's package etcd-server");
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut etcd = Self { child, url, client, _folder: folder };
        let begun = Instant::now();
        while begun.elapsed() < START {
            if etcd.child.try_wait().expect("a child").is_some() {
                return None;
            }
            match etcd.try_ask("/v3/maintenance/status", "{}").await {
                Some(answer) if answer.status == 200 => return Some(etcd),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        panic!("etcd has not answered for {START:?}");
    }

    pub async fn ask(&self, path: &str, body: &str) -> Answered {
        let asked = tokio::time::timeout(Duration::from_secs(30), self.try_ask(path, body)).await;
        asked.expect("etcd answers in time").unwrap_or_else(|| panic!("etcd hung up on {path} {body}"))
    }

    async fn try_ask(&self, path: &str, body: &str) -> Option<Answered> {
        let request =
            Request::post(format!("{}{path}", self.url)).body(Body::from(body.to_owned())).expect("one");
        let response = self.client.request(request).await.ok()?;
        let status = response.status().as_u16();
        let content_type = response
            .headers()
            .get("content-type")
            .map_or("application/json", |value| value.to_str().expect("text"));
        let content_type = content_type.to_owned();
        // These stay open; their first line is compared.
        let endless = path.ends_with("/watch") || path.ends_with("/observe");
        let mut incoming = response.into_body();
        let mut body = vec![];
        while let Some(frame) = incoming.frame().await {
            // Trailers are no data.
            body.extend_from_slice(frame.ok()?.data_ref().map_or(&[][..], |data| data));
            if endless && body.ends_with(b"\n") {
                break;
            }
        }
        Some(Answered { status, content_type, body })
    }
}
