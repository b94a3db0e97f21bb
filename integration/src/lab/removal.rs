//! The removal of labs without a trace, also of those whose program was killed.

use std::fs::{self, File};
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::cgroups;
use super::directory::{self, LABS_DIR, LOCK_FILE, prefixed};
use crate::netns;
use crate::wait;

/// What a removal did.
#[derive(Debug, Default)]
pub struct Removal {
    /// The labs that are gone.
    pub removed: Vec<String>,
    /// The labs that belong to a program that runs.
    pub in_use: Vec<String>,
}

/// Removes the lab of this name even if it was kept, and all labs that no running program owns and nobody meant to keep.
pub fn remove(name: &str) -> Result<Removal> {
    remove_labs(|id, kept| id == name || !kept)
}

/// True if a lab of this name was left up on purpose.
pub fn is_kept(name: &str) -> bool {
    directory::is_kept(&directory::of(name))
}

pub(super) fn remove_abandoned() -> Result<()> {
    remove_labs(|_, kept| !kept).map(drop)
}

fn remove_labs(wanted: impl Fn(&str, bool) -> bool) -> Result<Removal> {
    let mut removal = Removal::default();
    let mut errors = Vec::new();
    for entry in fs::read_dir(LABS_DIR).with_context(|| format!("cannot list {LABS_DIR}"))? {
        let dir = entry?.path();
        let id = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("flan-"));
        let Some(id) = id.filter(|id| wanted(id, directory::is_kept(&dir))) else { continue };
        // Without this file it is no lab, or one that is being made.
        let Ok(lock) = File::open(dir.join(LOCK_FILE)) else { continue };
        if lock.try_lock().is_err() {
            removal.in_use.push(id.to_owned());
            continue;
        }
        errors.extend(remove_everything(id));
        removal.removed.push(id.to_owned());
    }
    if errors.is_empty() {
        return Ok(removal);
    }
    let texts: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
    bail!("{}", texts.join("\n"))
}

/// Removes what a lab has left when it is dropped.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) id: String,
    /// Else the lab is kept.
    pub(super) armed: bool,
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.armed {
            for error in remove_everything(&self.id) {
                eprintln!("cleaning up the lab {}: {error:#}", self.id);
            }
        }
    }
}

/// Everything that a lab can have made, found by its name alone. Carries on after errors and returns them all.
fn remove_everything(id: &str) -> Vec<anyhow::Error> {
    let mut errors = Vec::new();
    match netns::names_with_prefix(&format!("{}-", prefixed(id))) {
        Ok(names) => errors.extend(netns::delete_all(&names)),
        Err(error) => errors.push(error),
    }
    errors.extend(cgroups::remove(&prefixed(id)));
    let dir = directory::of(id);
    // A mount that has just lost its last user may still keep a directory busy.
    let removed = wait::until_cleaned_up("the lab's directory to go", Duration::from_secs(5), || {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(anyhow!(error).context(dir.display().to_string()))
            }
            _ => Ok(()),
        }
    });
    errors.extend(removed.err());
    errors
}
