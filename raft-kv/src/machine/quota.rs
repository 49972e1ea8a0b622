//! The quota on live bytes: how many bytes the newest version of each key takes, and how many they may.
//!
//! What is used is kept as it changes, never counted: a change costs no read, since who changes a key
//! has the size of what was before. It must always be what a [`recount`] would find. What would take
//! it over the quota is refused and has changed nothing; what leaves it as it is or makes it less is
//! taken, however far above the quota it is. So there is nothing to end once keys are deleted.

use std::sync::Arc;

use super::alarm::{self, needs_space};
use super::apply_command;
use super::command::{Answer, Command};
use super::draft::Draft;
use super::format::{Stored, damaged, decode, load_meta, meta};
use super::overlay::Overlay;
use super::points::{self, growth, half};
use super::stop::{Settled, Stop};
use super::store::{Read, Table};
use super::validate::validate;
use crate::codec::wire_struct;
use crate::error::{Refusal, StorageFailed};
use crate::planted;
use crate::types::{PointChange, Revision, SnapshotMeta, Usage};

/// What the live keys take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Used {
    /// Bytes of all live keys and their values.
    bytes: u64,
    /// Live keys.
    keys: u64,
    /// The most bytes that there were at any revision that a rollback point can see.
    peak: u64,
}
wire_struct!(Used { bytes, keys, peak });

impl Used {
    /// With the quota.
    pub fn usage(&self, quota: Option<u64>) -> Usage {
        Usage { bytes: self.bytes, keys: self.keys, quota }
    }

    /// A key is written whose value had so many bytes before, if it was there.
    pub fn put(&mut self, key: &[u8], before: Option<usize>, after: usize) -> Result<(), StorageFailed> {
        match before {
            Some(before) => self.bytes = less(self.bytes, before)?,
            None => {
                self.keys += 1;
                self.bytes += key.len() as u64;
            }
        }
        self.bytes += after as u64;
        Ok(())
    }

    /// A key is removed whose value has so many bytes.
    pub fn delete(&mut self, key: &[u8], value: usize) -> Result<(), StorageFailed> {
        if planted!(QuotaCountsDeletes) {
            return Ok(());
        }
        self.keys = less(self.keys, 1)?;
        self.bytes = less(self.bytes, key.len() + value)?;
        Ok(())
    }

    /// A revision is whole.
    pub fn settle(&mut self) {
        self.peak = self.peak.max(self.bytes);
    }

    /// No point can see an earlier revision any more.
    pub fn forget_peak(&mut self) {
        self.peak = self.bytes;
    }
}

fn less(from: u64, by: usize) -> Result<u64, StorageFailed> {
    let rest = from.checked_sub(by as u64);
    rest.ok_or_else(|| damaged(Table::Meta, "fewer live bytes are noted than a key has"))
}

/// What is held of it in a state.
pub fn held(view: &dyn Read) -> Result<(Used, Option<u64>), StorageFailed> {
    Ok((load_meta(view, meta::USED)?, load_meta(view, meta::QUOTA)?))
}

/// What the live keys take at the current revision, and what they may.
pub fn usage(view: &dyn Read) -> Result<Usage, StorageFailed> {
    let (used, quota) = held(view)?;
    Ok(used.usage(quota))
}

/// What [`usage`] must be, found by going through all keys; for checks. Not while an entry is
/// [half done](super::read::half_done).
pub fn recount(view: &dyn Read) -> Result<Usage, StorageFailed> {
    let mut found = Usage { quota: load_meta(view, meta::QUOTA)?, ..Usage::default() };
    for pair in view.scan(Table::Live, b"", None) {
        let (key, value) = pair?;
        let stored: Stored = decode(Table::Live, value)?;
        found.keys += 1;
        found.bytes += (key.len() + stored.value_len()) as u64;
    }
    Ok(found)
}

/// Sets the quota.
pub fn set(draft: &mut Draft, bytes: Option<u64>) -> Answer {
    draft.quota = bytes;
    draft.overlay.put(Table::Meta, meta::QUOTA, &bytes);
    Answer::Done
}

/// Refuses what a command has done where it goes over the quota: the caller takes it back. A lease
/// takes no live bytes, but none is made while there is no room for a key on it.
pub fn check(draft: &Draft, command: &Command) -> Result<(), Stop> {
    let Some(quota) = draft.quota.filter(|_| !planted!(QuotaOnlyAtDoor)) else { return Ok(()) };
    let (before, after) = (draft.used_before.bytes, draft.used.bytes);
    let over = match command {
        Command::LeaseGrant { .. } => after >= quota,
        _ => after > before && after > quota,
    };
    if over { Err(Refusal::QuotaExceeded { live: before, quota }.into()) } else { Ok(()) }
}

/// Refuses a rollback that would end over the quota with more than there is, or with more at all while
/// a disk is short, before it begins. [`alarm::check`] has passed.
pub fn check_rollback(draft: &Draft, change: &PointChange) -> Result<(), Stop> {
    let PointChange::Rollback { prefix, .. } = change else { return Ok(()) };
    let (used, quota) = (draft.used, draft.quota.unwrap_or(u64::MAX));
    // All that any point can see fits in most cases, and then nothing needs to be looked at.
    let most = if prefix.is_none() { used.peak } else { used.peak.saturating_add(used.bytes) };
    let disk = alarm::check_growth(draft);
    if most <= quota && disk.is_ok() {
        return Ok(());
    }
    let grown = growth(draft.view(), change)?;
    if grown <= 0 {
        return Ok(());
    }
    if i128::from(used.bytes) + grown > i128::from(quota) {
        return Err(Refusal::QuotaExceeded { live: used.bytes, quota }.into());
    }
    disk
}

/// Says beforehand whether the state refuses a command for want of room. Everything else that may be
/// wrong with it is left to where it is applied. On a state that holds all that was answered before,
/// this is what a caller may be told in its place; it costs what carrying the command out costs.
pub fn room_for(view: &dyn Read, command: &Command) -> Settled<()> {
    let (_, command) = command.asked();
    // While an entry is half done the records are ahead of what is noted of them.
    if !needs_space(command) || half(view)? {
        return Ok(Ok(()));
    }
    let applied: SnapshotMeta = load_meta(view, meta::APPLIED)?;
    let revisions: (Revision, Revision) =
        (load_meta(view, meta::REVISION)?, load_meta(view, meta::COMPACTED)?);
    let pins = Arc::new(points::pins(view)?);
    let mut draft = Draft::new(Overlay::new(view), revisions, applied.conf, pins, held(view)?);
    let done = match command {
        // What it pins takes no live bytes.
        Command::Point(_) => {
            validate(command).map_err(Stop::from).and_then(|()| alarm::check(&mut draft, command))
        }
        command => apply_command(&mut draft, command, applied.term).map(drop),
    };
    match done {
        Err(Stop::Refused(refusal @ (Refusal::QuotaExceeded { .. } | Refusal::Alarmed { .. }))) => {
            Ok(Err(refusal))
        }
        Err(Stop::Failed(failed)) => Err(failed),
        Ok(_) | Err(Stop::Refused(_)) => Ok(Ok(())),
    }
}
