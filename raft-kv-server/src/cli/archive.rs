//! `backup archive`, and an archive looked through: words, lines and a page of metrics. What is archived, when, and
//! how it goes on is the crate's.

use std::path::Path;
use std::time::Duration;

use raft_kv::client::{ArchiveEvent, ArchivePlan, ArchiveStatus, ArchiveSummary, FullReason, verify_archive};
use raft_kv::pki::BackupKey;
use serde_json::{Value, json};

use crate::args::{BackupArchiveArgs, KeepingArgs};
use crate::cli::backup::{key_in, summary_json};
use crate::cli::node::date;
use crate::connect::connect_for_long;
use crate::failure::Failure;
use crate::output::Output;
use crate::serve::Signals;

/// Behind for so many times `--every`, it is said in the log.
const LATE: u32 = 6;

/// `raft-kv backup archive`.
pub async fn run(args: &BackupArchiveArgs, output: &mut Output) -> Result<(), Failure> {
    let plan = plan(&args.keeping, key_in(args.key_file.as_deref())?);
    let mut signals = Signals::new()?;
    let mut seen = Seen::default();
    let handle = connect_for_long(&args.connect).await?;
    let say = |event: &ArchiveEvent| {
        log(event, &plan);
        seen.note(event);
        if let Some(file) = &args.metrics_file
            && let Err(error) = write_page(file, &seen.page())
        {
            tracing::warn!(file = %file.display(), %error, "the metrics could not be written");
        }
        if let Err(failure) = output.answer(|| event_json(event), || event_text(event)) {
            tracing::warn!(%failure, "what is done can't be said");
        }
    };
    Ok(handle.archive(&args.dir, &plan, signals.next(), say).await?)
}

fn plan(args: &KeepingArgs, key: Option<BackupKey>) -> ArchivePlan {
    ArchivePlan {
        key,
        every: Duration::from_secs(args.every),
        every_bytes: args.every_bytes,
        full_every: Duration::from_secs(args.full_every),
        keep: args.keep.map(Duration::from_secs),
    }
}

/// What must not be missed, into the log.
fn log(event: &ArchiveEvent, plan: &ArchivePlan) {
    match event {
        ArchiveEvent::Gap { after, why } => {
            tracing::warn!(after, why, "the archive has a gap, and goes on with a full backup behind it");
        }
        ArchiveEvent::Failed { why } => tracing::warn!(why, "archiving failed; it is tried again"),
        ArchiveEvent::Status(status) if status.behind > plan.every * LATE => {
            let revisions = status.revision - status.archived;
            tracing::warn!(revisions, seconds = status.behind.as_secs(), "the archive is behind");
        }
        _ => {}
    }
}

/// What the page of metrics shows.
#[derive(Default)]
struct Seen {
    status: Option<ArchiveStatus>,
    changes: u64,
    fulls: u64,
    gaps: u64,
    failures: u64,
    bytes: u64,
    closed: i64,
}

impl Seen {
    fn note(&mut self, event: &ArchiveEvent) {
        match event {
            ArchiveEvent::Full { backup, .. } | ArchiveEvent::Changes { backup, .. } => {
                let full = matches!(event, ArchiveEvent::Full { .. });
                self.fulls += u64::from(full);
                self.changes += u64::from(!full);
                self.bytes += backup.file_bytes;
                self.closed = backup.info.made;
            }
            ArchiveEvent::Gap { .. } => self.gaps += 1,
            ArchiveEvent::Failed { .. } => self.failures += 1,
            ArchiveEvent::Status(status) => self.status = Some(*status),
            ArchiveEvent::Removed { .. } => {}
        }
    }

    fn page(&self) -> String {
        let (archived, revision, behind) = self
            .status
            .map_or((0, 0, 0.0), |status| (status.archived, status.revision, status.behind.as_secs_f64()));
        let mut page = String::new();
        for (name, kind, help, value) in [
            ("archived_revision", "gauge", "The last revision that is in a file.", archived.to_string()),
            ("cluster_revision", "gauge", "The cluster's revision.", revision.to_string()),
            (
                "behind_seconds",
                "gauge",
                "How long the oldest change has waited for a file.",
                behind.to_string(),
            ),
            (
                "last_file_seconds",
                "gauge",
                "When the last file was closed, since 1970.",
                self.closed.to_string(),
            ),
            ("changes_files_total", "counter", "Files of changes written.", self.changes.to_string()),
            ("full_backups_total", "counter", "Full backups written.", self.fulls.to_string()),
            ("written_bytes_total", "counter", "Bytes of all files written.", self.bytes.to_string()),
            ("gaps_total", "counter", "Gaps: changes that were compacted before.", self.gaps.to_string()),
            ("failures_total", "counter", "What failed and was tried again.", self.failures.to_string()),
        ] {
            let name = format!("raft_kv_archive_{name}");
            page.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"));
        }
        page
    }
}

/// Nobody reads half a page.
fn write_page(file: &Path, page: &str) -> std::io::Result<()> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, page)?;
    std::fs::rename(&part, file)
}

fn reason(reason: FullReason) -> &'static str {
    match reason {
        FullReason::First => "first",
        FullReason::Due => "due",
        FullReason::Gap => "gap",
    }
}

fn event_json(event: &ArchiveEvent) -> Value {
    match event {
        ArchiveEvent::Full { file, backup, reason: why } => json!({
            "event": "full",
            "file": file.display().to_string(),
            "reason": reason(*why),
            "backup": summary_json(backup),
        }),
        ArchiveEvent::Changes { file, backup } => json!({
            "event": "changes",
            "file": file.display().to_string(),
            "backup": summary_json(backup),
        }),
        ArchiveEvent::Gap { after, why } => json!({ "event": "gap", "after": after, "why": why }),
        ArchiveEvent::Removed { files, from } => json!({ "event": "removed", "files": files, "from": from }),
        ArchiveEvent::Status(status) => json!({
            "event": "status",
            "archived": status.archived,
            "revision": status.revision,
            "behind_seconds": status.behind.as_secs_f64(),
        }),
        ArchiveEvent::Failed { why } => json!({ "event": "failed", "why": why }),
    }
}

/// Only what was done: how far it is, and what failed, are in the log.
fn event_text(event: &ArchiveEvent) -> String {
    match event {
        ArchiveEvent::Full { file, backup, reason: why } => format!(
            "full backup ({}) at revision {}: {}, {} bytes",
            reason(*why),
            backup.info.revision,
            file.display(),
            backup.file_bytes
        ),
        ArchiveEvent::Changes { file, backup } => format!(
            "revisions {} to {}: {}, {} bytes",
            backup.info.since + 1,
            backup.info.revision,
            file.display(),
            backup.file_bytes
        ),
        ArchiveEvent::Removed { files, from } => {
            format!("{files} files removed; the archive begins with revision {from}")
        }
        ArchiveEvent::Gap { .. } | ArchiveEvent::Status(_) | ArchiveEvent::Failed { .. } => String::new(),
    }
}

/// `raft-kv backup verify` of a folder.
pub fn verify(folder: &Path, key: Option<&BackupKey>, output: &mut Output) -> Result<(), Failure> {
    let found = verify_archive(folder, key)?;
    output.answer(|| archive_json(&found), || archive_text(folder, &found))
}

fn archive_json(found: &ArchiveSummary) -> Value {
    let gap = |gap: &raft_kv::client::ArchiveGap| {
        json!({
            "after": gap.after,
            "after_made": gap.after_made,
            "before": gap.before,
            "before_made": gap.before_made,
        })
    };
    json!({
        "cluster": found.cluster.to_string(),
        "from_revision": found.from,
        "revision": found.to,
        "begins": found.begins,
        "ends": found.ends,
        "full_backups": found.fulls,
        "changes": found.changes,
        "file_bytes": found.file_bytes,
        "gaps": found.gaps.iter().map(gap).collect::<Vec<_>>(),
    })
}

fn archive_text(folder: &Path, found: &ArchiveSummary) -> String {
    let mut text = format!(
        "{}: whole\ncluster    {}\nrevisions  {} to {}\ntimes      {} to {}\nfiles      {} full backups, {} of changes, {} \
         bytes\n",
        folder.display(),
        found.cluster,
        found.from,
        found.to,
        date(found.begins),
        date(found.ends),
        found.fulls,
        found.changes,
        found.file_bytes
    );
    for gap in &found.gaps {
        text.push_str(&format!(
            "gap        revisions {} to {}, from {} to {}\n",
            gap.after + 1,
            gap.before - 1,
            date(gap.after_made),
            date(gap.before_made)
        ));
    }
    text
}
