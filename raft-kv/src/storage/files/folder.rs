//! Files in a real folder: positioned reads and writes, `fdatasync`, and an `fsync` of the folder.
//!
//! It must never follow a name out of its folder, never leave a file readable by other users, and
//! never report a sync that the kernel did not report. Every descriptor is closed on exec (the
//! standard library opens nothing without `O_CLOEXEC`).

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{File, Files};

/// Zero bytes written at once when a file is made.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A flat folder on a real disk.
#[derive(Debug)]
pub struct FolderFiles {
    path: PathBuf,
    folder: fs::File,
}

impl FolderFiles {
    /// Opens the folder at `path`; makes it, for this user alone (mode 0700), where it is missing,
    /// and then syncs its parent.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        if !path.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            fs::File::open(parent)?.sync_all()?;
        }
        let folder = fs::File::open(&path)?;
        if !folder.metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a folder"));
        }
        Ok(Self { path, folder })
    }

    fn place(&self, name: &str) -> PathBuf {
        assert!(
            !name.is_empty() && !name.contains('/') && name != "." && name != "..",
            "file names are our own and stay in the folder: {name:?}"
        );
        self.path.join(name)
    }
}

impl Files for FolderFiles {
    type File = FolderFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in fs::read_dir(&self.path)? {
            let item = item?;
            // A name that is not text, or a folder, is not ours.
            if let (true, Ok(name)) = (item.file_type()?.is_file(), item.file_name().into_string()) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<FolderFile> {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.place(name))?;
        Ok(FolderFile { file })
    }

    fn create(&self, name: &str, len: u64) -> io::Result<FolderFile> {
        let place = self.place(name);
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(place)?;
        // Written, not only allocated: a sync into space that was never written has to change the
        // file system's own records, which costs as much again as the data.
        let mut at = 0;
        while at < len {
            let step = (len - at).min(ZEROS.len() as u64);
            file.write_all_at(&ZEROS[..step as usize], at)?;
            at += step;
        }
        Ok(FolderFile { file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.place(from), self.place(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.place(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.folder.sync_all()
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// An open file of [`FolderFiles`].
#[derive(Debug)]
pub struct FolderFile {
    file: fs::File,
}

impl File for FolderFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn conforms() {
        let mut kept = Vec::new();
        super::super::files_conformance(|| {
            let folder = tempfile::tempdir().expect("a scratch folder");
            let files = FolderFiles::open(folder.path().join("log")).expect("opens");
            kept.push(folder);
            files
        });
    }

    #[test]
    fn files_and_folder_are_for_this_user_alone() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("log");
        let files = FolderFiles::open(&path).expect("opens");
        files.create("one", 10).expect("creates");
        let mode = |path: &Path| fs::metadata(path).expect("exists").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("one")), 0o600);
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_an_error() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("log");
        fs::write(&path, b"x").expect("writes");
        assert!(FolderFiles::open(&path).is_err());
    }
}
