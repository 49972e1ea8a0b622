//! Commands about the cluster as a whole: `info`, `transfer`, `compact`.

use raft_kv::client::api::Info;
use raft_kv::types::{NodeId, TransferCounts, TransferStatus, Usage};
use serde_json::{Value, json};

use crate::args::{CompactArgs, InfoArgs, TransferArgs};
use crate::cli::member::resolve;
use crate::connect::connect;
use crate::failure::Failure;
use crate::output::{Output, transfer_json};

/// `raft-kv info`.
pub async fn info(args: &InfoArgs, output: &mut Output) -> Result<(), Failure> {
    let (_, info) = connect(&args.connect).await?.info().await?;
    output.answer(|| info_json(&info), || info_text(&info))
}

fn info_json(info: &Info) -> Value {
    json!({
        "cluster": info.cluster.to_string(),
        "member": info.member.to_string(),
        "name": info.name,
        "addr": info.addr,
        "leader": info.leader.map(|leader| leader.to_string()),
        "term": info.term,
        "learner": info.learner,
        "committed": info.committed,
        "applied": info.applied,
        "revision": info.revision,
        "compacted": info.compacted,
        "state_bytes": info.state_bytes,
        "version": info.version,
        "root_digest": info.root_digest,
        "certificate_ends": info.certificate_ends,
        "certificate_ends_soon": info.certificate_ends_soon,
        "watchers": info.watchers,
        "syncs": info.syncs.0,
        "proposed": info.syncs.1,
        "live_bytes": info.usage.bytes,
        "live_keys": info.usage.keys,
        "quota": info.usage.quota,
        "disk_free": info.disk_free,
        "disk_short": info.disk_short.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "log_first": info.log_first,
        "epoch": info.epoch,
        "snapshots": snapshots_json(&info.snapshots),
        "scrub": {
            "rounds": info.scrub.rounds,
            "ended": info.scrub.ended,
            "bytes": info.scrub.bytes,
            "problems": info.scrub.problems,
        },
    })
}

fn snapshots_json(counts: &TransferCounts) -> Value {
    let list = |all: &[TransferStatus]| -> Value {
        all.iter()
            .map(|one| {
                let mut value = transfer_json(one);
                value["member"] = one.member.to_string().into();
                value
            })
            .collect()
    };
    json!({
        "made": counts.made,
        "sent_bytes": counts.sent,
        "received_bytes": counts.received,
        "spared_bytes": counts.spared,
        "sending": list(&counts.sending),
        "receiving": list(&counts.receiving),
    })
}

fn info_text(info: &Info) -> String {
    let leader = match info.leader {
        None => "none known".to_owned(),
        Some(leader) if leader == info.member => format!("{leader} (this member)"),
        Some(leader) => leader.to_string(),
    };
    let epoch = if info.epoch > 1 { format!(", epoch {}", info.epoch) } else { String::new() };
    let role = if info.learner { "learner" } else { "voter" };
    let scrubbed = match info.scrub.ended {
        0 => "not yet since the start".to_owned(),
        ended => format!("{}, {} bytes, nothing wrong", super::node::date(ended), info.scrub.bytes),
    };
    let compacted =
        if info.compacted > 0 { format!(", oldest kept {}", info.compacted) } else { String::new() };
    format!(
        "cluster      {}{epoch}\nmember       {} ({}), {role}, at {}\nleader       {leader}, term {}\n\
         log          committed {}, applied {}\nrevision     {}{compacted}\nstate        {} bytes on disk, {} watchers\n\
         live         {}\ndisk         {} bytes free{}\nroot digest  {}\ncertificate  until {}{}\n\
         disk read    {scrubbed}\nversion      {}\n",
        info.cluster,
        info.member,
        info.name,
        info.addr,
        info.term,
        info.committed,
        info.applied,
        info.revision,
        info.state_bytes,
        info.watchers,
        usage_text(&info.usage),
        info.disk_free,
        short_text(info),
        info.root_digest,
        date(info.certificate_ends),
        if info.certificate_ends_soon {
            ", SOON: it could not be renewed yet; is there a quorum?"
        } else {
            ""
        },
        info.version,
    )
}

/// What there is of live keys and values, and what there may be.
pub(super) fn usage_text(usage: &Usage) -> String {
    let quota = usage.quota.map_or_else(|| "no quota".to_owned(), |quota| format!("quota {quota}"));
    format!("{} bytes in {} keys, {quota}", usage.bytes, usage.keys)
}

/// Whose disk is short, if anybody's.
fn short_text(info: &Info) -> String {
    if info.disk_short.is_empty() {
        return String::new();
    }
    let who = |id: &NodeId| if *id == info.member { format!("{id} (this member)") } else { id.to_string() };
    let members: Vec<String> = info.disk_short.iter().map(who).collect();
    format!(", TOO LITTLE at {}: nothing that takes space is done until there is room", members.join(", "))
}

/// A day, from seconds since 1970.
pub(super) fn date(seconds: i64) -> String {
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(at) => format!("{:04}-{:02}-{:02}", at.year(), u8::from(at.month()), at.day()),
        Err(_) => format!("{seconds} s after 1970"),
    }
}

/// `raft-kv transfer`.
pub async fn transfer(args: &TransferArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    let to = match &args.member {
        Some(given) => Some(resolve(&handle, given).await?),
        None => None,
    };
    let header = handle.transfer(to).await?;
    output.answer(
        || json!({ "to": to.map(|id| id.to_string()), "term": header.term, "revision": header.revision }),
        || match to {
            Some(id) => format!("member {id} leads"),
            None => "leadership moved".to_owned(),
        },
    )
}

/// `raft-kv compact`.
pub async fn compact(args: &CompactArgs, output: &mut Output) -> Result<(), Failure> {
    let header = connect(&args.connect).await?.compact(args.revision, args.physical).await?;
    output.answer(
        || json!({ "revision": header.revision, "compacted": args.revision }),
        || format!("compacted; the oldest revision that can be read is {}", args.revision),
    )
}

#[cfg(test)]
mod tests {
    use raft_kv::client::api::ScrubStatus;
    use raft_kv::types::ClusterId;

    use super::*;

    #[test]
    fn info_is_complete_in_both_forms() {
        let info = Info {
            cluster: ClusterId(0xc),
            member: NodeId(0xa),
            name: "one".into(),
            addr: "h:1".into(),
            leader: Some(NodeId(0xa)),
            term: 2,
            committed: 10,
            applied: 9,
            revision: 7,
            compacted: 3,
            state_bytes: 4096,
            version: "0.1.0".into(),
            root_digest: "ab".into(),
            certificate_ends: 1_767_225_600,
            watchers: 1,
            syncs: (5, 6),
            usage: Usage { bytes: 30, keys: 2, quota: Some(100) },
            disk_free: 5000,
            log_first: 4,
            epoch: 2,
            snapshots: TransferCounts {
                made: 1,
                sent: 9,
                sending: vec![TransferStatus { member: NodeId(0xb), bytes: 8, done: 2, rate: 1 }],
                ..TransferCounts::default()
            },
            scrub: ScrubStatus { rounds: 1, ended: 1_767_225_600, bytes: 9, problems: 0 },
            ..Info::default()
        };
        assert_eq!(
            info_text(&info),
            "cluster      000000000000000c, epoch 2\nmember       000000000000000a (one), voter, at h:1\n\
             leader       000000000000000a (this member), term 2\nlog          committed 10, applied 9\n\
             revision     7, oldest kept 3\nstate        4096 bytes on disk, 1 watchers\n\
             live         30 bytes in 2 keys, quota 100\ndisk         5000 bytes free\nroot digest  ab\n\
             certificate  until 2026-01-01\ndisk read    2026-01-01T00:00:00Z, 9 bytes, nothing wrong\n\
             version      0.1.0\n"
        );
        let expect = r#"{"cluster":"000000000000000c","member":"000000000000000a","name":"one","addr":"h:1",
            "leader":"000000000000000a","term":2,"learner":false,"committed":10,"applied":9,"revision":7,"compacted":3,
            "state_bytes":4096,"version":"0.1.0","root_digest":"ab","certificate_ends":1767225600,"watchers":1,
             "syncs":5,"proposed":6,"live_bytes":30,"live_keys":2,"quota":100,"disk_free":5000,"disk_short":[],
             "certificate_ends_soon":false,"log_first":4,"epoch":2,
             "scrub":{"rounds":1,"ended":1767225600,"bytes":9,"problems":0},
             "snapshots":{"made":1,"sent_bytes":9,"received_bytes":0,"spared_bytes":0,"receiving":[],
             "sending":[{"member":"000000000000000b","bytes":8,"done":2,"percent":25,"rate":1}]}}"#;
        assert_eq!(info_json(&info), serde_json::from_str::<Value>(expect).unwrap());
        assert_eq!(info_json(&Info::default())["leader"], Value::Null);
        let short = Info { disk_short: vec![NodeId(0xa), NodeId(0xb)], ..info };
        let expect = "000000000000000a (this member), 000000000000000b: nothing that takes space";
        assert!(info_text(&short).contains(expect), "{}", info_text(&short));
        assert_eq!(info_json(&short)["disk_short"], json!(["000000000000000a", "000000000000000b"]));
    }
}
