//! TLS on TCP, for clients that speak HTTP: who may open such a connection, and who may keep it.
//!
//! The same certificates, roots and rules as on QUIC, read from what is in force at each
//! handshake. A certificate is never optional here, sessions are never resumed, and nobody is let
//! in before it is known that the cluster and the role fit and that the node was not removed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};

use super::live::LiveTrust;
use super::tls::{Trust, certificate_error, provider};
use crate::error::Refusal;
use crate::pki::{Identity, Purpose, admit, validity_of};

/// A client at the other end of a TLS connection over TCP whose certificate was verified in the
/// handshake. Only this file makes one.
#[derive(Clone, Debug)]
pub struct HttpsPeer {
    identity: Identity,
    chain: Arc<[CertificateDer<'static>]>,
    ends: SystemTime,
}

impl HttpsPeer {
    /// Who it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Its own certificate, in DER.
    pub fn leaf(&self) -> &[u8] {
        &self.chain[0]
    }

    /// When its certificate ends.
    pub fn ends(&self) -> SystemTime {
        self.ends
    }
}

/// The reason of a [`HandshakeFault`] where the chain ends in a root that is not believed (any more).
pub const UNKNOWN_ROOT: &str = "unknown_root";

/// Why a handshake did not come about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandshakeFault {
    /// One word for counters: `no_certificate`, `expired`, `unknown_root`, `other_cluster`,
    /// `role`, `removed`, `unknown`, `certificate`, `version`, `not_tls`, `broken_off`.
    pub reason: &'static str,
    /// The same for people.
    pub why: String,
}

impl fmt::Display for HandshakeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for HandshakeFault {}

impl HandshakeFault {
    fn of(reason: &'static str, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
    }

    /// What the error of a handshake with [`LiveTrust::https_config`] means.
    pub fn of_error(error: &std::io::Error) -> Self {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))) => {
                match cause.downcast_ref::<Self>() {
                    Some(fault) => fault.clone(),
                    None => Self::of("certificate", cause.to_string()),
                }
            }
            Some(rustls::Error::NoCertificatesPresented) => {
                Self::of("no_certificate", "the client showed no certificate")
            }
            Some(rustls::Error::InvalidMessage(_)) => Self::of("not_tls", "what the client sent is no TLS"),
            Some(rustls::Error::PeerIncompatible(why)) => {
                Self::of("version", format!("the client does not speak TLS 1.3 as it is needed ({why:?})"))
            }
            Some(rustls::Error::AlertReceived(alert)) => Self::of(
                "broken_off",
                format!("the client broke off ({alert:?}); does it have this cluster's root as its CA?"),
            ),
            Some(other) => Self::of("certificate", other.to_string()),
            None => Self::of("broken_off", format!("the connection ended in the handshake ({error})")),
        }
    }
}

impl LiveTrust {
    /// What a listener for HTTP serves with, now and after every [`swap`](Self::swap). `alpn` are
    /// the protocols it speaks, the best first; a client that names none is taken all the same.
    pub fn https_config(&self, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
        let listener = Arc::new(Listener(self.clone()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider speaks TLS 1.3")
            .with_client_cert_verifier(listener.clone())
            .with_cert_resolver(listener);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Arc::new(config)
    }

    /// Who is at the other end of a connection whose handshake with
    /// [`https_config`](Self::https_config) is complete.
    ///
    /// # Errors
    /// [`HandshakeFault`] if it showed no certificate, which such a handshake does not allow.
    pub fn https_peer(&self, connection: &rustls::ServerConnection) -> Result<HttpsPeer, HandshakeFault> {
        let chain = connection.peer_certificates().unwrap_or_default();
        let chain: Arc<[_]> = chain.iter().map(|cert| cert.clone().into_owned()).collect();
        let leaf = chain.first().ok_or(HandshakeFault::of("no_certificate", "there is no certificate"))?;
        let unfit = |refusal: Refusal| HandshakeFault::of("certificate", refusal.to_string());
        let identity = Identity::from_cert(leaf).map_err(unfit)?;
        let ends = validity_of(leaf).map_err(unfit)?.1;
        Ok(HttpsPeer { identity, chain, ends })
    }

    /// Waits until what is known of `peer` lets it in; nothing of it is to be served before.
    ///
    /// # Errors
    /// [`HandshakeFault`] if nothing becomes known of it.
    pub async fn https_admitted(&self, peer: &HttpsPeer) -> Result<(), HandshakeFault> {
        let unknown = |refusal: Refusal| HandshakeFault::of("unknown", refusal.to_string());
        self.wait_admitted(&peer.identity).await.map_err(unknown)?;
        self.note_seen(&peer.identity, &peer.chain);
        Ok(())
    }

    /// Whether `peer` would be let in at `now`: asked again of open connections when
    /// [`changed`](Self::changed) says so, and as time goes by.
    ///
    /// # Errors
    /// [`HandshakeFault`] with the reason.
    pub fn still_admits(&self, peer: &HttpsPeer, now: SystemTime) -> Result<(), HandshakeFault> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let now = UnixTime::since_unix_epoch(since);
        check(self, &self.current(), &peer.chain[0], &peer.chain[1..], now)
    }
}

/// The whole check of a client's certificates.
fn check(
    live: &LiveTrust,
    trust: &Trust,
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), HandshakeFault> {
    trust.believed.verify_client(leaf, others, now).map_err(|error| {
        let why = format!("the client: {}", certificate_error(&error));
        HandshakeFault::of(reason_of(&error), why)
    })?;
    let identity = Identity::from_cert(leaf)
        .map_err(|refusal| HandshakeFault::of("certificate", refusal.to_string()))?;
    if crate::planted!(SkipDoorCheck) {
        return Ok(());
    }
    let succeeds = |cluster| live.succeeds(cluster);
    admit(&identity, Purpose::Client, trust.identity.cluster, succeeds).map_err(|refusal| {
        let reason = if identity.cluster == trust.identity.cluster { "role" } else { "other_cluster" };
        HandshakeFault::of(reason, format!("{} {}: {refusal}", identity.role, identity.node))
    })?;
    live.admitted(&identity).map(drop).map_err(|refusal| {
        HandshakeFault::of("removed", format!("{} {}: {refusal}", identity.role, identity.node))
    })
}

fn reason_of(error: &rustls::Error) -> &'static str {
    use CertificateError::*;
    match error {
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => "expired",
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => UNKNOWN_ROOT,
        _ => "certificate",
    }
}

#[derive(Debug)]
struct Listener(LiveTrust);

impl ResolvesServerCert for Listener {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().key.clone())
    }
}

impl ClientCertVerifier for Listener {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whoever knocks is told nothing about the cluster.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match check(&self.0, &self.0.current(), leaf, others, now) {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(fault) => Err(CertificateError::Other(OtherError(Arc::new(fault))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
