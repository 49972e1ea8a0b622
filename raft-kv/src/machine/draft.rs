//! The state while a batch of entries is applied: pending writes, the revision, and what is to
//! be published once the batch is stored.
//!
//! Here alone a revision is made: [`Draft::seal`] gives all changes since the last one exactly
//! one new revision, and none where nothing changed.

use std::sync::Arc;

use bytes::Bytes;

use super::alarm::Raised;
use super::auth::Known;
use super::format::{Held, Logged, Stored, Superseded, attached_key, load, log_key, past_key};
use super::lease;
use super::overlay::Overlay;
use super::points;
use super::quota::Used;
use super::store::{Read, Table};
use super::trust::LetIn;
use crate::codec::Wire;
use crate::error::StorageFailed;
use crate::planted;
use crate::types::{Change, ConfState, Event, EventKind, KeyValue, LeaseId, Revision};

/// A lease that began or ended, for the leader's timers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseChange {
    /// It was granted.
    Granted {
        /// The lease.
        id: LeaseId,
        /// Seconds.
        ttl: i64,
    },
    /// It was revoked or has expired.
    Ended {
        /// The lease.
        id: LeaseId,
    },
}

/// A batch in the making.
pub struct Draft<'a> {
    /// Pending writes over the store.
    pub overlay: Overlay<'a>,
    /// The current revision: that of the last sealed change.
    pub revision: Revision,
    /// The oldest readable revision.
    pub compacted: Revision,
    /// The raft configuration.
    pub conf: ConfState,
    /// The revisions that rollback points name, ascending.
    pub pins: Arc<Vec<Revision>>,
    /// Whether the current command looks after points.
    pub points_touched: bool,
    /// Keys that one step of a rollback looks at.
    pub step_keys: usize,
    /// What the live keys take, changes of the current command included.
    pub used: Used,
    /// The same before the current command.
    pub used_before: Used,
    /// What they may take, in bytes.
    pub quota: Option<u64>,
    /// Events of the revision being made; empty between commands.
    events: Vec<Event>,
    /// Sealed revisions of this batch.
    pub changes: Vec<Change>,
    /// Sealed revisions whose events are not held.
    pub large: Vec<Revision>,
    /// Leases that began or ended in this batch.
    pub leases: Vec<LeaseChange>,
    /// Whether the members or their records changed.
    pub members_changed: bool,
    /// What is known of callers.
    pub known: Known,
    /// What is known of the nodes that commands came from.
    pub let_in: LetIn,
    /// Which alarms are raised, once it was looked at.
    pub alarms: Option<Raised>,
    /// Whether alarms were raised or ended in this batch.
    pub alarms_changed: bool,
    /// Whether another run of a member was seen in this batch, or one was forgotten.
    pub runs_changed: bool,
    /// The revision of users and roles, if they changed in this batch.
    pub auth_changed: Option<u64>,
    /// Whether what is believed changed in this batch.
    pub trust_changed: bool,
    /// Whether the log up to here should be given up: it has what was sealed with a key that is.
    pub forget_log: bool,
    /// Whether a node was removed in this batch: that must not be forgotten by a crash, however soon.
    pub revoked: bool,
}

impl<'a> Draft<'a> {
    /// Nothing pending over `overlay`.
    pub fn new(
        overlay: Overlay<'a>,
        (revision, compacted): (Revision, Revision),
        conf: ConfState,
        pins: Arc<Vec<Revision>>,
        (used, quota): (Used, Option<u64>),
    ) -> Self {
        Self {
            overlay,
            revision,
            compacted,
            conf,
            pins,
            points_touched: false,
            step_keys: crate::limits::ROLLBACK_STEP_KEYS,
            used,
            used_before: used,
            quota,
            events: Vec::new(),
            changes: Vec::new(),
            large: Vec::new(),
            leases: Vec::new(),
            members_changed: false,
            known: Known::default(),
            let_in: LetIn::default(),
            alarms: None,
            alarms_changed: false,
            runs_changed: false,
            auth_changed: None,
            trust_changed: false,
            forget_log: false,
            revoked: false,
        }
    }

    /// The revision that a change made now belongs to.
    pub fn next(&self) -> Revision {
        self.revision + 1
    }

    /// The newest version of `key`; its value is not read.
    pub fn live(&self, key: &[u8]) -> Result<Option<Stored>, StorageFailed> {
        load(&self.overlay, Table::Live, key)
    }

    /// Writes `key` in the revision being made. `before` is its newest version, which is answered
    /// with its value.
    pub fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: LeaseId,
        before: Option<Stored>,
    ) -> Result<Option<KeyValue>, StorageFailed> {
        let next = self.next();
        let stored = Stored {
            create_revision: before.as_ref().map_or(next, |before| before.create_revision),
            mod_revision: next,
            version: before.as_ref().map_or(1, |before| before.version + 1),
            lease,
            value: Held::place(&value),
        };
        self.note_changed(&key, before.as_ref());
        let lease_before = before.as_ref().map_or(0, |before| before.lease);
        let len_before = before.as_ref().map_or(0, Stored::value_len);
        self.used.put(&key, before.as_ref().map(Stored::value_len), value.len())?;
        if (lease_before, len_before) != (lease, value.len()) {
            if lease_before != 0 {
                lease::release(self, lease_before, &key, len_before)?;
            }
            if lease != 0 {
                lease::hold(self, lease, &key, value.len())?;
            }
        }
        if lease_before != 0 && lease_before != lease {
            self.overlay.remove(Table::Attached, attached_key(lease_before, &key));
        }
        if lease != 0 && lease_before != lease {
            self.overlay.write(Table::Attached, attached_key(lease, &key), Some(Bytes::new()));
        }
        let prev = before.map(|before| self.supersede(&key, before)).transpose()?;
        self.overlay.put(Table::Live, key.clone(), &stored);
        if matches!(stored.value, Held::Apart(_)) {
            self.overlay.write(Table::Values, past_key(&key, next), Some(value.clone()));
        }
        let kv = KeyValue { value, ..stored.without_value(key) };
        self.events.push(Event { kind: EventKind::Put, kv, prev: prev.clone() });
        Ok(prev)
    }

    /// Removes `key`, whose newest version is `before`, in the revision being made.
    pub fn delete(&mut self, key: Bytes, before: Stored) -> Result<KeyValue, StorageFailed> {
        self.note_changed(&key, Some(&before));
        self.used.delete(&key, before.value_len())?;
        if before.lease != 0 {
            self.overlay.remove(Table::Attached, attached_key(before.lease, &key));
            lease::release(self, before.lease, &key, before.value_len())?;
        }
        let prev = self.supersede(&key, before)?;
        self.overlay.remove(Table::Live, key.clone());
        let kv = KeyValue { key, mod_revision: self.next(), ..KeyValue::default() };
        self.events.push(Event { kind: EventKind::Delete, kv, prev: Some(prev.clone()) });
        Ok(prev)
    }

    /// Moves a version's record to the past; a value that lies apart stays where it is. It is read
    /// all the same: watchers are told what was before.
    fn supersede(&mut self, key: &Bytes, before: Stored) -> Result<KeyValue, StorageFailed> {
        let end = self.next();
        assert!(before.mod_revision < end, "a key changes at most once in a revision");
        let past = Superseded { end, stored: before };
        self.overlay.put(Table::Past, past_key(key, past.stored.mod_revision), &past);
        past.stored.load(&self.overlay, key.clone())
    }

    /// Makes what changed since the last call one revision, if anything did.
    pub fn seal(&mut self) {
        self.used.settle();
        self.used_before = self.used;
        if self.events.is_empty() {
            return;
        }
        self.seal_part(0, false);
        self.seal_parts();
    }

    /// Writes the record of what changed since the last call, as a part of the revision being made,
    /// and says how many events it has: none, no record. Where it is one `of_many`, the events are
    /// not kept: who is owed them reads them from the store.
    pub fn seal_part(&mut self, part: u32, of_many: bool) -> u64 {
        let mut events = std::mem::take(&mut self.events);
        if events.is_empty() {
            return 0;
        }
        if planted!(LoseDelete)
            && events.len() > 1
            && let Some(at) = events.iter().position(|event| event.kind == EventKind::Delete)
        {
            events.remove(at);
        }
        let logged: Vec<Logged> = events
            .iter()
            .map(|event| Logged {
                kind: event.kind,
                key: event.kv.key.clone(),
                superseded: event.prev.as_ref().map_or(0, |prev| prev.mod_revision),
            })
            .collect();
        let revision = self.next();
        self.overlay.write(Table::Log, log_key(revision, part), Some(logged.to_bytes()));
        let many = events.len() as u64;
        if !of_many {
            self.changes.push(Change { revision, events });
        }
        many
    }

    /// Makes the parts that were written a revision.
    pub fn seal_parts(&mut self) {
        self.revision += 1;
    }

    /// A point names this revision.
    pub fn pin(&mut self, revision: Revision) {
        if let Err(at) = self.pins.binary_search(&revision) {
            Arc::make_mut(&mut self.pins).insert(at, revision);
        }
    }

    /// No point names this revision any more.
    pub fn unpin(&mut self, revision: Revision) {
        if let Ok(at) = self.pins.binary_search(&revision) {
            Arc::make_mut(&mut self.pins).remove(at);
        }
    }

    /// These are the revisions that points name.
    pub fn repin(&mut self, pins: Vec<Revision>) {
        self.pins = Arc::new(pins);
    }

    /// Notes that a key changes after the newest point, where that is not known yet.
    fn note_changed(&mut self, key: &Bytes, before: Option<&Stored>) {
        let Some(&pin) = self.pins.last() else { return };
        if before.is_none_or(|before| before.mod_revision <= pin) {
            self.overlay.put(Table::Changed, points::changed_key(pin, key), &());
        }
    }

    /// Forgets what the current command did; it must not have sealed anything.
    pub fn take_back(&mut self) -> Result<(), StorageFailed> {
        self.overlay.undo();
        self.events.clear();
        self.known.forget();
        self.alarms = None;
        self.used = self.used_before;
        if self.points_touched {
            self.points_touched = false;
            self.repin(points::pins(self.view())?);
        }
        Ok(())
    }

    /// The state as it is now, pending writes included.
    pub fn view(&self) -> &dyn Read {
        &self.overlay
    }
}
