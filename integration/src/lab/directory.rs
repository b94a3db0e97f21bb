//! A lab's directory: it claims the lab's id, and tells others what the lab is.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

/// Where labs are, each in a directory `flan-ID`.
pub(super) const LABS_DIR: &str = "/tmp";

/// Locked for as long as the program that made the lab runs.
pub(super) const LOCK_FILE: &str = "lock";

/// The lab is meant to stay.
const KEPT_FILE: &str = "kept";

/// What the names of everything begin with that a lab makes.
pub(super) fn prefixed(id: &str) -> String {
    format!("flan-{id}")
}

/// The directory of a lab.
pub(super) fn of(id: &str) -> PathBuf {
    Path::new(LABS_DIR).join(prefixed(id))
}

/// Notes that a lab stays.
pub(super) fn keep(dir: &Path) -> Result<()> {
    fs::write(dir.join(KEPT_FILE), "").context("cannot mark the lab as kept")
}

/// Whether a lab stays.
pub(super) fn is_kept(dir: &Path) -> bool {
    dir.join(KEPT_FILE).exists()
}

/// Makes the lab's directory, which claims its id, and locks it.
pub(crate) fn claim(name: Option<&str>) -> Result<(String, PathBuf, File)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let id = match name {
            Some(name) => name.to_owned(),
            None => format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
        };
        let dir = of(&id);
        match fs::create_dir(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && name.is_none() => continue,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("a lab {id:?} exists already, in {}", dir.display())
            }
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", dir.display())),
        }
        // Under its name only once it is locked, or a sweep by another program would take it for abandoned.
        let fresh = dir.join("lock.new");
        let lock = File::create(&fresh).context("cannot make the lab's lock")?;
        lock.lock().context("cannot lock the lab")?;
        fs::rename(&fresh, dir.join(LOCK_FILE)).context("cannot name the lab's lock")?;
        return Ok((id, dir, lock));
    }
}
