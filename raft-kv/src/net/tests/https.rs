//! The HTTPS door's TLS, both ends in memory: who is let in, and who may stay.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

use super::super::tls::provider;
use super::*;
use crate::pki::TLS_NAME;
use crate::types::Standing;

/// A whole handshake between `live`'s door and one who shows `own`; what the door makes of it.
fn handshake(live: &LiveTrust, own: &Credentials) -> Result<HttpsPeer, HandshakeFault> {
    let der = |all: &[Vec<u8>]| all.iter().cloned().map(CertificateDer::from).collect::<Vec<_>>();
    let mut roots = RootCertStore::empty();
    for root in der(&live.credentials().roots) {
        roots.add(root).unwrap();
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = if own.chain.is_empty() {
        config.with_no_client_auth()
    } else {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.clone()));
        config.with_client_auth_cert(der(&own.chain), key).unwrap()
    };
    let name = ServerName::try_from(TLS_NAME).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(live.https_config(&[b"h2"])).unwrap();
    while server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut &wire[..]).unwrap();
        server
            .process_new_packets()
            .map_err(|error| HandshakeFault::of_error(&std::io::Error::other(error)))?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut &wire[..]).unwrap();
        client.process_new_packets().expect("the door shows the right certificate");
    }
    live.https_peer(&server)
}

fn door(authority: &Authority) -> LiveTrust {
    LiveTrust::new(authority.node(1, Role::Manager)).unwrap()
}

#[test]
fn managers_and_clients_of_the_cluster_get_in_and_nobody_else() {
    let ours = Authority::new(CLUSTER);
    let renamed = Authority {
        root: RootKey::from_parts(ours.root.cert_der(), ours.root.key_der()).unwrap(),
        cluster: ClusterId(0xc2),
    };
    let live = door(&ours);
    live.set_standing(
        |who| if who.node == NodeId(66) { Standing::Removed } else { Standing::Known(who.role) },
    );
    let check = |own: Credentials, expect: Result<Role, &str>| {
        let got = handshake(&live, &own);
        match (got, expect) {
            (Ok(peer), Ok(role)) => {
                assert_eq!(peer.identity(), own.identity().unwrap());
                assert_eq!((peer.identity().role, peer.leaf()), (role, &own.chain[0][..]));
                assert_eq!(live.still_admits(&peer, SystemTime::now()), Ok(()));
                let late = live.still_admits(&peer, peer.ends() + DAY).unwrap_err();
                assert_eq!(late.reason, "expired");
            }
            (Err(fault), Err(reason)) => assert_eq!(fault.reason, reason, "{fault}"),
            (got, expect) => panic!("{got:?}, not {expect:?}"),
        }
    };
    check(ours.node(2, Role::Client), Ok(Role::Client));
    check(ours.node(2, Role::Manager), Ok(Role::Manager));
    check(Credentials::default(), Err("no_certificate"));
    check(ours.node(2, Role::Worker), Ok(Role::Worker));
    check(renamed.node(2, Role::Client), Err("other_cluster"));
    check(Authority::new(CLUSTER).node(2, Role::Client), Err("unknown_root"));
    check(ours.node_at(2, Role::Client, SystemTime::now() - 100 * DAY), Err("expired"));
    check(ours.node_at(2, Role::Client, SystemTime::now() + DAY), Err("certificate"));
    check(ours.node(66, Role::Manager), Err("removed"));
}

#[test]
fn what_is_in_force_counts_at_once() {
    let (old, new) = (Authority::new(CLUSTER), Authority::new(CLUSTER));
    let live = door(&old);
    let peer = handshake(&live, &old.node(2, Role::Client)).unwrap();
    let mut changed = live.changed();
    live.swap(new.node(1, Role::Manager)).unwrap();
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    assert_eq!(live.still_admits(&peer, SystemTime::now()).unwrap_err().reason, "unknown_root");
    assert_eq!(handshake(&live, &old.node(2, Role::Client)).unwrap_err().reason, "unknown_root");
    let peer = handshake(&live, &new.node(2, Role::Client)).unwrap();
    live.set_standing(
        |who| if who.node == NodeId(2) { Standing::Removed } else { Standing::Known(who.role) },
    );
    assert!(changed.has_changed().unwrap());
    assert_eq!(live.still_admits(&peer, SystemTime::now()).unwrap_err().reason, "removed");
}

#[cfg(feature = "sim")]
#[test]
fn a_door_that_does_not_check_is_found_out() {
    use crate::planted::{self, Bug};
    let ours = Authority::new(CLUSTER);
    let live = door(&ours);
    live.set_standing(|_| Standing::Removed);
    let removed = ours.node(66, Role::Worker);
    planted::with(Some(Bug::SkipDoorCheck), || assert!(handshake(&live, &removed).is_ok()));
    assert_eq!(handshake(&live, &removed).unwrap_err().reason, "removed");
}
