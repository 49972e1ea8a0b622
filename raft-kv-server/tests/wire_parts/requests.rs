//! Requests for certificates over the wire, from whoever has a token or a certificate: what they ask for
//! counts for nothing. Each is answered with what the cluster decided, or with a refusal that says why.

use bytes::Bytes;
use raft_kv::client::Handle;
use raft_kv::client::api::{Answered, Call, JoinRequest, Reply};
use raft_kv::codec::Wire;
use raft_kv::limits::{MAX_CSR_BYTES, MAX_JOIN_FRAME_BYTES};
use raft_kv::net::Dialer;
use raft_kv::pki::{Identity, JoinToken, NodeKey, name_of, validity_of};
use raft_kv::types::{ClusterId, EnrolRequest, Role, TrustCall, TrustReply};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::story::{Story, blocking, gather, word};

type Change = Box<dyn Fn(&mut CertificateParams)>;

/// A request, and what is in its refusal; `None`: it is granted.
struct Asked {
    what: &'static str,
    request: Vec<u8>,
    refused: Option<&'static str>,
}

fn request(change: impl Fn(&mut CertificateParams)) -> Vec<u8> {
    signed(&KeyPair::generate().unwrap(), change)
}

fn signed(key: &KeyPair, change: impl Fn(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

fn named(pairs: Vec<(DnType, String)>) -> Change {
    Box::new(move |it| {
        for (kind, value) in &pairs {
            it.distinguished_name.push(kind.clone(), value.as_str());
        }
    })
}

fn alternatives(all: Vec<SanType>) -> Change {
    Box::new(move |it| it.subject_alt_names.clone_from(&all))
}

fn extension(oid: &'static [u64], critical: bool, content: Vec<u8>) -> Change {
    Box::new(move |it| {
        let mut extension = CustomExtension::from_oid_content(oid, content.clone());
        extension.set_criticality(critical);
        it.custom_extensions.push(extension);
    })
}

/// Requests by somebody who wants more than he gets.
fn greedy(cluster: ClusterId) -> Vec<(&'static str, Change)> {
    use DnType::{CommonName as CN, OrganizationName as O, OrganizationalUnitName as OU};
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
    vec![
        ("nothing", Box::new(|_| {})),
        (
            "a manager's names",
            named(vec![(CN, "00000000000000a1".into()), (OU, "manager".into()), (O, cluster.to_string())]),
        ),
        ("the user root", named(vec![(CN, "root".into())])),
        ("another cluster", named(vec![(O, "00000000000000c2".into())])),
        (
            "an id of its choice",
            named(vec![(DnType::CustomDnType(vec![2, 5, 4, 5]), "00000000000000a1".into())]),
        ),
        ("odd characters", named(vec![(CN, "root\0,OU=manager/CN=root\u{202e}\u{fffd}".into())])),
        (
            "several URIs",
            alternatives(vec![uri("spiffe://a/manager"), uri("spiffe://b/root"), uri("http://[::1]/")]),
        ),
        (
            "addresses",
            alternatives(vec![SanType::IpAddress([10, 0, 0, 1].into()), SanType::IpAddress([0; 16].into())]),
        ),
        ("host names", alternatives(vec![dns("raft-kv"), dns("*"), dns("*.example"), dns("localhost")])),
        ("mail", alternatives(vec![SanType::Rfc822Name("root@example".try_into().unwrap())])),
        (
            "an authority's",
            Box::new(|it| {
                it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                it.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            }),
        ),
        (
            "any usage",
            Box::new(|it| {
                it.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::Any, ExtendedKeyUsagePurpose::ServerAuth]
            }),
        ),
        ("basic constraints by hand", extension(&[2, 5, 29, 19], true, vec![0x30, 3, 1, 1, 0xff])),
        ("a critical extension", extension(&[1, 2, 3, 4], true, vec![5, 0])),
        ("an extension of 6 KiB", extension(&[2, 5, 29, 99], false, vec![0xff; 6 * 1024])),
        ("an extension that is no ASN.1", extension(&[2, 5, 29, 17], false, b"\xff\xfe\xfd".to_vec())),
    ]
}

/// Requests that are none. Those beyond a frame's size are somewhere else.
fn bad() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = request(|_| {});
    let mut unsigned = good.clone();
    *unsigned.last_mut().unwrap() ^= 1;
    let huge = request(|it| {
        let names = (0..1000).map(|n| SanType::DnsName(format!("host-{n}").try_into().unwrap()));
        it.subject_alt_names.extend(names);
    });
    assert!((MAX_CSR_BYTES..MAX_JOIN_FRAME_BYTES).contains(&huge.len()));
    let mut other_key = good.clone();
    // The key within, not the signature.
    let at = good.windows(4).position(|part| part == [3, 0x42, 0, 4]).unwrap() + 10;
    other_key[at] ^= 1;
    let of_kind = |kind| {
        let key = KeyPair::generate_for(kind).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    };
    vec![
        ("nothing at all", vec![], "can't be read"),
        ("text", "\u{ff}\u{fe} not a request".as_bytes().to_vec(), "can't be read"),
        ("one cut short", good[..good.len() - 1].to_vec(), "can't be read"),
        ("one with more behind it", [&good[..], &[0]].concat(), "after its end"),
        ("one with a bent signature", unsigned, "request"),
        ("one with another's key", other_key, "not signed by its own key"),
        ("1000 names", huge, "too large"),
        ("Ed25519", of_kind(&rcgen::PKCS_ED25519), "not of the kind"),
        ("P-384", of_kind(&rcgen::PKCS_ECDSA_P384_SHA384), "not of the kind"),
    ]
}

fn asked(cluster: ClusterId) -> Vec<Asked> {
    let greedy = greedy(cluster).into_iter();
    let granted = greedy.map(|(what, change)| Asked { what, request: request(change), refused: None });
    let refused = bad().into_iter();
    granted.chain(refused.map(|(what, request, why)| Asked { what, request, refused: Some(why) })).collect()
}

/// What of a certificate must be the same whoever asks: its extensions without what depends on the key.
fn extensions(leaf: &[u8]) -> Vec<(String, bool, Vec<u8>)> {
    let (_, cert) = X509Certificate::from_der(leaf).unwrap();
    let all = cert.extensions().iter().filter(|it| it.oid.to_id_string() != "2.5.29.14");
    all.map(|it| (it.oid.to_id_string(), it.critical, it.value.to_vec())).collect()
}

/// That `leaf` is what the cluster makes for that role and name, and nothing of what was asked for.
fn check_leaf(
    what: &str,
    leaf: &[u8],
    cluster: ClusterId,
    role: Role,
    name: &str,
    hosts: &[&str],
    plain: &[u8],
) {
    // Strict: one of each field, no others.
    let is = Identity::from_cert(leaf).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((is.cluster, is.role), (cluster, role), "{what}");
    assert_eq!(name_of(leaf), (role == Role::Client).then(|| name.to_owned()), "{what}");
    assert_ne!(is.node.0, 0xa1, "{what}: an id of its choice");
    let (_, cert) = X509Certificate::from_der(leaf).unwrap();
    assert!(!cert.is_ca(), "{what}");
    let usage = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth == (role == Role::Manager) && !usage.any, "{what}");
    assert_eq!(cert.key_usage().unwrap().unwrap().value.flags, 1, "{what}");
    let names = cert.subject_alternative_name().unwrap().unwrap();
    let names: Vec<String> = names
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
            other => panic!("{what}: {other:?}"),
        })
        .collect();
    assert_eq!(names, hosts, "{what}");
    assert_eq!(extensions(leaf), extensions(plain), "{what}");
    let lasts =
        |leaf: &[u8]| validity_of(leaf).map(|(from, until)| until.duration_since(from).unwrap()).unwrap();
    assert_eq!(lasts(leaf), lasts(plain), "{what}");
}

/// Sends bytes as somebody with a token; the chain's first certificate, or the refusal.
async fn send(at: &[String], token: &JoinToken, bytes: Bytes) -> Result<Bytes, String> {
    let dialer = Dialer::join(at, token).await.map_err(|error| error.to_string())?;
    let answer = dialer.call(bytes).await.map_err(|error| error.to_string())?;
    let (_, reply) = Answered::from_bytes(answer).unwrap().map_err(|error| error.to_string())?;
    match reply {
        Reply::Trust(TrustReply::Certificate { chain, .. }) => Ok(chain[0].clone()),
        Reply::Joined(joined) => Ok(joined.chain[0].clone()),
        other => panic!("{other:?}"),
    }
}

/// One who sends too many that can't be read waits; so does this.
async fn patiently(at: &[String], token: &JoinToken, bytes: Bytes) -> Result<Bytes, String> {
    loop {
        match send(at, token, bytes.clone()).await {
            Err(why) if why.contains("try again") => {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await
            }
            other => return other,
        }
    }
}

fn is_refused(what: &str, told: &Result<Bytes, String>, part: &str) {
    let why = told.as_ref().map(|_| "granted").unwrap_err();
    assert!(why.contains(part), "{what}: no {part:?} in {why}");
}

#[test]
fn a_request_yields_what_the_cluster_decided_or_a_refusal() {
    let mut story = Story::new();
    gather(&mut story);
    let at = vec![story.members[0].quic.addr.to_string()];
    let cluster: ClusterId = story.members[0].member.cluster.parse().unwrap();
    let mut tokens = Vec::new();
    for role in [Role::Client, Role::Worker, Role::Manager] {
        let words = ["token", "create", role.as_str()];
        let token = word(&story.ask(0, &words, true), "token");
        tokens.push((role, token.parse::<JoinToken>().unwrap()));
    }
    let nodes = |story: &mut Story| story.ask(0, &["node", "ls"], false)["nodes"].as_array().unwrap().len();
    blocking(async {
        for (role, token) in &tokens[..2] {
            enrol(&at, cluster, *role, token).await;
        }
    });
    let before = nodes(&mut story);
    blocking(names_and_sizes(&at, &tokens));
    blocking(join(&at, &tokens[2].1));
    assert_eq!(nodes(&mut story), before, "who was refused is no node");
    certified(&story, cluster);
    // One manager more: hosts are where it says it is reached, and nothing else is.
    let leaf = blocking(patiently(
        &at,
        &tokens[2].1,
        join_call(&tokens[2].1, "late", "127.0.0.9:1", greedy_manager(cluster)),
    ));
    let own = Bytes::from(story.credentials(0).chain[0].clone());
    let hosts =
        ["raft-kv", "[127, 0, 0, 9]", "localhost", "[127, 0, 0, 1]", &format!("{:?}", 1u128.to_be_bytes())];
    let leaf = leaf.unwrap();
    let expect: Vec<_> = extensions(&own).into_iter().filter(|(oid, ..)| oid != "2.5.29.17").collect();
    let found: Vec<_> = extensions(&leaf).into_iter().filter(|(oid, ..)| oid != "2.5.29.17").collect();
    assert_eq!(found, expect);
    check_leaf("a manager", &leaf, cluster, Role::Manager, "", &hosts, &leaf);
    story.ask(0, &["node", "rm", "late"], false);
}

fn greedy_manager(cluster: ClusterId) -> Vec<u8> {
    let all = greedy(cluster);
    request(|it| {
        for (_, change) in all.iter().filter(|(what, _)| !what.contains("ASN.1") && !what.contains("by hand"))
        {
            change(it);
        }
        it.custom_extensions.retain(|it| it.content().len() < 1000);
    })
}

/// Enrols with each request.
async fn enrol(at: &[String], cluster: ClusterId, role: Role, token: &JoinToken) {
    let secret = token.secret.to_text();
    let call = |request: Vec<u8>, name: &str| {
        Call::Enrol(EnrolRequest {
            secret: secret.clone().into(),
            request: request.into(),
            name: name.into(),
        })
        .to_bytes()
    };
    let plain = send(at, token, call(NodeKey::generate().request(), "plain")).await.unwrap();
    for (number, Asked { what, request, refused }) in asked(cluster).into_iter().enumerate() {
        let name = format!("asks-{role}-{number}");
        let told = patiently(at, token, call(request, &name)).await;
        match refused {
            None => {
                let leaf = told.unwrap_or_else(|why| panic!("{what}: {why}"));
                check_leaf(what, &leaf, cluster, role, &name, &["raft-kv"], &plain);
            }
            Some(part) => is_refused(what, &told, part),
        }
    }
}

/// Names that are none, roles that the token is not for, and what is too large for any request.
async fn names_and_sizes(at: &[String], tokens: &[(Role, JoinToken)]) {
    let (client, manager) = (&tokens[0].1, &tokens[2].1);
    let call = |token: &JoinToken, request: Vec<u8>, name: &str| {
        let secret = token.secret.to_text().into();
        Call::Enrol(EnrolRequest { secret, request: request.into(), name: name.into() }).to_bytes()
    };
    let good = || NodeKey::generate().request();
    let long = "n".repeat(129);
    for name in [
        "",
        "root",
        "../../etc",
        "a b",
        "a\0",
        "a,OU=manager",
        "é",
        "\u{202e}toor",
        &long,
        &"n".repeat(20_000),
    ] {
        let told = patiently(at, client, call(client, good(), name)).await;
        is_refused(&format!("the name {:.20?}", name), &told, "name");
    }
    is_refused(
        "a manager's token",
        &patiently(at, manager, call(manager, good(), "x")).await,
        "for the role manager",
    );
    // A frame of 1 MiB: nobody keeps so much for a stranger.
    let told = patiently(at, client, call(client, vec![0x30; 1024 * 1024], "huge")).await;
    assert!(told.is_err(), "1 MiB is granted");
    // A name that is no UTF-8.
    let mut bytes = call(client, good(), "name-in-bytes").to_vec();
    let at_name = bytes.windows(13).position(|part| part == b"name-in-bytes").unwrap();
    bytes[at_name..at_name + 2].copy_from_slice(b"\xff\xfe");
    is_refused("no UTF-8", &patiently(at, client, bytes.into()).await, "UTF-8");
}

fn join_call(token: &JoinToken, name: &str, addr: &str, request: Vec<u8>) -> Bytes {
    Call::Join(JoinRequest {
        secret: token.secret.to_text().into(),
        request: request.into(),
        name: name.into(),
        addr: addr.into(),
        client_url: String::new(),
    })
    .to_bytes()
}

/// Joins that come to nothing.
async fn join(at: &[String], token: &JoinToken) {
    let good = || NodeKey::generate().request();
    for (what, request, part) in bad() {
        let told = patiently(at, token, join_call(token, "three", "127.0.0.9:1", request)).await;
        is_refused(what, &told, part);
    }
    let far = format!("{}:1", "h".repeat(5000));
    for (name, addr, part) in [
        ("", "127.0.0.9:1", "name"),
        ("a/b", "127.0.0.9:1", "name"),
        ("three", "", "address"),
        ("three", "no port", "address"),
        ("three", "h\0st:1", "address"),
        ("three", &far, "address"),
    ] {
        let told = patiently(at, token, join_call(token, name, addr, good())).await;
        is_refused(&format!("{name:?} at {addr:.20?}"), &told, part);
    }
}

/// Renewals and certificates for others, by those who have a certificate.
fn certified(story: &Story, cluster: ClusterId) {
    let at = vec![story.members[0].quic.addr.to_string()];
    let tester = raft_kv::net::read_credentials_in(&story.at("tester")).unwrap();
    let was = tester.identity().unwrap();
    blocking(async {
        let manager = Handle::connect(&at, story.credentials(0)).await.unwrap();
        let issue = async |name: &str, request: Vec<u8>| {
            let issued = manager.issue_certificate(name, Role::Client, request.into()).await;
            issued.map(|(chain, _)| chain[0].clone()).map_err(|error| error.to_string())
        };
        let plain = issue("plain", NodeKey::generate().request()).await.unwrap();
        let huge = [&request(|_| {})[..], &vec![0; 1024 * 1024]].concat();
        let more = Asked { what: "1 MiB", request: huge, refused: Some("too large") };
        for Asked { what, request, refused } in asked(cluster).into_iter().chain([more]) {
            let told = issue("for-other", request).await;
            match refused {
                None => {
                    check_leaf(what, &told.unwrap(), cluster, Role::Client, "for-other", &["raft-kv"], &plain)
                }
                Some(part) => is_refused(what, &told, part),
            }
        }
        let manager_role = manager.issue_certificate("m", Role::Manager, request(|_| {}).into()).await;
        assert!(manager_role.is_err(), "a manager comes by joining alone");
        // A client gets its own again, under its own id, and none for anybody else.
        let client = Handle::connect(&at, tester.clone()).await.unwrap();
        let other = client.issue_certificate("root", Role::Client, request(|_| {}).into()).await;
        is_refused(
            "a client for root",
            &other.map(|_| Bytes::new()).map_err(|it| it.to_string()),
            "does not allow",
        );
        let mut own = tester;
        for (what, change) in greedy(cluster) {
            // Each with what it got last: what is older does not renew.
            let client = Handle::connect(&at, own.clone()).await.unwrap();
            let key = KeyPair::generate().unwrap();
            let renewed = client.trust(TrustCall::Renew { request: signed(&key, change).into() }).await;
            let (_, reply) = renewed.unwrap_or_else(|error| panic!("{what}: {error}"));
            let TrustReply::Certificate { chain, .. } = reply else { panic!("{what}: {reply:?}") };
            check_leaf(what, &chain[0], cluster, Role::Client, "tester", &["raft-kv"], &plain);
            assert_eq!(Identity::from_cert(&chain[0]).unwrap(), was, "{what}");
            own.chain = chain.iter().map(|it| it.to_vec()).collect();
            own.key = key.serialize_der();
        }
        let client = Handle::connect(&at, own).await.unwrap();
        for (what, request, part) in bad() {
            let told = client.trust(TrustCall::Renew { request: request.into() }).await;
            let told = told.map(|_| Bytes::new()).map_err(|error| error.to_string());
            is_refused(what, &told, part);
        }
    });
}
