//! The correctness bugs that etcd had, as scenarios for real raft-kv members, each named after its
//! issue. The table in `docs/etcd-differences.md` says where those are tested that need no processes.

use std::time::{Duration, Instant};

use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
};

use super::Setting;
use crate::ask::{Answer, Ask};
use crate::server::RaftKv;
use crate::side::Side;

const KEEP: Duration = Duration::from_secs(30);

/// All of them that need processes.
///
/// # Errors
/// The first that came back.
pub async fn run(setting: &Setting) -> Result<usize, String> {
    let Some(binary) = setting.binary.as_deref() else { return Ok(0) };
    let mut bugs = Bugs { cluster: RaftKv::start(binary, 3).await? };
    bugs.issue_18667_ranges_of_a_txn_are_checked_up_front().await?;
    bugs.xline_848_one_request_is_one_revision().await?;
    bugs.issue_13766_a_kill_applies_nothing_twice_and_nothing_half().await?;
    bugs.issue_17780_the_revision_does_not_fall_when_killed_in_a_compaction().await?;
    bugs.issue_20418_a_leader_that_slept_reads_nothing_old().await?;
    bugs.issue_15247_a_leader_that_slept_ends_no_lease().await?;
    Ok(6)
}

struct Bugs {
    cluster: RaftKv,
}

fn put_op(key: &str, value: &str) -> RequestOp {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    RequestOp { request: Some(Request::RequestPut(put)) }
}

fn range_op(key: &str, revision: i64) -> RequestOp {
    let range = RangeRequest { key: key.to_owned().into(), revision, ..Default::default() };
    RequestOp { request: Some(Request::RequestRange(range)) }
}

fn put(key: &str, value: &str) -> Ask {
    Ask::Put(PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() })
}

fn get(key: &str) -> Ask {
    Ask::Range(RangeRequest { key: key.to_owned().into(), ..Default::default() })
}

fn refused(answer: &Answer, wanted: &str) -> Result<(), String> {
    match answer {
        Answer::Refused { text, .. } if text.contains(wanted) => Ok(()),
        other => Err(format!("not refused with {wanted:?}: {other:?}")),
    }
}

impl Bugs {
    async fn side(&self, member: usize) -> Result<Side, String> {
        Side::connect(&self.cluster.place, member).await
    }

    /// The revision that a linearizable read tells.
    async fn revision(side: &mut Side) -> Result<i64, String> {
        match side.ask(&get("?"), None).await {
            Answer::Range(range) => Ok(range.header.map_or(0, |header| header.revision)),
            other => Err(format!("no revision: {other:?}")),
        }
    }

    /// Puts until it is done; an uncertain one is done again.
    async fn put_surely(side: &mut Side, key: &str, value: &str) -> Result<i64, String> {
        let began = Instant::now();
        loop {
            match side.ask(&put(key, value), None).await {
                Answer::Put(done) => return Ok(done.header.map_or(0, |header| header.revision)),
                other if began.elapsed() > KEEP => return Err(format!("{key} can't be put: {other:?}")),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The member that leads, by its place.
    async fn leader(&self) -> Result<usize, String> {
        let began = Instant::now();
        while began.elapsed() < KEEP {
            for member in 0..self.cluster.place.addrs.len() {
                let answer = self.side(member).await?.ask(&Ask::Status(Default::default()), None).await;
                if matches!(answer, Answer::Status(status) if status.leader == 1) {
                    return Ok(member);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("nobody leads".to_owned())
    }

    async fn issue_18667_ranges_of_a_txn_are_checked_up_front(&mut self) -> Result<(), String> {
        let mut side = self.side(0).await?;
        for n in 0..6 {
            Self::put_surely(&mut side, "b18667", &n.to_string()).await?;
        }
        let before = Self::revision(&mut side).await?;
        side.ask(&Ask::Compact(CompactionRequest { revision: before - 2, physical: false }), None).await;
        let cases = [
            (before + 1, "required revision is a future revision"),
            (before - 4, "required revision has been compacted"),
        ];
        for (revision, text) in cases {
            let flat = TxnRequest {
                success: vec![put_op("b18667-x", "1"), range_op("b18667", revision)],
                ..Default::default()
            };
            let nested = TxnRequest {
                success: vec![
                    put_op("b18667-y", "1"),
                    RequestOp { request: Some(Request::RequestTxn(flat.clone())) },
                ],
                ..Default::default()
            };
            for txn in [flat, nested] {
                refused(&side.ask(&Ask::Txn(txn), None).await, text)?;
            }
        }
        for member in 0..3 {
            let after = Self::revision(&mut self.side(member).await?).await?;
            if after != before {
                return Err(format!("#18667: a refused transaction moved the revision: {before} to {after}"));
            }
        }
        Ok(())
    }

    async fn xline_848_one_request_is_one_revision(&mut self) -> Result<(), String> {
        let before = Self::revision(&mut self.side(0).await?).await?;
        let mut tasks = Vec::new();
        for member in 0..3 {
            let mut side = self.side(member).await?;
            tasks.push(tokio::spawn(async move {
                let mut revisions = Vec::new();
                for n in 0..100 {
                    let ops = (0..3).map(|op| put_op(&format!("x848/{member}/{n}/{op}"), "1")).collect();
                    let txn = Ask::Txn(TxnRequest { success: ops, ..Default::default() });
                    match side.ask(&txn, None).await {
                        Answer::Txn(done) => revisions.push(done.header.map_or(0, |header| header.revision)),
                        other => return Err(format!("xline#848: {other:?}")),
                    }
                }
                Ok(revisions)
            }));
        }
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.map_err(|error| error.to_string())??);
        }
        all.sort_unstable();
        let expected: Vec<i64> = (before + 1..=before + 300).collect();
        if all == expected { Ok(()) } else { Err(format!("xline#848: revisions after {before}: {all:?}")) }
    }

    async fn issue_13766_a_kill_applies_nothing_twice_and_nothing_half(&mut self) -> Result<(), String> {
        for round in 0..3 {
            let key = format!("b13766/{round}");
            let mut side = self.side(0).await?;
            let writer = tokio::spawn(async move {
                let mut done = 0;
                loop {
                    let ops = vec![put_op(&key, "1"), put_op(&format!("{key}/pair"), "1")];
                    match side.ask(&Ask::Txn(TxnRequest { success: ops, ..Default::default() }), None).await {
                        Answer::Txn(_) => done += 1,
                        _ => return done,
                    }
                }
            });
            tokio::time::sleep(Duration::from_millis(150 + 90 * round)).await;
            // All at once: what is left is what the disks hold.
            for member in 0..3 {
                self.cluster.cluster.kill(member)?;
            }
            let done: i64 = writer.await.map_err(|error| error.to_string())?;
            self.cluster.cluster.restart(&[0, 1, 2])?;
            let key = format!("b13766/{round}");
            for member in 0..3 {
                let mut side = self.side(member).await?;
                let mut versions = Vec::new();
                for key in [key.clone(), format!("{key}/pair")] {
                    match side.ask(&get(&key), None).await {
                        Answer::Range(range) => versions.push(range.kvs.first().map_or(0, |kv| kv.version)),
                        other => return Err(format!("#13766: {other:?}")),
                    }
                }
                // The last one may have been done without its answer.
                if versions[0] != versions[1] || !(done..=done + 1).contains(&versions[0]) {
                    return Err(format!("#13766: {done} transactions answered, versions {versions:?}"));
                }
            }
        }
        Ok(())
    }

    async fn issue_17780_the_revision_does_not_fall_when_killed_in_a_compaction(
        &mut self,
    ) -> Result<(), String> {
        for round in 0..3_u64 {
            let mut side = self.side(0).await?;
            for n in 0..40 {
                let ops = (0..100).map(|key| put_op(&format!("b17780/{key}"), &n.to_string())).collect();
                side.ask(&Ask::Txn(TxnRequest { success: ops, ..Default::default() }), None).await;
            }
            // The newest revision belongs to a deletion, as it did then.
            let deletion = etcd_api::etcdserverpb::DeleteRangeRequest {
                key: "b17780/".into(),
                range_end: "b177800".into(),
                ..Default::default()
            };
            side.ask(&Ask::Delete(deletion), None).await;
            let before = Self::revision(&mut side).await?;
            let compaction = tokio::spawn(async move {
                let ask = Ask::Compact(CompactionRequest { revision: before, physical: true });
                side.ask(&ask, None).await
            });
            tokio::time::sleep(Duration::from_millis(round * 4)).await;
            for member in 0..3 {
                self.cluster.cluster.kill(member)?;
            }
            let answer = compaction.await.map_err(|error| error.to_string())?;
            self.cluster.cluster.restart(&[0, 1, 2])?;
            for member in 0..3 {
                let mut side = self.side(member).await?;
                let after = Self::revision(&mut side).await?;
                if after != before {
                    return Err(format!("#17780: revision {before}, after the crash {after}"));
                }
                if matches!(answer, Answer::Compact(_)) {
                    let old =
                        RangeRequest { key: "b17780/1".into(), revision: before - 1, ..Default::default() };
                    refused(&side.ask(&Ask::Range(old), None).await, "required revision has been compacted")?;
                }
            }
        }
        Ok(())
    }

    async fn issue_20418_a_leader_that_slept_reads_nothing_old(&mut self) -> Result<(), String> {
        for round in 0..3 {
            let leader = self.leader().await?;
            let mut old = self.side(leader).await?;
            Self::put_surely(&mut old, "b20418", "old").await?;
            let mut other = self.side((leader + 1) % 3).await?;
            self.cluster.cluster.pause(leader)?;
            // Sent to the sleeper, which answers when it wakes.
            let asked = tokio::spawn(async move { old.ask(&get("b20418"), None).await });
            let value = format!("new {round}");
            let written = Self::put_surely(&mut other, "b20418", &value).await;
            let sooner = asked.is_finished();
            self.cluster.cluster.resume(leader)?;
            written?;
            let answer = asked.await.map_err(|error| error.to_string())?;
            if let Answer::Range(range) = answer
                && !sooner
                && range.kvs.first().is_none_or(|kv| kv.value != value.as_bytes())
            {
                // The read began before the write: both values are allowed. What is asked now is not.
                let mut woken = self.side(leader).await?;
                if let Answer::Range(range) = woken.ask(&get("b20418"), None).await
                    && range.kvs.first().is_none_or(|kv| kv.value != value.as_bytes())
                {
                    return Err(format!("#20418: a leader that slept read {:?}", range.kvs));
                }
            }
        }
        Ok(())
    }

    async fn issue_15247_a_leader_that_slept_ends_no_lease(&mut self) -> Result<(), String> {
        let leader = self.leader().await?;
        let mut side = self.side((leader + 1) % 3).await?;
        let grant = Ask::Grant(LeaseGrantRequest { id: 15247, ttl: 4 });
        if !matches!(side.ask(&grant, None).await, Answer::Grant(_)) {
            return Err("#15247: no lease".to_owned());
        }
        let attach = PutRequest { key: "b15247".into(), lease: 15247, ..Default::default() };
        side.ask(&Ask::Put(attach), None).await;
        self.cluster.cluster.pause(leader)?;
        // Longer than the lease lives in the sleeper's eyes, kept alive by its successor.
        let began = Instant::now();
        let mut kept = Ok(());
        while began.elapsed() < Duration::from_secs(7) {
            let keep = Ask::KeepAlive(vec![LeaseKeepAliveRequest { id: 15247 }]);
            if let Answer::KeepAlive(answers) = side.ask(&keep, None).await
                && answers.first().is_some_and(|answer| answer.ttl == 0)
            {
                kept = Err("#15247: the lease ended while it was kept alive".to_owned());
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.cluster.cluster.resume(leader)?;
        kept?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            side.ask(&Ask::KeepAlive(vec![LeaseKeepAliveRequest { id: 15247 }]), None).await;
            match side.ask(&get("b15247"), None).await {
                Answer::Range(range) if range.count == 1 => {}
                Answer::Range(_) => return Err("#15247: a deposed leader ended the lease".to_owned()),
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}
