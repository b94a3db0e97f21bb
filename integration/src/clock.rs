//! A wall clock of its own for one program, set as wrong as a story likes while the program runs: Debian's libfaketime.
//!
//! The monotonic clock stays right, as on a real host whose date somebody sets.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::tools;

/// The clock.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// One that is right, kept in this file.
    pub fn new(file: &Path) -> Result<Clock> {
        let clock = Clock { library: tools::faketime()?, file: file.to_owned() };
        clock.set("+0")?;
        Ok(clock)
    }

    /// What it shows from now on: `+3600` or `-3600` seconds beside the right time, or `@1970-01-01 00:00:10`.
    pub fn set(&self, time: &str) -> Result<()> {
        // Whole at every moment: the program reads it each time that it looks at its clock.
        let next = self.file.with_extension("next");
        fs::write(&next, time).with_context(|| format!("cannot write {}", next.display()))?;
        fs::rename(&next, &self.file).with_context(|| format!("cannot write {}", self.file.display()))
    }

    /// What the program's environment must have, `NAME=VALUE` each.
    pub fn environment(&self) -> Vec<String> {
        vec![
            format!("LD_PRELOAD={}", self.library.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ]
    }
}
