//! What passes a host's underlay interface.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Host;
use crate::process::Process;
use crate::wait;

/// A recording of every frame on `eth0`.
#[derive(Debug)]
pub struct Wiretap {
    process: Process,
    file: PathBuf,
}

impl Host {
    /// Begins to record.
    pub fn wiretap(&mut self) -> Result<Wiretap> {
        let (file, log) = (self.recording("frames"), self.recording("tcpdump"));
        let mut tcpdump = self.place.command("tcpdump");
        tcpdump.args(["-i", "eth0", "-s", "0", "--immediate-mode", "-U", "-Z", "root", "-w"]).arg(&file);
        let name = format!("tcpdump on {}", self.spec.name);
        let mut process = Process::spawn(&name, &tcpdump, &log, self.spec.lifetime)?;
        wait::until("tcpdump to listen", Duration::from_secs(10), || {
            process.ensure_running()?;
            let said = fs::read_to_string(&log).unwrap_or_default();
            ensure!(said.contains("listening on eth0"), "{said}");
            Ok(())
        })?;
        Ok(Wiretap { process, file })
    }
}

impl Wiretap {
    /// Ends the recording and returns its bytes.
    pub fn stop(self) -> Result<Vec<u8>> {
        self.process.terminate()?;
        fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))
    }
}

/// Returns whether `part` is anywhere in `bytes`.
pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
