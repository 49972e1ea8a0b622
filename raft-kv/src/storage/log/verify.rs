//! Whether the files of a log hold what was acknowledged, record by record, with the place of what is
//! wrong. Opening decides what the member may do; this says where the damage is, and looks at copies and
//! bytes that opening can do without.
//!
//! It reads and never writes.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::format::{
    BadHeader, Kind, MARKER_BYTES, MARKER_COPY_OFFSET, MARKER_SLOT_BYTES, MARKER_USED_BYTES, Marker,
    SEGMENT_HEADER_BYTES, SegmentHeader, take_record,
};
use super::replay::replay;
use super::segments::{MARKER, segment_name, segment_sequence};
use super::{Identity, Options, Position};
use crate::storage::check::{Cut, Harm, Pace, Problem};
use crate::storage::files::{File, Files};
use crate::types::{Index, Term};

/// What a log says that has no damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogFound {
    /// Whose it is.
    pub identity: Identity,
    /// The entry that it begins behind.
    pub boundary: Index,
    /// Its last entry.
    pub end: Position,
    /// The highest term that the member has promised to know.
    pub term: Term,
    /// Whether it holds all that was acknowledged.
    pub whole: bool,
}

/// The problems of the log in `dir`. `live` while a member writes it: then only what was acknowledged before
/// the call is looked at, and a problem counts only if a second look finds it too.
pub fn verify(dir: &Path, live: bool, pace: Pace<'_>) -> Result<(Vec<Problem>, Option<LogFound>), Cut> {
    let mut problems = Vec::new();
    let Some(marker) = marker(dir, live, &mut problems)? else { return Ok((problems, None)) };
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        names.extend(name.to_str().map(str::to_owned));
    }
    names.sort();
    let present: Vec<u64> = names.iter().filter_map(|name| segment_sequence(name)).collect();
    let mut sequence = marker.sequence;
    while sequence > 0 && present.contains(&(sequence - 1)) {
        sequence -= 1;
    }
    let mut before = None;
    for sequence in sequence..=marker.sequence {
        let path = dir.join(segment_name(sequence));
        match read(&path, pace) {
            Ok(bytes) => before = follow(dir, sequence, &bytes, &marker, before, &mut problems),
            Err(Cut::Stopped) => return Err(Cut::Stopped),
            // Given up meanwhile: the marker is further on.
            Err(Cut::Failed(error)) if live && error.kind() == io::ErrorKind::NotFound => before = None,
            Err(Cut::Failed(error)) => {
                problems.push(Problem::unreadable(&path, &error));
                before = None;
            }
        }
    }
    if live {
        return Ok((problems, None));
    }
    left_over(dir, &names, &marker, sequence, &mut problems);
    let files = ReadOnly { dir: dir.to_owned() };
    let found = match replay(&files, &Options::default(), &marker, &names) {
        Ok(found) => Some(LogFound {
            identity: marker.identity,
            boundary: found.boundary.index,
            end: found.end,
            term: found.hard.term.max(marker.term),
            whole: found.reached,
        }),
        Err(failed) => {
            if !problems.iter().any(|problem| problem.harm == Harm::Damage) {
                let file = failed.file.clone();
                problems.push(Problem { file, offset: None, what: failed.why, harm: Harm::Damage });
            }
            None
        }
    };
    Ok((problems, found))
}

fn read(path: &Path, pace: Pace<'_>) -> Result<Bytes, Cut> {
    let file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    if !pace(len) {
        return Err(Cut::Stopped);
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes.into())
}

/// The marker that counts, with the problems of its four copies.
fn marker(dir: &Path, live: bool, problems: &mut Vec<Problem>) -> Result<Option<Marker>, Cut> {
    let path = dir.join(MARKER);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            problems.push(Problem::unreadable(&path, &error));
            return Ok(None);
        }
    };
    let mut best: Option<Marker> = None;
    let mut damaged = Vec::new();
    for offset in [0, MARKER_COPY_OFFSET, MARKER_SLOT_BYTES, MARKER_SLOT_BYTES + MARKER_COPY_OFFSET] {
        let at = offset as usize;
        let copy = bytes.get(at..at + MARKER_USED_BYTES).unwrap_or_default();
        match Marker::decode(copy) {
            Ok(marker) if best.is_none_or(|best| best.counter < marker.counter) => best = Some(marker),
            Ok(_) => {}
            Err(BadHeader::Newer(version)) => {
                problems.push(Problem::damage(
                    &path,
                    offset,
                    format!("it has format {version}, of a newer version"),
                ));
                return Ok(None);
            }
            Err(BadHeader::Damaged) => damaged.push((offset, copy.iter().all(|byte| *byte == 0))),
        }
    }
    let Some(best) = best else {
        problems.push(Problem::damage(&path, 0, "no copy in its two slots is whole"));
        return Ok(None);
    };
    if live {
        return Ok(Some(best));
    }
    for (offset, empty) in damaged {
        // The second slot is written first.
        if !(empty && best.counter == 1 && offset < MARKER_SLOT_BYTES) {
            let what = "this copy of the marker is damaged, or a crash came while it was written; another one is whole";
            problems.push(Problem::spare(&path, offset, what));
        }
    }
    let unused = |at: &usize| at % MARKER_COPY_OFFSET as usize >= MARKER_USED_BYTES;
    if bytes.len() as u64 != MARKER_BYTES {
        let what = format!("it has {} bytes, it was written with {MARKER_BYTES}", bytes.len());
        problems.push(Problem::spare(&path, (bytes.len() as u64).min(MARKER_BYTES), what));
    } else if let Some(at) = (0..bytes.len()).filter(unused).find(|at| bytes[*at] != 0) {
        problems.push(Problem::spare(&path, at as u64, "a byte that is never written is not 0"));
    }
    Ok(Some(best))
}

/// Follows the records of one segment. `before` is where the segment before ended and its last checksum, or
/// nothing where that is not known. Gives the same for this one.
fn follow(
    dir: &Path,
    sequence: u64,
    bytes: &Bytes,
    marker: &Marker,
    before: Option<(u64, u32)>,
    problems: &mut Vec<Problem>,
) -> Option<(u64, u32)> {
    let path = dir.join(segment_name(sequence));
    let mut damaged = |file: &Path, offset: u64, what: &str| {
        problems.push(Problem::damage(file, offset, what));
        None
    };
    let header = match SegmentHeader::decode(bytes) {
        Ok(header) => header,
        Err(_) => return damaged(&path, 0, "the header is damaged"),
    };
    if header.identity != marker.identity || header.sequence != sequence {
        return damaged(&path, 0, "the header is that of another segment");
    }
    if header.length != bytes.len() as u64 {
        let what = format!("it has {} bytes, its header says {}", bytes.len(), header.length);
        return damaged(&path, header.length.min(bytes.len() as u64), &what);
    }
    let last = sequence == marker.sequence;
    let (mut at, mut chain) = (SEGMENT_HEADER_BYTES, None);
    while let Some(record) = take_record(bytes, at, header.salt) {
        let first = at == SEGMENT_HEADER_BYTES;
        if first != (record.kind == Kind::Start) {
            break;
        }
        match (chain, before) {
            (Some(chain), _) if record.previous != chain => break,
            (None, Some((end, chain))) if record.previous != chain => {
                let file = dir.join(segment_name(sequence - 1));
                damaged(&file, end, "the record that begins here is damaged or missing");
            }
            _ => {}
        }
        at += record.size();
        chain = Some(record.checksum);
        if last && at as u64 >= marker.offset {
            break;
        }
    }
    let Some(chain) = chain else {
        return damaged(&path, at as u64, "the record that begins here is damaged");
    };
    if last && (at as u64, chain) != (marker.offset, marker.chain) {
        return damaged(&path, at as u64, "the record that begins here is damaged or missing");
    }
    Some((at as u64, chain))
}

/// Files that nothing needs.
fn left_over(dir: &Path, names: &[String], marker: &Marker, oldest: u64, problems: &mut Vec<Problem>) {
    for name in names {
        let needed = match segment_sequence(name) {
            // The next one is made ready ahead.
            Some(sequence) => (oldest..=marker.sequence + 1).contains(&sequence),
            None => name == MARKER || name.starts_with("spare-"),
        };
        if !needed {
            problems.push(Problem::note(&dir.join(name), "left over; it is not read"));
        }
    }
}

/// A folder that can't be changed.
struct ReadOnly {
    dir: PathBuf,
}

struct ReadFile(fs::File);

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is only looked at"))
}

impl Files for ReadOnly {
    type File = ReadFile;

    fn list(&self) -> io::Result<Vec<String>> {
        refused()
    }

    fn open(&self, name: &str) -> io::Result<ReadFile> {
        fs::File::open(self.dir.join(name)).map(ReadFile)
    }

    fn create(&self, _: &str, _: u64) -> io::Result<ReadFile> {
        refused()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn sync_folder(&self) -> io::Result<()> {
        refused()
    }

    fn describe(&self) -> String {
        self.dir.display().to_string()
    }
}

impl File for ReadFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        refused()
    }

    fn sync(&self) -> io::Result<()> {
        refused()
    }
}

#[cfg(test)]
mod tests {
    use super::super::segments::segment_name;
    use super::super::{Log, Opened};
    use super::*;
    use crate::raft::LogView;
    use crate::storage::files::FolderFiles;
    use crate::types::{ClusterId, Entry, EntryKind, HardState, NodeId, SnapshotMeta};

    const OPTIONS: Options = Options { segment_bytes: 4096, spare_segments: 2, cache_bytes: 1 << 20 };
    const IDENTITY: Identity = Identity { cluster: ClusterId(7), node: NodeId(9) };

    fn begin() -> SnapshotMeta {
        SnapshotMeta { index: 1, term: 1, ..SnapshotMeta::default() }
    }

    /// A closed log of several segments, opened twice.
    fn log() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let files = || FolderFiles::open(dir.path().join("log")).unwrap();
        let hard = HardState { term: 1, vote: NodeId(0), commit: 1 };
        let (mut log, mut writer) = Log::create(files(), OPTIONS, IDENTITY, begin(), hard).unwrap();
        for number in 1..=6 {
            let data = vec![number as u8; 900].into();
            let kind = EntryKind::Normal;
            let entry = Entry { index: 1 + number, term: 1, kind, data, context: Bytes::new() };
            let write = log.stage(number, None, &[entry]);
            writer.write(write).unwrap();
        }
        drop((log, writer));
        let again = Log::open(files(), OPTIONS, IDENTITY, Some(begin())).unwrap();
        assert!(matches!(again, Opened::Ready { restarted: false, .. }));
        dir
    }

    fn look(dir: &Path, live: bool) -> Vec<Problem> {
        verify(&dir.join("log"), live, &mut |_| true).unwrap().0
    }

    fn bytes_of(path: &Path) -> Vec<u8> {
        fs::read(path).unwrap()
    }

    #[test]
    fn a_sound_log_is_sound() {
        let dir = log();
        assert_eq!(look(dir.path(), false), []);
        assert_eq!(look(dir.path(), true), []);
        let (_, found) = verify(&dir.path().join("log"), false, &mut |_| true).unwrap();
        let found = found.unwrap();
        assert_eq!((found.boundary, found.end.index, found.whole), (1, 7, true));
        assert_eq!(found.identity, IDENTITY);
    }

    /// Changes each byte of what was acknowledged in the segments, and expects it to be found at its place.
    #[test]
    fn every_byte_that_was_acknowledged_counts() {
        let dir = log();
        let folder = dir.path().join("log");
        let marker = marker(&folder, true, &mut Vec::new()).unwrap().unwrap();
        assert!(marker.sequence > 1, "several segments");
        let mut changed = 0;
        for sequence in 1..=marker.sequence {
            let path = folder.join(segment_name(sequence));
            let whole = bytes_of(&path);
            let salt = SegmentHeader::decode(&whole).unwrap().salt;
            let records = Bytes::from(whole.clone());
            let mut end = SEGMENT_HEADER_BYTES;
            while let Some(record) = take_record(&records, end, salt) {
                end += record.size();
            }
            for at in 0..end {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                fs::write(&path, bytes).unwrap();
                // The look at a closed log reads it twice: at each seventh byte it is worth that.
                let looks: &[bool] = if at % 7 == 0 { &[false, true] } else { &[true] };
                for live in looks.iter().copied() {
                    let found = look(dir.path(), live);
                    let damage = found.iter().find(|problem| problem.harm == Harm::Damage);
                    let damage = damage.unwrap_or_else(|| panic!("segment {sequence} byte {at}: {found:?}"));
                    assert_eq!(damage.file, path.display().to_string(), "byte {at}: {damage}");
                    let offset = damage.offset.unwrap() as usize;
                    assert!(offset <= at && at - offset < 1000, "byte {at}: {damage}");
                }
                changed += 1;
            }
            fs::write(&path, whole).unwrap();
        }
        assert!(changed > 5000, "{changed}");
    }

    #[test]
    fn each_copy_of_the_marker_is_looked_at() {
        let dir = log();
        let path = dir.path().join("log").join(MARKER);
        let whole = bytes_of(&path);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, bytes).unwrap();
            let found = look(dir.path(), false);
            assert!(matches!(&found[..], [one] if one.harm == Harm::Spare), "byte {at}: {found:?}");
            assert_eq!(look(dir.path(), true), [], "three copies are enough for a running member");
        }
        fs::write(&path, vec![0; whole.len()]).unwrap();
        assert_eq!(look(dir.path(), false)[0].harm, Harm::Damage);
        fs::remove_file(&path).unwrap();
        assert_eq!(look(dir.path(), false)[0].what, "it is missing");
    }

    #[test]
    fn a_missing_segment_and_one_cut_short_are_named() {
        let dir = log();
        let path = dir.path().join("log").join(segment_name(2));
        let whole = bytes_of(&path);
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(look(dir.path(), false)[0].what.contains("its header says 4096"));
        fs::remove_file(&path).unwrap();
        let found = look(dir.path(), false);
        assert!(found.iter().any(|problem| problem.harm == Harm::Damage), "{found:?}");
        fs::write(&path, &whole).unwrap();
        fs::write(path.with_file_name("something"), b"").unwrap();
        let found = look(dir.path(), false);
        assert!(matches!(&found[..], [one] if one.harm == Harm::Note), "{found:?}");
    }
}
