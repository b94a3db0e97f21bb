//! How the processors of a virtual machine run.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::kernel::Kernel;
use crate::process::{Lifetime, Process};
use crate::wait;

/// How long a kernel on KVM may take to its first message. It takes less than 1 s where KVM works.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Emulation takes about so many times longer than the machine itself.
const EMULATION_FACTOR: u32 = 5;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// KVM if a kernel boots on it, else emulation
    Auto,
    /// The machine's own processors
    Kvm,
    /// Emulation, several times slower
    Tcg,
}

/// What is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The machine's own processors.
    Kvm,
    /// Emulation by one thread for each processor.
    Tcg,
}

/// Finds out what to use; tries KVM in `dir` if that is to be found out.
pub(super) fn choose(choice: Choice, kernel: &Kernel, dir: &Path) -> Result<Accelerator> {
    match choice {
        Choice::Kvm => Ok(Accelerator::Kvm),
        Choice::Tcg => Ok(Accelerator::Tcg),
        Choice::Auto => match boots_on_kvm(kernel, dir) {
            Ok(()) => Ok(Accelerator::Kvm),
            Err(error) => {
                wait::ensure_not_interrupted()?;
                // Without KVM is how most build machines are; the reason is of interest where there is one.
                if Path::new("/dev/kvm").exists() {
                    eprintln!("KVM does not run here, so the virtual machine is emulated: {error:#}");
                }
                Ok(Accelerator::Tcg)
            }
        },
    }
}

/// Boots the kernel for its first message: a KVM that makes a machine need not run it.
fn boots_on_kvm(kernel: &Kernel, dir: &Path) -> Result<()> {
    File::options().read(true).write(true).open("/dev/kvm")?;
    let console = dir.join("probe-console");
    let mut qemu = Accelerator::Kvm.qemu();
    qemu.arg("-kernel").arg(&kernel.image).args(["-append", "console=ttyS0 earlyprintk=ttyS0", "-m", "256"]);
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    let mut process = Process::spawn("QEMU on KVM", &qemu, &dir.join("probe.log"), Lifetime::Bound)?;
    wait::until("a kernel on KVM to say something", PROBE_LIMIT, || {
        let said = fs::read(&console).unwrap_or_default();
        if said.windows(13).any(|window| window == b"Linux version") {
            return Ok(());
        }
        process.ensure_running()?;
        ensure!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
        anyhow::bail!("nothing")
    })
}

impl Accelerator {
    /// QEMU without any device.
    pub(super) fn qemu(self) -> Command {
        let mut qemu = Command::new(super::kernel::QEMU);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"]);
        match self {
            Accelerator::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
            Accelerator::Tcg => qemu.args(["-accel", "tcg,thread=multi"]),
        };
        qemu
    }

    /// How many times longer things take than without a virtual machine.
    pub(super) fn time_factor(self) -> u32 {
        match self {
            Accelerator::Kvm => 1,
            Accelerator::Tcg => EMULATION_FACTOR,
        }
    }
}
