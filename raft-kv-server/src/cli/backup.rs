//! `backup`: copies of the cluster in files, looked through and made a new cluster. What is in a file and when
//! it counts is the crate's; here are words and keys.

use std::io::Read;
use std::path::Path;

use raft_kv::client::{BackupSummary, Config, RestorePlan, RestoreTo, read_own_root, restore, verify_backup};
use raft_kv::net::write_private;
use raft_kv::pki::BackupKey;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::args::{BackupArgs, BackupCommand, BackupCreateArgs, BackupRestoreArgs, BackupVerifyArgs};
use crate::cli::archive;
use crate::cli::node::date;
use crate::connect::connect;
use crate::failure::{Failure, Kind};
use crate::output::{Output, shell_word};
use crate::serve;

/// Longer is no key.
const MAX_KEY_BYTES: u64 = 1024;

/// `raft-kv backup`.
pub async fn run(args: BackupArgs, output: &mut Output) -> Result<(), Failure> {
    match args.command {
        BackupCommand::Create(args) => create(&args, output).await,
        BackupCommand::Archive(args) => archive::run(&args, output).await,
        BackupCommand::Verify(args) => verify(args, output).await,
        BackupCommand::Restore(args) => restored(*args, output).await,
        BackupCommand::Key { file } => key(&file, output),
    }
}

fn refused(file: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Refused, format!("refused: file {}: {why}", file.display()))
}

fn key(file: &Path, output: &mut Output) -> Result<(), Failure> {
    if std::fs::symlink_metadata(file).is_ok() {
        return Err(refused(file, "it exists; a key that was used is needed for as long as its backups are"));
    }
    let text = Zeroizing::new(format!("{}\n", BackupKey::generate().to_text()));
    write_private(file, text.as_bytes())?;
    output.answer(
        || json!({ "file": file.display().to_string() }),
        || {
            format!(
                "{} has a new key; keep it apart from the backups: without it they are lost, and with it they are the \
                 cluster's authority",
                file.display()
            )
        },
    )
}

pub(super) fn key_in(file: Option<&Path>) -> Result<Option<BackupKey>, Failure> {
    let Some(file) = file else { return Ok(None) };
    let mut text = Zeroizing::new(String::new());
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_KEY_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_KEY_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| refused(file, format!("it can't be read: {error}")))?;
    Ok(Some(text.parse()?))
}

async fn create(args: &BackupCreateArgs, output: &mut Output) -> Result<(), Failure> {
    let key = key_in(args.key_file.as_deref())?;
    let handle = connect(&args.connect).await?;
    let summary = match &args.since {
        Some(base) => handle.backup_since(base, &args.file, key.as_ref(), args.force).await?,
        None => handle.backup(&args.file, key.as_ref(), args.force).await?,
    };
    output.answer(|| summary_json(&summary), || summary_text(&args.file, &summary))
}

async fn verify(args: BackupVerifyArgs, output: &mut Output) -> Result<(), Failure> {
    let key = key_in(args.key_file.as_deref())?;
    if args.file.is_dir() {
        return archive::verify(&args.file, key.as_ref(), output);
    }
    let summary = verify_backup(&args.file, key.as_ref())?;
    output.answer(|| summary_json(&summary), || summary_text(&args.file, &summary))
}

async fn restored(args: BackupRestoreArgs, output: &mut Output) -> Result<(), Failure> {
    let plan = RestorePlan { key: key_in(args.key_file.as_deref())?, ..RestorePlan::default() };
    let raise = args.raise_revision.unwrap_or(plan.raise);
    let to = match (args.to, args.to_revision) {
        (Some(time), _) => RestoreTo::Time(time),
        (None, Some(revision)) => RestoreTo::Revision(revision),
        (None, None) => RestoreTo::End,
    };
    let plan = RestorePlan { raise, without: args.without, changes: args.then, to, ..plan };
    let own_root = args.ca_cert.as_deref();
    let own_root = own_root.map(|cert| read_own_root(cert, args.ca_key.as_deref(), None)).transpose()?;
    let config = Config { own_root, ..serve::config(&args.data_dir, args.place, args.signer) };
    let made = restore(config, &args.file, &plan).await?;
    let data_dir = args.data_dir.display().to_string();
    output.answer(
        || {
            json!({
                "backup": summary_json(&made.backup),
                "cluster": made.cluster.to_string(),
                "member": made.node.to_string(),
                "addr": made.addr,
                "from_revision": made.from,
                "revision": made.revision,
                "kept_root": made.kept_root,
                "locked": made.locked,
                "data_dir": data_dir,
            })
        },
        || {
            let trust = if made.kept_root {
                "the root is that of before: clients and workers keep their certificates; join tokens are new"
            } else {
                "the backup has not what opens the cluster's secrets: the root and the join tokens are new, everybody \
                 needs another certificate, and users have no passwords until they are given one"
            };
            let unlock = if made.locked { "; it needs the cluster's unlock key" } else { "" };
            format!(
                "member {} of the new cluster {} is made from revision {}; its revision is {}\n{trust}\nstart it with \
                 `raft-kv run --data-dir {}`{unlock}\n",
                made.node,
                made.cluster,
                made.from,
                made.revision,
                shell_word(&data_dir)
            )
        },
    )
}

pub(super) fn summary_json(summary: &BackupSummary) -> Value {
    let info = &summary.info;
    json!({
        "cluster": info.cluster.to_string(),
        "member": info.member.to_string(),
        "revision": info.revision,
        "index": info.index,
        "term": info.term,
        "made": info.made,
        "version": info.version,
        "since": info.since,
        "encrypted": summary.encrypted,
        "keys": info.keys,
        "files": info.files,
        "content_bytes": info.bytes,
        "file_bytes": summary.file_bytes,
    })
}

fn summary_text(file: &Path, summary: &BackupSummary) -> String {
    let info = &summary.info;
    let secret = if summary.encrypted { ", encrypted" } else { "" };
    if info.since > 0 {
        return format!(
            "{}: whole{secret}\ncluster   {}\nchanges   of revisions {} to {}\nmade      {}, by version {}\nsize      {} bytes\n",
            file.display(),
            info.cluster,
            info.since + 1,
            info.revision,
            date(info.made),
            info.version,
            summary.file_bytes
        );
    }
    format!(
        "{}: whole{secret}\ncluster   {}\nmember    {}\nrevision  {}\nmade      {}, by version {}\nsize      {} bytes, \
         {} of content in {} files\n",
        file.display(),
        info.cluster,
        info.member,
        info.revision,
        date(info.made),
        info.version,
        summary.file_bytes,
        info.bytes,
        info.files
    )
}
