//! `recover`: a member that is left of a lost quorum goes on alone, as a new epoch. It works on a data
//! directory and asks nobody. Without `--yes` it changes nothing and says what it would do; what may be
//! lost is said before and after.

use std::path::Path;

use raft_kv::client::{RecoverOptions, RecoverStatus, Recovery, recover, survey_recovery};
use raft_kv::types::{Member, MemberRole};
use serde_json::{Value, json};

use crate::args::RecoverArgs;
use crate::cli::lock;
use crate::failure::{Failure, Kind};
use crate::output::{Output, shell_word};
use crate::serve::signer;

/// `raft-kv recover`.
pub async fn run(args: RecoverArgs, output: &mut Output) -> Result<(), Failure> {
    let options = RecoverOptions {
        unlock: lock::given_key(args.unlock_key_file.as_deref())?,
        external_signer: signer(args.signer),
        revisions: args.margin,
        without_log: args.without_log,
        ..RecoverOptions::default()
    };
    let (data_dir, margin) = (args.data_dir.as_path(), args.margin);
    let status = match args.yes {
        true => recover(data_dir, &options).await?,
        false => survey_recovery(data_dir, &options)?,
    };
    output.answer(|| as_json(&status, data_dir), || as_text(&status, data_dir, margin))?;
    match status {
        RecoverStatus::Possible(_) | RecoverStatus::Unfinished(_) if !args.dry_run => {
            Err(Failure::new(Kind::Refused, "nothing was changed; give --yes to do it"))
        }
        _ => Ok(()),
    }
}

fn parts(status: &RecoverStatus) -> (&'static str, &Recovery) {
    match status {
        RecoverStatus::Possible(recovery) => ("possible", recovery),
        RecoverStatus::Alone(recovery) => ("alone", recovery),
        RecoverStatus::Unfinished(recovery) => ("unfinished", recovery),
        RecoverStatus::Done(recovery) => ("done", recovery),
    }
}

fn role(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
    }
}

fn as_json(status: &RecoverStatus, data_dir: &Path) -> Value {
    let (word, recovery) = parts(status);
    let other = |member: &Member| {
        let record = &member.record;
        json!({
            "id": record.id.to_string(), "name": record.name, "addr": record.addr, "role": role(member.role),
        })
    };
    let new = |value: Value| if recovery.new_id.0 == 0 { Value::Null } else { value };
    json!({
        "status": word,
        "cluster": recovery.cluster.to_string(),
        "name": recovery.name,
        "addr": recovery.addr,
        "role": recovery.role.map(role),
        "old": {
            "epoch": recovery.epoch,
            "id": recovery.old_id.to_string(),
            "others": recovery.others.iter().map(other).collect::<Vec<_>>(),
            "without_log": recovery.without_log,
            "term": recovery.last.0,
            "last_durable": recovery.last.1,
            "last_committed": recovery.committed,
            "applied": recovery.applied,
            "uncertain": recovery.uncertain(),
            "revision": recovery.revision,
        },
        "new": new(json!({
            "epoch": recovery.epoch + 1,
            "id": recovery.new_id.to_string(),
            "kept_revision": recovery.kept_revision,
            "revision": recovery.new_revision,
            "set_aside": data_dir.join(&recovery.set_aside).to_string_lossy(),
        })),
    })
}

fn as_text(status: &RecoverStatus, data_dir: &Path, margin: i64) -> String {
    let (_, recovery) = parts(status);
    let Recovery { name, old_id, new_id, epoch, cluster, .. } = recovery;
    let dir = shell_word(&data_dir.to_string_lossy());
    let next = epoch + 1;
    let mut text = match status {
        RecoverStatus::Alone(_) => {
            return format!(
                "member {old_id} ({name}) of cluster {cluster} is a quorum by itself in epoch {epoch}: there is nothing \
                 to recover, run `raft-kv run --data-dir {dir}`"
            );
        }
        RecoverStatus::Possible(_) => {
            format!("would begin epoch {next} of cluster {cluster} with {name} ({old_id}) alone\n")
        }
        RecoverStatus::Unfinished(_) => {
            format!("epoch {next} of cluster {cluster} with {name} alone was decided, and was cut short\n")
        }
        RecoverStatus::Done(_) => {
            format!("began epoch {next} of cluster {cluster} with {name} alone, now member {new_id}\n")
        }
    };
    text.push_str(&what_is_known(recovery));
    let others: Vec<String> = recovery
        .others
        .iter()
        .map(|member| format!("{} ({}, {})", member.record.name, member.record.id, member.record.addr))
        .collect();
    let verb = if matches!(status, RecoverStatus::Done(_)) { "are" } else { "would be" };
    if !others.is_empty() {
        text.push_str(&format!("  {verb} shut out for good: {}\n", others.join(", ")));
    }
    match status {
        RecoverStatus::Done(_) => text.push_str(&format!(
            "  revision: {} is the last one kept, {} the first new one\n  what was there before: {}\n\
             Run `raft-kv run --data-dir {dir}`, then join members anew, each with an empty data directory.\n",
            recovery.kept_revision,
            recovery.new_revision + 1,
            data_dir.join(&recovery.set_aside).display(),
        )),
        RecoverStatus::Possible(_) => text.push_str(&format!(
            "  the revision would go up by {margin}: give --margin if the others can have made more\n\
             Make sure that the others do not run and will not: writes that they alone have are lost, and as long \
             as most of them run, two clusters of one name serve.\n",
        )),
        _ => {}
    }
    text
}

/// What this member has, and what nobody can know here.
fn what_is_known(recovery: &Recovery) -> String {
    let mut text = format!(
        "  last durable entry: {} (term {})\n  last known committed: {}\n  last applied: {} (revision {})\n",
        recovery.last.1, recovery.last.0, recovery.committed, recovery.applied, recovery.revision,
    );
    match recovery.uncertain() {
        0 if recovery.without_log => text.push_str(
            "  the log can't be read: what only it has is LOST, acknowledged writes among it\n",
        ),
        0 => text.push_str("  every entry here is known to be committed\n"),
        entries => text.push_str(&format!(
            "  {entries} entries are not known to be committed, and are kept: they may have been acknowledged\n",
        )),
    }
    match recovery.role {
        Some(MemberRole::Voter) => text.push_str(
            "  lost: what the others acknowledged without this member, if it was behind; it can't know that\n",
        ),
        Some(MemberRole::Learner) => text.push_str(
            "  lost: whatever this learner had not received; no quorum ever waited for it. Recover a voter if one \
             is left\n",
        ),
        None => text.push_str(
            "  this member had been REMOVED from the group: everything since then is lost. Recover another one if \
             one is left\n",
        ),
    }
    text
}

#[cfg(test)]
mod tests {
    use raft_kv::types::{ClusterId, MemberRecord, NodeId};

    use super::*;

    fn sample() -> Recovery {
        let record =
            MemberRecord { id: NodeId(2), name: "b".into(), addr: "b:1".into(), ..MemberRecord::default() };
        Recovery {
            cluster: ClusterId(7),
            name: "a".into(),
            addr: "a:1".into(),
            old_id: NodeId(1),
            new_id: NodeId(0),
            role: Some(MemberRole::Voter),
            epoch: 1,
            others: vec![Member { record, role: MemberRole::Voter }],
            without_log: false,
            last: (3, 20),
            committed: 18,
            applied: 15,
            revision: 9,
            kept_revision: 0,
            new_revision: 0,
            set_aside: String::new(),
        }
    }

    #[test]
    fn both_forms_are_complete() {
        let status = RecoverStatus::Possible(sample());
        let text = as_text(&status, Path::new("/d"), 5);
        for part in [
            "would begin epoch 2",
            "last durable entry: 20 (term 3)",
            "last known committed: 18",
            "last applied: 15 (revision 9)",
            "2 entries are not known",
            "b (0000000000000002, b:1)",
            "go up by 5",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        let json = as_json(&status, Path::new("/d"));
        assert_eq!(json["new"], Value::Null);
        assert_eq!((&json["old"]["uncertain"], &json["status"]), (&json!(2), &json!("possible")));
        let done = Recovery {
            new_id: NodeId(3),
            kept_revision: 12,
            new_revision: 112,
            set_aside: "epoch-1".into(),
            ..sample()
        };
        let status = RecoverStatus::Done(done);
        let text = as_text(&status, Path::new("/d"), 100);
        for part in ["began epoch 2", "12 is the last one kept, 113 the first new one", "/d/epoch-1"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        let new = &as_json(&status, Path::new("/d"))["new"];
        assert_eq!((&new["epoch"], &new["revision"]), (&json!(2), &json!(112)));
        let learner = RecoverStatus::Possible(Recovery { role: Some(MemberRole::Learner), ..sample() });
        assert!(as_text(&learner, Path::new("/d"), 5).contains("this learner"));
        let damaged = Recovery { without_log: true, committed: 20, applied: 20, ..sample() };
        assert!(as_text(&RecoverStatus::Possible(damaged), Path::new("/d"), 5).contains("log can't be read"));
        let gone = RecoverStatus::Possible(Recovery { role: None, ..sample() });
        assert!(as_text(&gone, Path::new("/d"), 5).contains("REMOVED"));
    }
}
