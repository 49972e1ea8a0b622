//! What disks do to a member that does not run: an old image of its whole directory is put back, or one
//! bit of one file is another one. It must come back by itself, and nothing that was acknowledged may be gone.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::cluster::Cluster;

/// An image is taken of a member that is down for a moment; it runs on meanwhile.
pub(super) fn take_image(cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
    for &index in victims {
        cluster.kill(index)?;
        let data = cluster.members()[index].data_dir.clone();
        let image = image_of(&data);
        let _ = fs::remove_dir_all(&image);
        copy(&data, &image)?;
    }
    cluster.restart(victims)
}

/// The image takes the place of what the member has now. It says that it serves, hears from the others that it is
/// older than what they know, and comes back under another id.
pub(super) fn put_back(cluster: &mut Cluster, victims: &[usize]) -> Result<(), String> {
    let old: Vec<String> = victims.iter().map(|&index| cluster.members()[index].id.clone()).collect();
    for &index in victims {
        cluster.kill(index)?;
        let data = cluster.members()[index].data_dir.clone();
        fs::remove_dir_all(&data).map_err(|error| failed(&data, &error))?;
        let image = image_of(&data);
        fs::rename(&image, &data).map_err(|error| failed(&image, &error))?;
    }
    cluster.restart(victims)?;
    victims.iter().zip(&old).try_for_each(|(&index, old)| cluster.await_new_id(index, old))
}

/// Ends members and changes one bit of a file of each.
pub(super) fn flip_bit(
    cluster: &mut Cluster,
    victims: &[usize],
    chance: &mut ChaCha8Rng,
) -> Result<(), String> {
    for &index in victims {
        cluster.kill(index)?;
        let mut files = Vec::new();
        list(&cluster.members()[index].data_dir, &mut files)?;
        files.retain(|path| counts(path) && fs::metadata(path).is_ok_and(|it| it.len() > 0));
        // Each class of file alike, however many files it has.
        let mut classes: Vec<String> = files.iter().map(|path| class(path)).collect();
        classes.sort();
        classes.dedup();
        let wanted = classes.get(chance.random_range(0..classes.len().max(1))).ok_or("it has no files")?;
        files.retain(|path| class(path) == *wanted);
        files.sort();
        let path = &files[chance.random_range(0..files.len())];
        let len = fs::metadata(path).map_err(|error| failed(path, &error))?.len();
        // Segments are made longer than what is in them.
        let end = if wanted == "segment" { len.min(64 * 1024) } else { len };
        let (at, bit) = (chance.random_range(0..end), chance.random_range(0..8));
        flip(path, at, bit)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        eprintln!("jepsen:          bit {bit} of byte {at} of {name}");
    }
    Ok(())
}

fn flip(path: &Path, at: u64, bit: u8) -> Result<(), String> {
    let change = || {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut byte)?;
        byte[0] ^= 1 << bit;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&byte)?;
        file.sync_all()
    };
    change().map_err(|error| failed(path, &error))
}

/// Files that nothing is read from, and such as only tell a story.
fn counts(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unread = ["lock", "LOCK", "LOG", "IDENTITY"].contains(&&*name);
    !unread && !name.starts_with("LOG.") && !name.starts_with("OPTIONS-")
}

/// `segment-000…1` and `000012.sst` are one class each with their like.
fn class(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let plain: String = name.chars().filter(|sign| !sign.is_ascii_digit()).collect();
    plain.trim_end_matches('-').to_owned()
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, &error))?.flatten() {
        let path = entry.path();
        // What a repair has put aside is for people.
        if path.is_dir() && entry.file_name() != "damaged" {
            list(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

fn image_of(data: &Path) -> PathBuf {
    data.with_extension("image")
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::create_dir_all(to).map_err(|error| failed(to, &error))?;
    let mode = fs::metadata(from).map_err(|error| failed(from, &error))?.permissions();
    fs::set_permissions(to, mode).map_err(|error| failed(to, &error))?;
    for entry in fs::read_dir(from).map_err(|error| failed(from, &error))?.flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target)?;
        } else if path.is_file() {
            fs::copy(&path, &target).map_err(|error| failed(&path, &error))?;
            File::open(&target).and_then(|file| file.sync_all()).map_err(|error| failed(&target, &error))?;
        }
    }
    Ok(())
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_changes_and_classes_have_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000012.sst");
        fs::write(&path, [0, 0, 0]).unwrap();
        flip(&path, 1, 3).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [0, 8, 0]);
        let of = |name: &str| class(Path::new(name));
        assert_eq!([of("a/000012.sst"), of("000099.sst")], [".sst", ".sst"]);
        assert_eq!(
            [of("segment-0000000000000001"), of("marker"), of("MANIFEST-000005")],
            ["segment", "marker", "MANIFEST"]
        );
        assert!(counts(&path) && !counts(Path::new("state/LOG.old.17")));
    }

    #[test]
    fn an_image_is_the_whole_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("deep")).unwrap();
        fs::write(from.join("deep/file"), b"x").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("deep/file")).unwrap(), b"x");
    }
}
