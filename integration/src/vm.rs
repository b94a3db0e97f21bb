//! A virtual machine with a kernel of Debian's, which runs programs of this tree on it.
//!
//! QEMU boots the kernel that `integration/debian-kernel.sh` keeps. Inside, `/` is that of this machine, shared read-only
//! by 9p, below a layer that takes what is written: the same programs at the same paths, and nothing changes here. There
//! is no network device. Where KVM does not run, QEMU emulates the processors, several times slower.

mod accelerator;
mod initramfs;
mod inside;
mod job;
mod kernel;
mod watch;

use std::env;
use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use self::job::Job;
use self::kernel::Kernel;
use crate::command;
use crate::lab;
use crate::process::{Lifetime, Process};
use crate::tools;
use crate::wait;

pub use self::accelerator::{Accelerator, Choice};
pub use self::inside::{ensure_inside, ensure_inside_with_systemd};

/// The size of the disk under systemd, in bytes. The file has holes where nothing is written.
const DISK_BYTES: u64 = 8 << 30;

/// What the machine is to be, and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// How its processors run.
    pub accelerator: Choice,
    /// Memory, in MiB.
    pub memory: u32,
    /// Processors.
    pub cpus: u32,
    /// systemd is the first process, and what is written to `/` is on a disk that lasts until the program ends.
    pub systemd: bool,
    /// How long the program may run, with the boot.
    pub limit: Duration,
    /// How long the program may print nothing.
    pub silence: Duration,
}

/// Runs a program with its arguments in a new machine and prints what it prints, as it does; its exit code.
///
/// The program has the caller's directory and those variables of its environment whose names start with `FLAN_`, and
/// `STORE`. With [`Options::systemd`] it is a unit that is started at each boot, and the exit code is that of the first
/// run that ends by itself.
///
/// # Errors
/// If the machine ends, or its kernel panics, without an exit code; if a limit is exceeded; after an interrupt. The
/// error has the last messages of the kernel.
pub fn run(options: &Options, program: &[String]) -> Result<u8> {
    let stage = Stage::set(options)?;
    let job = Job::of(program, options.systemd, stage.accelerator.time_factor())?;
    let mut qemu = stage.qemu(options, &job)?;
    for (name, file) in [("output", stage.output()), ("code", stage.code())] {
        File::create(&file).with_context(|| format!("cannot make {}", file.display()))?;
        qemu.arg("-chardev").arg(format!("file,id={name},path={}", file.display()));
        qemu.args(["-device", &format!("virtserialport,chardev={name},name=flan.{name}")]);
    }
    if options.systemd {
        qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,cache=unsafe", stage.disk()?.display()));
    } else {
        qemu.arg("-no-reboot");
    }
    let process = Process::spawn("the virtual machine", &qemu, &stage.dir.join("qemu.log"), Lifetime::Bound)?;
    watch::until_end(process, &stage, options)
}

/// A shell in a new machine, on this terminal, without limits; the exit code of its last command.
pub fn shell(options: &Options) -> Result<u8> {
    ensure!(
        std::io::stdin().is_terminal(),
        "a shell needs a terminal on its standard input; or name a program"
    );
    ensure!(!options.systemd, "a shell runs without systemd: name a program, or leave out --systemd");
    let stage = Stage::set(options)?;
    let mut qemu = stage.qemu(options, &Job::shell(stage.accelerator.time_factor())?)?;
    File::create(stage.code()).context("cannot make the file for the exit code")?;
    // The terminal's keys, Ctrl-C among them, are the shell's.
    qemu.args(["-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,chardev=terminal"]);
    qemu.arg("-chardev").arg(format!("file,id=code,path={}", stage.code().display()));
    qemu.args(["-device", "virtserialport,chardev=code,name=flan.code", "-no-reboot"]);
    eprintln!("A shell with kernel {}; it ends with `exit`.", stage.kernel.version);
    let mut bound = Command::new("setpriv");
    bound.args(["--pdeathsig", "KILL"]).arg(qemu.get_program()).args(qemu.get_args()).stdin(Stdio::inherit());
    let mut child = bound.spawn().with_context(|| format!("cannot run {}", command::line(&qemu)))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Err(interrupted) = wait::ensure_not_interrupted() {
            // Not killed: QEMU sets the terminal as it was.
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
            kill_process(pid, Signal::TERM)?;
            child.wait()?;
            return Err(interrupted);
        }
        thread::sleep(Duration::from_millis(50));
    };
    match stage.read_code() {
        Some(code) => Ok(code),
        None => bail!("the virtual machine ended ({status}) without an exit code\n{}", stage.kernel_said()),
    }
}

/// What one machine needs on this one. Dropping it removes it.
#[derive(Debug)]
struct Stage {
    dir: PathBuf,
    kernel: Kernel,
    accelerator: Accelerator,
    // Tells the others that the directory is in use. Where this program is killed, the next lab removes the directory.
    _lock: File,
}

impl Stage {
    fn set(options: &Options) -> Result<Stage> {
        tools::check_for_vm()?;
        let kernel = Kernel::find()?;
        let (_, dir, lock) = lab::claim_directory(None)?;
        let mut stage = Stage { dir, kernel, accelerator: Accelerator::Tcg, _lock: lock };
        stage.accelerator = accelerator::choose(options.accelerator, &stage.kernel, &stage.dir)?;
        Ok(stage)
    }

    /// QEMU without the channels of its job.
    fn qemu(&self, options: &Options, job: &Job) -> Result<Command> {
        let initramfs = self.dir.join("initramfs");
        initramfs::make(&self.kernel, job, &self.dir.join("initramfs.d"), &initramfs)
            .context("cannot make the initramfs")?;
        let mut qemu = self.accelerator.qemu();
        qemu.args(["-m", &options.memory.to_string(), "-smp", &options.cpus.to_string()]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(initramfs);
        // After a panic it stays, so that the panic is seen to be the end also where a reboot is not.
        qemu.args(["-append", &format!("console=ttyS0 quiet panic=0 mitigations=off {}", job.words())]);
        qemu.arg("-serial").arg(format!("file:{}", self.console().display()));
        qemu.args(["-fsdev", "local,id=root,path=/,security_model=passthrough,readonly=on,multidevs=remap"]);
        qemu.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root", "-device", "virtio-serial-pci"]);
        Ok(qemu)
    }

    /// What the program printed.
    fn output(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// A line with its exit code, once it has ended.
    fn code(&self) -> PathBuf {
        self.dir.join("code")
    }

    /// What the kernel printed.
    fn console(&self) -> PathBuf {
        self.dir.join("console")
    }

    /// A new disk with an empty file system.
    fn disk(&self) -> Result<PathBuf> {
        let disk = self.dir.join("disk");
        File::create(&disk).and_then(|file| file.set_len(DISK_BYTES)).context("cannot make a disk")?;
        let mut mkfs = Command::new("mkfs.ext4");
        command::stdout(mkfs.args(["-q", "-F", "-E", "lazy_itable_init=1"]).arg(&disk))?;
        Ok(disk)
    }

    fn read_code(&self) -> Option<u8> {
        fs::read_to_string(self.code()).ok()?.strip_suffix('\n')?.trim().parse().ok()
    }

    /// The kernel's last messages, for errors.
    fn kernel_said(&self) -> String {
        let text = fs::read(self.console()).unwrap_or_default();
        let text: String =
            String::from_utf8_lossy(&text).chars().filter(|&c| c == '\n' || !c.is_control()).collect();
        let lines: Vec<&str> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(watch::SHOWN_KERNEL_LINES)..];
        format!(
            "--- the kernel's last messages ({} of {} lines)\n{}",
            shown.len(),
            lines.len(),
            shown.join("\n")
        )
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// The absolute path of what a machine is to find at the same place.
fn shared(path: &Path) -> Result<PathBuf> {
    let path = fs::canonicalize(path).with_context(|| format!("there is no {}", path.display()))?;
    for own in ["/run", "/dev", "/proc", "/sys"] {
        ensure!(
            !path.starts_with(own),
            "{} is not seen in the virtual machine, which has a {own} of its own; move the tree elsewhere",
            path.display()
        );
    }
    Ok(path)
}

fn current_dir() -> Result<PathBuf> {
    shared(&env::current_dir().context("cannot tell the current directory")?)
}
