//! The file that keeps a host's private key across reboots.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::{InvalidKey, PrivateKey};

/// More than any key file needs: what is larger is something else.
const MOST_BYTES: u64 = 4096;

/// A file with a private key, as `wg genkey` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    path: PathBuf,
}

/// Where a key came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It was in the file.
    Kept,
    /// It was in the file of another program, whose path this is, and is now in ours, too.
    TakenOver(PathBuf),
    /// It was made.
    New,
}

/// Why there is no key. None of these shows what is in the file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read the WireGuard key {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: io::Error,
    },
    /// The file holds something else.
    #[error("{path} {reason}; repair it, or delete it and fland makes a new key")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: InvalidKey,
    },
    /// The file cannot be written.
    #[error("cannot write the WireGuard key {path}: {reason}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: io::Error,
    },
}

impl KeyFile {
    /// Names a file, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the key. `None` if the file does not exist.
    ///
    /// # Errors
    /// If it cannot be read, or holds no key.
    pub fn read(&self) -> Result<Option<PrivateKey>, KeyFileError> {
        let read = |reason| KeyFileError::Read { path: self.path.clone(), reason };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(reason) => return Err(read(reason)),
        };
        let mut text = Zeroizing::new(String::new());
        file.take(MOST_BYTES).read_to_string(&mut text).map_err(read)?;
        let invalid = |reason| KeyFileError::Invalid { path: self.path.clone(), reason };
        text.parse().map(Some).map_err(invalid)
    }

    /// Reads the key; if there is none, takes over that of `other`, or makes one. A new key is written before it is
    /// returned, so that it survives a reboot.
    ///
    /// # Errors
    /// If a file cannot be read or written, or holds no key.
    pub fn read_or_make(&self, other: Option<&Path>) -> Result<(PrivateKey, Origin), KeyFileError> {
        if let Some(key) = self.read()? {
            return Ok((key, Origin::Kept));
        }
        let (key, origin) = match other {
            Some(path) => match Self::new(path).read()? {
                Some(key) => (key, Origin::TakenOver(path.to_owned())),
                None => (PrivateKey::generate(), Origin::New),
            },
            None => (PrivateKey::generate(), Origin::New),
        };
        self.write(&key)?;
        Ok((key, origin))
    }

    /// Writes a key in place of whatever is there, readable for the owner alone. A reader sees the old key or the new one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, key: &PrivateKey) -> Result<(), KeyFileError> {
        self.try_write(key).map_err(|reason| KeyFileError::Write { path: self.path.clone(), reason })
    }

    fn try_write(&self, key: &PrivateKey) -> io::Result<()> {
        let directory =
            self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let temporary = self.path.with_extension("new");
        // What a killed writer left behind has the same name.
        match fs::remove_file(&temporary) {
            Err(reason) if reason.kind() != io::ErrorKind::NotFound => return Err(reason),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        // The umask may have taken bits away.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(key.to_text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        File::open(directory)?.sync_all()
    }

    /// Returns whether others than the owner may read the file.
    pub fn is_readable_by_others(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.mode() & 0o077 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile::new(directory.path().join("deep/wireguard.key"));
        let (key, origin) = file.read_or_make(None).unwrap();
        assert_eq!(origin, Origin::New);
        assert_eq!(file.read_or_make(None).unwrap(), (key.clone(), Origin::Kept));
        assert_eq!(fs::metadata(file.path()).unwrap().mode() & 0o777, 0o600);
        assert!(!file.is_readable_by_others());
        let text = fs::read_to_string(file.path()).unwrap();
        assert_eq!((text.len(), text.ends_with("=\n")), (45, true));
        assert_eq!(fs::read_dir(file.path().parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn the_key_of_a_flannel_before_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let flannels = directory.path().join("wgkey");
        // flannel writes no new line.
        fs::write(&flannels, "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        let file = KeyFile::new(directory.path().join("wireguard.key"));
        let (key, origin) = file.read_or_make(Some(&flannels)).unwrap();
        assert_eq!(origin, Origin::TakenOver(flannels.clone()));
        fs::remove_file(flannels).unwrap();
        assert_eq!(file.read().unwrap(), Some(key));
    }

    #[test]
    fn what_is_no_key_is_left_as_it_is_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile::new(directory.path().join("wireguard.key"));
        for content in ["", "half a secr", &"A".repeat(100_000)] {
            fs::write(file.path(), content).unwrap();
            let error = file.read_or_make(None).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(
                shown.contains("wireguard.key") && !shown.contains("secr") && shown.len() < 500,
                "{shown}"
            );
            assert_eq!(fs::read_to_string(file.path()).unwrap(), content);
        }
    }

    #[test]
    fn a_new_key_takes_the_place_of_the_old_one_whatever_a_killed_writer_left() {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile::new(directory.path().join("wireguard.key"));
        file.write(&PrivateKey::generate()).unwrap();
        fs::write(directory.path().join("wireguard.new"), "half").unwrap();
        let key = PrivateKey::generate();
        file.write(&key).unwrap();
        assert_eq!(file.read().unwrap(), Some(key));
    }
}
