//! Whether this program runs in a virtual machine of ours.

use std::fs;

use anyhow::{Context, Result, ensure};

/// On the kernel's command line: `flan.vm=KIND`.
pub(super) const WORD: &str = "flan.vm";

/// An error unless this program runs in a virtual machine that [`run`](super::run) made.
pub fn ensure_inside() -> Result<()> {
    let line = command_line()?;
    ensure!(
        kind_on(&line).is_some(),
        "this needs Debian's kernel, in a virtual machine: `sudo make vm ARGS=FILTER` runs it there"
    );
    Ok(())
}

/// An error unless this program is a unit in such a machine whose first process is systemd.
pub fn ensure_inside_with_systemd() -> Result<()> {
    let line = command_line()?;
    ensure!(
        kind_on(&line) == Some("systemd"),
        "this needs a virtual machine that it may restart: `sudo make vm-reboot` runs it there"
    );
    Ok(())
}

fn command_line() -> Result<String> {
    fs::read_to_string("/proc/cmdline").context("cannot read the kernel's command line")
}

fn kind_on(line: &str) -> Option<&str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(WORD)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_on_the_command_line_tells() {
        assert_eq!(kind_on("console=ttyS0 quiet flan.vm=systemd\n"), Some("systemd"));
        assert_eq!(kind_on("console=ttyS0 not-flan.vm=systemd flan.vmx=1"), None);
    }
}
