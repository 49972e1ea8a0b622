//! What a handshake costs: a listener's with all of this project's checks, beside rustls alone with its own
//! verifier, the same certificates and the same client. In memory: no socket, no other work. Sessions are not
//! resumed, so that each handshake pays for its certificates.

use std::hint::black_box;
use std::sync::Arc;
use std::time::SystemTime;

use criterion::{Criterion, criterion_group, criterion_main};
use raft_kv::net::LiveTrust;
use raft_kv::pki::{Credentials, LEAF_VALIDITY, NodeKey, RootKey, Subject, issue};
use raft_kv::types::{ClusterId, NodeId, Role};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn credentials(root: &RootKey, node: u64, role: Role) -> Credentials {
    let (key, cluster) = (NodeKey::generate(), ClusterId(1));
    let subject =
        Subject { cluster, node: NodeId(node), role, name: "bench".into(), hosts: vec!["localhost".into()] };
    let leaf = issue(root, &subject, &key.public(), SystemTime::now(), LEAF_VALIDITY, &mut rand::rng());
    Credentials {
        chain: vec![leaf.unwrap()],
        key: key.der().to_vec(),
        roots: vec![root.cert_der().to_vec()],
        ..Default::default()
    }
}

fn roots(of: &Credentials) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    of.roots.iter().for_each(|root| store.add(root.clone().into()).unwrap());
    Arc::new(store)
}

fn own(of: &Credentials) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = of.chain.iter().map(|cert| cert.clone().into()).collect();
    (chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(of.key.clone())))
}

fn client(of: &Credentials) -> Arc<ClientConfig> {
    let (chain, key) = own(of);
    let builder = ClientConfig::builder_with_provider(provider());
    let mut config = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots(of))
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn rustls_alone(of: &Credentials) -> Arc<ServerConfig> {
    let (chain, key) = own(of);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(of), provider()).build().unwrap();
    let builder = ServerConfig::builder_with_provider(provider());
    let mut config = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// A whole handshake; the listener's end of it.
fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> ServerConnection {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let mut bytes = Vec::with_capacity(8192);
    while client.is_handshaking() || server.is_handshaking() {
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets().unwrap();
        bytes.clear();
    }
    server
}

fn handshake(criterion: &mut Criterion) {
    let root = RootKey::generate(ClusterId(1), SystemTime::now());
    let (member, alice) = (credentials(&root, 1, Role::Manager), credentials(&root, 2, Role::Client));
    let client = client(&alice);
    let mut group = criterion.benchmark_group("a handshake, both ends, certificates both ways");
    let alone = rustls_alone(&member);
    group.bench_function("rustls alone", |bencher| bencher.iter(|| black_box(shake(&client, &alone))));
    let live = LiveTrust::new(member).unwrap();
    let listener = live.https_config(&[]);
    group.bench_function("a member's listener, identity read and let in", |bencher| {
        bencher.iter(|| {
            // As the door does it.
            let changed = live.changed();
            let server = shake(&client, &listener);
            let peer = live.https_peer(&server).unwrap();
            if changed.has_changed().unwrap() {
                live.still_admits(&peer, SystemTime::now()).unwrap();
            }
            black_box((server, peer))
        });
    });
    group.finish();
}

criterion_group! { name = handshakes; config = Criterion::default().without_plots(); targets = handshake }
criterion_main!(handshakes);
