//! `ca`: the cluster's root, and its replacement while it serves. What is shown comes from the cluster;
//! nothing is decided here.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft_kv::client::Handle;
use raft_kv::error::{Error, Refusal};
use raft_kv::pki::{Credentials, RootDigest};
use raft_kv::types::{CaStatus, NodeRecord, OwnRoot, TrustCall};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

use crate::args::{CaArgs, CaCommand, ConnectArgs, RotateArgs};
use crate::connect::connect_for_long;
use crate::failure::{Failure, Kind};
use crate::output::Output;

/// How often the cluster is asked how far it is.
const LOOK: Duration = Duration::from_millis(150);
/// How long a cluster that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after its deadline a rotation that could end would have ended.
const GRACE: i64 = 5;

/// `raft-kv ca`.
pub async fn run(args: &CaArgs, output: &mut Output) -> Result<(), Failure> {
    let connect = &args.connect();
    let handle = connect_for_long(connect).await.map_err(|failure| named_apart(&args.command, failure))?;
    match &args.command {
        CaCommand::Rotate(rotate) => {
            let RotateArgs { deadline, stolen, detach, .. } = *rotate;
            let new = match (&rotate.root_cert, &rotate.root_key) {
                (Some(cert), Some(key)) => Some(read_own_root(cert, key)?),
                _ => None,
            };
            handle.trust(TrustCall::Rotate { new, deadline, stolen }).await?;
            Follower::new(connect, handle).run(!detach, output).await
        }
        CaCommand::Abort { detach, .. } => {
            handle.trust(TrustCall::Abort).await?;
            Follower::new(connect, handle).run(!detach, output).await
        }
        CaCommand::Status { watch: true, .. } => Follower::new(connect, handle).run(true, output).await,
        CaCommand::Status { watch: false, .. } => {
            let status = handle.ca_status().await?;
            output.answer(|| status_json(&status), || status_text(&status))
        }
        CaCommand::Show { .. } => {
            let status = handle.ca_status().await?;
            output.answer(|| roots_json(&status), || pem(&status.roots))
        }
    }
}

/// Says to who gave a client's files to `ca rotate` by the options that are the new root's there.
fn named_apart(command: &CaCommand, mut failure: Failure) -> Failure {
    if failure.kind == Kind::Usage
        && matches!(command, CaCommand::Rotate(RotateArgs { root_cert: Some(_), .. }))
    {
        failure.message.push_str(
            "; --cert and --key of `ca rotate` are the new root's, a client's own files go by --cert-dir",
        );
    }
    failure
}

/// A root from its owner's files.
fn read_own_root(cert: &Path, key: &Path) -> Result<OwnRoot, Failure> {
    let unusable = |path: &Path, why: String| {
        Failure::from(Refusal::invalid(format!("root file {}", path.display()), why))
    };
    let read = |path: &Path| fs::read(path).map_err(|error| unusable(path, error.to_string()));
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(cert)?).collect();
    let mut certs = certs.map_err(|error| unusable(cert, format!("{error:?}")))?;
    let root = certs.pop().ok_or_else(|| unusable(cert, "there is no certificate in it".into()))?;
    let signing = PrivatePkcs8KeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| unusable(key, "there is no private key (PKCS #8 in PEM) in it".into()))?;
    Ok(OwnRoot {
        root: root.to_vec().into(),
        via: certs.iter().map(|cert| Bytes::copy_from_slice(cert)).collect(),
        key: Some(signing.secret_pkcs8_der().to_vec().into()),
        cross: None,
    })
}

/// Shows how a rotation goes on, across members that leave and certificates that are replaced.
struct Follower<'a> {
    connect: &'a ConnectArgs,
    handle: Handle,
    /// The root that was to be the only one when it was looked last.
    target: Option<RootDigest>,
    shown: Option<Progress>,
}

/// What is worth a line when it changes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Progress {
    phase: &'static str,
    target: RootDigest,
    late: Vec<String>,
    /// Who was left behind, by this replacement or an earlier one.
    shut_out: Vec<String>,
    nodes: usize,
    stuck: bool,
}

impl Progress {
    fn of(status: &CaStatus, target: Option<RootDigest>) -> Self {
        let in_force = status.digests.first().copied().unwrap_or_default();
        let late = late_names(status);
        let shut_out = status.nodes.iter().filter(|node| status.shut_out(node)).map(named).collect();
        let nodes = status.nodes.len();
        match &status.rotation {
            None => {
                let phase = match target {
                    Some(target) if target != in_force => "aborted",
                    Some(_) => "settled",
                    None => "stable",
                };
                Self { phase, target: in_force, late, shut_out, nodes, stuck: false }
            }
            Some(rotation) => {
                let phase = if rotation.aborting { "aborting" } else { rotation.phase.as_str() };
                let stuck = status.now >= rotation.deadline + GRACE && !late.is_empty();
                Self { phase, target: rotation.target, late, shut_out, nodes, stuck }
            }
        }
    }

    fn json(&self) -> Value {
        json!({ "phase": self.phase, "target": self.target.to_string(), "nodes": self.nodes, "late": self.late,
                "shut_out": self.shut_out, "stuck": self.stuck })
    }

    fn text(&self) -> String {
        let root = short(&self.target);
        match self.phase {
            "stable" => format!("stable     root {root}\n"),
            phase @ ("settled" | "aborted") => {
                let out = match &self.shut_out[..] {
                    [] => String::new(),
                    names => format!("; shut out: {}", names.join(", ")),
                };
                format!("{phase}    root {root} alone is believed{out}\n")
            }
            phase => {
                let moved = self.nodes.saturating_sub(self.late.len());
                let late = if self.late.is_empty() {
                    String::new()
                } else {
                    format!("; late: {}", self.late.join(", "))
                };
                let stuck = if self.stuck { "; stuck: too few members have moved" } else { "" };
                format!("{phase:<10} root {root}: {moved} of {} nodes have moved{late}{stuck}\n", self.nodes)
            }
        }
    }
}

impl<'a> Follower<'a> {
    fn new(connect: &'a ConnectArgs, handle: Handle) -> Self {
        Self { connect, handle, target: None, shown: None }
    }

    async fn run(mut self, wait: bool, output: &mut Output) -> Result<(), Failure> {
        let mut aborting = false;
        loop {
            let status = self.status().await?;
            if let Some(rotation) = &status.rotation {
                (self.target, aborting) = (Some(rotation.target), rotation.aborting);
            }
            let progress = Progress::of(&status, self.target);
            if self.shown.as_ref() != Some(&progress) {
                output.answer(|| progress.json(), || progress.text())?;
            }
            if progress.stuck && wait {
                return Err(Failure::new(Kind::NotDone, stuck_text(&progress)));
            }
            if status.rotation.is_none() && progress.phase == "aborted" && !aborting {
                let why = "another one has put an end to it; `raft-kv ca status` shows what is believed";
                return Err(Failure::new(Kind::Refused, why));
            }
            if status.rotation.is_none() || !wait {
                return Ok(());
            }
            self.shown = Some(progress);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks until there is an answer: a member's certificate is replaced under our hands.
    async fn status(&mut self) -> Result<CaStatus, Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            let failure: Failure = match self.handle.ca_status().await {
                Ok(status) => return Ok(status),
                Err(error @ Error::Refused(Refusal::BadCertificate { .. }))
                | Err(error @ (Error::NotDone(_) | Error::Unknown(_) | Error::Stopped(_))) => error.into(),
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= until {
                return Err(failure);
            }
            tokio::time::sleep(LOOK).await;
            // With what is in the files by now.
            if let Ok(handle) = connect_for_long(self.connect).await {
                self.handle = handle;
            }
        }
    }
}

fn stuck_text(progress: &Progress) -> String {
    format!(
        "the deadline has passed and too few members have moved; late: {}; start those members, or remove them with \
         `raft-kv member rm`, or `raft-kv ca abort`",
        progress.late.join(", ")
    )
}

/// As much of a digest as tells roots apart.
fn short(digest: &RootDigest) -> String {
    digest.to_string()[..12].to_owned()
}

fn named(node: &NodeRecord) -> String {
    if node.name.is_empty() {
        format!("{} ({})", node.id, node.role)
    } else {
        format!("{} ({} {})", node.name, node.role, node.id)
    }
}

fn late_names(status: &CaStatus) -> Vec<String> {
    let name = |id| status.nodes.iter().find(|node| node.id == id).map_or(id.to_string(), named);
    status.late.iter().map(|id| name(*id)).collect()
}

fn pem(roots: &[Bytes]) -> String {
    let roots = roots.iter().map(|root| root.to_vec()).collect();
    Credentials { roots, ..Credentials::default() }.to_pem().cacert
}

fn roots_json(status: &CaStatus) -> Value {
    let roots = status.roots.iter().zip(&status.digests);
    let one = |(root, digest): (&Bytes, &RootDigest)| json!({ "digest": digest.to_string(), "pem": pem(std::slice::from_ref(root)) });
    json!({ "epoch": status.epoch, "external": status.external, "roots": roots.map(one).collect::<Vec<_>>() })
}

fn status_json(status: &CaStatus) -> Value {
    let progress = Progress::of(status, None);
    let rotation = status.rotation.as_ref().map(|rotation| {
        json!({
            "id": rotation.id, "phase": rotation.phase.as_str(), "target": rotation.target.to_string(),
            "started": rotation.started, "deadline": rotation.deadline, "stolen": rotation.stolen,
            "aborting": rotation.aborting, "stuck": progress.stuck,
        })
    });
    let node = |node: &NodeRecord| {
        json!({
            "id": node.id.to_string(), "name": node.name, "role": node.role.to_string(),
            "issuer": node.issuer.to_string(), "verified": node.verified.map(|root| root.to_string()),
            "issued": node.issued, "ends": ends(node), "error": node.error,
            "late": status.late.contains(&node.id), "shut_out": status.shut_out(node),
        })
    };
    json!({
        "epoch": status.epoch, "phase": progress.phase, "external": status.external,
        "roots": status.digests.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "rotation": rotation, "late": progress.late,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

/// When a node's certificate ends; `None` where that is not known.
fn ends(node: &NodeRecord) -> Option<i64> {
    (node.ends != i64::MAX).then_some(node.ends)
}

fn status_text(status: &CaStatus) -> String {
    let mut text = Progress::of(status, None).text();
    for (at, digest) in status.digests.iter().enumerate() {
        let what = if at == 0 { "in force" } else { "introduced" };
        text.push_str(&format!("root       {digest} {what}\n"));
    }
    let line = |node: &NodeRecord| {
        let verified = match node.verified {
            Some(root) if root == node.issuer => "verified",
            _ => "not seen yet",
        };
        let ends = ends(node).map_or("unknown".into(), crate::cli::cluster::date);
        let late = match status.late.contains(&node.id) {
            true => "  LATE".to_owned(),
            false if status.shut_out(node) => {
                format!("  SHUT OUT: `raft-kv node readmit {}`, then a token", node.id)
            }
            false => String::new(),
        };
        let error = if node.error.is_empty() { String::new() } else { format!("  {}", node.error) };
        format!(
            "node       {}  issuer {}, {verified}, until {ends}{late}{error}\n",
            named(node),
            short(&node.issuer)
        )
    };
    text.extend(status.nodes.iter().map(line));
    text
}

#[cfg(test)]
mod tests {
    use raft_kv::types::{NodeId, Phase, Role, Rotation};

    use super::*;

    fn status() -> CaStatus {
        let [old, new] = [1, 2].map(|byte| RootDigest([byte; 32]));
        let rotation = Rotation {
            id: 3,
            phase: Phase::Reissue,
            target: new,
            started: 100,
            deadline: 200,
            stolen: false,
            aborting: false,
        };
        let mut moved = NodeRecord::new(NodeId(1), Role::Manager, "one", new);
        moved.verified = Some(new);
        let mut late = NodeRecord::new(NodeId(2), Role::Client, "build", old);
        (late.error, late.ends) = ("no key".into(), 1_767_225_600);
        CaStatus {
            epoch: 4,
            roots: vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")],
            digests: vec![old, new],
            rotation: Some(rotation),
            nodes: vec![moved, late],
            late: vec![NodeId(2)],
            now: 150,
            external: false,
        }
    }

    #[test]
    fn who_is_late_is_named_with_what_went_wrong() {
        let text = status_text(&status());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "reissue    root 020202020202: 1 of 2 nodes have moved; late: build (client 0000000000000002)"
        );
        assert!(lines[1].ends_with("01 in force") && lines[2].ends_with("02 introduced"), "{text}");
        assert_eq!(
            lines[3],
            "node       one (manager 0000000000000001)  issuer 020202020202, verified, until unknown"
        );
        assert_eq!(
            lines[4],
            "node       build (client 0000000000000002)  issuer 010101010101, not seen yet, until 2026-01-01  LATE  no key"
        );
        let json = status_json(&status());
        assert_eq!(json["nodes"][1]["late"], true);
        assert_eq!(json["nodes"][0]["ends"], Value::Null);
        assert_eq!((&json["phase"], &json["rotation"]["stuck"]), (&json!("reissue"), &json!(false)));
    }

    #[test]
    fn a_rotation_behind_its_deadline_is_stuck_and_one_that_ended_says_how() {
        let mut status = status();
        status.now = 206;
        let progress = Progress::of(&status, None);
        assert!(progress.stuck && progress.text().contains("stuck"), "{progress:?}");
        assert!(stuck_text(&progress).contains("build"));
        let (old, new) = (status.digests[0], status.digests[1]);
        status.rotation = None;
        for (target, expect) in [(None, "stable"), (Some(old), "settled"), (Some(new), "aborted")] {
            assert_eq!(Progress::of(&status, target).phase, expect);
        }
    }

    #[test]
    fn an_own_root_is_read_from_its_files_or_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let root =
            raft_kv::pki::RootKey::generate(raft_kv::types::ClusterId(1), std::time::SystemTime::now());
        let files = Credentials {
            roots: vec![root.cert_der().to_vec()],
            key: root.key_der().to_vec(),
            ..Credentials::default()
        }
        .to_pem();
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let missing = read_own_root(&cert, &key).unwrap_err();
        assert!(missing.message.contains("cert.pem"), "{missing}");
        fs::write(&cert, files.cacert).unwrap();
        fs::write(&key, "nothing").unwrap();
        assert!(read_own_root(&cert, &key).unwrap_err().message.contains("PKCS #8"));
        fs::write(&key, files.key).unwrap();
        let own = read_own_root(&cert, &key).unwrap();
        assert_eq!((&own.root[..], &own.key.unwrap()[..]), (root.cert_der(), root.key_der()));
        assert!(own.via.is_empty());
    }
}
