//! A client of a foreign etcd: what moving house reads from it. It only ever asks; nothing here
//! may change the other cluster. Every question is safe to repeat and is repeated, at the next
//! endpoint, until it is answered or [`PATIENCE`] is over.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb::auth_client::AuthClient;
use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::lease_client::LeaseClient;
use etcd_api::etcdserverpb::watch_client::WatchClient;
use etcd_api::etcdserverpb::{
    AuthenticateRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, RangeRequest,
    RangeResponse, WatchRequest, WatchResponse,
};
use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

/// How long a question is repeated before its error is believed.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);
/// Largest answer that is taken, in bytes: a page of the largest values.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// A member of the foreign cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    host: String,
    port: u16,
    tls: bool,
}

impl Place {
    /// `http://HOST:PORT` or `https://HOST:PORT`; without a scheme `https` where `tls`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(given: &str, tls: bool) -> Result<Self, String> {
        let bad =
            |why: &str| format!("the endpoint {given:?} {why}; give http://HOST:PORT or https://HOST:PORT");
        let (tls, rest) = match given.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err(bad("has an unknown scheme")),
            None => (tls, given),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("has no port"))?;
        let port =
            port.parse().ok().filter(|port| *port > 0).ok_or_else(|| bad("has no port from 1 to 65535"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(['/', '@', '?', '#']) || host.contains(char::is_whitespace) {
            return Err(bad("has no plain host"));
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }

    /// Whether it is asked over TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    async fn dial(&self, tls: Option<&Arc<ClientConfig>>) -> io::Result<Connection> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        if !self.tls {
            return Ok(TokioIo::new(Box::new(stream)));
        }
        let config = tls.ok_or_else(|| io::Error::other("no root certificates are given for https"))?;
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
        Ok(TokioIo::new(Box::new(stream)))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let bracketed = self.host.contains(':');
        let (open, close) = if bracketed { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

/// A connection, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type Connection = TokioIo<Box<dyn Stream>>;

/// How a client of etcd checks a server and shows who it is, from PEM files.
///
/// # Errors
/// Which file is wrong, and why.
pub fn tls_config(cacert: &Path, identity: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, String> {
    let wrong = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let chain = |path: &Path| -> Result<Vec<CertificateDer<'static>>, String> {
        let certs = CertificateDer::pem_file_iter(path).map_err(|error| wrong(path, &error))?;
        let certs: Vec<_> = certs.collect::<Result<_, _>>().map_err(|error| wrong(path, &error))?;
        if certs.is_empty() { Err(wrong(path, &"there is no certificate in it")) } else { Ok(certs) }
    };
    let mut roots = RootCertStore::empty();
    for root in chain(cacert)? {
        roots.add(root).map_err(|error| wrong(cacert, &error))?;
    }
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
            builder.with_client_auth_cert(chain(cert)?, secret).map_err(|error| wrong(cert, &error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A channel to whichever of `places` answers first, from `first` on; it dials again by itself,
/// going through all of them.
pub fn channel(places: &[Place], first: usize, tls: Option<Arc<ClientConfig>>) -> Channel {
    let places: Arc<[Place]> = places.into();
    let shown = places[first % places.len()].to_string();
    // The connector encrypts; for the rest of the stack the connection is a plain one.
    let endpoint = Endpoint::from_shared(shown.replacen("https://", "http://", 1)).expect("a place is a URI");
    let endpoint = endpoint.origin(shown.parse().expect("a place is a URI"));
    let endpoint = endpoint
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (places, tls) = (places.clone(), tls.clone());
        async move {
            let mut why = Vec::new();
            for turn in 0..places.len() {
                let place = &places[(first + turn) % places.len()];
                match tokio::time::timeout(CONNECT, place.dial(tls.as_ref())).await {
                    Ok(Ok(connection)) => return Ok(connection),
                    Ok(Err(error)) => why.push(format!("{place}: {error}")),
                    Err(_) => why.push(format!("{place}: no connection within {CONNECT:?}")),
                }
            }
            Err(io::Error::other(why.join("; ")))
        }
    }))
}

/// Puts the token into each request.
#[derive(Clone)]
struct Token(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

type Door = InterceptedService<Channel, Token>;

struct Inner {
    places: Vec<Place>,
    tls: Option<Arc<ClientConfig>>,
    user: Option<(String, String)>,
    now: Mutex<Now>,
}

struct Now {
    channel: Channel,
    turn: usize,
    token: Option<MetadataValue<Ascii>>,
}

/// A foreign cluster. Clones share its connection.
#[derive(Clone)]
pub struct Foreign(Arc<Inner>);

/// A watch under way: what asks for progress, and what comes.
pub struct Following {
    /// Requests on the same stream.
    pub ask: mpsc::Sender<WatchRequest>,
    /// What the other cluster says.
    pub stream: Streaming<WatchResponse>,
}

impl Foreign {
    /// A client of the members at `places`, as `user` (name and password) if one is given.
    /// Connects when something is asked.
    ///
    /// # Panics
    /// Without a place.
    pub fn new(places: Vec<Place>, tls: Option<Arc<ClientConfig>>, user: Option<(String, String)>) -> Self {
        assert!(!places.is_empty(), "the caller has at least one endpoint");
        let now = Mutex::new(Now { channel: channel(&places, 0, tls.clone()), turn: 0, token: None });
        Self(Arc::new(Inner { places, tls, user, now }))
    }

    fn door(&self) -> Door {
        let now = self.0.now.lock();
        InterceptedService::new(now.channel.clone(), Token(now.token.clone()))
    }

    /// The next endpoint comes first from now on.
    fn turn(&self) {
        let mut now = self.0.now.lock();
        now.turn += 1;
        now.channel = channel(&self.0.places, now.turn, self.0.tls.clone());
    }

    async fn log_in(&self) -> Result<(), Status> {
        let Some((name, password)) = self.0.user.clone() else { return Ok(()) };
        let channel = self.0.now.lock().channel.clone();
        let request = AuthenticateRequest { name, password };
        let token = match AuthClient::new(channel).authenticate(request).await {
            Ok(answer) => answer.into_inner().token,
            // The user is given in vain: nobody is asked who they are.
            Err(status) if status.message().contains("authentication is not enabled") => return Ok(()),
            Err(status) => return Err(status),
        };
        let token = token.parse().map_err(|_| Status::internal("the token is no header value"))?;
        self.0.now.lock().token = Some(token);
        Ok(())
    }

    /// Asks until there is an answer that another attempt would not change.
    async fn ask<T, Asked>(&self, ask: impl Fn(Door) -> Asked) -> Result<T, Status>
    where
        Asked: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let until = Instant::now() + PATIENCE;
        if self.0.user.is_some() && self.0.now.lock().token.is_none() {
            // A member that can't be reached shows below.
            if let Err(status) = self.log_in().await
                && !is_passing(&status)
            {
                return Err(status);
            }
        }
        loop {
            let status = match tokio::time::timeout(ATTEMPT, ask(self.door())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {ATTEMPT:?}")),
            };
            let again = if self.0.user.is_some() && wants_log_in(&status) {
                self.log_in().await.err().is_none_or(|status| is_passing(&status))
            } else {
                is_passing(&status)
            };
            if !again || Instant::now() >= until {
                return Err(status);
            }
            tracing::debug!("asking the source again: {status}");
            self.turn();
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads keys.
    ///
    /// # Errors
    /// The other cluster's, or why it can't be reached.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.ask(|door| {
            let request = request.clone();
            async move { KvClient::new(door).max_decoding_message_size(MAX_ANSWER_BYTES).range(request).await }
        })
        .await
    }

    /// The ids of the leases that the asked member knows.
    ///
    /// # Errors
    /// As [`Foreign::range`].
    pub async fn leases(&self) -> Result<Vec<i64>, Status> {
        let answer = self
            .ask(|door| async move {
                let mut client = LeaseClient::new(door).max_decoding_message_size(MAX_ANSWER_BYTES);
                client.lease_leases(LeaseLeasesRequest {}).await
            })
            .await?;
        Ok(answer.leases.into_iter().map(|lease| lease.id).collect())
    }

    /// What a lease has left; its `ttl` is -1 where it has ended.
    ///
    /// # Errors
    /// As [`Foreign::range`].
    pub async fn time_to_live(&self, id: i64) -> Result<LeaseTimeToLiveResponse, Status> {
        let request = LeaseTimeToLiveRequest { id, keys: false };
        let asked =
            self.ask(|door| async move { LeaseClient::new(door).lease_time_to_live(request).await }).await;
        match asked {
            Err(status) if status.code() == Code::NotFound => {
                Ok(LeaseTimeToLiveResponse { id, ttl: -1, ..LeaseTimeToLiveResponse::default() })
            }
            asked => asked,
        }
    }

    /// Follows what `request` creates.
    ///
    /// # Errors
    /// As [`Foreign::range`].
    pub async fn watch(&self, request: WatchRequest) -> Result<Following, Status> {
        let slot = Mutex::new(None);
        let stream = self
            .ask(|door| {
                let (ask, asked) = mpsc::channel(16);
                ask.try_send(request.clone()).expect("the first of sixteen");
                *slot.lock() = Some(ask);
                async move {
                    let mut client = WatchClient::new(door).max_decoding_message_size(MAX_ANSWER_BYTES);
                    client.watch(ReceiverStream::new(asked)).await
                }
            })
            .await?;
        let ask = slot.into_inner().expect("what was answered was asked");
        Ok(Following { ask, stream })
    }
}

/// Whether another attempt, perhaps elsewhere, may go better.
pub fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Internal
            | Code::Aborted
            | Code::Cancelled
            | Code::ResourceExhausted
    )
}

fn wants_log_in(status: &Status) -> bool {
    ["invalid auth token", "user name is empty", "revision of auth store is old"]
        .iter()
        .any(|text| status.message().contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &str, tls: bool, expect: Result<&str, &str>) {
        match (Place::parse(given, tls), expect) {
            (Ok(place), Ok(expect)) => assert_eq!(place.to_string(), expect),
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (got, expect) => panic!("{given}: {got:?}, not {expect:?}"),
        }
    }

    #[test]
    fn endpoints_are_understood() {
        check("http://a:1", true, Ok("http://a:1"));
        check("https://a:1/", false, Ok("https://a:1"));
        check("a:1", true, Ok("https://a:1"));
        check("a:1", false, Ok("http://a:1"));
        check("[::1]:2379", false, Ok("http://[::1]:2379"));
        check("unix:///x", false, Err("unknown scheme"));
        check("a", false, Err("no port"));
        check("a:0", false, Err("no port from"));
        check(":1", false, Err("no plain host"));
        check("u@a:1", false, Err("no plain host"));
    }
}
