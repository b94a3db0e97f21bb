//! Reserved disk space for deletions. A deletion also writes, so without a reserve nobody could delete on a full disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tracing::warn;

use crate::file::is_for_want_of_space;

/// Possible sizes. The reserve takes the largest that leaves as much again to others. A deletion writes some pages of
/// each table, and the largest transaction deletes a few thousand keys.
const SIZES: [u64; 3] = [4 << 20, 2 << 20, 1 << 20];

/// A file that only occupies space.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    is_held: bool,
}

impl Reserve {
    /// Creates the reserve of the store at `store`, held if there is space.
    pub(crate) fn beside(store: &Path) -> Self {
        let mut reserve = Self { path: store.with_extension("reserve"), is_held: false };
        reserve.hold();
        reserve
    }

    pub(crate) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Reserves the space, if there is enough. Returns whether the reserve is held.
    pub(crate) fn hold(&mut self) -> bool {
        if self.is_held {
            return true;
        }
        self.is_held = match self.allocate() {
            Ok(()) => true,
            Err(reason) if is_for_want_of_space(&reason) => {
                self.remove();
                false
            }
            Err(reason) => {
                // A store without a reserve is better than a store that cannot write.
                let path = self.path.display();
                warn!(%path, %reason, "cannot reserve disk space for deletions");
                true
            }
        };
        self.is_held
    }

    pub(crate) fn release(&mut self) {
        self.is_held = false;
        self.remove();
    }

    fn allocate(&self) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let disk = statvfs(dir)?;
        // The space of an existing reserve file is ours.
        let held = fs::metadata(&self.path).map_or(0, |file| file.blocks() * 512);
        let free = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(held);
        let size = SIZES.into_iter().find(|size| free >= 2 * size).ok_or(io::ErrorKind::StorageFull)?;
        let file = File::options().write(true).create(true).truncate(true).open(&self.path)?;
        loop {
            return match fallocate(&file, FallocateFlags::empty(), 0, size) {
                Err(rustix::io::Errno::INTR) => continue,
                // This file system cannot reserve space.
                Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
                allocated => Ok(allocated?),
            };
        }
    }

    fn remove(&self) {
        // A file that cannot be removed takes no more space than before.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_given_away_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store.redb");
        let taken = || fs::metadata(dir.path().join("store.reserve")).map_or(0, |file| file.blocks() * 512);
        let mut reserve = Reserve::beside(&store);
        assert!(reserve.is_held() && taken() >= SIZES[2]);
        reserve.release();
        assert!(!reserve.is_held() && taken() == 0);
        assert!(reserve.hold() && taken() >= SIZES[2]);
        assert!(Reserve::beside(&store).is_held(), "one that is there already");
    }
}
