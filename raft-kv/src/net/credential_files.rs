//! Credentials as files: `cacert`, `cert` and `key`, the key for its owner's eyes alone.
//!
//! What is written once are three plain files. What is replaced while it is used becomes three
//! symbolic links by way of one, `.current`, to a folder with one whole set: renaming that one link
//! changes all three at once, so that no crash leaves a certificate beside another one's key. Who opens
//! the files one after the other while they change may still get two sets; it reads them again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rand::RngCore;

use crate::error::{Refusal, StorageFailed};
use crate::pki::{Credentials, PemFiles};

/// The files in a folder of credentials: roots, chain and key.
pub const CERT_FILES: [&str; 3] = ["cacert.pem", "cert.pem", "key.pem"];
/// The link to the set in use.
const CURRENT: &str = ".current";
/// Sets have names that begin with this.
const SET: &str = ".set-";
/// How often files are read that do not belong together: somebody replaces them.
const READS: usize = 5;

/// A PEM file is not read beyond this.
const MAX_PEM_BYTES: u64 = 1024 * 1024;

/// Reads credentials from three PEM files.
///
/// # Errors
/// [`Refusal::Invalid`] for a file that can't be read, [`Refusal::BadCertificate`] for what is
/// wrong inside.
pub fn read_credentials(cacert: &Path, cert: &Path, key: &Path) -> Result<Credentials, Refusal> {
    let mut reads = 1;
    loop {
        match read_once(cacert, cert, key) {
            Err(Refusal::BadCertificate { .. }) if reads < READS => reads += 1,
            read => return read,
        }
    }
}

/// Reads the credentials that lie in `dir` under their usual names.
///
/// # Errors
/// As [`read_credentials`].
pub fn read_credentials_in(dir: &Path) -> Result<Credentials, Refusal> {
    let [cacert, cert, key] = CERT_FILES.map(|name| dir.join(name));
    read_credentials(&cacert, &cert, &key)
}

fn read_once(cacert: &Path, cert: &Path, key: &Path) -> Result<Credentials, Refusal> {
    let read = |field: &str, path: &Path| {
        let why = |why: String| Refusal::invalid(format!("{field} file {}", path.display()), why);
        match fs::metadata(path) {
            Ok(meta) if meta.len() > MAX_PEM_BYTES => Err(why("it is too large".into())),
            _ => fs::read_to_string(path).map_err(|error| why(error.to_string())),
        }
    };
    let files =
        PemFiles { cacert: read("cacert", cacert)?, cert: read("cert", cert)?, key: read("key", key)? };
    Credentials::from_pem(&files)
}

/// Writes `cacert.pem`, `cert.pem` and `key.pem` into `dir`, each whole or not at all, readable
/// for their owner alone. Over older ones: whenever the machine stops, [`read_credentials`] finds a
/// certificate and its key. Use [`replace_credentials`] for files that other programs read too.
///
/// # Errors
/// [`StorageFailed`] naming the file.
pub fn write_credentials(dir: &Path, credentials: &Credentials) -> Result<(), StorageFailed> {
    for (name, content) in writes(dir, credentials) {
        write_private(&dir.join(name), content.as_bytes())?;
    }
    Ok(())
}

/// What is written one after the other.
fn writes(dir: &Path, credentials: &Credentials) -> Vec<(&'static str, String)> {
    let PemFiles { cacert, cert, key } = credentials.to_pem();
    let before = read_credentials_in(dir).ok().filter(|before| before.key != credentials.key);
    let mut writes = Vec::new();
    if let Some(before) = before {
        // Until the certificate is replaced, the key of the one before is needed.
        let before = before.to_pem().key;
        writes.push(("key.pem", [&key[..], &before].concat()));
    }
    // The key last: with it there, the others are there.
    writes.extend([("cacert.pem", cacert), ("cert.pem", cert), ("key.pem", key)]);
    writes
}

/// Replaces the three files in `dir`, which are in use, all at once: whoever reads them, and whenever
/// the machine stops, finds the old set or the new one.
///
/// # Errors
/// [`StorageFailed`] naming the file.
pub fn replace_credentials(dir: &Path, credentials: &Credentials) -> Result<(), StorageFailed> {
    let _alone = lock_credentials(dir)?;
    for step in steps(dir, credentials)? {
        step.take(dir)?;
    }
    tidy(dir);
    Ok(())
}

/// Keeps other processes from changing the credentials in `dir` until what it gives is dropped: for a
/// moment only, it is waited for.
///
/// # Errors
/// [`StorageFailed`] naming the folder.
pub fn lock_credentials(dir: &Path) -> Result<File, StorageFailed> {
    let folder = File::open(dir).map_err(failed(dir, "opening it"))?;
    folder.lock().map_err(failed(dir, "locking it"))?;
    Ok(folder)
}

/// One change of the folder that either happens or does not.
#[derive(Debug)]
enum Step {
    /// `.current` leads to the set of that name.
    Point(String),
    /// A file becomes a link to the one of its name in the set in use.
    Link(&'static str),
}

impl Step {
    fn take(&self, dir: &Path) -> Result<(), StorageFailed> {
        match self {
            Self::Point(set) => relink(dir, CURRENT, Path::new(set)),
            Self::Link(name) => relink(dir, name, &Path::new(CURRENT).join(name)),
        }
    }
}

/// Writes the new set beside the old one, and says what leads to it from here.
fn steps(dir: &Path, credentials: &Credentials) -> Result<Vec<Step>, StorageFailed> {
    let fresh = new_set(dir)?;
    write_credentials(&dir.join(&fresh), credentials)?;
    let linked =
        |name: &str| fs::read_link(dir.join(name)).is_ok_and(|to| to == Path::new(CURRENT).join(name));
    let mut steps = Vec::new();
    if !CERT_FILES.iter().all(|name| linked(name)) {
        // Plain files as yet: the first set is what they hold, so that each can become a link by
        // itself without a change of what is read.
        let plain: Vec<_> = CERT_FILES.iter().map(|name| fs::read(dir.join(name))).collect();
        let plain: Result<Vec<_>, io::Error> = plain.into_iter().collect();
        if let Some(plain) = plain.ok().filter(|_| !crate::planted!(ReplaceInPlace)) {
            let old = new_set(dir)?;
            for (name, content) in CERT_FILES.iter().zip(plain) {
                write_private(&dir.join(&old).join(name), &content)?;
            }
            steps.push(Step::Point(old));
        } else {
            steps.push(Step::Point(fresh.clone()));
        }
        steps.extend(CERT_FILES.iter().filter(|name| !linked(name)).map(|name| Step::Link(name)));
    }
    steps.push(Step::Point(fresh));
    Ok(steps)
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> StorageFailed {
    move |error| StorageFailed::io(path.display().to_string(), action, &error)
}

/// A folder for a set; its name.
fn new_set(dir: &Path) -> Result<String, StorageFailed> {
    let name = format!("{SET}{:016x}", rand::rng().next_u64());
    let path = dir.join(&name);
    DirBuilder::new().mode(0o700).create(&path).map_err(failed(&path, "creating it"))?;
    Ok(name)
}

/// Makes `name` in `dir` a link to `to`, whatever it was, durably.
fn relink(dir: &Path, name: &str, to: &Path) -> Result<(), StorageFailed> {
    let (path, fresh) = (dir.join(name), dir.join(format!("{SET}{name}.link")));
    let _ = fs::remove_file(&fresh);
    symlink(to, &fresh).map_err(failed(&fresh, "creating it"))?;
    fs::rename(&fresh, &path).map_err(failed(&path, "renaming it into place"))?;
    let folder = File::open(dir).map_err(failed(dir, "opening it"))?;
    folder.sync_all().map_err(failed(dir, "syncing it"))
}

/// Removes sets that nobody reads any more: the newest besides the one in use stays for who is
/// reading it. What can't be removed is removed the next time.
fn tidy(dir: &Path) {
    let Ok(current) = fs::read_link(dir.join(CURRENT)) else { return };
    let age = |path: &PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(SET) && Path::new(name) != current && path.is_dir()
    };
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut old: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(ours).collect();
    old.sort_by_key(age);
    old.pop();
    for path in old {
        let _ = fs::remove_dir_all(path);
    }
}

/// Replaces the file at `path` by `content`, durably, whole or not at all, with mode 0600.
///
/// # Errors
/// [`StorageFailed`] naming the file.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), StorageFailed> {
    let fail = |action: &'static str| {
        move |error: std::io::Error| StorageFailed::io(path.display().to_string(), action, &error)
    };
    let fresh = path.with_extension("new");
    // A file left by a crash may have another mode.
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(fail("creating it"))?;
    file.write_all(content).map_err(fail("writing it"))?;
    file.sync_all().map_err(fail("syncing it"))?;
    fs::rename(&fresh, path).map_err(fail("renaming it into place"))?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(fail("opening its folder"))?;
    folder.sync_all().map_err(fail("syncing its folder"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::pki::{LEAF_VALIDITY, NodeKey, RootKey, Subject, issue};
    #[cfg(feature = "sim")]
    use crate::planted;
    use crate::types::{ClusterId, NodeId, Role};

    /// Another certificate of one node each time.
    fn credentials() -> Credentials {
        let (cluster, now) = (ClusterId(1), SystemTime::now());
        let (root, key) = (RootKey::generate(cluster, now), NodeKey::generate());
        let (role, name) = (Role::Client, String::from("c"));
        let subject = Subject { cluster, node: NodeId(2), role, name, hosts: vec![] };
        let leaf = issue(&root, &subject, &key.public(), now, LEAF_VALIDITY, &mut rand::rng()).unwrap();
        let roots = vec![root.cert_der().to_vec()];
        Credentials { chain: vec![leaf], key: key.der().to_vec(), roots, ..Credentials::default() }
    }

    /// What is read after each number of steps that a crash leaves done: always the old set or the new
    /// one, and after the last the new one.
    fn every_crash_leaves_one_set(before: impl Fn(&Path, &Credentials)) -> Result<(), String> {
        let (old, new) = (credentials(), credentials());
        for done in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let dir = folder.path();
            before(dir, &old);
            let steps = steps(dir, &new).unwrap();
            steps.iter().take(done).for_each(|step| step.take(dir).unwrap());
            let read = read_credentials_in(dir).map_err(|refusal| format!("after {done}: {refusal}"))?;
            if read != old && read != new {
                return Err(format!("after {done}: a mixture"));
            }
            let last = done >= steps.len();
            if last && read != new {
                return Err("all steps lead to the old set".into());
            }
            // Whoever comes next goes on from whatever there is.
            let newer = credentials();
            replace_credentials(dir, &newer).unwrap();
            assert_eq!(read_credentials_in(dir).unwrap(), newer, "after {done}");
            if last {
                return Ok(());
            }
        }
        unreachable!("there are few steps")
    }

    fn plain(dir: &Path, old: &Credentials) {
        write_credentials(dir, old).unwrap();
    }

    #[test]
    fn a_crash_leaves_the_old_set_or_the_new_one() {
        every_crash_leaves_one_set(plain).unwrap();
        every_crash_leaves_one_set(|dir, old| replace_credentials(dir, old).unwrap()).unwrap();
    }

    #[cfg(feature = "sim")]
    #[test]
    fn files_that_are_replaced_one_by_one_are_noticed() {
        let noticed = planted::with(Some(planted::Bug::ReplaceInPlace), || every_crash_leaves_one_set(plain));
        assert!(noticed.is_err());
    }

    #[test]
    fn a_crash_between_files_written_one_by_one_leaves_a_certificate_with_its_key() {
        let (old, new) = (credentials(), credentials());
        for done in 0..=4 {
            let folder = tempfile::tempdir().unwrap();
            plain(folder.path(), &old);
            let writes = writes(folder.path(), &new);
            assert_eq!(writes.len(), 4);
            for (name, content) in &writes[..done] {
                write_private(&folder.path().join(name), content.as_bytes()).unwrap();
            }
            let read = read_credentials_in(folder.path()).unwrap();
            let expect = if done < 3 { &old } else { &new };
            assert_eq!((&read.chain, &read.key), (&expect.chain, &expect.key), "after {done}");
            write_credentials(folder.path(), &new).unwrap();
            assert_eq!(read_credentials_in(folder.path()).unwrap(), new);
        }
    }

    #[test]
    fn a_set_is_its_owners_alone_and_old_ones_go() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        plain(dir, &credentials());
        let newest = credentials();
        (0..5).for_each(|_| replace_credentials(dir, &credentials()).unwrap());
        replace_credentials(dir, &newest).unwrap();
        assert_eq!(read_credentials_in(dir).unwrap(), newest);
        let mut sets = 0;
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with(SET) {
                sets += 1;
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o700);
                let key = fs::metadata(entry.path().join("key.pem")).unwrap();
                assert_eq!(key.permissions().mode() & 0o777, 0o600);
            } else {
                assert!(CERT_FILES.contains(&&name[..]) || name == CURRENT, "{name}");
            }
        }
        assert_eq!(sets, 2, "the one in use and the one before");
    }

    #[test]
    fn whoever_reads_while_they_change_gets_one_set() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_owned();
        let sets = [credentials(), credentials()];
        plain(&dir, &sets[0]);
        let writer = {
            let (dir, sets) = (dir.clone(), sets.clone());
            std::thread::spawn(move || {
                (1..30).for_each(|at| replace_credentials(&dir, &sets[at % 2]).unwrap())
            })
        };
        while !writer.is_finished() {
            let read = read_credentials_in(&dir).unwrap();
            let whole = |set: &&Credentials| set.chain == read.chain && set.key == read.key;
            assert!(sets.iter().any(|set| whole(&set)));
        }
        writer.join().unwrap();
    }
}
