//! A disk of a member's own, whose power can be cut: an ext4 file system in a file, mounted through a
//! loop device. A cut is the file system's own shutdown without a flush of its log: what was not
//! synced is gone, every later write fails, and mounting it again replays what its journal has.
//!
//! Only what was mounted here is unmounted, also when the stack unwinds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Room for a member's data; the file is sparse.
const BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// `FS_IOC_SHUTDOWN` without flushing the log. Perl is on every Debian; Rust would need `unsafe`.
const SHUTDOWN: &str = r#"open(my $f, "<", $ARGV[0]) or die "$!\n"; my $no_flush = pack("L", 2); ioctl($f, 0x8004587d, $no_flush) or die "$!\n";"#;

/// The disk. Dropping it unmounts it.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Makes a disk in the file `image` and mounts it at `mount`.
    ///
    /// # Errors
    /// What the machine lacks: root's rights, loop devices, or a tool.
    pub fn new(image: &Path, mount: &Path) -> Result<Self, String> {
        let failed = |what: &Path, error: std::io::Error| format!("{}: {error}", what.display());
        let file = fs::File::create(image).map_err(|error| failed(image, error))?;
        file.set_len(BYTES).map_err(|error| failed(image, error))?;
        fs::create_dir_all(mount).map_err(|error| failed(mount, error))?;
        run("/usr/sbin/mkfs.ext4", &["-q", "-F", &text(image)])?;
        let mut disk = Self { image: image.to_owned(), mount: mount.to_owned(), mounted: false };
        disk.mount()?;
        // What a cut is asked of; an open directory would keep the disk busy for nobody's good.
        let probe = disk.probe();
        fs::write(&probe, b"").map_err(|error| failed(&probe, error))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    fn probe(&self) -> PathBuf {
        self.mount.join("probe")
    }

    fn mount(&mut self) -> Result<(), String> {
        run("mount", &["-o", "loop,noatime", &text(&self.image), &text(&self.mount)])?;
        self.mounted = true;
        Ok(())
    }

    /// Cuts the power: nothing that was not synced is there any more, nothing more is written.
    ///
    /// # Errors
    /// The file system would not.
    pub fn cut(&self) -> Result<(), String> {
        run("perl", &["-e", SHUTDOWN, &text(&self.probe())])
    }

    /// Takes the disk out and puts it in again. Nobody may have a file of it open.
    ///
    /// # Errors
    /// It is busy, or can't be mounted again.
    pub fn again(&mut self) -> Result<(), String> {
        run("umount", &[&text(&self.mount)])?;
        self.mounted = false;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: whoever still has a file open must not keep the run from ending.
            let _ = run("umount", &["-l", &text(&self.mount)]);
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs a tool of the system and says what it said where it fails.
fn run(tool: &str, words: &[&str]) -> Result<(), String> {
    let ended = Command::new(tool).args(words).stdin(Stdio::null()).output();
    let ended = ended.map_err(|error| format!("power cuts need the tool {tool}: {error}"))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(format!(
        "{tool} {}: {}; power cuts need root's rights, loop devices and ext4 (leave them out with --nemesis)",
        words.join(" "),
        said.trim()
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_cut_takes_what_was_not_synced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Disk::new(&dir.path().join("image"), &dir.path().join("disk")).unwrap();
        let (kept, lost) = (disk.path().join("kept"), disk.path().join("lost"));
        let mut file = fs::File::create(&kept).unwrap();
        file.write_all(b"synced").unwrap();
        file.sync_all().unwrap();
        fs::File::open(disk.path()).unwrap().sync_all().unwrap();
        file.write_all(b", not synced").unwrap();
        fs::write(&lost, b"not synced").unwrap();
        disk.cut().unwrap();
        assert!(file.write_all(b"more").and_then(|()| file.sync_all()).is_err(), "it is off");
        drop(file);
        disk.again().unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"synced");
        assert!(!lost.exists());
        let mount = disk.path().to_owned();
        drop(disk);
        assert!(fs::read_dir(mount).unwrap().next().is_none(), "it is unmounted");
    }
}
