//! The disk of a member: it fails, and somebody repairs it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::Place;

/// A file system of its own, in the namespace of the process that has its data there.
#[derive(Debug)]
pub struct Disk {
    pid: u32,
    place: Place,
    dir: PathBuf,
}

impl Disk {
    pub(super) fn of(pid: u32, dir: PathBuf) -> Result<Disk> {
        let place = Place::entered_by(["nsenter", "--target", &pid.to_string(), "--mount"]);
        Ok(Disk { pid, place, dir })
    }

    /// The kernel finds an error on it, and from now on it is read-only (ext4(5), `errors=remount-ro`). Another way to that
    /// state there is not while files are open: the kernel refuses a remount.
    pub fn fail(&self) -> Result<()> {
        let path = format!("/proc/{}/mounts", self.pid);
        let mounts = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let dir = self.dir.display().to_string();
        let device = mounts.lines().find_map(|line| {
            let (device, rest) = line.split_once(' ')?;
            (rest.split(' ').next() == Some(&dir)).then(|| device.trim_start_matches("/dev/"))
        });
        let device = device.with_context(|| format!("nothing is mounted at {dir}"))?;
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        fs::write(&trigger, "1").with_context(|| format!("cannot write {trigger}"))
    }

    /// Checks it and mounts it again, in a moment in which the process does nothing.
    pub fn repair(&self) -> Result<()> {
        const REPAIR: &str =
            r#"umount "$0" && { e2fsck -fy "$0.img" || [ $? -le 2 ]; } && mount -o loop "$0.img" "$0""#;
        self.signal(Signal::STOP)?;
        let repaired = self.place.run("sh", ["-c".as_ref(), REPAIR.as_ref(), self.dir.as_os_str()]);
        self.signal(Signal::CONT)?;
        repaired.map(drop)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid =
            i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("a process id out of range")?;
        kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to {}", self.pid))
    }
}
