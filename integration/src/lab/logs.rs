//! The logs of everything in a lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::process::last_lines;

/// How many a failure shows.
const SHOWN_LOGS: usize = 6;

/// Prints the ends of the logs below `dir` that were written last.
pub(super) fn show(dir: &Path) {
    let mut logs = Vec::new();
    collect(dir, &mut logs);
    logs.sort();
    for (_, log) in logs.iter().rev().take(SHOWN_LOGS) {
        eprintln!("{}", last_lines(log));
    }
}

fn collect(dir: &Path, logs: &mut Vec<(SystemTime, PathBuf)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // Below a host's directory only: dockerd's data hold files by the thousand.
        if path.is_dir() && !path.ends_with("data") && !path.ends_with("run") {
            collect(&path, logs);
        } else if path.extension().is_some_and(|extension| extension == "log")
            && let Ok(metadata) = entry.metadata()
            && metadata.len() > 0
            && let Ok(modified) = metadata.modified()
        {
            logs.push((modified, path));
        }
    }
}
