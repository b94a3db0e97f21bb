//! The cgroups of a lab's containers.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::wait;

/// Containers' cgroups outlive a dockerd that was killed: remove them in every hierarchy (version 1 has several).
pub(super) fn remove(name: &str) -> Vec<anyhow::Error> {
    let root = Path::new("/sys/fs/cgroup");
    let mut parents = vec![root.to_owned()];
    if let Ok(hierarchies) = fs::read_dir(root) {
        parents.extend(hierarchies.flatten().map(|entry| entry.path()));
    }
    let mut errors = Vec::new();
    for group in parents.into_iter().map(|parent| parent.join(name)) {
        let result = wait::until_cleaned_up("a cgroup to be empty", Duration::from_secs(5), || {
            remove_one(&group).with_context(|| group.display().to_string())
        });
        errors.extend(result.err());
    }
    errors
}

/// A cgroup's files go with it, but its children must go before.
fn remove_one(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(());
        }
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_one(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        // Two names of one hierarchy: `cpu` and `cpu,cpuacct`.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
