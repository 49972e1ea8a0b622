//! Commands about the lock on members' disks: `autolock`, `unlock`, `unlock-key`. The unlock key is
//! read from standard input, a file or the environment and never from the command line.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;

use raft_kv::client;
use raft_kv::pki::UnlockKey;
use raft_kv::types::LockStatus;
use serde_json::{Value, json};

use crate::args::{Autolock, AutolockArgs, UnlockArgs, UnlockKeyArgs, UnlockKeyCommand};
use crate::connect::connect;
use crate::failure::Failure;
use crate::output::Output;

/// Where a key may be given to commands that can't ask for it.
const VARIABLE: &str = "RAFT_KV_UNLOCK_KEY";
/// More than a key is not read.
const MAX_BYTES: u64 = 256;

/// The unlock key in the environment.
pub fn key_in_environment() -> Result<Option<UnlockKey>, Failure> {
    match std::env::var(VARIABLE) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text.parse()?)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Failure::usage(format!("{VARIABLE} is not text"))),
    }
}

/// The unlock key in `file` (`-`: standard input), or else in the environment.
pub fn given_key(file: Option<&Path>) -> Result<Option<UnlockKey>, Failure> {
    let Some(file) = file else { return key_in_environment() };
    if file == Path::new("-") {
        return read(&mut std::io::stdin().lock(), "standard input").map(Some);
    }
    let name = file.display().to_string();
    let opened = File::open(file);
    let mut opened = opened.map_err(|error| Failure::usage(format!("{name} can't be read: {error}")))?;
    read(&mut opened, &name).map(Some)
}

fn read(from: &mut dyn Read, name: &str) -> Result<UnlockKey, Failure> {
    let mut text = String::new();
    let read = from.take(MAX_BYTES).read_to_string(&mut text);
    read.map_err(|error| Failure::usage(format!("the unlock key can't be read from {name}: {error}")))?;
    Ok(text.parse()?)
}

/// `raft-kv autolock`.
pub async fn autolock(args: &AutolockArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    let status = match args.what {
        Autolock::Status => handle.lock_status().await?,
        Autolock::On => handle.autolock(true).await?,
        Autolock::Off => handle.autolock(false).await?,
    };
    output.answer(|| as_json(&status), || as_text(&status))
}

/// `raft-kv unlock`.
pub async fn unlock(args: &UnlockArgs, output: &mut Output) -> Result<(), Failure> {
    if std::io::stdin().is_terminal() {
        eprintln!("Unlock key, then Enter and Ctrl-D:");
    }
    let key = read(&mut std::io::stdin().lock(), "standard input")?;
    client::unlock(&args.data_dir, &key).await?;
    output.answer(|| json!({ "unlocked": true }), || "unlocked; the member starts".to_owned())
}

/// `raft-kv unlock-key`.
pub async fn unlock_key(args: &UnlockKeyArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    let status = match args.command {
        UnlockKeyCommand::Show => handle.unlock_key().await?,
        UnlockKeyCommand::Rotate => handle.rotate_unlock_key().await?,
    };
    output.answer(|| as_json(&status), || as_text(&status))
}

fn key_of(status: &LockStatus) -> Option<String> {
    status.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned())
}

fn as_json(status: &LockStatus) -> Value {
    json!({
        "autolock": status.locked,
        "version": status.version,
        "data_key": status.active,
        "settled": status.settled,
        "late": status.late.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "unlock_key": key_of(status),
    })
}

fn as_text(status: &LockStatus) -> String {
    let mut text = match status.locked {
        true => "autolock is on: a member that is started needs the unlock key\n".to_owned(),
        false => "autolock is off: members start by themselves\n".to_owned(),
    };
    if let Some(key) = key_of(status) {
        text.push_str(&format!("\n    {key}\n\nKeep it outside of the cluster: without it no member that has stopped starts again.\n"));
    }
    if !status.settled {
        text.push_str("The data key is being replaced");
        if !status.late.is_empty() {
            let late: Vec<String> = status.late.iter().map(ToString::to_string).collect();
            text.push_str(&format!("; it waits for {}", late.join(", ")));
        }
        text.push_str(".\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use raft_kv::types::NodeId;

    use super::*;

    #[test]
    fn the_lock_is_complete_in_both_forms() {
        let off = LockStatus { active: 1, settled: true, ..LockStatus::default() };
        assert_eq!(as_text(&off), "autolock is off: members start by themselves\n");
        let expect =
            r#"{"autolock":false,"version":0,"data_key":1,"settled":true,"late":[],"unlock_key":null}"#;
        assert_eq!(as_json(&off), serde_json::from_str::<Value>(expect).unwrap());
        let key = Some("RAFTKV-UNLOCK-1-x".into());
        let on =
            LockStatus { locked: true, version: 2, active: 3, settled: false, late: vec![NodeId(10)], key };
        assert_eq!(
            as_text(&on),
            "autolock is on: a member that is started needs the unlock key\n\n    RAFTKV-UNLOCK-1-x\n\nKeep it \
             outside of the cluster: without it no member that has stopped starts again.\nThe data key is being \
             replaced; it waits for 000000000000000a.\n"
        );
        assert_eq!(as_json(&on)["late"], json!(["000000000000000a"]));
    }

    #[test]
    fn a_key_is_read_whole_or_refused() {
        let key = UnlockKey::generate();
        let text = format!("{}\n", key.to_text());
        assert_eq!(read(&mut text.as_bytes(), "here").unwrap(), key);
        for bad in ["", "x", &text[..20], &"a".repeat(1000)] {
            assert!(read(&mut bad.as_bytes(), "here").is_err(), "{bad}");
        }
    }
}
