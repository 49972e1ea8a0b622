//! Roots of the operator's own, with real processes: the examples of docs/external-roots.md as they stand
//! there, and signers that are broken or lie.

mod process;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use process::{Ended, Member, free_address, raft_kv};
use raft_kv::client::api::{Call, Reply};
use raft_kv::client::{Handle, credentials_of, read_own_root};
use raft_kv::pki::RootDigest;
use raft_kv::types::{CaStatus, TrustCall, TrustReply};

fn example(name: &str) -> String {
    format!("{}/../docs/examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A folder with a root and an intermediate, as the example makes them.
fn own_root(folder: &Path) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let made = Command::new(example("own-root.sh")).arg(folder).output().expect("the example runs");
    assert!(made.status.success(), "{made:?}");
    folder.to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The words that give a member the example's signer, with the key in `folder`.
fn signer_words(folder: &Path) -> Vec<String> {
    let mut words = vec!["--external-signer".to_owned(), example("signer.sh")];
    for file in ["signing.pem", "signing.key"] {
        words.extend(["--external-signer-arg".to_owned(), text(&folder.join(file)).to_owned()]);
    }
    words
}

fn first(folder: &Path, more: &[String]) -> Result<Member, Ended> {
    let listen = free_address();
    let mut words = vec!["init", "--name", "one", "--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0"];
    words.extend(more.iter().map(String::as_str));
    Member::start(&words, &folder.join("one"))
}

fn joined(by: &Member, name: &str, folder: &Path, more: &[String]) -> Result<Member, Ended> {
    let (token, listen) = (by.token(), free_address());
    let mut words = vec!["join", "--name", name, "--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0"];
    words.extend(more.iter().map(String::as_str));
    words.extend(["--token", &token, &by.addr]);
    Member::start(&words, &folder.join(name))
}

fn blocking<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(process::DEADLINE, work).await.expect("in time") })
}

fn trust(member: &Member, call: TrustCall) -> Result<TrustReply, String> {
    blocking(async {
        let (credentials, addr) = credentials_of(&member.data_dir).map_err(|error| error.to_string())?;
        let handle = Handle::connect(&[addr], credentials).await.map_err(|error| error.to_string())?;
        let handle = handle.with_patience(Duration::from_secs(40));
        match handle.call(Call::Trust(call)).await {
            Ok((_, Reply::Trust(reply))) => Ok(reply),
            Ok((_, other)) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    })
}

fn status(member: &Member) -> Option<CaStatus> {
    match trust(member, TrustCall::Status) {
        Ok(TrustReply::Status(status)) => Some(status),
        _ => None,
    }
}

/// A TLS client that knows nothing but the root, as `etcdctl` does, shakes hands with the etcd door.
fn shakes_hands(member: &Member, root: &Path) {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    let (credentials, _) = credentials_of(&member.data_dir).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(read_own_root(root, None, None).unwrap().root.to_vec().into()).unwrap();
    let chain = credentials.chain.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credentials.key));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let addr = member.etcd_url.strip_prefix("https://").unwrap().to_owned();
    blocking(async {
        let socket = tokio::net::TcpStream::connect(&addr).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    });
}

#[test]
fn a_cluster_rests_on_an_own_root_with_the_key_inside() {
    let folder = tempfile::tempdir().unwrap();
    let root = own_root(&folder.path().join("ca"));
    let file = |name: &str| text(&root.join(name)).to_owned();
    let words = ["--ca-cert".into(), file("chain.pem"), "--ca-key".into(), file("signing.key")];
    let one = first(folder.path(), &words).unwrap_or_else(|ended| panic!("{ended:?}"));
    let two = joined(&one, "two", folder.path(), &[]).unwrap_or_else(|ended| panic!("{ended:?}"));
    one.ask(&["put", "k", "v"]).json();
    shakes_hands(&one, &root.join("root.pem"));
    shakes_hands(&two, &root.join("root.pem"));
    let shown = status(&one).unwrap();
    let own = read_own_root(&root.join("root.pem"), None, None).unwrap();
    assert_eq!((shown.digests.as_slice(), shown.external), (&[RootDigest::of(&own.root)][..], false));
    // openssl follows the chain too.
    let cert = two.data_dir.join("cert/cert.pem");
    let verified = Command::new("openssl")
        .args(["verify", "-CAfile", &file("root.pem"), "-untrusted", text(&cert), text(&cert)])
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
}

#[test]
fn a_cluster_rests_on_a_key_that_stays_outside_and_is_moved_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let root = own_root(&folder.path().join("ca"));
    let chain = text(&root.join("chain.pem")).to_owned();
    let words = [vec!["--ca-cert".to_owned(), chain], signer_words(&root)].concat();
    let one = first(folder.path(), &words).unwrap_or_else(|ended| panic!("{ended:?}"));
    let two =
        joined(&one, "two", folder.path(), &signer_words(&root)).unwrap_or_else(|ended| panic!("{ended:?}"));
    shakes_hands(&two, &root.join("root.pem"));
    assert!(status(&one).unwrap().external);
    // A client too: what may sign is the signer's to say, what is signed the cluster's.
    let files = folder.path().join("client");
    one.ask(&["cert", "issue", "alice", "--out", text(&files)]).json();

    // The key is on no member's disk.
    let key = std::fs::read_to_string(root.join("signing.key")).unwrap();
    let key = key.lines().nth(2).unwrap().to_owned();
    for member in [&one, &two] {
        let found = Command::new("grep").args(["-rqa", &key, text(&member.data_dir)]).status().unwrap();
        assert!(!found.success());
    }

    // Replaced by one that the cluster makes: the external signer certifies it, members renew by it.
    let late = |settled: &dyn Fn(&CaStatus) -> bool| {
        let mut last = None;
        let deadline = std::time::Instant::now() + process::DEADLINE / 2;
        while !last.as_ref().is_some_and(|it: &CaStatus| it.rotation.is_none() && settled(it)) {
            assert!(std::time::Instant::now() < deadline, "it does not settle: {last:?}");
            // Asked of both: each shows its newest certificate to a listener so.
            last = status(&two).or(last);
            last = status(&one).or(last);
        }
    };
    // The client does not renew: it is not waited for beyond the deadline.
    let rotate = |new| TrustCall::Rotate { new, deadline: 5, stolen: false };
    let old = status(&one).unwrap().digests;
    trust(&one, rotate(None)).unwrap();
    late(&|it| it.digests != old && !it.external);

    // And by another own root whose key stays outside: its cross certificate must come along.
    let next = read_own_root(&root.join("chain.pem"), None, None).unwrap();
    let refused = trust(&one, rotate(Some(next))).unwrap_err();
    assert!(refused.contains("cross certificate"), "{refused}");

    // Another, with the key inside: members renew under it by themselves.
    let other = own_root(&folder.path().join("other"));
    let mine = read_own_root(&other.join("chain.pem"), Some(&other.join("signing.key")), None).unwrap();
    let digest = RootDigest::of(&mine.root);
    trust(&two, rotate(Some(mine.clone()))).unwrap();
    late(&|it| it.digests == [digest]);
    shakes_hands(&one, &other.join("root.pem"));
    shakes_hands(&two, &other.join("root.pem"));
    // The same once more is refused: it is believed already.
    let refused = trust(&one, rotate(Some(mine))).unwrap_err();
    assert!(refused.contains("key"), "{refused}");
    one.ask(&["put", "k", "v"]).json();
}

#[test]
fn bad_roots_are_refused_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let root = own_root(&folder.path().join("ca"));
    let file = |name: &str| text(&root.join(name)).to_owned();
    let init = |words: &[&str]| {
        let data_dir = folder.path().join("none");
        raft_kv(&[&["init", "--data-dir", text(&data_dir), "--listen-addr", "127.0.0.1:0"], words].concat())
    };
    init(&["--ca-cert", &file("chain.pem")]).refused(1, &["--ca-key", "--external-signer"]);
    init(&["--ca-key", &file("root.key")]).refused(2, &["--ca-cert"]);
    init(&["--ca-cert", &file("chain.pem"), "--ca-key", &file("root.key")])
        .refused(1, &["another certificate"]);
    init(&["--ca-cert", &file("signing.pem"), "--ca-key", &file("signing.key")]).refused(1, &["not a root"]);
    init(&["--ca-cert", &file("absent.pem")]).refused(1, &["absent.pem"]);
    init(&["--ca-cert", &file("root.key")]).refused(1, &["private key too"]);
    let weak = format!("{}/../raft-kv/src/pki/tests/roots/sha1.pem", env!("CARGO_MANIFEST_DIR"));
    init(&["--ca-cert", &weak, "--external-signer", "/bin/true"]).refused(1, &["too weak"]);
    init(&["--external-signer", "/bin/true"]).refused(1, &["--ca-cert"]);
    assert!(!folder.path().join("none/node").exists());
}

#[test]
fn signers_that_are_broken_or_lie_make_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = own_root(&folder.path().join("ca"));
    let stranger = own_root(&folder.path().join("stranger"));
    let good = std::fs::read_to_string(example("signer.sh")).unwrap();
    let script = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path
    };
    let check = |name: &str, content: &str, keys: &Path, part: &str| {
        let path = script(name, content);
        let (chain, cert) = (root.join("chain.pem"), keys.join("signing.pem"));
        let key = keys.join("signing.key");
        let data_dir = folder.path().join("none");
        let ended = raft_kv(&[
            "init",
            "--data-dir",
            text(&data_dir),
            "--listen-addr",
            "127.0.0.1:0",
            "--etcd-addr",
            "off",
            "--ca-cert",
            text(&chain),
            "--external-signer",
            text(&path),
            "--external-signer-arg",
            text(&cert),
            "--external-signer-arg",
            text(&key),
        ]);
        ended.refused(1, &[part]);
        assert!(!data_dir.join("node").exists());
    };
    let bent = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    check("another-issuer", &good, &stranger, "not used");
    check("authority", &bent("critical, CA:false", "critical, CA:true"), &root, "authority's");
    check(
        "name",
        &bent("$(text text)", "/CN=00000000000000aa/OU=manager/O=00000000000000aa"),
        &root,
        "subject",
    );
    check(
        "role",
        &bent("$(text extended_key_usage)", "clientAuth,serverAuth,codeSigning"),
        &root,
        "extendedKeyUsage",
    );
    check(
        "names",
        &bent("$(text subject_alt_names)", "DNS:raft-kv,DNS:*.example"),
        &root,
        "alternative name",
    );
    check(
        "long",
        &bent(
            "-days \"$days\" -extfile \"$work/extensions\"\n    ;;\ncross",
            "-days 400 -extfile \"$work/extensions\"\n    ;;\ncross",
        ),
        &root,
        "ends later",
    );
    let key = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 2>/dev/null | openssl pkey -pubout >\"$work/public.pem\"; openssl x509 -new";
    check("key", &bent("openssl x509 -new", key), &root, "key is not");
    check("garbage", "#!/bin/sh\necho garbage\n", &root, "does not hold a certificate");
    check("huge", "#!/bin/sh\nyes\n", &root, "more than 65536 bytes");
    check("failing", "#!/bin/sh\necho 'no, thank you' >&2\nexit 1\n", &root, "failed");
    check("hanging", "#!/bin/sh\nsleep 600\n", &root, "did not answer within 30 s");
}

#[test]
fn a_member_without_the_signer_says_so_and_serves() {
    let folder = tempfile::tempdir().unwrap();
    let root = own_root(&folder.path().join("ca"));
    let words = [vec!["--ca-cert".to_owned(), text(&root.join("chain.pem")).to_owned()], signer_words(&root)];
    let mut one = first(folder.path(), &words.concat()).unwrap_or_else(|ended| panic!("{ended:?}"));
    let data_dir = one.data_dir.clone();
    one.running.kill();
    drop(one);
    let one = Member::again(&data_dir);
    one.ask(&["put", "k", "v"]).json();
    let files = folder.path().join("client");
    one.ask(&["cert", "issue", "alice", "--out", text(&files)]).refused(1, &["--external-signer"]);
    drop(one);
    let words = signer_words(&root);
    let words: Vec<&str> = std::iter::once("run").chain(words.iter().map(String::as_str)).collect();
    let one = Member::start(&words, &data_dir).unwrap_or_else(|ended| panic!("{ended:?}"));
    one.ask(&["cert", "issue", "alice", "--out", text(&files)]).json();
}

#[test]
fn members_renew_by_the_signer_when_the_cluster_moves_to_a_key_outside() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (own_root(&folder.path().join("old")), own_root(&folder.path().join("new")));
    let file = |name: &str| text(&old.join(name)).to_owned();
    let words = ["--ca-cert".into(), file("chain.pem"), "--ca-key".into(), file("signing.key")];
    let mut one = first(folder.path(), &words).unwrap_or_else(|ended| panic!("{ended:?}"));
    let data_dir = one.data_dir.clone();
    one.running.kill();
    let signer = signer_words(&new);
    let words: Vec<&str> = std::iter::once("run").chain(signer.iter().map(String::as_str)).collect();
    let one = Member::start(&words, &data_dir).unwrap_or_else(|ended| panic!("{ended:?}"));
    let two = joined(&one, "two", folder.path(), &signer).unwrap_or_else(|ended| panic!("{ended:?}"));

    // The new signing key, certified by hand by the one in force.
    std::fs::write(new.join("cross.conf"), "basicConstraints=critical,CA:true,pathlen:0\n").unwrap();
    let cross = |days: &str| {
        let path = new.join(format!("cross-{days}.pem"));
        let made = Command::new("openssl")
            .args(["x509", "-req", "-in", text(&new.join("signing.csr")), "-CA", &file("signing.pem")])
            .args(["-CAkey", &file("signing.key"), "-sha256", "-days", days])
            .args(["-extfile", text(&new.join("cross.conf")), "-out", text(&path)])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        read_own_root(&new.join("chain.pem"), None, Some(&path)).unwrap()
    };
    let rotate = |own| TrustCall::Rotate { new: Some(own), deadline: 5, stolen: false };
    let refused = trust(&one, rotate(cross("92"))).unwrap_err();
    assert!(refused.contains("longer than is allowed"), "{refused}");
    let own = cross("90");
    let digest = RootDigest::of(&own.root);
    trust(&one, rotate(own)).unwrap();
    let deadline = std::time::Instant::now() + process::DEADLINE / 2;
    let mut last = None;
    while !last.as_ref().is_some_and(|it: &CaStatus| it.rotation.is_none() && it.digests == [digest]) {
        assert!(std::time::Instant::now() < deadline, "it does not settle: {last:?}");
        last = status(&two).or(last);
        last = status(&one).or(last);
    }
    let last = last.unwrap();
    assert!(last.external && last.nodes.iter().all(|node| node.issuer == digest && node.error.is_empty()));
    shakes_hands(&one, &new.join("root.pem"));
    shakes_hands(&two, &new.join("root.pem"));
}
