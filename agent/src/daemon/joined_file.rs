//! The networks that somebody told this host to join, one in each line of a file.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use flan_agent_api::write_whole;
use flan_subnet_lease::NetworkName;
use tracing::warn;

/// The file, and what it says.
pub(super) struct JoinedFile {
    path: PathBuf,
    pub(super) networks: BTreeSet<NetworkName>,
}

impl JoinedFile {
    /// Reads a file; no network if it does not exist.
    ///
    /// # Errors
    /// If it exists and cannot be read.
    pub(super) fn load(path: PathBuf) -> io::Result<Self> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => String::new(),
            Err(reason) => return Err(reason),
        };
        let read = |line: &str| {
            let name = line.trim().parse();
            name.inspect_err(|reason| warn!(file = %path.display(), %reason, "ignoring a line")).ok()
        };
        let networks = text.lines().filter(|line| !line.trim().is_empty()).filter_map(read).collect();
        Ok(Self { path, networks })
    }

    /// Adds a network.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing changes.
    pub(super) fn insert(&mut self, network: &NetworkName) -> io::Result<()> {
        let mut networks = self.networks.clone();
        networks.insert(network.clone());
        self.save(networks)
    }

    /// Removes a network.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing changes.
    pub(super) fn remove(&mut self, network: &NetworkName) -> io::Result<()> {
        let mut networks = self.networks.clone();
        networks.remove(network);
        self.save(networks)
    }

    fn save(&mut self, networks: BTreeSet<NetworkName>) -> io::Result<()> {
        let text: String = networks.iter().map(|name| format!("{name}\n")).collect();
        write_whole(&self.path, text.as_bytes(), 0o644)?;
        self.networks = networks;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_read_and_what_is_no_name_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/networks");
        let mut file = JoinedFile::load(path.clone()).unwrap();
        assert!(file.networks.is_empty());
        for name in ["red", "green", "blue"] {
            file.insert(&name.parse().unwrap()).unwrap();
        }
        file.remove(&"green".parse().unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "blue\nred\n");
        std::fs::write(&path, "blue\n\na/b\n").unwrap();
        assert_eq!(JoinedFile::load(path).unwrap().networks, ["blue".parse().unwrap()].into());
    }
}
