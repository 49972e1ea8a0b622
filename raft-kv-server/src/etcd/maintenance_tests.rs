//! The service against a real member in this process, called without a socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use futures_util::StreamExt;
use raft_kv::client::{FreeSpace, Tuning, verify_backup};
use raft_kv::raft::Role;
use raft_kv::types::PutRequest;
use tonic::Code;

use super::super::kv::tests::{One, says, told};
use super::*;

/// How long a test waits for what comes by itself.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_status_has_every_field() {
    let one = One::start().await;
    let maintenance = MaintenanceService::new(one.etcd.clone());
    let status = maintenance.status(Request::new(StatusRequest {})).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.leader), (ETCD_VERSION, one.node.id().0));
    assert!(status.raft_term > 0 && status.raft_applied_index > 0);
    assert!(status.raft_index >= status.raft_applied_index);
    assert!(!status.is_learner && status.errors.is_empty() && !status.storage_version.is_empty());
    assert_eq!(status.header.unwrap().revision, 1);
    assert_eq!((status.db_size_in_use, status.db_size_quota), (0, 8 << 30));
    let learner = MaintenanceService::new(one.seen_as(true, Role::Learner));
    learner.status(Request::new(StatusRequest {})).await.unwrap();
}

#[tokio::test]
async fn alarms_are_raised_listed_and_disarmed_as_etcdctl_does_it() {
    use alarm_request::AlarmAction as Action;
    let one = One::start().await;
    let maintenance = MaintenanceService::new(one.etcd.clone());
    let me = one.node.id().0;
    let ask = async |action: Action, member_id: u64, alarm: AlarmType| {
        let request = AlarmRequest { action: action as i32, member_id, alarm: alarm as i32 };
        maintenance.alarm(Request::new(request)).await.unwrap().into_inner().alarms
    };
    let raised = AlarmMember { member_id: me, alarm: AlarmType::Nospace as i32 };
    assert_eq!(ask(Action::Get, 0, AlarmType::None).await, []);
    assert_eq!(ask(Action::Activate, me, AlarmType::Nospace).await, [raised]);
    assert_eq!(ask(Action::Get, 0, AlarmType::None).await, [raised]);
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    let refused = status(one.etcd.own_handle().put(put.clone()).await.unwrap_err());
    assert_eq!(refused.message(), "etcdserver: mvcc: database space exceeded");
    let errors = maintenance.status(Request::new(StatusRequest {})).await.unwrap().into_inner().errors;
    assert_eq!(errors, [format!("memberID:{me} alarm:NOSPACE ")]);
    // `etcdctl alarm disarm` names each that it was shown.
    assert_eq!(ask(Action::Deactivate, me, AlarmType::Nospace).await, [raised]);
    assert_eq!(ask(Action::Get, 0, AlarmType::None).await, []);
    one.etcd.own_handle().put(put).await.unwrap();
}

/// What the member raises itself is told once, as NOSPACE, and a disarm ends it too: where the disk is
/// still short the member says so again.
#[tokio::test]
async fn the_alarm_of_a_short_disk_is_etcds_nospace() {
    use alarm_request::AlarmAction as Action;
    use raft_kv::types::AlarmRequest as Asked;
    let free = Arc::new(AtomicU64::new(0));
    let seen = free.clone();
    let space = FreeSpace::Told(Arc::new(move || seen.load(Ordering::Relaxed)));
    let one = One::start_with(Tuning { free_space: space, ..Tuning::default() }).await;
    let (maintenance, me) = (MaintenanceService::new(one.etcd.clone()), one.node.id());
    let ask = async |action: Action, alarm: AlarmType| {
        let request = AlarmRequest { action: action as i32, member_id: 0, alarm: alarm as i32 };
        maintenance.alarm(Request::new(request)).await.unwrap().into_inner().alarms
    };
    let raised = [AlarmMember { member_id: me.0, alarm: AlarmType::Nospace as i32 }];
    let told = async |expect: &[AlarmMember]| {
        let started = Instant::now();
        while ask(Action::Get, AlarmType::Nospace).await != expect {
            assert!(started.elapsed() < PATIENCE, "the alarms are not {expect:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    told(&raised).await;
    let own = one.etcd.own_handle();
    own.alarm(Asked::Raise(me, AlarmKind::NoSpace)).await.unwrap();
    assert_eq!(ask(Action::Get, AlarmType::None).await, raised, "of both kinds");
    let errors = maintenance.status(Request::new(StatusRequest {})).await.unwrap().into_inner().errors;
    assert_eq!(errors, [format!("memberID:{} alarm:NOSPACE ", me.0)]);
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    let refused = status(own.put(put.clone()).await.unwrap_err());
    let expect = says(Code::ResourceExhausted, "mvcc: database space exceeded");
    assert_eq!((refused.code(), refused.message().to_owned()), expect);
    assert_eq!(ask(Action::Deactivate, AlarmType::Nospace).await, raised);
    told(&raised).await;
    assert!(own.put(put.clone()).await.is_err(), "said again");
    free.store(u64::MAX, Ordering::Relaxed);
    told(&[]).await;
    own.put(put).await.unwrap();
}

/// As none, the number of an alarm that there is not would end every alarm.
#[tokio::test]
async fn an_alarm_that_does_not_exist_is_refused_and_changes_nothing() {
    use alarm_request::AlarmAction as Action;
    let one = One::start().await;
    let maintenance = MaintenanceService::new(one.etcd.clone());
    let me = one.node.id().0;
    let ask = async |action: Action, alarm: i32| {
        let request = AlarmRequest { action: action as i32, member_id: 0, alarm };
        maintenance.alarm(Request::new(request)).await
    };
    let raise =
        AlarmRequest { action: Action::Activate as i32, member_id: me, alarm: AlarmType::Nospace as i32 };
    maintenance.alarm(Request::new(raise)).await.unwrap();
    for action in [Action::Get, Action::Activate, Action::Deactivate] {
        for number in [3, -1, i32::MAX] {
            let expect = format!("there is no alarm with the number {number}");
            assert_eq!(told(ask(action, number).await), (Code::InvalidArgument, expect));
        }
    }
    let raised = AlarmMember { member_id: me, alarm: AlarmType::Nospace as i32 };
    assert_eq!(ask(Action::Get, 0).await.unwrap().into_inner().alarms, [raised], "it is still raised");
}

#[tokio::test]
async fn defragment_hash_leader_and_downgrade() {
    let one = One::start().await;
    let maintenance = MaintenanceService::new(one.etcd.clone());
    let done = maintenance.defragment(Request::new(DefragmentRequest {})).await.unwrap().into_inner();
    assert_eq!(done.header, None);
    let hash = async |revision| {
        let request = Request::new(HashKvRequest { revision });
        maintenance.hash_kv(request).await.map(|answer| answer.into_inner().hash)
    };
    let empty = hash(0).await.unwrap();
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    one.etcd.own_handle().put(put).await.unwrap();
    assert_ne!(hash(0).await.unwrap(), empty);
    assert_eq!(hash(1).await.unwrap(), empty, "as of that revision");
    assert_eq!(hash(9).await.unwrap_err().code(), Code::OutOfRange);
    let whole = Maintenance::hash(&maintenance, Request::new(HashRequest {})).await.unwrap().into_inner();
    assert_eq!(whole.hash, hash(0).await.unwrap());

    let unknown = Request::new(MoveLeaderRequest { target_id: 99 });
    let refused = told(maintenance.move_leader(unknown).await);
    assert_eq!(refused, says(Code::FailedPrecondition, "bad leader transferee"));
    let downgrade = maintenance.downgrade(Request::new(DowngradeRequest::default())).await;
    assert_eq!(told(downgrade).0, Code::FailedPrecondition);
}

async fn copy(maintenance: &MaintenanceService) -> Vec<SnapshotResponse> {
    let stream = maintenance.snapshot(Request::new(SnapshotRequest {})).await.unwrap().into_inner();
    stream.map(|part| part.unwrap()).collect().await
}

fn left_over(one: &One) -> usize {
    std::fs::read_dir(one.dir.path().join("data/copies")).unwrap().count()
}

async fn eventually_removed(one: &One) {
    let started = Instant::now();
    while left_over(one) > 0 {
        assert!(started.elapsed() < PATIENCE, "the files of a copy stay");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A copy, as soon as there is a turn for it.
async fn in_turn(maintenance: &MaintenanceService) -> <MaintenanceService as Maintenance>::SnapshotStream {
    let started = Instant::now();
    loop {
        match maintenance.snapshot(Request::new(SnapshotRequest {})).await {
            Ok(stream) => return stream.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
        assert!(started.elapsed() < PATIENCE, "no turn is given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A state of more bytes than are read ahead of a reader.
async fn large(one: &One) {
    for n in 0..4u8 {
        let value: Vec<u8> =
            (0..1u32 << 19).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ n).collect();
        let put = PutRequest { key: vec![b'k', n].into(), value: value.into(), ..PutRequest::default() };
        one.etcd.own_handle().put(put).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_a_backup_and_its_checksum_and_leaves_nothing_behind() {
    let one = One::start().await;
    for n in 0..50 {
        let (key, value) = (format!("k{n}").into(), vec![n; 4096].into());
        let put = PutRequest { key, value, ..PutRequest::default() };
        one.etcd.own_handle().put(put).await.unwrap();
    }
    let maintenance = MaintenanceService::new(one.etcd.clone());
    let parts = copy(&maintenance).await;
    let (checksum, content) = parts.split_last().unwrap();
    let whole: Vec<u8> = content.iter().flat_map(|part| part.blob.to_vec()).collect();
    assert_eq!(whole.len() % 512, 0);
    assert_eq!(checksum.blob.as_ref(), digest::digest(&digest::SHA256, &whole).as_ref());
    let mut left = whole.len() as u64;
    for part in content {
        assert!(part.blob.len() <= BLOB_BYTES);
        left -= part.blob.len() as u64;
        assert_eq!(part.remaining_bytes, left, "the checksum does not count");
    }
    assert_eq!((left, checksum.remaining_bytes), (0, 0));
    // With the checksum behind it, as `etcdctl snapshot save` keeps it.
    let file = one.dir.path().join("saved");
    std::fs::write(&file, [&whole[..], &checksum.blob].concat()).unwrap();
    let summary = verify_backup(&file, None).unwrap();
    assert_eq!((summary.info.revision, summary.file_bytes), (51, whole.len() as u64 + 32));
    eventually_removed(&one).await;
}

/// A client that goes away: while the copy is made, before it reads, and in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_who_leaves_leaves_no_files() {
    let one = One::start().await;
    large(&one).await;
    let maintenance = MaintenanceService::new(one.etcd.clone());
    for wait in [0, 300, 3_000] {
        let asked = maintenance.snapshot(Request::new(SnapshotRequest {}));
        let _ = tokio::time::timeout(Duration::from_micros(wait), asked).await;
    }
    // Who has both turns knows that all earlier ones are over.
    let mut first = in_turn(&maintenance).await;
    let second = in_turn(&maintenance).await;
    first.next().await.unwrap().unwrap();
    assert_eq!(left_over(&one), 2, "theirs alone");
    drop((first, second));
    eventually_removed(&one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_snapshots_at_once_and_no_third() {
    let one = One::start().await;
    large(&one).await;
    let maintenance = MaintenanceService::new(one.etcd.clone());
    let (first, _second) = (in_turn(&maintenance).await, in_turn(&maintenance).await);
    let third = maintenance.snapshot(Request::new(SnapshotRequest {})).await.map(drop).unwrap_err();
    assert_eq!((third.code(), third.message()), (Code::ResourceExhausted, "etcdserver: too many requests"));
    drop(first);
    drop(in_turn(&maintenance).await);
}
