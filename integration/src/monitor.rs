//! A witness of every change in a host's kernel: `ip monitor all`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::Place;
use crate::process::{Lifetime, Process};
use crate::wait;

/// The address that is added to the loopback to see that the witness listens.
const PROBE: &str = "127.12.34.56/32";

/// Records changes from its start until it is dropped.
#[derive(Debug)]
pub struct Monitor {
    process: Process,
    place: Place,
}

impl Monitor {
    /// Starts recording; on return nothing is missed any more.
    pub fn start(name: &str, place: &Place, log: &Path) -> Result<Monitor> {
        let mut command = place.command("ip");
        command.args(["monitor", "all"]);
        let mut monitor = Monitor {
            process: Process::spawn(&format!("monitor on {name}"), &command, log, Lifetime::Bound)?,
            place: place.clone(),
        };
        monitor.wait_for_echo()?;
        Ok(monitor)
    }

    /// All changes so far that mention `what`, such as a device's name.
    pub fn changes(&mut self, what: &str) -> Result<Vec<String>> {
        // Changes are reported in order: once the echo of a change made now is there, all earlier ones are.
        self.wait_for_echo()?;
        let text = fs::read_to_string(self.process.log()).context("cannot read what the monitor saw")?;
        Ok(text.lines().filter(|line| line.contains(what)).map(str::to_owned).collect())
    }

    /// All deletions so far that mention `what`.
    pub fn deletions(&mut self, what: &str) -> Result<Vec<String>> {
        let mut lines = self.changes(what)?;
        lines.retain(|line| line.contains("Deleted"));
        Ok(lines)
    }

    fn wait_for_echo(&mut self) -> Result<()> {
        let before = self.echoes();
        let Monitor { process, place } = self;
        wait::until("the monitor to see a change", Duration::from_secs(10), || {
            process.ensure_running()?;
            place.run("ip", ["address", "add", PROBE, "dev", "lo"])?;
            place.run("ip", ["address", "del", PROBE, "dev", "lo"])?;
            let text = fs::read_to_string(process.log()).unwrap_or_default();
            ensure!(echoes_in(&text) > before, "nothing recorded of an address that came and went");
            Ok(())
        })
    }

    fn echoes(&self) -> usize {
        echoes_in(&fs::read_to_string(self.process.log()).unwrap_or_default())
    }
}

fn echoes_in(text: &str) -> usize {
    text.lines().filter(|line| line.contains("Deleted") && line.contains("127.12.34.56")).count()
}
