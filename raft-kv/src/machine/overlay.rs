//! What a batch of entries has written so far, laid over the store: later commands see what
//! earlier ones of the same batch did, and a refused command leaves nothing behind.
//!
//! It must never write to the store; the machine does that once for the whole batch.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;

use super::store::{Batch, Pairs, Read, Table};
use crate::codec::Wire;
use crate::error::StorageFailed;

type Pending = BTreeMap<Bytes, Option<Bytes>>;

/// Pending writes over a frozen view.
pub struct Overlay<'a> {
    base: &'a dyn Read,
    pending: [Pending; Table::ALL.len()],
    /// What was pending before each write since [`begin`](Self::begin), oldest first.
    undo: Vec<(Table, Bytes, Option<Option<Bytes>>)>,
}

impl<'a> Overlay<'a> {
    /// Nothing pending.
    pub fn new(base: &'a dyn Read) -> Self {
        Self { base, pending: Default::default(), undo: Vec::new() }
    }

    /// Starts a step that [`undo`](Self::undo) can take back.
    pub fn begin(&mut self) {
        self.undo.clear();
    }

    /// Takes back every write since the last [`begin`](Self::begin).
    pub fn undo(&mut self) {
        while let Some((table, key, before)) = self.undo.pop() {
            let pending = &mut self.pending[table as usize];
            match before {
                Some(value) => pending.insert(key, value),
                None => pending.remove(&key),
            };
        }
    }

    /// Sets or, with `None`, removes.
    pub fn write(&mut self, table: Table, key: Bytes, value: Option<Bytes>) {
        let before = self.pending[table as usize].insert(key.clone(), value);
        self.undo.push((table, key, before));
    }

    /// Sets a record.
    pub fn put(&mut self, table: Table, key: impl Into<Bytes>, value: &impl Wire) {
        self.write(table, key.into(), Some(value.to_bytes()));
    }

    /// Removes a record.
    pub fn remove(&mut self, table: Table, key: impl Into<Bytes>) {
        self.write(table, key.into(), None);
    }

    /// Everything pending, each key once.
    pub fn into_batch(self) -> Batch {
        let writes = Table::ALL
            .into_iter()
            .zip(self.pending)
            .flat_map(|(table, pending)| pending.into_iter().map(move |(key, value)| (table, key, value)));
        Batch { writes: writes.collect() }
    }
}

impl Read for Overlay<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageFailed> {
        match self.pending[table as usize].get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(table, key),
        }
    }

    fn scan<'b>(&'b self, table: Table, from: &[u8], to: Option<&[u8]>) -> Pairs<'b> {
        if to.is_some_and(|to| to <= from) {
            return Box::new(std::iter::empty());
        }
        let base = self.base.scan(table, from, to);
        let pending = &self.pending[table as usize];
        if pending.is_empty() {
            return base;
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let pending = pending.range::<[u8], _>((Bound::Included(from), upper)).peekable();
        Box::new(Merged { base: base.peekable(), pending })
    }
}

/// Two ascending sources as one; a pending write hides the stored pair of the same key.
struct Merged<'a> {
    base: Peekable<Pairs<'a>>,
    pending: Peekable<btree_map::Range<'a, Bytes, Option<Bytes>>>,
}

impl Iterator for Merged<'_> {
    type Item = Result<(Bytes, Bytes), StorageFailed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((key, _)) = self.pending.peek() else { return self.base.next() };
            match self.base.peek() {
                Some(Err(_)) => return self.base.next(),
                Some(Ok((stored, _))) if stored < *key => return self.base.next(),
                Some(Ok((stored, _))) if stored == *key => drop(self.base.next()),
                _ => {}
            }
            let (key, value) = self.pending.next().expect("it was just seen");
            if let Some(value) = value {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    }
}
