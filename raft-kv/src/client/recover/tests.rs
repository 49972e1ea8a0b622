//! Killed at every step: what is left is the old member, or the new one as soon as the call is repeated.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::{Config, Node, Overrides, Tuning};
use super::*;
use crate::types::{KeyRange, PutRequest, RangeRequest};

fn tuning() -> Tuning {
    Tuning { log_segment_bytes: 1024 * 1024, ..Tuning::default() }
}

fn options() -> RecoverOptions {
    RecoverOptions { tuning: tuning(), ..RecoverOptions::default() }
}

fn config(dir: &Path, name: &str) -> Config {
    Config {
        data_dir: dir.join(name),
        name: name.into(),
        listen_addr: UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: tuning(),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

const KEYS: usize = 40;

/// The directory of one of two members that stopped without a word, with keys in its log.
async fn survivor(dir: &Path) -> std::path::PathBuf {
    let first = Node::init(config(dir, "a")).await.unwrap();
    let token = first.handle().join_token(Role::Manager).await.unwrap();
    let second = Node::join(config(dir, "b"), &token, &[first.addr().to_owned()]).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (_, members) = first.handle().members().await.unwrap();
        if members.iter().filter(|member| member.role == MemberRole::Voter).count() == 2 {
            break;
        }
        assert!(Instant::now() < deadline, "it does not vote");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for number in 0..KEYS {
        let (key, value) = (format!("k{number}").into(), "v".into());
        first.handle().put(PutRequest { key, value, ..PutRequest::default() }).await.unwrap();
    }
    drop((first, second));
    let image = dir.join("a");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // What was dropped has the state open for a little longer than the directory.
        if State::open(&image.join("state"), state_options(&tuning())).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "it does not let go of its directory");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    image
}

async fn serves_everything(dir: &Path, recovery: &Recovery) {
    let node = Node::open(dir, Overrides::default(), tuning()).await.unwrap();
    assert_eq!(node.id(), recovery.new_id);
    let range = KeyRange::prefix("k");
    let found = node.handle().range(RangeRequest { range, ..RangeRequest::default() }).await.unwrap();
    assert_eq!(found.1.count, KEYS as i64);
    node.handle().put(PutRequest { key: "new".into(), ..PutRequest::default() }).await.unwrap();
    let (header, members) = node.handle().members().await.unwrap();
    assert!(header.revision > recovery.new_revision && recovery.new_revision > recovery.kept_revision);
    assert_eq!(members.len(), 1);
    node.shutdown().await.unwrap();
}

fn cut(at: usize, told: &mut usize) -> Result<(), StartError> {
    *told += 1;
    match *told > at {
        true => Err(Refusal::invalid("test", "killed here").into()),
        false => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_is_killed_anywhere_is_not_begun_or_can_be_completed() {
    let folder = tempfile::tempdir().unwrap();
    let image = survivor(folder.path()).await;
    let RecoverStatus::Possible(before) = survey_recovery(&image, &options()).unwrap() else { panic!() };
    assert_eq!((before.others.len(), before.epoch, before.role), (1, 1, Some(MemberRole::Voter)));
    let mut at = 0;
    loop {
        let dir = folder.path().join(format!("killed-{at}"));
        copy(&image, &dir);
        let mut told = 0;
        let ended = recover_in_steps(&dir, &options(), &mut |_| cut(at, &mut told)).await;
        if let Ok(RecoverStatus::Done(recovery)) = ended {
            assert!(at > 12, "there are more steps than {at}");
            serves_everything(&dir, &recovery).await;
            break;
        }
        assert_eq!(told, at + 1);
        match survey_recovery(&dir, &options()).unwrap() {
            RecoverStatus::Possible(same) => {
                assert_eq!(same, before, "nothing was changed");
                assert_eq!(fs::read(dir.join("node")).unwrap(), fs::read(image.join("node")).unwrap());
            }
            RecoverStatus::Unfinished(recovery) => {
                let refused = Node::open(&dir, Overrides::default(), tuning()).await.unwrap_err();
                assert!(refused.to_string().contains("raft-kv recover"), "{refused}");
                let refused =
                    Node::init(Config { data_dir: dir.clone(), ..config(&dir, "x") }).await.unwrap_err();
                assert!(refused.to_string().contains("raft-kv recover"), "{refused}");
                assert_ne!(recovery.new_id, before.old_id);
            }
            // The last step alone is behind the end.
            RecoverStatus::Alone(_) => assert!(!is_unfinished(&dir)),
            RecoverStatus::Done(_) => unreachable!("a survey does nothing"),
        }
        match recover(&dir, &options()).await.unwrap() {
            RecoverStatus::Done(recovery) => {
                assert!(!dir.join("recovered").exists() && !dir.join("recovering").exists());
                for part in ["log", "state", "cert", "keyring", "node"] {
                    assert!(dir.join(&recovery.set_aside).join(part).exists(), "{part} is kept");
                }
                if at % 4 == 0 {
                    serves_everything(&dir, &recovery).await;
                }
            }
            RecoverStatus::Alone(alone) => assert_eq!(alone.epoch, 2),
            other => panic!("{other:?}"),
        }
        fs::remove_dir_all(&dir).unwrap();
        at += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_runs_or_is_its_own_quorum_is_not_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::init(config(folder.path(), "a")).await.unwrap();
    let dir = folder.path().join("a");
    let busy = recover(&dir, &options()).await.unwrap_err();
    assert!(busy.to_string().contains("another process uses it"), "{busy}");
    node.shutdown().await.unwrap();
    let RecoverStatus::Alone(alone) = recover(&dir, &options()).await.unwrap() else { panic!() };
    assert_eq!((alone.epoch, alone.others.len(), alone.uncertain()), (1, 0, 0));
    let nothing = recover(folder.path(), &options()).await.unwrap_err();
    assert!(nothing.to_string().contains("holds no member"), "{nothing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_damaged_log_goes_on_only_if_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let dir = survivor(folder.path()).await;
    let given_up = RecoverOptions { without_log: true, ..options() };
    let whole = recover(&dir, &given_up).await.unwrap_err();
    assert!(whole.to_string().contains("the log is whole"), "{whole}");
    for damage in
        [|log: &Path| fs::write(log.join("marker"), [0; 8192]), |log: &Path| fs::remove_dir_all(log)]
    {
        damage(&dir.join("log")).unwrap();
        let damaged = recover(&dir, &options()).await.unwrap_err();
        let StartError::Storage(failed) = damaged else { panic!("{damaged}") };
        assert!(failed.next.contains("--without-log"), "{failed}");
        assert!(survey_recovery(&dir, &options()).is_err());
    }
    assert!(!dir.join("log").exists(), "nothing is made by looking");
    let RecoverStatus::Done(recovery) = recover(&dir, &given_up).await.unwrap() else { panic!() };
    assert_eq!((recovery.without_log, recovery.last.1, recovery.uncertain()), (true, recovery.applied, 0));
    let node = Node::open(&dir, Overrides::default(), tuning()).await.unwrap();
    let (header, _) =
        node.handle().put(PutRequest { key: "new".into(), ..PutRequest::default() }).await.unwrap();
    assert!(header.revision > recovery.new_revision);
    node.shutdown().await.unwrap();
}
