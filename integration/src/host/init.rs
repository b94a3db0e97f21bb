//! The process that holds a host's namespaces.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::spec::HostSpec;
use crate::forky;
use crate::process::Process;
use crate::tools;
use crate::wait;

/// Prepares a host's own view of the machine, says so, and stays. Arguments: name, directory.
///
/// Its /run and its machine-id are its own, so that paths such as /run/flannel/subnet.env are what they are on a real
/// host. Where resolv.conf points into the machine's /run, it gets a target again.
const INIT: &str = r#"
set -e
printf %s "$1" > /proc/sys/kernel/hostname
mount --bind "$2/run" /run
if [ -e /etc/machine-id ]; then mount --bind "$2/machine-id" /etc/machine-id; fi
if [ -L /etc/resolv.conf ] && [ ! -e /etc/resolv.conf ]; then
    target=$(readlink -m /etc/resolv.conf)
    mkdir -p "$(dirname "$target")"
    echo nameserver 192.0.2.53 > "$target"
fi
: > /run/host-is-up
exec sleep infinity
"#;

/// Starts it, and waits until the host's /run is its own.
pub(super) fn start(spec: &HostSpec) -> Result<Process> {
    let HostSpec { name, dir, lifetime, .. } = spec;
    let mut command = spec.netns.place().then(["unshare", "--mount", "--uts"]).command("sh");
    if let Some(root) = spec.forky_root {
        let binaries = tools::flan_binary("fland")?;
        let (binaries, lab) = (binaries.parent(), dir.parent());
        command.args(["-c", forky::ENTER, "sh", INIT]).arg(root);
        command.args(binaries).args(lab).arg(name).arg(dir);
    } else {
        command.args(["-c", INIT, "sh", name]).arg(dir);
    }
    let mut init = Process::spawn(&format!("host {name}"), &command, &dir.join("init.log"), *lifetime)?;
    wait::until(&format!("host {name}"), Duration::from_secs(10), || {
        init.ensure_running()?;
        ensure!(dir.join("run/host-is-up").exists(), "its /run is not mounted yet");
        Ok(())
    })?;
    Ok(init)
}
