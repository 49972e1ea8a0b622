//! The ordered store in memory, for tests and the simulator: what was not flushed is lost when
//! it is told to crash.
//!
//! It must be no kinder than RocksDB: a crash keeps a prefix of the batches, chosen from outside.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::store::{Batch, Pairs, Read, Store, Table};
use crate::error::StorageFailed;

/// The tables; each is copied only when written while a view or a snapshot holds it.
#[derive(Clone, Default, Debug)]
struct Maps([Arc<BTreeMap<Bytes, Bytes>>; Table::ALL.len()]);

#[derive(Default, Debug)]
struct Inner {
    maps: Maps,
    /// For each batch since the last flush, what undoes it, in the order of its writes.
    unflushed: Vec<Vec<(Table, Bytes, Option<Bytes>)>>,
}

/// An ordered store in memory. Clones are handles of one store.
#[derive(Clone, Default, Debug)]
pub struct MemoryStore(Arc<Mutex<Inner>>);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Falls back to the last flush plus the first `keep` batches written after it. What is left
    /// survives further crashes.
    pub fn crash(&self, keep: usize) {
        let mut inner = self.0.lock();
        let inner = &mut *inner;
        while inner.unflushed.len() > keep {
            let undo = inner.unflushed.pop().expect("there is one more than is kept");
            for (table, key, before) in undo.into_iter().rev() {
                inner.maps.set(table, key, before);
            }
        }
        inner.unflushed.clear();
    }

    /// How many batches a crash could take.
    pub fn unflushed(&self) -> usize {
        self.0.lock().unflushed.len()
    }

    /// A store of its own with the same content, all of it flushed.
    pub fn snapshot(&self) -> Self {
        let maps = self.0.lock().maps.clone();
        Self(Arc::new(Mutex::new(Inner { maps, unflushed: Vec::new() })))
    }

    /// A store of its own with what a crash would leave that keeps `keep` batches; this one goes on.
    pub fn after_crash(&self, keep: usize) -> Self {
        let (maps, unflushed) = {
            let inner = self.0.lock();
            (inner.maps.clone(), inner.unflushed.clone())
        };
        let copy = Self(Arc::new(Mutex::new(Inner { maps, unflushed })));
        copy.crash(keep);
        copy
    }

    /// Takes over the content of `other`, flushed, as a member does with a received snapshot.
    pub fn replace(&self, other: &MemoryStore) {
        let maps = other.0.lock().maps.clone();
        *self.0.lock() = Inner { maps, unflushed: Vec::new() };
    }
}

impl Maps {
    fn set(&mut self, table: Table, key: Bytes, value: Option<Bytes>) -> Option<Bytes> {
        let map = Arc::make_mut(&mut self.0[table as usize]);
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        }
    }
}

impl Read for Maps {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageFailed> {
        Ok(self.0[table as usize].get(key).cloned())
    }

    fn scan<'a>(&'a self, table: Table, from: &[u8], to: Option<&[u8]>) -> Pairs<'a> {
        if to.is_some_and(|to| to <= from) {
            return Box::new(std::iter::empty());
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let pairs = self.0[table as usize].range::<[u8], _>((Bound::Included(from), upper));
        Box::new(pairs.map(|(key, value)| Ok((key.clone(), value.clone()))))
    }
}

impl Store for MemoryStore {
    fn view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        let maps = self.0.lock().maps.clone();
        read(&maps)
    }

    fn write(&self, batch: Batch) -> Result<(), StorageFailed> {
        let mut inner = self.0.lock();
        let mut undo = Vec::with_capacity(batch.writes.len());
        for (table, key, value) in batch.writes {
            let before = inner.maps.set(table, key.clone(), value);
            undo.push((table, key, before));
        }
        inner.unflushed.push(undo);
        Ok(())
    }

    fn flush(&self) -> Result<(), StorageFailed> {
        self.0.lock().unflushed.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::conformance::store_conformance;

    #[test]
    fn conforms_whatever_a_crash_keeps() {
        for keep in [0, 1, 3, usize::MAX] {
            store_conformance(MemoryStore::new, |store| {
                store.crash(keep);
                store
            });
        }
    }

    #[test]
    fn a_snapshot_goes_its_own_way() {
        let store = MemoryStore::new();
        let write = |store: &MemoryStore, value: &'static [u8]| {
            let writes = vec![(Table::Live, Bytes::from_static(b"k"), Some(Bytes::from_static(value)))];
            store.write(Batch { writes }).unwrap();
        };
        let read = |store: &MemoryStore| store.view(|view| view.get(Table::Live, b"k").unwrap().unwrap());
        write(&store, b"1");
        let snapshot = store.snapshot();
        write(&store, b"2");
        assert_eq!((read(&snapshot).as_ref(), read(&store).as_ref()), (&b"1"[..], &b"2"[..]));
        snapshot.crash(0);
        assert_eq!(read(&snapshot).as_ref(), b"1");
        let crashed = store.after_crash(0);
        assert_eq!(crashed.view(|view| view.get(Table::Live, b"k").unwrap()), None);
        assert_eq!((crashed.unflushed(), read(&store).as_ref()), (0, &b"2"[..]));
        store.replace(&snapshot);
        assert_eq!(read(&store).as_ref(), b"1");
    }
}
