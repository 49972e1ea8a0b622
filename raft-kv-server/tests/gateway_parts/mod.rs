//! What the gateway's tests ask and compare with: services that record and answer, and a real etcd.

mod etcd;
mod fakes;
mod table;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use http_body_util::BodyExt;
use raft_kv_server::gateway::{Services, router};
use serde_json::Value;
use tower::Service;

pub use etcd::Etcd;
pub use fakes::{Fakes, Told};
pub use table::requests;

/// An answer, whole.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
}

impl Answered {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn lines(&self) -> Vec<Value> {
        let lines = serde_json::Deserializer::from_slice(&self.body).into_iter();
        lines.map(|line| line.expect("JSON")).collect()
    }

    /// Whether etcd's gateway refused the JSON itself.
    pub fn is_parse_error(&self) -> bool {
        let words = ["json: ", "invalid character ", "illegal base64 ", "unexpected ", "unknown value "];
        let text = self.text();
        words.iter().any(|word| text.starts_with(&format!("{{\"error\":\"{word}")))
    }
}

pub async fn respond(fakes: &Fakes, request: Request<Body>) -> Response {
    let fake = fakes.service();
    let mut router = router(&Services {
        kv: fake.clone(),
        watch: fake.clone(),
        lease: fake.clone(),
        cluster: fake.clone(),
        maintenance: fake.clone(),
        auth: fake.clone(),
        lock: fake.clone(),
        election: fake,
    });
    router.call(request).await.expect("never fails")
}

pub async fn ask_with(fakes: &Fakes, request: Request<Body>) -> Answered {
    let response = respond(fakes, request).await;
    let status = response.status().as_u16();
    let content_type = response.headers()["content-type"].to_str().expect("text").to_owned();
    let body = response.into_body().collect().await.expect("whole").to_bytes().to_vec();
    Answered { status, content_type, body }
}

pub async fn ask(fakes: &Fakes, path: &str, body: &str) -> Answered {
    let request = Request::post(path).body(Body::from(body.to_owned())).expect("a request");
    ask_with(fakes, request).await
}

/// A body that comes in these pieces.
pub fn pieces(pieces: &[&str]) -> Body {
    let pieces: Vec<_> =
        pieces.iter().map(|piece| Ok::<_, std::convert::Infallible>((*piece).to_owned())).collect();
    Body::from_stream(futures_util::stream::iter(pieces))
}
