//! Trust: each door, each wrong certificate.

use super::*;
use crate::error::NotDone;
use crate::types::Standing;

async fn dial(server: &Endpoint, credentials: &Credentials, purpose: Purpose) -> Result<Dialer, Error> {
    Dialer::connect(&[addr(server)], credentials, purpose).await
}

async fn try_join(shown: &Authority, token: &JoinToken) -> Result<Dialer, Error> {
    let server = shown.manager(1);
    serve_echo(server.clone());
    let dialer = Dialer::join(&[addr(&server)], token).await?;
    assert_eq!(&dialer.call("hello".into()).await?[..], b"nobody:hello");
    Ok(dialer)
}

#[test]
fn a_joiner_believes_the_pinned_root_and_no_other() {
    run(async {
        let (ours, theirs) = (Authority::new(CLUSTER), Authority::new(CLUSTER));
        let dialer = try_join(&ours, &ours.token()).await.unwrap();
        assert_eq!(dialer.root().unwrap(), ours.root.cert_der());
        assert_eq!(dialer.server().cluster, CLUSTER);
        refused(try_join(&theirs, &ours.token()).await, "does not belong to the token's cluster");
    });
}

#[test]
fn a_man_in_the_middle_who_shows_the_true_root_gets_nowhere() {
    run(async {
        let (ours, theirs) = (Authority::new(CLUSTER), Authority::new(CLUSTER));
        // His own leaf, with the cluster's public root behind it.
        let mut shown = theirs.node(1, Role::Manager);
        shown.roots.push(ours.root.cert_der().to_vec());
        let server = bind(shown, 0);
        serve_echo(server.clone());
        refused(Dialer::join(&[addr(&server)], &ours.token()).await, "not believed here");
        // A client's true certificate does not make him a manager either.
        let mut client = ours.node(1, Role::Client);
        client.roots = vec![ours.root.cert_der().to_vec()];
        let server = bind(client, 0);
        serve_echo(server.clone());
        refused(Dialer::join(&[addr(&server)], &ours.token()).await, "the node that answers");
    });
}

#[test]
fn without_a_certificate_only_joining_is_possible() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        serve_echo(server.clone());
        for purpose in [Purpose::Peer, Purpose::Bulk, Purpose::Client] {
            let (to, believes) = (addr(&server), ours.node(2, Role::Manager));
            let result = super::super::dial::without_certificate(&to, &believes, purpose);
            refused(result.await, "none was presented");
        }
        assert!(server.connections().is_empty());
    });
}

#[test]
fn each_role_opens_its_own_doors() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        serve_echo(server.clone());
        for (role, open) in [
            (Role::Manager, [true, true, true, true]),
            (Role::Client, [false, false, true, true]),
            (Role::Worker, [false, false, true, true]),
        ] {
            let credentials = ours.node(2, role);
            for (purpose, open) in Purpose::ALL.into_iter().zip(open) {
                let result = dial(&server, &credentials, purpose).await;
                if open {
                    result.unwrap();
                } else {
                    refused(result, &format!("a {role} certificate does not allow"));
                }
            }
        }
    });
}

#[test]
fn strangers_and_the_outdated_are_told_why() {
    run(async {
        let (ours, theirs) = (Authority::new(CLUSTER), Authority::new(ClusterId(0xc2)));
        let server = ours.manager(1);
        serve_echo(server.clone());
        let mut stranger = theirs.node(2, Role::Client);
        refused(
            dial(&server, &stranger, Purpose::Client).await,
            "the node that answers: its certificate comes from a root",
        );
        // A stranger that believes us is still one.
        stranger.roots = vec![ours.root.cert_der().to_vec()];
        refused(dial(&server, &stranger, Purpose::Client).await, "belongs to another cluster");
        // One root, another cluster's name.
        let renamed = Authority {
            root: RootKey::from_parts(ours.root.cert_der(), ours.root.key_der()).unwrap(),
            cluster: ClusterId(0xc2),
        };
        let own = bind(renamed.node(2, Role::Manager), 0);
        refused(own.dialer(&addr(&server), None).await, "belongs to another cluster");
        let old = ours.node_at(2, Role::Client, SystemTime::now() - 100 * DAY);
        refused(dial(&server, &old, Purpose::Client).await, "has expired");
        let early = ours.node_at(2, Role::Client, SystemTime::now() + DAY);
        refused(dial(&server, &early, Purpose::Client).await, "certificate");
        let expired = bind(ours.node_at(3, Role::Manager, SystemTime::now() - 100 * DAY), 0);
        serve_echo(expired.clone());
        refused(
            dial(&expired, &ours.node(2, Role::Client), Purpose::Client).await,
            "the node that answers: its certificate has expired",
        );
    });
}

async fn dial_another() -> Result<Dialer, Error> {
    let ours = Authority::new(CLUSTER);
    let (one, two) = (ours.manager(1), ours.manager(2));
    serve_echo(two.clone());
    one.dialer(&addr(&two), Some(NodeId(2))).await.unwrap();
    one.dialer(&addr(&two), Some(NodeId(3))).await
}

#[test]
fn a_dialler_takes_no_other_member_for_the_one_it_means() {
    refused(run(dial_another()), "not 0000000000000003");
}

#[test]
fn a_client_dials_no_node_that_is_not_a_manager() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let fake = bind(ours.node(5, Role::Client), 0);
        serve_echo(fake.clone());
        refused(dial(&fake, &ours.node(2, Role::Client), Purpose::Client).await, "the node that answers");
    });
}

#[test]
fn a_removed_node_is_refused_and_its_connections_can_be_closed() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        serve_echo(server.clone());
        let credentials = ours.node(2, Role::Client);
        let (gone, stays) = (
            dial(&server, &credentials, Purpose::Client).await.unwrap(),
            dial(&server, &ours.node(3, Role::Client), Purpose::Client).await.unwrap(),
        );
        gone.call("x".into()).await.unwrap();
        assert_eq!(server.connections().len(), 2);
        server.live().set_standing(|who| {
            if who.node == NodeId(2) { Standing::Removed } else { Standing::Known(who.role) }
        });
        let why = Refusal::BadCertificate { why: "removed".into() };
        let of =
            |info: &ConnectionInfo| info.peer.as_ref().is_some_and(|peer| peer.identity().node == NodeId(2));
        assert_eq!(server.close_where(of, &why), 1);
        refused(gone.call("x".into()).await, "removed");
        refused(dial(&server, &credentials, Purpose::Client).await, "was removed");
        stays.call("x".into()).await.unwrap();
    });
}

/// Whether a node is served of which `standing` says this.
async fn let_in(standing: Standing) -> Result<Bytes, Error> {
    let ours = Authority::new(CLUSTER);
    let server = ours.manager(1);
    server.live().set_standing(move |_| standing.clone());
    serve_echo(server.clone());
    dial(&server, &ours.node(2, Role::Client), Purpose::Client).await?.call("x".into()).await
}

#[test]
fn a_good_chain_is_not_enough() {
    refused(run(let_in(Standing::Removed)), "was removed");
    refused(run(let_in(Standing::Unknown)), "does not know this node");
    refused(run(let_in(Standing::Known(Role::Worker))), "was not given that role");
    run(let_in(Standing::Known(Role::Client))).unwrap();
}

/// Whether a node with that role, unknown here, is let in once another member has vouched for it.
async fn vouched_for(role: Role) -> Result<Bytes, Error> {
    let ours = Authority::new(CLUSTER);
    let server = ours.manager(1);
    server.live().set_standing(|_| Standing::Unknown);
    serve_echo(server.clone());
    let own = ours.node(2, role);
    let strangers = async {
        // Nobody asks about who is no manager: any word for it is of no use.
        if role == Role::Manager {
            assert_eq!(server.live().strangers().await, [NodeId(2)].into());
        }
        server.live().vouch(NodeId(2));
    };
    let (dialled, ()) = tokio::join!(dial(&server, &own, Purpose::Client), strangers);
    dialled?.call("x".into()).await
}

#[test]
fn a_manager_that_is_not_heard_of_comes_in_on_a_members_word() {
    run(vouched_for(Role::Manager)).unwrap();
    refused(run(vouched_for(Role::Client)), "does not know this node");
    run(async {
        let server = Authority::new(CLUSTER).manager(1);
        server.live().vouch(NodeId(2));
        server.live().set_standing(|_| Standing::Removed);
        assert!(server.live().refuses(NodeId(2)), "what the state says goes before any word");
    });
}

/// Whether a member asks whoever is at an address, where that is one that was removed.
async fn ask_removed() -> Result<Dialer, Error> {
    let ours = Authority::new(CLUSTER);
    let (server, old) = (ours.manager(1), ours.manager(2));
    serve_echo(old.clone());
    server.live().set_standing(|who| {
        if who.node == NodeId(2) { Standing::Removed } else { Standing::Known(who.role) }
    });
    server.dialer(&addr(&old), None).await
}

#[test]
fn who_was_removed_is_not_asked_either() {
    let error = run(ask_removed()).unwrap_err();
    assert!(
        matches!(&error, Error::NotDone(NotDone::Unreachable(why)) if why.contains("was removed")),
        "{error}"
    );
}

#[test]
fn what_becomes_known_in_time_is_let_in() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        server.live().set_standing(|_| Standing::Unknown);
        serve_echo(server.clone());
        let own = ours.node(2, Role::Client);
        let (dialled, ()) = tokio::join!(dial(&server, &own, Purpose::Client), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.live().set_standing(|who| Standing::Known(who.role));
        });
        dialled.unwrap().call("x".into()).await.unwrap();
    });
}

#[test]
fn a_recheck_ends_what_is_not_believed_any_more_on_every_protocol() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        serve_echo(server.clone());
        for (role, purposes) in [
            (Role::Manager, &[Purpose::Peer, Purpose::Bulk, Purpose::Client][..]),
            (Role::Client, &[Purpose::Client]),
        ] {
            for purpose in purposes {
                let gone = dial(&server, &ours.node(2, role), *purpose).await.unwrap();
                let stays = dial(&server, &ours.node(3, role), *purpose).await.unwrap();
                server.live().set_standing(|who| {
                    if who.node == NodeId(2) { Standing::Removed } else { Standing::Known(who.role) }
                });
                assert!(server.recheck(|_| false) > 0, "{role} {purpose:?}");
                let ended = async {
                    while !gone.is_closed() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
                assert!(!stays.is_closed());
                server.live().set_standing(|who| Standing::Known(who.role));
            }
        }
    });
}

#[test]
fn credentials_are_swapped_while_serving() {
    run(async {
        let (old, new) = (Authority::new(CLUSTER), Authority::new(CLUSTER));
        let server = old.manager(1);
        serve_echo(server.clone());
        let before = dial(&server, &old.node(2, Role::Client), Purpose::Client).await.unwrap();
        let mut both = old.node(1, Role::Manager);
        both.roots.push(new.root.cert_der().to_vec());
        server.live().swap(both).unwrap();
        let mut moved = new.node(2, Role::Client);
        moved.roots.push(old.root.cert_der().to_vec());
        dial(&server, &moved, Purpose::Client).await.unwrap();
        server.live().swap(new.node(1, Role::Manager)).unwrap();
        dial(&server, &new.node(2, Role::Client), Purpose::Client).await.unwrap();
        let mut left = old.node(3, Role::Client);
        left.roots.push(new.root.cert_der().to_vec());
        refused(dial(&server, &left, Purpose::Client).await, "not believed there");
        before.call("open connections stay".into()).await.unwrap();
        assert!(server.live().swap(new.node(9, Role::Manager)).is_err());
        assert!(server.live().swap(Credentials::default()).is_err());
    });
}

#[test]
fn requests_are_answered_one_by_one_and_in_streams() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        serve_echo(server.clone());
        let nobody = "127.0.0.1:1".to_owned();
        let client = Dialer::connect(&[addr(&server), nobody], &ours.node(2, Role::Client), Purpose::Client)
            .await
            .unwrap();
        let big = Bytes::from(vec![7; limits::MAX_REQUEST_BYTES]);
        let (one, two) = tokio::join!(client.call("a".into()), client.call(big.clone()));
        assert_eq!(&one.unwrap()[..], b"0000000000000002:a");
        assert_eq!(two.unwrap().len(), big.len() + 17);
        let mut stream = client.open_stream("1".into()).await.unwrap();
        for next in ["2", "3"] {
            assert!(stream.next().await.unwrap().is_some());
            stream.send(next.into()).await.unwrap();
        }
        stream.finish();
        assert_eq!(&stream.next().await.unwrap().unwrap()[..], b"0000000000000002:3");
        assert!(stream.next().await.unwrap().is_none());
        refused(client.call(Bytes::from(vec![0; 2 * big.len()])).await, "the limit is");
        client.call("still here".into()).await.unwrap();
        drop(server);
    });
}

#[test]
fn an_oversize_request_of_a_joiner_is_refused_by_the_listener() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        serve_echo(server.clone());
        let joiner = Dialer::join(&[addr(&server)], &ours.token()).await.unwrap();
        let answer = joiner.call(Bytes::from(vec![0; 100_000])).await.unwrap();
        assert!(answer.starts_with(b"refused: the request has 100000 bytes"), "{answer:?}");
    });
}

#[test]
fn a_listener_that_stops_is_told_apart() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        serve_echo(server.clone());
        let client = dial(&server, &ours.node(2, Role::Client), Purpose::Client).await.unwrap();
        let mut open = client.open_stream("a".into()).await.unwrap();
        open.next().await.unwrap();
        server.close().await;
        assert!(matches!(open.next().await, Err(Error::Unknown(_))));
        assert!(client.is_closed());
        assert!(matches!(client.call("x".into()).await, Err(Error::NotDone(NotDone::Unreachable(_)))));
        assert!(server.accept().await.is_none());
    });
}

#[test]
fn garbage_on_the_port_disturbs_nobody() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        serve_echo(server.clone());
        let client = dial(&server, &ours.node(2, Role::Client), Purpose::Client).await.unwrap();
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for n in 0..500u32 {
            let len = rand::random_range(0..1500);
            let mut junk: Vec<u8> = (0..len).map(|_| rand::random()).collect();
            // Half of them look like the beginning of a handshake.
            if n % 2 == 0 && len > 20 {
                junk[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            }
            socket.send_to(&junk, server.local_addr()).await.unwrap();
        }
        client.call("x".into()).await.unwrap();
        dial(&server, &ours.node(3, Role::Client), Purpose::Client).await.unwrap();
    });
}

#[test]
fn handshakes_that_never_end_leave_room_for_others() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        serve_echo(server.clone());
        // First packets of honest handshakes, sent and never followed up.
        let relay = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = vec![relay.local_addr().unwrap().to_string()];
        let token = ours.token();
        let mut slow = Vec::new();
        for _ in 0..limits::MAX_HANDSHAKES {
            slow.push(Box::pin(Dialer::join(&to, &token)));
        }
        let all = async {
            for dial in &mut slow {
                // Polled just far enough to send.
                let _ = tokio::time::timeout(Duration::from_millis(1), dial).await;
            }
        };
        let pass_on = async {
            let mut packet = [0; 2048];
            loop {
                let len = relay.recv(&mut packet).await.unwrap();
                relay.send_to(&packet[..len], server.local_addr()).await.unwrap();
            }
        };
        tokio::select! { () = all => {}, () = pass_on => {} }
        // Half of the room is for addresses that have proved to be some.
        dial(&server, &ours.node(3, Role::Client), Purpose::Client).await.unwrap();
    });
}

#[test]
fn an_address_in_use_or_of_another_machine_is_named() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let server = ours.manager(1);
        let live = LiveTrust::new(ours.node(2, Role::Manager)).unwrap();
        refused_bind(
            Endpoint::bind(server.local_addr(), live.clone()),
            "it is in use: another process listens there",
        );
        refused_bind(Endpoint::bind("192.0.2.1:0".parse().unwrap(), live), "does not have that address");
        let client = ours.node(3, Role::Client);
        refused(Dialer::connect(&[], &client, Purpose::Client).await, "at least one");
        refused(Dialer::connect(&["no port".into()], &client, Purpose::Client).await, "can't be resolved");
    });
}

#[track_caller]
fn refused_bind(result: Result<Endpoint, Error>, expect: &str) {
    let Err(Error::Refused(refusal)) = result else { panic!("bound") };
    assert!(refusal.to_string().contains(expect), "{refusal}");
}

#[test]
fn credential_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let credentials = Authority::new(CLUSTER).node(2, Role::Client);
    let at = |name| dir.path().join(name);
    for _ in 0..2 {
        write_credentials(dir.path(), &credentials).unwrap();
        let read = read_credentials(&at("cacert.pem"), &at("cert.pem"), &at("key.pem"));
        assert_eq!(read.unwrap(), credentials);
    }
    for name in ["cacert.pem", "cert.pem", "key.pem"] {
        assert_eq!(std::fs::metadata(at(name)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let swapped = read_credentials(&at("cacert.pem"), &at("key.pem"), &at("cert.pem"));
    assert!(swapped.unwrap_err().to_string().contains("cert file"));
    let missing = read_credentials(&at("none"), &at("cert.pem"), &at("key.pem"));
    assert!(missing.unwrap_err().to_string().contains("none"));
}

#[cfg(feature = "sim")]
mod planted {
    use super::*;
    use crate::planted::{Bug, with};

    #[test]
    fn accepting_any_root_is_noticed() {
        let joined = with(Some(Bug::AcceptAnyRoot), || {
            run(async {
                let (ours, theirs) = (Authority::new(CLUSTER), Authority::new(CLUSTER));
                try_join(&theirs, &ours.token()).await.is_ok()
            })
        });
        assert!(joined, "the check above would not see it");
    }

    #[test]
    fn skipping_the_role_check_is_noticed() {
        let open = with(Some(Bug::SkipRoleCheck), || {
            run(async {
                let ours = Authority::new(CLUSTER);
                let server = ours.manager(1);
                serve_echo(server.clone());
                dial(&server, &ours.node(2, Role::Worker), Purpose::Peer).await.is_ok()
            })
        });
        assert!(open, "the check above would not see it");
    }

    #[test]
    fn letting_in_whoever_has_a_good_chain_is_noticed() {
        for (bug, standing) in
            [(Bug::AdmitRemoved, Standing::Removed), (Bug::AdmitUnknown, Standing::Unknown)]
        {
            let served = with(Some(bug), || run(let_in(standing)).is_ok());
            assert!(served, "the check above would not see {bug:?}");
        }
    }

    #[test]
    fn ignoring_a_members_word_is_noticed() {
        assert!(with(Some(Bug::IgnoreWord), || run(vouched_for(Role::Manager))).is_err());
        assert!(with(Some(Bug::AskRemoved), || run(ask_removed())).is_ok());
    }

    #[test]
    fn taking_any_member_is_noticed() {
        assert!(with(Some(Bug::SkipNodeCheck), || run(dial_another())).is_ok());
    }
}
