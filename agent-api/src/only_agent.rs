//! One agent in a network namespace: two would undo each other's work.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// Where only root can make files, so that nobody else can keep an agent from starting.
const DIRECTORY: &str = "/run";

/// Keeps agents from starting in this network namespace, for as long as it lives.
#[derive(Debug)]
pub struct OnlyAgent {
    // The kernel unlocks it when the process ends, however it does. The file stays: without it, two could lock two.
    _file: File,
}

impl OnlyAgent {
    /// Takes the place of the only agent; `None` if it is taken.
    ///
    /// # Errors
    /// If there can be no file for it, with its name.
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
