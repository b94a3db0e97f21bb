//! The path of the file. It is never half made, only its owner can read it, and the store notices its removal.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

/// Mode of the file: only its owner can read and write it.
const FILE_MODE: u32 = 0o600;
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// A file by its path, and by the device and inode that distinguish it from a replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    /// Finds the file at `path`. If it does not exist, `make` creates it under another name first, so that a store
    /// killed at its start leaves no half-made file.
    pub(crate) fn prepare<E: From<io::Error>>(
        path: &Path,
        make: impl FnOnce(fs::File) -> Result<(), E>,
    ) -> Result<Self, E> {
        let dir = path.parent().unwrap_or(Path::new("."));
        if !path.try_exists()? {
            if path.is_symlink() {
                let reason = "it is a link to a file that does not exist; is its disk mounted?";
                return Err(io::Error::other(reason).into());
            }
            // A name of this process: another process may do the same.
            let aside = path.with_extension(format!("{}.new", std::process::id()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(FILE_MODE)
                .open(&aside)?;
            let made = make(file).and_then(|()| match fs::hard_link(&aside, path) {
                // The other process was faster. Its store counts.
                Err(reason) if reason.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => Ok(linked?),
            });
            fs::remove_file(&aside)?;
            made?;
            fs::File::open(dir)?.sync_all()?;
        }
        let found = fs::metadata(path)?;
        if found.len() == 0 {
            return Err(io::Error::other(
                "it is empty, so its leases are lost; restore it from a copy, or remove it to start with an empty store",
            )
            .into());
        }
        keep_to_owner(path, &found);
        if fs::metadata(dir)?.mode() & OTHERS != 0 {
            let dir = dir.display();
            warn!("other users can read {dir}, which holds the store; run: chmod 700 {dir}");
        }
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    /// Checks that the file is still at its path. Writes to a deleted file are lost when this process ends.
    ///
    /// # Errors
    /// What happened to the file.
    pub(crate) fn check(&self) -> Result<(), String> {
        let path = self.path.display();
        match fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => Ok(()),
            Ok(_) => Err(format!("somebody replaced {path} by another file")),
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => {
                Err(format!("somebody deleted or moved {path}"))
            }
            // If the directory cannot be read now, that says nothing about the file.
            Err(_) => Ok(()),
        }
    }
}

/// Removes the permissions of group and others.
fn keep_to_owner(path: &Path, found: &fs::Metadata) {
    if found.mode() & OTHERS == 0 {
        return;
    }
    let file = path.display();
    match fs::set_permissions(path, Permissions::from_mode(FILE_MODE)) {
        Ok(()) => info!(%file, "other users could read the store's file; now only its owner can"),
        Err(reason) => {
            warn!(%file, %reason, "cannot remove other users' access to the store's file");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn prepare(path: &Path) -> io::Result<Place> {
        Place::prepare(path, |mut file| file.write_all(b"made"))
    }

    #[test]
    fn a_new_file_is_its_owners_alone_and_an_old_one_becomes_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        prepare(&path).unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        prepare(&path).unwrap();
        assert_eq!((mode(), fs::read(&path).unwrap().as_slice()), (0o600, &b"made"[..]));
    }

    #[test]
    fn a_start_that_was_killed_leaves_nothing_in_the_way_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let killed: io::Result<Place> = Place::prepare(&path, |_| Err(io::Error::other("killed")));
        assert!(killed.is_err() && !path.exists());
        assert!(prepare(&path).is_ok());
    }

    #[test]
    fn a_link_to_a_disk_that_is_not_there_is_no_new_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        std::os::unix::fs::symlink(dir.path().join("not-mounted/store.redb"), &path).unwrap();
        let reason = prepare(&path).unwrap_err().to_string();
        assert!(reason.contains("is its disk mounted?") && path.is_symlink(), "{reason}");
    }

    #[test]
    fn of_two_that_make_a_file_at_once_the_first_ones_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let slow: io::Result<Place> = Place::prepare(&path, |mut file| {
            fs::write(&path, "first")?;
            file.write_all(b"second")
        });
        slow.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_empty_file_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        fs::write(&path, "").unwrap();
        let reason = prepare(&path).unwrap_err().to_string();
        assert!(reason.contains("it is empty") && reason.contains("remove it"), "{reason}");
    }

    #[test]
    fn a_file_that_is_deleted_or_replaced_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let place = prepare(&path).unwrap();
        assert_eq!(place.check(), Ok(()));
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        assert!(place.check().unwrap_err().contains("deleted or moved"));
        fs::write(&path, "another").unwrap();
        assert!(place.check().unwrap_err().contains("another file"));
        fs::rename(&elsewhere, &path).unwrap();
        assert_eq!(place.check(), Ok(()));
    }
}
