//! Commands that answer well, badly, or not at all.

use super::*;
use crate::pki::{NodeKey, RootKey};
use crate::types::{ClusterId, NodeId};

struct Bench {
    folder: tempfile::TempDir,
    root: RootKey,
    authority: Authority,
    subject: Subject,
    key: NodeKey,
}

impl Bench {
    fn new() -> Self {
        let root = RootKey::generate(ClusterId(7), SystemTime::now());
        let authority = Authority { root: Bytes::copy_from_slice(root.cert_der()), ..Authority::default() };
        let subject = Subject {
            cluster: ClusterId(7),
            node: NodeId(1),
            role: Role::Manager,
            name: String::new(),
            hosts: vec!["10.0.0.1".into(), "kv.example".into()],
        };
        let folder = tempfile::tempdir().unwrap();
        Self { folder, root, authority, subject, key: NodeKey::generate() }
    }

    fn answer(&self, subject: &Subject, public_key: &[u8]) -> String {
        let now = SystemTime::now();
        let leaf = pki::issue(&self.root, subject, public_key, now, DAY, &mut rand::rng()).unwrap();
        let path = self.folder.path().join("answer");
        std::fs::write(&path, super::pem("CERTIFICATE", &leaf)).unwrap();
        format!("cat {}", path.display())
    }

    async fn ask(&self, script: &str, deadline: Duration) -> Result<Bytes, Refusal> {
        let command = vec!["/bin/sh".into(), "-c".into(), script.to_owned()];
        let signer = Signer { deadline, ..Signer::new(&ExternalSigner { command })? };
        let (now, request, public_key) = (SystemTime::now(), self.key.request(), self.key.public());
        let wanted = LeafRequest {
            subject: &self.subject,
            public_key: &public_key,
            request: &request,
            from: now - pki::BACK_DATE - DAY,
            until: now + 2 * DAY,
        };
        signer.leaf(&self.authority, &wanted).await
    }

    async fn refused(&self, script: &str, part: &str) {
        let refusal = self.ask(script, Duration::from_secs(20)).await.unwrap_err().to_string();
        assert!(refusal.contains(part) && refusal.contains("external signer"), "{script}: {refusal}");
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn a_good_answer_is_taken_and_bad_ones_are_named() {
    let bench = Bench::new();
    let good = bench.answer(&bench.subject, &bench.key.public());
    bench.ask(&good, Duration::from_secs(20)).await.unwrap();
    // Whether it reads its input, or what it says besides, does not matter.
    bench.ask(&format!("cat >/dev/null; echo hello >&2; {good}"), Duration::from_secs(20)).await.unwrap();
    bench.refused(&format!("{good}; {good}"), "several").await;
    bench.refused(&format!("{good}; exit 3"), "failed").await;
    bench.refused("kill -9 $$", "failed").await;
    bench.refused("true", "does not hold a certificate").await;
    bench.refused("echo rubbish", "does not hold a certificate").await;
    bench.refused("printf '\\377\\376'", "not text").await;
    bench
        .refused(
            "printf -- '-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n'",
            "can't be read",
        )
        .await;
    bench.refused("printf -- '-----BEGIN CERTIFICATE-----\\n!\\n'", "PEM").await;
    bench.refused("yes", "more than 65536 bytes").await;
    bench.refused("head -c 65537 /dev/zero", "more than 65536 bytes").await;
    let other = Subject { node: NodeId(2), ..bench.subject.clone() };
    bench.refused(&bench.answer(&other, &bench.key.public()), "subject").await;
    let client = Subject { role: Role::Worker, ..bench.subject.clone() };
    bench.refused(&bench.answer(&client, &bench.key.public()), "subject").await;
    bench.refused(&bench.answer(&bench.subject, &NodeKey::generate().public()), "key is not").await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let command = vec!["/nowhere/signer".to_owned()];
    let bench = Bench::new();
    let signer = Signer::new(&ExternalSigner { command }).unwrap();
    let refusal = signer.cross(&bench.authority, b"", b"", SystemTime::now()).await.unwrap_err();
    assert!(refusal.to_string().contains("can't be started"), "{refusal}");
    assert!(Signer::new(&ExternalSigner { command: vec![] }).is_err());
    assert!(Signer::new(&ExternalSigner { command: vec![String::new()] }).is_err());
}

/// Whether a process runs; one that has ended and is waited for by nobody yet does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

async fn until(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !look() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_command_that_hangs_is_ended_with_all_that_it_started() {
    let bench = Bench::new();
    let pids = bench.folder.path().join("pids");
    let script =
        format!("sleep 600 & echo $! >{0}.new; echo $$ >>{0}.new; mv {0}.new {0}; wait", pids.display());
    let refusal = bench.ask(&script, Duration::from_secs(2)).await.unwrap_err().to_string();
    assert!(refusal.contains("did not answer within 2 s"), "{refusal}");
    let started = std::fs::read_to_string(&pids).unwrap();
    assert_eq!(started.lines().count(), 2);
    until("all have ended", || !started.lines().any(runs)).await;
    // One that ends itself and leaves another behind that holds its output.
    let good = bench.answer(&bench.subject, &bench.key.public());
    bench.ask(&format!("sleep 600 & {good}"), Duration::from_secs(20)).await.unwrap();
}

#[tokio::test]
async fn who_does_not_wait_any_more_ends_the_command() {
    let bench = Bench::new();
    let pids = bench.folder.path().join("pids");
    let script = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 600", pids.display());
    let asking = bench.ask(&script, Duration::from_secs(600));
    let started = async { until("it has started", || pids.exists()).await };
    tokio::select! {
        done = asking => panic!("{done:?}"),
        () = started => {}
    }
    let pid = std::fs::read_to_string(&pids).unwrap();
    until("it has ended", || !runs(pid.trim())).await;
}

#[tokio::test]
async fn the_request_says_all_that_is_to_be_signed() {
    let bench = Bench::new();
    let path = bench.folder.path().join("request");
    bench.refused(&format!("cat >{}", path.display()), "does not hold").await;
    let request = std::fs::read_to_string(&path).unwrap();
    assert_eq!(request.lines().count(), 1);
    let has = |part: &str| assert!(request.contains(part), "no {part} in {request}");
    has(r#"{"version":1,"kind":"leaf","csr_pem":"-----BEGIN CERTIFICATE REQUEST-----\n"#);
    has(
        r#""subject":{"CN":"0000000000000001","OU":"manager","O":"0000000000000007","text":"/CN=0000000000000001/OU=manager/O=0000000000000007"}"#,
    );
    has(r#""hosts":["raft-kv","10.0.0.1","kv.example"]"#);
    has(r#""subject_alt_names":"DNS:raft-kv,IP:10.0.0.1,DNS:kv.example""#);
    has(r#""extended_key_usage":"clientAuth,serverAuth""#);
    has(r#""cluster":"0000000000000007","node":"0000000000000001","role":"manager"}"#);
    let der = |field: &str| {
        let (_, rest) = request.split_once(&format!("\"{field}\":\"")).unwrap();
        ::pem::parse(rest.split('"').next().unwrap().replace("\\n", "\n")).unwrap().into_contents()
    };
    assert_eq!(pki::request_key(&der("csr_pem")).unwrap(), bench.key.public());
    assert_eq!(der("public_key_pem"), bench.key.public());
    assert_eq!(der("issuer_pem"), bench.root.cert_der());
}

#[test]
fn texts_are_quoted() {
    assert_eq!(quoted("a\"b\\c\nd\te\u{e4}\u{1f600}"), r#""a\"b\\c\nd\u0009e\u00e4\ud83d\ude00""#);
    assert_eq!(object(&[("a", "1".into()), ("b", quoted(""))]), r#"{"a":1,"b":""}"#);
}
