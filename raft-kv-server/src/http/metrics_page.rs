//! `/metrics`: the member, the door and the process, as Prometheus reads them.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::header;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use raft_kv::client::api::Info;
use raft_kv::types::{Phase, TransferCounts};

use super::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::etcd::Etcd;
use crate::metrics::Metrics;

/// Ticks of the kernel's clock in a second, as /proc counts processor time: fixed on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) async fn page(etcd: Etcd, metrics: Arc<Metrics>) -> Response {
    let mut registry = Registry::default();
    if let Ok((_, info)) = etcd.own_handle().info().await {
        member(&mut registry, &info);
    }
    if let Some(counts) = etcd.own_handle().snapshots_here() {
        snapshots(&mut registry, &counts);
    }
    let rotation = etcd.own_handle().rotation_here().unwrap_or_default();
    rotating(&mut registry, rotation.as_ref().map(|(rotation, late)| (rotation.phase, *late)));
    joins(&mut registry, &etcd.own_handle().join_failures());
    gauge(&mut registry, "etcd_server_has_leader", "Whether a leader is known", has_leader(&etcd));
    process(&mut registry);
    let mut text = metrics.render();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes it");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn has_leader(etcd: &Etcd) -> i64 {
    let leadership = etcd.own_handle().leadership();
    i64::from(leadership.is_some_and(|leadership| leadership.borrow().leader.is_some()))
}

fn gauge(registry: &mut Registry, name: impl Into<String>, help: &str, value: i64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Who came with a token and was not let in.
fn joins(registry: &mut Registry, failures: &[(&'static str, u64)]) {
    let counts = Family::<Reason, Counter>::default();
    for (reason, count) in failures {
        counts.get_or_create(&Reason { reason }).inc_by(*count);
    }
    let help = "Joins, enrolments and returns with a token that failed here since the start, by reason";
    registry.register("raft_kv_join_failures", help, counts);
}

/// How far the replacement of the root is, and how many it waits for.
fn rotating(registry: &mut Registry, rotation: Option<(Phase, usize)>) {
    let phase = match rotation {
        None => 0,
        Some((Phase::Introduce, _)) => 1,
        Some((Phase::Reissue, _)) => 2,
    };
    let help =
        "The replacement of the root: 0 none, 1 the new one is introduced, 2 certificates are reissued";
    gauge(registry, "raft_kv_ca_rotation_phase", help, phase);
    let late = rotation.map_or(0, |(_, late)| signed(late as u64));
    gauge(registry, "raft_kv_ca_late_nodes", "Nodes that the replacement of the root waits for", late);
}

/// What is used of what there is.
fn room(registry: &mut Registry, info: &Info) {
    let live = signed(info.usage.bytes);
    gauge(registry, "etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of live keys and values", live);
    // As etcd has it, 0 is none.
    let quota = signed(info.usage.quota.unwrap_or(0));
    let help = "What live keys and values may take, in bytes; 0 for no quota";
    gauge(registry, "etcd_server_quota_backend_bytes", help, quota);
    gauge(registry, "raft_kv_live_keys", "Live keys", signed(info.usage.keys));
    let help = "Bytes that are free on the disk of the data directory";
    gauge(registry, "raft_kv_disk_free_bytes", help, signed(info.disk_free));
    let short = i64::from(info.disk_short.contains(&info.member));
    gauge(registry, "raft_kv_disk_short", "Whether this member's alarm of a short disk is raised", short);
    let help = "Members whose alarm of a short disk is raised";
    gauge(registry, "raft_kv_disk_short_members", help, signed(info.disk_short.len() as u64));
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Version {
    server_version: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ClusterVersion {
    cluster_version: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ServerId {
    server_id: String,
}

/// A number as a gauge has it; no real one is larger.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn member(registry: &mut Registry, info: &Info) {
    let leads = i64::from(info.leader == Some(info.member));
    gauge(registry, "etcd_server_is_leader", "Whether this member leads", leads);
    gauge(registry, "etcd_server_is_learner", "Whether this member only learns", i64::from(info.learner));
    let committed = signed(info.committed);
    let help = "Log entries known committed";
    gauge(registry, "etcd_server_proposals_committed_total", help, committed);
    let help = "Log entries applied";
    gauge(registry, "etcd_server_proposals_applied_total", help, signed(info.applied));
    let bytes = signed(info.state_bytes);
    let help = "Bytes of the state on disk";
    gauge(registry, "etcd_mvcc_db_total_size_in_bytes", help, bytes);
    room(registry, info);
    let help = "The current revision";
    gauge(registry, "etcd_debugging_mvcc_current_revision", help, info.revision);
    let help = "The oldest revision that can be read";
    gauge(registry, "etcd_debugging_mvcc_compact_revision", help, info.compacted);
    let help = "Watchers";
    gauge(registry, "etcd_debugging_mvcc_watcher_total", help, signed(info.watchers));
    let version = Family::<Version, Gauge>::default();
    version.get_or_create(&Version { server_version: ETCD_VERSION }).set(1);
    registry.register("etcd_server_version", "The etcd release whose behaviour this is", version);
    let cluster = Family::<ClusterVersion, Gauge>::default();
    cluster.get_or_create(&ClusterVersion { cluster_version: ETCD_CLUSTER_VERSION }).set(1);
    registry.register("etcd_cluster_version", "The version that the cluster keeps to", cluster);
    let id = Family::<ServerId, Gauge>::default();
    id.get_or_create(&ServerId { server_id: info.member.to_string() }).set(1);
    registry.register("etcd_server_id", "This member's id", id);
    gauge(registry, "raft_kv_raft_term", "Raft's term", signed(info.term));
    let help = "The cluster's epoch: 1, and one more with each recovery from a lost quorum";
    gauge(registry, "raft_kv_epoch", help, signed(info.epoch));
    let help = "When this member's certificate ends, in seconds since 1970";
    gauge(registry, "raft_kv_certificate_expires_seconds", help, info.certificate_ends);
    gauge(registry, "raft_kv_watchers", "Watchers", signed(info.watchers));
    let help =
        "When the whole disk was last read to its end without damage, in seconds since 1970; 0: not yet";
    gauge(registry, "raft_kv_scrub_ended_seconds", help, info.scrub.ended);
    gauge(registry, "raft_kv_scrub_bytes", "Bytes that were read then", signed(info.scrub.bytes));
    counter(
        registry,
        "raft_kv_scrub_rounds",
        "How often the whole disk was read since the start",
        info.scrub.rounds,
    );
    counter(registry, "raft_kv_scrub_problems", "Damaged places found since the start", info.scrub.problems);
    counter(registry, "raft_kv_log_syncs", "Syncs of the raft log to disk since the start", info.syncs.0);
}

/// Snapshots between members: also while this one has no state yet.
fn snapshots(registry: &mut Registry, counts: &TransferCounts) {
    let help = "Copies of the state made to be sent to other members since the start";
    counter(registry, "raft_kv_snapshot_checkpoints", help, counts.made);
    let help = "Bytes of snapshots sent since the start";
    counter(registry, "raft_kv_snapshot_sent_bytes", help, counts.sent);
    let help = "Bytes of snapshots received since the start";
    counter(registry, "raft_kv_snapshot_received_bytes", help, counts.received);
    let help = "Bytes of snapshots that receivers had from a transfer that broke";
    counter(registry, "raft_kv_snapshot_spared_bytes", help, counts.spared);
    for (name, help, all) in [
        ("raft_kv_snapshot_sending", "Snapshots on their way from this member", &counts.sending),
        ("raft_kv_snapshot_receiving", "Snapshots on their way to this member", &counts.receiving),
    ] {
        gauge(registry, name, help, signed(all.len() as u64));
        let (done, bytes) =
            all.iter().fold((0, 0), |(done, bytes), one| (done + one.done, bytes + one.bytes));
        gauge(registry, format!("{name}_bytes"), "Bytes of them", signed(bytes));
        gauge(registry, format!("{name}_done_bytes"), "Bytes of them that have arrived", signed(done));
    }
}

/// What Prometheus' own libraries tell of every process, as far as /proc says it.
fn process(registry: &mut Registry) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<i64>().ok()
    };
    if let Some(resident) = kilobytes("VmRSS") {
        let help = "Resident memory";
        gauge(registry, "process_resident_memory_bytes", help, resident * 1024);
    }
    if let Some(ticks) = processor_ticks(&std::fs::read_to_string("/proc/self/stat").unwrap_or_default()) {
        let seconds = ticks as f64 / TICKS_PER_SECOND;
        let counter = Counter::<f64, std::sync::atomic::AtomicU64>::default();
        counter.inc_by(seconds);
        registry.register("process_cpu_seconds", "Processor time used", counter);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        gauge(registry, "process_open_fds", "Open files", signed(files.count() as u64));
    }
}

/// User and system time, from the line that /proc/self/stat is. The program's name in it may hold
/// anything; what follows its last bracket is plain.
fn processor_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "12 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 70 30 0 0 20";
        assert_eq!(processor_ticks(stat), Some(100));
        assert_eq!(processor_ticks(""), None);
        assert_eq!(processor_ticks("1 (x) S 1"), None);
    }
}
