//! `vm`: runs a program of this tree in a virtual machine with a kernel of Debian's.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use flan_integration::vm::{self, Choice, Options};
use flan_integration::{interrupt, wait};

/// Run a program in a virtual machine with Debian's own kernel. Without a program, run a shell on this terminal.
///
/// The machine has this machine's files at the same paths. What is written to them is lost when it ends. It has no
/// network. The exit code is that of the program.
///
/// FLAN_VM_KERNEL names the Debian release of the kernel: bookworm (the default), trixie or forky.
#[derive(Debug, Parser)]
#[command(name = "vm")]
struct Arguments {
    /// Memory, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(512..))]
    memory: u32,

    /// Processors.
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,

    /// How the processors run.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    accel: Choice,

    /// Longest time that the program may run, with the boot, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    limit: u64,

    /// Longest time without output of the program, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    silence: u64,

    /// Make systemd the first process, and run the program as a unit at each boot. Files stay over a reboot.
    #[arg(long)]
    systemd: bool,

    /// The program, and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(_) if wait::ensure_not_interrupted().is_err() => {
            eprintln!("\nInterrupted; the virtual machine is removed.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nThe virtual machine has failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8> {
    let options = Options {
        accelerator: arguments.accel,
        memory: arguments.memory,
        cpus: arguments.cpus,
        systemd: arguments.systemd,
        limit: Duration::from_secs(arguments.limit),
        silence: Duration::from_secs(arguments.silence),
    };
    interrupt::end_waits_on_signals()?;
    if arguments.program.is_empty() { vm::shell(&options) } else { vm::run(&options, &arguments.program) }
}
