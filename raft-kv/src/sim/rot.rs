//! Damage to the ordered store below a member's state: blocks whose checksum does not fit any more, and
//! lost files.
//!
//! It does what `storage/state` does: every read of a block looks at its checksum, the first failure is
//! final, and what was written anew over a damaged block hides it. Truth stays in the [`MemoryStore`] below,
//! for those who judge; it must never reach those who are served.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::error::StorageFailed;
use crate::machine::MemoryStore;
use crate::machine::store::{Batch, Pairs, Read, Store, Table};
use crate::planted;

/// Records of a block that is hit.
const BLOCK: usize = 6;

/// A record in a damaged block: what was written there, and what is there now.
#[derive(Clone, Debug)]
struct Spoilt {
    written: Bytes,
    is: Bytes,
}

type Blocks = BTreeMap<(usize, Bytes), Spoilt>;

#[derive(Default)]
struct Damage {
    blocks: Blocks,
    failure: Option<StorageFailed>,
}

/// What is damaged of one machine's store. Clones are handles of the same.
#[derive(Clone, Default)]
pub(super) struct Rot(Arc<Mutex<Damage>>);

impl Rot {
    /// Flips a bit in a block, or loses a file with a part of a table: whichever holds something. Says
    /// whether there was anything.
    pub(super) fn strike(&self, store: &MemoryStore, file: bool, random: &mut ChaCha8Rng) -> bool {
        let full: Vec<Table> = store.view(|view| {
            let holds = |table: &Table| view.scan(*table, b"", None).next().is_some();
            Table::ALL.into_iter().filter(holds).collect()
        });
        if full.is_empty() {
            return false;
        }
        let table = full[random.random_range(0..full.len())];
        let pairs: Vec<(Bytes, Bytes)> =
            store.view(|view| view.scan(table, b"", None).filter_map(Result::ok).collect());
        let most = if file { pairs.len() } else { BLOCK };
        let from = random.random_range(0..pairs.len());
        let hit = &pairs[from..pairs.len().min(from + most)];
        let flipped = random.random_range(0..hit.len());
        let mut damage = self.0.lock();
        for (place, (key, written)) in hit.iter().enumerate() {
            let mut is = written.to_vec();
            if place == flipped && !is.is_empty() {
                let bit = random.random_range(0..is.len() * 8);
                is[bit / 8] ^= 1 << (bit % 8);
            }
            let spoilt = Spoilt { written: written.clone(), is: is.into() };
            damage.blocks.insert((table as usize, key.clone()), spoilt);
        }
        true
    }

    /// What was found damaged, once that was.
    pub(super) fn failure(&self) -> Option<StorageFailed> {
        self.0.lock().failure.clone()
    }

    /// Whether anything of what is there now is damaged.
    pub(super) fn is_there(&self, store: &MemoryStore) -> bool {
        let damage = self.0.lock();
        !damage.blocks.is_empty()
            && store.view(|view| {
                damage.blocks.iter().any(|((table, key), spoilt)| {
                    let now = view.get(Table::ALL[*table], key).expect("memory does not fail");
                    now.as_ref() == Some(&spoilt.written)
                })
            })
    }

    /// The same damage, in a copy of the files.
    pub(super) fn copy(&self) -> Self {
        let blocks = self.0.lock().blocks.clone();
        Self(Arc::new(Mutex::new(Damage { blocks, failure: None })))
    }

    /// The files of another store take the place of these.
    pub(super) fn replace(&self, other: &Rot) {
        let blocks = other.0.lock().blocks.clone();
        *self.0.lock() = Damage { blocks, failure: None };
    }

    /// The process has ended: the next one has seen nothing yet.
    pub(super) fn restart(&self) {
        self.0.lock().failure = None;
    }
}

/// A member's store as its process sees it.
#[derive(Clone)]
pub(super) struct SimStore {
    pub(super) sound: MemoryStore,
    pub(super) rot: Rot,
}

impl SimStore {
    /// A copy of the files, damaged where they are.
    pub(super) fn snapshot(&self) -> Self {
        Self { sound: self.sound.snapshot(), rot: self.rot.copy() }
    }

    /// Reads everything, as the scrub does.
    pub(super) fn scrub(&self) -> Result<(), StorageFailed> {
        if self.rot.0.lock().blocks.is_empty() {
            return Ok(());
        }
        self.view(|view| {
            Table::ALL
                .into_iter()
                .try_for_each(|table| view.scan(table, b"", None).try_for_each(|pair| pair.map(drop)))
        })
    }
}

struct View<'a> {
    sound: &'a dyn Read,
    rot: &'a Rot,
    blocks: Blocks,
    broken: Option<StorageFailed>,
}

impl View<'_> {
    fn checked(&self, table: Table, key: &Bytes, value: Bytes) -> Result<Bytes, StorageFailed> {
        match self.blocks.get(&(table as usize, key.clone())) {
            Some(spoilt) if spoilt.written == value => {
                if planted!(SkipBlockChecksums) {
                    return Ok(spoilt.is.clone());
                }
                let failed = StorageFailed::damaged("state", format!("a block of {table:?} is damaged"));
                Err(self.rot.0.lock().failure.get_or_insert(failed).clone())
            }
            _ => Ok(value),
        }
    }
}

impl Read for View<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageFailed> {
        if let Some(failed) = &self.broken {
            return Err(failed.clone());
        }
        match self.sound.get(table, key)? {
            Some(value) => self.checked(table, &Bytes::copy_from_slice(key), value).map(Some),
            None => Ok(None),
        }
    }

    fn scan<'a>(&'a self, table: Table, from: &[u8], to: Option<&[u8]>) -> Pairs<'a> {
        if let Some(failed) = self.broken.clone() {
            return Box::new(std::iter::once(Err(failed)));
        }
        let pairs = self.sound.scan(table, from, to);
        Box::new(pairs.map(move |pair| {
            let (key, value) = pair?;
            let value = self.checked(table, &key, value)?;
            Ok((key, value))
        }))
    }
}

impl Store for SimStore {
    fn view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        let damage = self.rot.0.lock();
        if damage.blocks.is_empty() {
            drop(damage);
            return self.sound.view(read);
        }
        let blocks = damage.blocks.clone();
        let broken = damage.failure.clone().filter(|_| !planted!(ServeDamaged));
        drop(damage);
        self.sound.view(|sound| read(&View { sound, rot: &self.rot, blocks, broken }))
    }

    fn write(&self, batch: Batch) -> Result<(), StorageFailed> {
        match self.rot.failure() {
            Some(failed) => Err(failed),
            None => self.sound.write(batch),
        }
    }

    fn flush(&self) -> Result<(), StorageFailed> {
        match self.rot.failure() {
            Some(failed) => Err(failed),
            None => self.sound.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::planted::{self, Bug};

    fn store() -> SimStore {
        let store = SimStore { sound: MemoryStore::new(), rot: Rot::default() };
        write(&store, b"1");
        store
    }

    fn write(store: &SimStore, value: &'static [u8]) {
        let keys: [&'static [u8]; 2] = [b"a", b"b"];
        let one =
            |key: &'static [u8]| (Table::Live, Bytes::from_static(key), Some(Bytes::from_static(value)));
        store.write(Batch { writes: keys.into_iter().map(one).collect() }).unwrap();
    }

    fn strike(store: &SimStore) {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        while store.rot.0.lock().blocks.len() < 2 {
            assert!(store.rot.strike(&store.sound, true, &mut random));
        }
    }

    fn get(store: &SimStore, key: &[u8]) -> Result<Option<Bytes>, StorageFailed> {
        store.view(|view| view.get(Table::Live, key))
    }

    #[test]
    fn conforms_while_it_is_sound() {
        let new = || SimStore { sound: MemoryStore::new(), rot: Rot::default() };
        crate::machine::conformance::store_conformance(new, |store| store);
    }

    #[test]
    fn damage_is_found_by_whoever_reads_it_and_the_first_failure_is_final() {
        let store = store();
        strike(&store);
        assert_eq!(get(&store, b"c"), Ok(None));
        assert!(get(&store, b"a").unwrap_err().is_damage());
        assert!(get(&store, b"c").is_err() && store.flush().is_err(), "nothing is believed any more");
        store.rot.restart();
        assert!(store.scrub().is_err() && store.rot.failure().is_some());
        assert!(planted::with(Some(Bug::ServeDamaged), || get(&store, b"c")).is_ok());
    }

    #[test]
    fn what_is_written_anew_hides_it_until_a_crash() {
        let store = store();
        store.flush().unwrap();
        strike(&store);
        write(&store, b"2");
        assert!(!store.rot.is_there(&store.sound) && store.scrub().is_ok());
        store.sound.crash(0);
        assert!(store.rot.is_there(&store.sound) && get(&store, b"a").is_err());
        assert!(store.rot.copy().is_there(&store.sound), "copies have it too");
    }

    #[test]
    fn without_a_look_at_checksums_it_is_served() {
        let store = store();
        strike(&store);
        let both = planted::with(Some(Bug::SkipBlockChecksums), || [get(&store, b"a"), get(&store, b"b")]);
        let both = both.map(|value| value.unwrap().unwrap());
        assert!(both.iter().any(|value| value != "1"), "{both:?}");
    }
}
