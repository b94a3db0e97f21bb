//! Allows one agent in a network namespace, because two would undo each other's work.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// Only root can create files here, so nobody else can prevent an agent from starting.
const DIRECTORY: &str = "/run";

/// Lock against other agents in this network namespace, until dropped.
#[derive(Debug)]
pub struct OnlyAgent {
    // The kernel unlocks it when the process ends. The file stays: if it were deleted, two agents could lock two files.
    _file: File,
}

impl OnlyAgent {
    /// Takes the lock; `None` if another agent holds it.
    ///
    /// # Errors
    /// If the lock file cannot be created; names it.
    pub fn claim() -> io::Result<Option<Self>> {
        let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
        let path = PathBuf::from(DIRECTORY).join(format!("fland-{namespace}.lock"));
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(named)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(named(error)),
        }
    }
}
