//! Knocking at a member's two ports with whatever certificate a test has made, and saying whether the
//! member let it in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use raft_kv::pki::{Credentials, Purpose, TLS_NAME};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What one who knocks shows: a chain, and a key that need not belong to it.
#[derive(Clone, Debug)]
pub struct Shown {
    pub chain: Vec<Vec<u8>>,
    pub key: Vec<u8>,
}

impl From<&Credentials> for Shown {
    fn from(own: &Credentials) -> Self {
        Self { chain: own.chain.clone(), key: own.key.clone() }
    }
}

/// For one who tries whom he gets to: every server is believed.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 alone")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn config(shown: Option<&Shown>, alpn: &[u8]) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider.clone())));
    let mut config = match shown {
        Some(shown) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(shown.key.clone()));
            let key = provider.key_provider.load_private_key(key).unwrap();
            let chain = shown.chain.iter().cloned().map(CertificateDer::from).collect();
            // Unlike what rustls offers for this, it does not look whether the two fit.
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// A TLS connection to the etcd door. In TLS 1.3 a client hears of a refusal only later.
pub async fn knock(
    addr: SocketAddr,
    shown: Option<&Shown>,
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await?;
    let config = Arc::new(config(shown, alpn.as_bytes()));
    TlsConnector::from(config).connect(ServerName::try_from(TLS_NAME).unwrap(), stream).await
}

/// Asks the door for a page by HTTP/1.1; the answer's code and body.
pub async fn ask(
    addr: SocketAddr,
    shown: Option<&Shown>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, String), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let stream = knock(addr, shown, "http/1.1").await.map_err(|error| text(&error))?;
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    tokio::spawn(connection);
    let response = send.send_request(request).await.map_err(|error| text(&error))?;
    let code = response.status();
    let body = response.into_body().collect().await.map_err(|error| text(&error))?.to_bytes();
    Ok((code, String::from_utf8_lossy(&body).into_owned()))
}

/// A request for a page.
pub fn page(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "raft-kv").body(Full::default()).unwrap()
}

/// Whether the etcd door serves who shows that.
pub async fn door_serves(addr: SocketAddr, shown: Option<&Shown>) -> bool {
    ask(addr, shown, page("/version")).await.is_ok_and(|(code, _)| code == StatusCode::OK)
}

/// Whether the QUIC port lets in who shows that, for `purpose`: whether it says so, or why not.
pub async fn quic_admits(addr: SocketAddr, shown: Option<&Shown>, purpose: Purpose) -> Result<(), String> {
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config(shown, purpose.alpn())).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(config));
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_uni_streams(1u8.into());
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let dial = async {
        let connecting = endpoint.connect_with(config, addr, TLS_NAME).map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let mut word = connection.accept_uni().await.map_err(|error| error.to_string())?;
        let word = word.read_to_end(16).await.map_err(|error| error.to_string())?;
        connection.close(0u8.into(), b"");
        if word.is_empty() { Err("it says nothing".to_owned()) } else { Ok(()) }
    };
    let told = tokio::time::timeout(Duration::from_secs(30), dial).await;
    told.unwrap_or_else(|_| panic!("the port neither lets in nor refuses"))
}
