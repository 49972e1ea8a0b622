//! A modelled disk: a page cache over synced content, in sectors, from one seed.
//!
//! A crash loses what was not synced: each changed sector and each changed name is kept or lost on
//! its own. Syncs fail on order and then, as on ext4, leave pages that look clean and are lost.
//! Space runs out, bits flip, old images come back. It must never lose what was synced unless a
//! test asked for that, and never draw chance from anywhere but its seed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;

use crate::storage::files::{File, Files};

/// What a disk writes whole or not at all, in bytes.
pub const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

/// Faults that made a difference, and operations done, since the disk was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskCounts {
    /// Writes, syncs, creates, renames and removes.
    pub operations: u64,
    /// Crashes.
    pub crashes: u64,
    /// Sectors that fell back to their synced content in a crash.
    pub sectors_lost: u64,
    /// Changed sectors that were on disk although nobody had synced them.
    pub sectors_kept: u64,
    /// Crashes that kept a part of one file's changed sectors and lost another.
    pub torn: u64,
    /// Creates, renames and removes undone by a crash.
    pub names_lost: u64,
    /// Syncs that failed on order.
    pub syncs_failed: u64,
    /// Writes that failed on order.
    pub writes_failed: u64,
    /// Creates and writes refused for lack of space.
    pub full: u64,
    /// Bits flipped.
    pub flips: u64,
    /// Old images put back.
    pub restored: u64,
}

/// The disk as it was: see [`SimDisk::image`].
#[derive(Clone)]
pub struct DiskImage {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
}

/// A modelled disk with one flat folder; clones are handles of the same disk.
#[derive(Clone)]
pub struct SimDisk {
    disk: Arc<Mutex<Disk>>,
    // The run that this handle belongs to: a crash ends it, and its open files with it.
    life: u64,
}

struct Disk {
    random: ChaCha8Rng,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    // Changes of names since the last sync of the folder, and the names at that sync.
    pending: Vec<Change>,
    synced_names: BTreeMap<String, u64>,
    life: u64,
    space: u64,
    fail_syncs: u32,
    fail_writes: u32,
    // Operations until the power goes; none: never.
    power: Option<u64>,
    counts: DiskCounts,
}

#[derive(Clone)]
struct Inode {
    content: Vec<u8>,
    // The synced content of sectors that were written since.
    dirty: BTreeMap<u64, Box<Sector>>,
    // The synced content of sectors whose sync failed: they look clean and are lost.
    lost: BTreeMap<u64, Box<Sector>>,
    // The length that is on disk for certain.
    synced_len: usize,
}

#[derive(Clone)]
enum Change {
    Create(String, u64),
    Rename(String, String, u64),
    Remove(String, u64),
}

impl SimDisk {
    /// An empty disk; all chance comes from `random`.
    pub fn new(random: ChaCha8Rng) -> Self {
        let disk = Disk {
            random,
            inodes: BTreeMap::new(),
            next_inode: 1,
            names: BTreeMap::new(),
            pending: Vec::new(),
            synced_names: BTreeMap::new(),
            life: 0,
            space: u64::MAX,
            fail_syncs: 0,
            fail_writes: 0,
            power: None,
            counts: DiskCounts::default(),
        };
        Self { disk: Arc::new(Mutex::new(disk)), life: 0 }
    }

    /// The power goes and comes back: what was not synced is kept or lost, and every handle from
    /// before is dead. Returns the handle for the next run.
    pub fn crash(&self) -> SimDisk {
        let mut disk = self.disk.lock();
        disk.crash();
        SimDisk { disk: Arc::clone(&self.disk), life: disk.life }
    }

    /// The process dies and the machine does not: handles from before are dead, all content stays
    /// as it was seen (and is not synced by that). Returns the handle for the next run.
    pub fn restart(&self) -> SimDisk {
        let mut disk = self.disk.lock();
        disk.life += 1;
        disk.power = None;
        disk.forget_removed();
        SimDisk { disk: Arc::clone(&self.disk), life: disk.life }
    }

    /// After `operations` more changes or syncs every operation fails, until [`crash`](Self::crash).
    pub fn cut_power_after(&self, operations: u64) {
        self.disk.lock().power = Some(operations);
    }

    /// The next `count` syncs fail with an I/O error; what they should have synced is lost.
    pub fn fail_syncs(&self, count: u32) {
        self.disk.lock().fail_syncs = count;
    }

    /// The next `count` writes fail with an I/O error and change nothing.
    pub fn fail_writes(&self, count: u32) {
        self.disk.lock().fail_writes = count;
    }

    /// Creates and growing writes fail once all files together hold `bytes`.
    pub fn set_space(&self, bytes: u64) {
        self.disk.lock().space = bytes;
    }

    /// Bytes that all files hold.
    pub fn used(&self) -> u64 {
        self.disk.lock().used()
    }

    /// Flips one random bit of a random file among those that `which` picks, for good; says where.
    /// `None` where no such file has a byte.
    pub fn flip(&self, which: impl Fn(&str) -> bool) -> Option<(String, u64)> {
        let mut disk = self.disk.lock();
        let picked: Vec<_> = disk
            .names
            .iter()
            .filter(|(name, inode)| which(name) && !disk.inodes[inode].content.is_empty())
            .map(|(name, inode)| (name.clone(), *inode))
            .collect();
        if picked.is_empty() {
            return None;
        }
        let at = disk.random.random_range(0..picked.len());
        let (name, inode) = &picked[at];
        let len = disk.inodes[inode].content.len() as u64;
        let bit = disk.random.random_range(0..len * 8);
        disk.flip(*inode, bit);
        Some((name.clone(), bit / 8))
    }

    /// Flips bit `bit` (counted from the file's start, low bits first) of the file `name`.
    pub fn flip_at(&self, name: &str, bit: u64) {
        let mut disk = self.disk.lock();
        let inode = disk.names[name];
        disk.flip(inode, bit);
    }

    /// Overwrites `bytes` at `offset` of `name` for good, as a misdirected write would.
    pub fn plant(&self, name: &str, offset: u64, bytes: &[u8]) {
        let mut disk = self.disk.lock();
        let inode = disk.names[name];
        let inode = disk.inodes.get_mut(&inode).expect("a name has a file");
        let at = offset as usize;
        inode.content[at..at + bytes.len()].copy_from_slice(bytes);
        let sectors = at / SECTOR_BYTES..=(at + bytes.len().max(1) - 1) / SECTOR_BYTES;
        for sector in sectors {
            inode.dirty.remove(&(sector as u64));
            inode.lost.remove(&(sector as u64));
        }
    }

    /// The whole disk as it is seen now.
    pub fn image(&self) -> DiskImage {
        let disk = self.disk.lock();
        DiskImage { inodes: disk.inodes.clone(), names: disk.names.clone() }
    }

    /// Puts an old image back, as a restored virtual machine has it; all of it counts as synced.
    /// Handles from before are dead. Returns the handle for the next run.
    pub fn restore(&self, image: &DiskImage) -> SimDisk {
        self.restore_files(image, |_| true)
    }

    /// Puts the files that `which` picks back from an old image and leaves the others: those that
    /// the image lacks are removed. Returns the handle for the next run.
    pub fn restore_files(&self, image: &DiskImage, which: impl Fn(&str) -> bool) -> SimDisk {
        let mut disk = self.disk.lock();
        disk.names.retain(|name, _| !which(name));
        for (name, inode) in image.names.iter().filter(|(name, _)| which(name)) {
            let content = image.inodes[inode].content.clone();
            let id = disk.add(content);
            disk.inodes.get_mut(&id).expect("just added").settle();
            disk.names.insert(name.clone(), id);
        }
        disk.pending.clear();
        disk.synced_names = disk.names.clone();
        disk.forget_removed();
        disk.life += 1;
        disk.power = None;
        disk.counts.restored += 1;
        SimDisk { disk: Arc::clone(&self.disk), life: disk.life }
    }

    /// What happened so far.
    pub fn counts(&self) -> DiskCounts {
        self.disk.lock().counts
    }

    /// Whether [`cut_power_after`](Self::cut_power_after) has struck.
    pub fn is_off(&self) -> bool {
        self.disk.lock().power == Some(0)
    }

    fn alive<R>(&self, run: impl FnOnce(&mut Disk) -> io::Result<R>) -> io::Result<R> {
        let mut disk = self.disk.lock();
        if self.life != disk.life || disk.power == Some(0) {
            return Err(io::Error::other("the machine is off"));
        }
        run(&mut disk)
    }

    fn change<R>(&self, run: impl FnOnce(&mut Disk) -> io::Result<R>) -> io::Result<R> {
        self.alive(|disk| {
            disk.counts.operations += 1;
            let result = run(disk);
            if let Some(left) = &mut disk.power {
                *left -= 1;
            }
            result
        })
    }
}

impl Disk {
    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[inode].content.len() as u64).sum()
    }

    fn add(&mut self, content: Vec<u8>) -> u64 {
        let id = self.next_inode;
        self.next_inode += 1;
        let inode = Inode { content, dirty: BTreeMap::new(), lost: BTreeMap::new(), synced_len: 0 };
        self.inodes.insert(id, inode);
        id
    }

    fn flip(&mut self, inode: u64, bit: u64) {
        self.counts.flips += 1;
        let inode = self.inodes.get_mut(&inode).expect("a name has a file");
        let byte = (bit / 8) as usize;
        let mask = 1 << (bit % 8);
        inode.content[byte] ^= mask;
        let sector = (byte / SECTOR_BYTES) as u64;
        for old in [inode.dirty.get_mut(&sector), inode.lost.get_mut(&sector)].into_iter().flatten() {
            old[byte % SECTOR_BYTES] ^= mask;
        }
    }

    fn crash(&mut self) {
        self.counts.crashes += 1;
        self.life += 1;
        self.power = None;
        self.crash_names();
        self.forget_removed();
        let Self { inodes, random, counts, .. } = self;
        for inode in inodes.values_mut() {
            inode.crash(random, counts);
        }
    }

    // Either a prefix of the changes is on disk, as a journal would have it, or any subset.
    fn crash_names(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let mut names = std::mem::take(&mut self.synced_names);
        let prefix = self.random.random_bool(0.5);
        let cut = self.random.random_range(0..=pending.len());
        for (place, change) in pending.iter().enumerate() {
            let keep = if prefix { place < cut } else { self.random.random_bool(0.5) };
            if keep {
                change.apply(&mut names);
            } else {
                self.counts.names_lost += 1;
            }
        }
        self.synced_names = names.clone();
        self.names = names;
    }

    // Forgets files that have no name and get none back in a crash. Open ones matter no more: it
    // is called when handles die.
    fn forget_removed(&mut self) {
        let mut named: Vec<u64> = self.names.values().chain(self.synced_names.values()).copied().collect();
        named.extend(self.pending.iter().map(|change| match change {
            Change::Create(_, inode) | Change::Rename(_, _, inode) | Change::Remove(_, inode) => *inode,
        }));
        self.inodes.retain(|id, _| named.contains(id));
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Create(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename(from, to, inode) => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                    names.insert(to.clone(), *inode);
                }
            }
            Self::Remove(name, inode) => {
                if names.get(name) == Some(inode) {
                    names.remove(name);
                }
            }
        }
    }
}

impl Inode {
    fn sector(&self, sector: u64) -> Box<Sector> {
        let mut out = Box::new([0; SECTOR_BYTES]);
        let start = sector as usize * SECTOR_BYTES;
        let end = self.content.len().min(start + SECTOR_BYTES);
        if start < end {
            out[..end - start].copy_from_slice(&self.content[start..end]);
        }
        out
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        for sector in (offset / SECTOR_BYTES) as u64..=((end - 1) / SECTOR_BYTES) as u64 {
            if !self.dirty.contains_key(&sector) {
                let synced = self.lost.remove(&sector).unwrap_or_else(|| self.sector(sector));
                self.dirty.insert(sector, synced);
            }
        }
        if self.content.len() < end {
            self.content.resize(end, 0);
        }
        self.content[offset..end].copy_from_slice(bytes);
    }

    fn settle(&mut self) {
        self.dirty.clear();
        self.lost.clear();
        self.synced_len = self.content.len();
    }

    fn crash(&mut self, random: &mut ChaCha8Rng, counts: &mut DiskCounts) {
        // All kept, all lost, or each on its own: the extremes are likely in life and rare in dice.
        let mood = random.next_u32() % 4;
        let (mut kept, mut lost) = (0, 0);
        for (sector, synced) in std::mem::take(&mut self.dirty) {
            let keep = match mood {
                0 => true,
                1 => false,
                _ => random.next_u32() & 1 == 0,
            };
            if keep {
                kept += 1;
            } else {
                lost += 1;
                self.put_back(sector, &synced);
            }
        }
        for (sector, synced) in std::mem::take(&mut self.lost) {
            lost += 1;
            self.put_back(sector, &synced);
        }
        counts.sectors_kept += kept;
        counts.sectors_lost += lost;
        counts.torn += u64::from(kept > 0 && lost > 0);
        if self.synced_len < self.content.len() && mood != 0 {
            let grown = (self.content.len() - self.synced_len) / SECTOR_BYTES;
            let kept = random.random_range(0..=grown) * SECTOR_BYTES;
            self.content.truncate(self.synced_len + kept);
        }
        self.synced_len = self.content.len();
    }

    fn put_back(&mut self, sector: u64, synced: &Sector) {
        let start = sector as usize * SECTOR_BYTES;
        let end = self.content.len().min(start + SECTOR_BYTES);
        if start < end {
            self.content[start..end].copy_from_slice(&synced[..end - start]);
        }
    }
}

impl Files for SimDisk {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.alive(|disk| Ok(disk.names.keys().cloned().collect()))
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        self.alive(|disk| match disk.names.get(name) {
            Some(inode) => Ok(SimFile { disk: self.clone(), inode: *inode }),
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn create(&self, name: &str, len: u64) -> io::Result<SimFile> {
        self.change(|disk| {
            if disk.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if disk.used() + len > disk.space {
                disk.counts.full += 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            let inode = disk.add(vec![0; len as usize]);
            disk.names.insert(name.to_owned(), inode);
            disk.pending.push(Change::Create(name.to_owned(), inode));
            Ok(SimFile { disk: self.clone(), inode })
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|disk| {
            let Some(inode) = disk.names.remove(from) else { return Err(io::ErrorKind::NotFound.into()) };
            disk.names.insert(to.to_owned(), inode);
            disk.pending.push(Change::Rename(from.to_owned(), to.to_owned(), inode));
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|disk| {
            let Some(inode) = disk.names.remove(name) else { return Err(io::ErrorKind::NotFound.into()) };
            disk.pending.push(Change::Remove(name.to_owned(), inode));
            Ok(())
        })
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.change(|disk| {
            if disk.fail_syncs > 0 {
                disk.fail_syncs -= 1;
                disk.counts.syncs_failed += 1;
                return Err(io::Error::other("modelled I/O error in a sync"));
            }
            disk.pending.clear();
            disk.synced_names = disk.names.clone();
            Ok(())
        })
    }

    fn describe(&self) -> String {
        "modelled disk".into()
    }
}

/// An open file of a [`SimDisk`].
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.alive(|disk| Ok(disk.inodes[&self.inode].content.len() as u64))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.alive(|disk| {
            let content = &disk.inodes[&self.inode].content;
            let start = offset as usize;
            match content.get(start..start + buf.len()) {
                Some(bytes) => buf.copy_from_slice(bytes),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.change(|disk| {
            if disk.fail_writes > 0 {
                disk.fail_writes -= 1;
                disk.counts.writes_failed += 1;
                return Err(io::Error::other("modelled I/O error in a write"));
            }
            let len = disk.inodes[&self.inode].content.len();
            let grown = (offset as usize + bytes.len()).saturating_sub(len) as u64;
            if grown > 0 && disk.used() + grown > disk.space {
                disk.counts.full += 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.inodes.get_mut(&self.inode).expect("an open file exists").write(offset as usize, bytes);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change(|disk| {
            let inode = disk.inodes.get_mut(&self.inode).expect("an open file exists");
            if disk.fail_syncs > 0 {
                disk.fail_syncs -= 1;
                disk.counts.syncs_failed += 1;
                let failed = std::mem::take(&mut inode.dirty);
                inode.lost.extend(failed);
                return Err(io::Error::other("modelled I/O error in a sync"));
            }
            inode.dirty.clear();
            inode.synced_len = inode.content.len();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn disk(seed: u64) -> SimDisk {
        SimDisk::new(ChaCha8Rng::seed_from_u64(seed))
    }

    fn content(disk: &SimDisk, name: &str) -> Vec<u8> {
        let file = disk.open(name).expect("opens");
        let mut bytes = vec![0; file.len().expect("has a length") as usize];
        file.read_at(0, &mut bytes).expect("reads");
        bytes
    }

    fn with_file(seed: u64) -> (SimDisk, SimFile) {
        let disk = disk(seed);
        let file = disk.create("a", 4096).expect("creates");
        file.sync().expect("syncs");
        disk.sync_folder().expect("syncs");
        (disk, file)
    }

    #[test]
    fn conforms() {
        crate::storage::files::files_conformance(|| disk(1));
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_is_kept_lost_or_torn() {
        let mut seen = DiskCounts::default();
        for seed in 0..200 {
            let (disk, file) = with_file(seed);
            file.write_at(0, &[1; 1024]).expect("writes");
            file.sync().expect("syncs");
            file.write_at(1024, &[2; 2048]).expect("writes");
            let disk = disk.crash();
            assert!(file.len().is_err(), "handles from before the crash are dead");
            let bytes = content(&disk, "a");
            assert_eq!(bytes[..1024], [1; 1024]);
            for sector in bytes[1024..3072].chunks(SECTOR_BYTES) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is never torn");
            }
            let counts = disk.counts();
            seen.sectors_kept += counts.sectors_kept;
            seen.sectors_lost += counts.sectors_lost;
            seen.torn += counts.torn;
        }
        assert!(seen.torn > 20 && seen.sectors_kept > 100 && seen.sectors_lost > 100, "{seen:?}");
    }

    #[test]
    fn a_failed_sync_loses_its_pages_though_the_next_one_succeeds() {
        for seed in 0..50 {
            let (disk, file) = with_file(seed);
            file.write_at(0, &[1; 512]).expect("writes");
            disk.fail_syncs(1);
            file.sync().expect_err("fails on order");
            file.sync().expect("succeeds and means nothing");
            assert_eq!(content(&disk, "a")[0], 1, "the page cache still shows it");
            assert_eq!(content(&disk.crash(), "a")[0], 0);
        }
    }

    #[test]
    fn names_not_synced_are_kept_or_lost() {
        let (mut kept, mut lost) = (0, 0);
        for seed in 0..100 {
            let (disk, _file) = with_file(seed);
            disk.rename("a", "b").expect("renames");
            let names = disk.crash().list().expect("lists");
            match names[0].as_str() {
                "a" => lost += 1,
                _ => kept += 1,
            }
            assert_eq!(names.len(), 1);
        }
        assert!(kept > 10 && lost > 10);
    }

    #[test]
    fn space_runs_out_and_old_images_come_back() {
        let (disk, file) = with_file(1);
        disk.set_space(5000);
        assert_eq!(disk.create("b", 1000).err().expect("full").kind(), io::ErrorKind::StorageFull);
        assert!(file.write_at(4000, &[1; 2000]).is_err());
        file.write_at(0, &[1]).expect("space that is there can be written");
        let image = disk.image();
        file.write_at(0, &[2]).expect("writes");
        assert_eq!(content(&disk.restore(&image), "a")[0], 1);
        assert_eq!((disk.counts().full, disk.counts().restored), (2, 1));
    }

    #[test]
    fn power_goes_when_told() {
        let (disk, file) = with_file(1);
        disk.cut_power_after(1);
        file.write_at(0, &[1]).expect("the last one");
        assert!(file.sync().is_err() && disk.is_off());
        assert!(!disk.crash().is_off());
    }

    #[test]
    fn flips_one_bit_for_good() {
        let (disk, file) = with_file(3);
        let (name, at) = disk.flip(|name| name == "a").expect("there is a file");
        let bytes = content(&disk.crash(), &name);
        assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        assert_ne!(bytes[at as usize], 0);
        assert!(file.len().is_err());
        assert_eq!(disk.flip(|name| name == "b"), None);
    }
}
