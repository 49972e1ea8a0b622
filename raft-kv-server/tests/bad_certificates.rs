//! Certificates that open nothing: expired, of another cluster, or no certificates at all.

mod process;

use std::path::Path;
use std::time::{Duration, SystemTime};

use process::{Ended, Member, raft_kv};
use raft_kv::net::write_credentials;
use raft_kv::pki::{Credentials, NodeKey, RootKey, Subject, issue};
use raft_kv::types::{ClusterId, NodeId, Role};

fn ask(folder: &Path, endpoint: &str) -> Ended {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (cacert, cert, key) = (file("cacert.pem"), file("cert.pem"), file("key.pem"));
    let at = ["--json", "--endpoints", endpoint, "--cacert", &cacert, "--cert", &cert, "--key", &key];
    raft_kv(&[&["put", "k", "changed"], &at[..]].concat())
}

#[test]
fn no_certificate_but_a_valid_one_of_the_cluster_opens_anything() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Member::first(&folder.path().join("ours"));
    ours.ask(&["put", "k", "kept"]).json();
    let before = ours.revision();
    let good = folder.path().join("good");
    ours.ask(&["cert", "issue", "tester", "--out", good.to_str().unwrap()]).json();

    // Expired: made a year ago for a day.
    let expired = folder.path().join("expired");
    std::fs::create_dir(&expired).unwrap();
    let then = SystemTime::now() - Duration::from_secs(365 * 24 * 3600);
    let cluster: ClusterId = ours.cluster.parse().unwrap();
    let (root, key) = (RootKey::generate(cluster, then), NodeKey::generate());
    let (role, name) = (Role::Client, String::from("tester"));
    let subject = Subject { cluster, node: NodeId(7), role, name, hosts: vec![] };
    let day = Duration::from_secs(24 * 3600);
    let leaf = issue(&root, &subject, &key.public(), then, day, &mut rand::rng()).unwrap();
    let roots = vec![root.cert_der().to_vec()];
    let credentials = Credentials { chain: vec![leaf], key: key.der().to_vec(), roots, ..Default::default() };
    write_credentials(&expired, &credentials).unwrap();
    ask(&expired, &ours.addr).refused(1, &["certificate", "expired"]);

    // Of another cluster.
    let theirs = Member::first(&folder.path().join("theirs"));
    let foreign = folder.path().join("foreign");
    theirs.ask(&["cert", "issue", "tester", "--out", foreign.to_str().unwrap()]).json();
    let ended = ask(&foreign, &ours.addr);
    assert!(matches!(ended.code, Some(1 | 3)), "{ended:?}");
    assert!(ended.stderr.contains("certificate") || ended.stderr.contains("root"), "{ended:?}");

    // A key that belongs to another certificate, a file that is none, a file that is missing.
    let mixed = folder.path().join("mixed");
    std::fs::create_dir(&mixed).unwrap();
    for (from, name) in [(&good, "cacert.pem"), (&good, "cert.pem"), (&foreign, "key.pem")] {
        std::fs::copy(from.join(name), mixed.join(name)).unwrap();
    }
    ask(&mixed, &ours.addr).refused(1, &["the private key belongs to another certificate"]);
    std::fs::write(mixed.join("cert.pem"), "not a certificate").unwrap();
    ask(&mixed, &ours.addr).refused(1, &["cert"]);
    std::fs::remove_file(mixed.join("cert.pem")).unwrap();
    ask(&mixed, &ours.addr).refused(1, &["cert.pem"]);

    assert_eq!(ours.revision(), before, "a bad certificate changed something");
    ask(&good, &ours.addr).json();
}
