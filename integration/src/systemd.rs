//! A real systemd on a host of the lab, which starts what `deploy/` has as an operator's does.
//!
//! It is the first process of a process namespace and has a cgroup, a mount and a UTS namespace of its own. Of the
//! machine's units it sees none, and of the machine's settings below /proc/sys it can change those of its network alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::Place;
use crate::host::Host;
use crate::process::{Lifetime, Process, last_lines};
use crate::tools;
use crate::wait;

/// Where Debian and most others have it; nobody starts it by name.
const PROGRAM: &str = "/lib/systemd/systemd";

const START_LIMIT: Duration = Duration::from_secs(20);

/// Units that ours order themselves by, or that systemd wants to have. They do nothing here.
const TARGETS: [&str; 7] =
    ["basic", "multi-user", "network-online", "rescue", "shutdown", "sockets", "sysinit"];

/// What every package of Docker has in common, whichever is on the machine.
const DOCKER: [(&str, &str); 3] = [
    ("docker.socket", "[Socket]\nListenStream=/run/docker.sock\n"),
    ("containerd.service", "[Service]\nType=notify\nExecStart=containerd\n"),
    (
        "docker.service",
        "[Unit]\nRequires=docker.socket containerd.service\nAfter=containerd.service\n\
         [Service]\nType=notify\nEnvironmentFile=-/etc/default/docker\nExecStart=dockerd -H fd://\n",
    ),
];

/// Enters a cgroup of its own before the namespace is made, so that this is its root. Arguments: host's directory,
/// cgroup, directory of the binaries.
///
/// The second version of cgroups alone, for every kernel of today has it and devices are granted by it as by the first.
const ENTER: &str = r#"
set -e
mkdir -p "$1/cgroup2"
mount -t cgroup2 none "$1/cgroup2"
mkdir -p "$1/cgroup2/$2"
echo $$ > "$1/cgroup2/$2/cgroup.procs"
umount "$1/cgroup2"
exec unshare --mount --uts --cgroup --pid --fork --kill-child --mount-proc sh -c "$4" sh "$1" "$3"
"#;

/// Gives systemd what it expects of a machine, and becomes it. What it writes below /tmp and /var/lib goes with it.
const BOOT: &str = r#"
set -e
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
mount --bind "$2" /usr/local/bin
mount --bind "$1/default" /etc/default
mount -t tmpfs none /var/lib
mount -t tmpfs none /var/tmp
mount -t tmpfs none /tmp
exec env -i container=flan PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/run/units \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=null
"#;

/// A running systemd. Dropping it kills it with all that it has started.
#[derive(Debug)]
pub struct Systemd {
    run: PathBuf,
    /// Enters the namespaces that it lives in.
    inside: Place,
    process: Process,
}

impl Systemd {
    /// Starts one on `host`, with the units of `deploy/` and the settings that an operator writes to `/etc/default`:
    /// file names and contents.
    pub fn boot(host: &Host, settings: &[(&str, String)]) -> Result<Systemd> {
        ensure!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing; Debian's package is systemd");
        let (dir, run) = (host.dir(), host.dir().join("run"));
        install_units(&run.join("units"))?;
        let default = dir.join("default");
        fs::create_dir_all(&default)?;
        for (name, content) in settings {
            fs::write(default.join(name), content)?;
        }

        let binaries = tools::flan_binary("fland")?;
        let binaries = binaries.parent().context("no directory of binaries")?;
        let mut command = host.place().command("sh");
        command.args(["-c", ENTER, "sh"]).arg(dir);
        command.arg(format!("{}/{}", host.cgroup(), host.name())).arg(binaries).arg(BOOT);
        let name = format!("systemd on {}", host.name());
        let mut process = Process::spawn(&name, &command, &dir.join("systemd.log"), Lifetime::Bound)?;
        let inside = wait::until(&format!("{name} to answer"), START_LIMIT, || {
            process.ensure_running()?;
            let init = process.only_child()?.to_string();
            let inside = Place::entered_by(["nsenter", "--target", &init, "--mount", "--pid", "--net"]);
            inside
                .run("systemctl", ["is-active", "multi-user.target"])
                .with_context(|| process.last_lines())?;
            Ok(inside)
        })?;
        Ok(Systemd { run, inside, process })
    }

    /// Starts a unit and waits until it says that it is ready, as `systemctl start` does.
    pub fn start(&self, unit: &str) -> Result<()> {
        self.systemctl(&["start", unit]).map(drop)
    }

    /// `systemctl` with these arguments; a failure is an error with what the unit has printed.
    pub fn systemctl(&self, args: &[&str]) -> Result<String> {
        self.inside.run("systemctl", args).with_context(|| {
            let mut said = self.process.last_lines();
            for unit in UNITS.into_iter().chain(["docker.service"]) {
                said += &last_lines(&self.log(unit));
            }
            said
        })
    }

    /// A property of a unit, such as `MainPID`.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.systemctl(&["show", "--value", &format!("--property={name}"), unit])?.trim().to_owned())
    }

    /// What a unit has printed, by its path on the machine.
    pub fn log(&self, unit: &str) -> PathBuf {
        self.run.join(format!("{unit}.log"))
    }
}

/// The units of `deploy/`.
const UNITS: [&str; 3] = ["fland.service", "fland-store.service", "flan-attach.service"];
const SOCKET: &str = "fland-docker.socket";

fn install_units(units: &Path) -> Result<()> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    fs::create_dir_all(units)?;
    for unit in UNITS.into_iter().chain([SOCKET]) {
        fs::copy(deploy.join(unit), units.join(unit)).with_context(|| format!("cannot copy {unit}"))?;
    }
    for (unit, content) in DOCKER {
        fs::write(units.join(unit), content)?;
    }
    // There is no journal here.
    for unit in UNITS.into_iter().chain(["docker.service", "containerd.service"]) {
        let drop_in = units.join(format!("{unit}.d"));
        fs::create_dir_all(&drop_in)?;
        let log = format!("[Service]\nStandardOutput=append:/run/{unit}.log\nStandardError=inherit\n");
        fs::write(drop_in.join("log.conf"), log)?;
    }
    let docker = "docker.service.d/flan.conf";
    fs::copy(deploy.join(docker), units.join(docker)).with_context(|| format!("cannot copy {docker}"))?;
    for target in TARGETS {
        fs::write(units.join(format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n")?;
    }
    Ok(())
}
