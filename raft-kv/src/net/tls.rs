//! TLS: who proves what to whom, in both directions.
//!
//! The rules themselves are in `pki`; here they are put into rustls' handshake. Sessions are never
//! resumed and nothing is sent early: each connection proves itself anew, with what is valid then.

use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use super::live::LiveTrust;
use crate::error::Refusal;
use crate::pki::{
    Credentials, Identity, Purpose, RootDigest, TLS_NAME, admit, check_dialled, has_name, name_of,
    pinned_root, successor_name,
};
use crate::types::{ClusterId, KeyDigest, NodeId};

fn bad(why: impl Into<String>) -> Refusal {
    Refusal::BadCertificate { why: why.into() }
}

/// The one crypto provider. Always passed explicitly: a process may link others.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// A node at the other end of a connection whose certificate was verified in the handshake, whose
/// cluster and role fit the connection's purpose. Only this file makes one.
#[derive(Clone, Debug)]
pub struct VerifiedPeer {
    identity: Identity,
    name: Option<Arc<str>>,
    chain: Arc<[CertificateDer<'static>]>,
}

impl VerifiedPeer {
    /// Who it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// A client's name.
    pub fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// The certificates it presented, leaf first, in DER.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.chain.iter().map(AsRef::as_ref)
    }

    fn of(connection: &quinn::Connection) -> Result<Option<Self>, Refusal> {
        // rustls has verified this chain, or there is none: the verifiers below see to it.
        let Some(chain) = connection.peer_identity() else { return Ok(None) };
        let chain = chain.downcast::<Vec<CertificateDer<'static>>>().expect("what rustls gives");
        let leaf = chain.first().ok_or_else(|| bad("there is none"))?;
        let (identity, name) = (Identity::from_cert(leaf)?, name_of(leaf).map(Arc::from));
        Ok(Some(Self { identity, name, chain: (*chain).into() }))
    }

    /// What a listener makes of a connection whose handshake is complete. On
    /// [`Purpose::Join`] nobody need prove anything; on every other one there is a peer.
    pub(super) fn accept(
        connection: &quinn::Connection,
        live: &LiveTrust,
    ) -> Result<(Purpose, Option<Self>), Refusal> {
        let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let purpose = data
            .and_then(|data| data.protocol)
            .and_then(|name| Purpose::from_alpn(&name))
            .ok_or_else(|| bad("no protocol of this version was asked for"))?;
        if purpose == Purpose::Join {
            return Ok((purpose, None));
        }
        let peer = Self::of(connection)?.ok_or_else(|| bad("none was presented"))?;
        admit(&peer.identity, purpose, live.identity().cluster, |cluster| live.succeeds(cluster))?;
        live.admitted(&peer.identity)?;
        Ok((purpose, Some(peer)))
    }

    /// Notes on which root its chain rests.
    pub(super) fn note_seen(&self, live: &LiveTrust) {
        live.note_seen(&self.identity, &self.chain);
    }

    /// Whether what was verified in the handshake is believed still.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] with the reason.
    pub(super) fn still_believed(&self, live: &LiveTrust, dialled: bool) -> Result<(), Refusal> {
        let trust = live.current();
        trust.believed.verify(&self.chain[0], &self.chain[1..], UnixTime::now(), dialled)?;
        // Of a node that nothing is known of any more, its records have ended with its certificate.
        live.admitted(&self.identity).map(drop)
    }

    /// What a dialler makes of a connection whose handshake is complete: its verifier has checked
    /// everything already.
    pub(super) fn dialled(connection: &quinn::Connection) -> Result<Self, Refusal> {
        Self::of(connection)?.ok_or_else(|| bad("the node that answers presented none"))
    }
}

/// One node's credentials in the form that rustls uses.
pub(super) struct Trust {
    pub(super) credentials: Credentials,
    pub(super) identity: Identity,
    pub(super) believed: Arc<Believed>,
    pub(super) key: Arc<CertifiedKey>,
    /// The same with the roots behind the chain: a joiner has only a root's digest.
    key_for_joiners: Arc<CertifiedKey>,
}

impl Trust {
    pub(super) fn new(credentials: Credentials) -> Result<Self, Refusal> {
        let identity = credentials.check()?;
        let believed = Arc::new(Believed::new(&credentials)?);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credentials.key.clone()));
        let key = provider().key_provider.load_private_key(key).map_err(|e| bad(e.to_string()))?;
        let chain = certificates(&credentials.chain);
        let mut with_roots = chain.clone();
        with_roots.extend(certificates(&credentials.roots));
        Ok(Self {
            identity,
            believed,
            key: Arc::new(CertifiedKey::new(chain, key.clone())),
            key_for_joiners: Arc::new(CertifiedKey::new(with_roots, key)),
            credentials,
        })
    }
}

/// Which chains are believed.
pub(super) struct Believed {
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
    /// Each root by itself, where there are several.
    single: Vec<(RootDigest, Arc<dyn ClientCertVerifier>)>,
    distrusted: Vec<KeyDigest>,
}

impl std::fmt::Debug for Believed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Believed(..)")
    }
}

type Verifiers = (Arc<dyn ClientCertVerifier>, Arc<WebPkiServerVerifier>);

fn verifiers(roots: &Arc<RootCertStore>) -> Result<Verifiers, Refusal> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| bad(error.to_string()))?;
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(|error| bad(error.to_string()))?;
    Ok((clients, servers))
}

impl Believed {
    fn new(credentials: &Credentials) -> Result<Self, Refusal> {
        let (clients, servers) = verifiers(&root_store(&credentials.roots)?)?;
        let mut single = Vec::new();
        for root in credentials.roots.iter().filter(|_| credentials.roots.len() > 1) {
            let (clients, _) = verifiers(&root_store(std::slice::from_ref(root))?)?;
            single.push((RootDigest::of(root), clients));
        }
        Ok(Self { clients, servers, single, distrusted: credentials.distrusted.clone() })
    }

    /// Refuses a chain that leads over a key which was given up: its root was introduced and taken back,
    /// and still has a certificate of the one that is believed.
    fn check_distrusted(&self, others: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if self.distrusted.is_empty() {
            return Ok(());
        }
        let given_up = |cert: &CertificateDer<'_>| {
            crate::pki::key_of(cert).is_ok_and(|key| self.distrusted.contains(&key))
        };
        if others.iter().any(given_up) { Err(CertificateError::UnknownIssuer.into()) } else { Ok(()) }
    }

    /// Checks a client's chain: valid now, and it leads to a believed root.
    pub(super) fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check_distrusted(others)?;
        self.clients.verify_client_cert(leaf, others, now)
    }

    fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.check_distrusted(others)?;
        let name = ServerName::try_from(TLS_NAME).expect("a fixed name");
        self.servers.verify_server_cert(leaf, others, &name, &[], now).map(drop)
    }

    /// As in a handshake, for a connection that is open; `server`: this node dialled.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        server: bool,
    ) -> Result<(), Refusal> {
        let verified = if server {
            self.verify_server(leaf, others, now)
        } else {
            self.verify_client(leaf, others, now).map(drop)
        };
        verified.map_err(|error| bad(certificate_error(&error)))
    }

    /// The root that a chain rests on by itself, without a certificate of another root in between.
    pub(super) fn rests_on(&self, chain: &[CertificateDer<'_>]) -> Option<RootDigest> {
        let (leaf, others) = chain.split_first()?;
        let now = UnixTime::now();
        let found = self
            .single
            .iter()
            .rev()
            .find(|(_, clients)| clients.verify_client_cert(leaf, others, now).is_ok());
        found.map(|(root, _)| *root)
    }
}

/// The root that the leaf rests on by itself, of those that `credentials` believe; `None` if none.
///
/// # Errors
/// [`Refusal::BadCertificate`] for a root that can't be read.
pub fn root_of(credentials: &Credentials) -> Result<Option<RootDigest>, Refusal> {
    let chain = certificates(&credentials.chain);
    let Some((leaf, others)) = chain.split_first() else { return Ok(None) };
    for root in credentials.roots.iter().rev() {
        let (clients, _) = verifiers(&root_store(std::slice::from_ref(root))?)?;
        if clients.verify_client_cert(leaf, others, UnixTime::now()).is_ok() {
            return Ok(Some(RootDigest::of(root)));
        }
    }
    Ok(None)
}

/// Whether who believes what `believed` does accepts `chain` (leaf first) now: as a dialler's, and, with
/// `server`, as a listener's too.
///
/// # Errors
/// [`Refusal::BadCertificate`] saying why not.
pub fn check_chain(believed: &Credentials, chain: &[Vec<u8>], server: bool) -> Result<(), Refusal> {
    let believed = Believed::new(believed)?;
    let chain = certificates(chain);
    let (leaf, others) = chain.split_first().ok_or_else(|| bad("there is none"))?;
    let now = UnixTime::now();
    believed.verify(leaf, others, now, false)?;
    if server { believed.verify(leaf, others, now, true) } else { Ok(()) }
}

fn certificates(all: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    all.iter().cloned().map(CertificateDer::from).collect()
}

fn root_store(roots: &[Vec<u8>]) -> Result<Arc<RootCertStore>, Refusal> {
    let mut store = RootCertStore::empty();
    for root in certificates(roots) {
        store.add(root).map_err(|_| bad("a root can't be read"))?;
    }
    if store.is_empty() {
        return Err(bad("there is no root to believe in"));
    }
    Ok(Arc::new(store))
}

/// The listening side: reads [`LiveTrust`] in each handshake, so it is built only once.
pub(super) fn server_config(live: LiveTrust) -> quinn::ServerConfig {
    let live = Arc::new(Listener(live));
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3")
        .with_client_cert_verifier(live.clone())
        .with_cert_resolver(live);
    config.alpn_protocols = Purpose::ALL.map(|purpose| purpose.alpn().to_vec()).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    let crypto = QuicServerConfig::try_from(config).expect("TLS 1.3 has the suite that QUIC needs");
    quinn::ServerConfig::with_crypto(Arc::new(crypto))
}

#[derive(Debug)]
struct Listener(LiveTrust);

impl ResolvesServerCert for Listener {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let trust = self.0.current();
        let joins = hello.alpn().is_some_and(|mut names| names.any(|name| name == Purpose::Join.alpn()));
        Some(if joins { trust.key_for_joiners.clone() } else { trust.key.clone() })
    }
}

impl ClientCertVerifier for Listener {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        // A joiner has no certificate yet; `VerifiedPeer::accept` asks everybody else for one.
        false
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
        self.0.current().believed.verify_client(leaf, others, now)
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

/// What a dialler asks of the node that answers.
#[derive(Debug)]
pub(super) enum Expect {
    /// A chain to one of our roots, our cluster, and this node if one is meant.
    /// Or, where `successors` are meant too, of a cluster that was restored from it.
    Member { trust: Arc<Believed>, cluster: ClusterId, node: Option<NodeId>, successors: bool },
    /// A chain to the root that a join token pins.
    Pinned(RootDigest),
}

impl Expect {
    pub(super) fn member(credentials: &Credentials, node: Option<NodeId>) -> Result<Self, Refusal> {
        let cluster = credentials.identity()?.cluster;
        Ok(Self::Member { trust: Arc::new(Believed::new(credentials)?), cluster, node, successors: true })
    }

    pub(super) fn member_of(trust: &Trust, node: Option<NodeId>) -> Self {
        let cluster = trust.identity.cluster;
        Self::Member { trust: trust.believed.clone(), cluster, node, successors: false }
    }
}

/// Checks the answering node within the handshake, before this side has sent its own certificate,
/// and keeps the reason where it refuses: TLS carries none.
#[derive(Debug)]
pub(super) struct DialVerifier {
    expect: Expect,
    why: Mutex<Option<Refusal>>,
    root: Mutex<Option<Vec<u8>>>,
}

impl DialVerifier {
    pub(super) fn new(expect: Expect) -> Arc<Self> {
        Arc::new(Self { expect, why: Mutex::new(None), root: Mutex::new(None) })
    }

    /// Why it refused, if it did.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.why.lock().clone()
    }

    /// The root that the token pinned, once verified.
    pub(super) fn pinned(&self) -> Option<Vec<u8>> {
        self.root.lock().clone()
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let (trust, cluster, node) = match &self.expect {
            Expect::Member { trust, cluster, node, successors } => {
                let succeeds = *successors && has_name(leaf, &successor_name(*cluster));
                (trust.clone(), Some(*cluster).filter(|_| !succeeds), *node)
            }
            Expect::Pinned(digest) => {
                let root = pinned_root(others.iter().map(AsRef::as_ref), digest).ok_or_else(|| {
                    bad("the node that answers does not belong to the token's cluster, or the \
                         token is older than the cluster's root; nothing was sent to it")
                })?;
                *self.root.lock() = Some(root.to_vec());
                let roots = vec![root.to_vec()];
                let pinned = Believed::new(&Credentials { roots, ..Credentials::default() })?;
                (Arc::new(pinned), None, None)
            }
        };
        trust.verify_server(leaf, others, now).map_err(|error| {
            let why = certificate_error(&error);
            let advice = match error {
                // Roots of one cluster share a name: another key under it is another root.
                rustls::Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature,
                ) if cluster.is_some() => {
                    "; if it was replaced, a token of the new one brings a new certificate under the same id: \
                         `raft-kv cert renew --token TOKEN`, for a member `raft-kv run --token TOKEN`"
                }
                _ => "",
            };
            bad(format!("the node that answers: {why}{advice}"))
        })?;
        check_dialled(&Identity::from_cert(leaf)?, cluster, node)
    }
}

impl ServerCertVerifier for DialVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, others, now).map(|()| ServerCertVerified::assertion()).map_err(|refusal| {
            *self.why.lock() = Some(refusal);
            CertificateError::ApplicationVerificationFailure.into()
        })
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

/// The dialling side, for one purpose; without `credentials` only [`Purpose::Join`] gets anywhere.
pub(super) fn client_config(
    purpose: Purpose,
    credentials: Option<&Credentials>,
    verifier: Arc<DialVerifier>,
) -> Result<quinn::ClientConfig, Refusal> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match credentials {
        Some(own) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.clone()));
            builder
                .with_client_auth_cert(certificates(&own.chain), key)
                .map_err(|error| bad(error.to_string()))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![purpose.alpn().to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    let crypto = QuicClientConfig::try_from(config).expect("TLS 1.3 has the suite that QUIC needs");
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

pub(super) fn certificate_error(error: &rustls::Error) -> String {
    use CertificateError::*;
    let rustls::Error::InvalidCertificate(kind) = error else { return error.to_string() };
    match kind {
        Expired | ExpiredContext { .. } => "its certificate has expired, or the clock here is wrong".into(),
        NotValidYet | NotValidYetContext { .. } => {
            "its certificate is not valid yet, or the clock here is wrong".into()
        }
        // Roots of one cluster share a name: another key under it is another root.
        UnknownIssuer | BadSignature => "its certificate comes from a root that is not believed here: it \
                          belongs to another cluster, or the cluster's root was replaced"
            .into(),
        other => format!("its certificate is not valid ({other})"),
    }
}

/// What a TLS alert from the other side means for the one that gets it. `None`: not about us.
pub(super) fn alert_refusal(alert: u64) -> Option<Refusal> {
    let why = match alert {
        45 => {
            "this side's certificate has expired, or a clock is wrong; a token brings another: `raft-kv enrol`, for a \
             member `raft-kv run --token TOKEN`; or `raft-kv cert issue NAME --out DIR --data-dir D` on a machine \
             that runs a member"
        }
        48 | 51 => {
            "this side's certificate comes from a root that is not believed there: it belongs to \
             another cluster, or the cluster's root was replaced; a token brings a new one under the same id: \
             `raft-kv cert renew --token TOKEN`, for a member `raft-kv run --token TOKEN`; `raft-kv cert issue NAME \
             --out DIR --data-dir D` on a machine that runs a member makes one under another, and `raft-kv cert \
             renew --watch` keeps it current from then on"
        }
        44 => "this side's certificate was revoked",
        42 | 43 | 46 | 49 => "the other side does not accept this side's certificate",
        116 => "the other side wants a certificate",
        120 => "the other side does not speak this protocol; are both of one version?",
        _ => return None,
    };
    Some(bad(why))
}
