//! A running virtual machine: what its program prints is printed as it comes, and what hangs is ended.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Options, Stage};
use crate::process::Process;
use crate::wait;

/// How many of the kernel's messages an error shows.
pub(super) const SHOWN_KERNEL_LINES: usize = 40;

/// How often the machine is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a kernel that panics may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the kernel says when it will do nothing any more.
const PANIC: &str = "Kernel panic - not syncing";

/// Prints until the program has ended; its exit code. The machine ends with it.
pub(super) fn until_end(mut process: Process, stage: &Stage, options: &Options) -> Result<u8> {
    let started = Instant::now();
    let mut heard = started;
    let mut output = File::open(stage.output()).context("cannot read the program's output")?;
    loop {
        // The code comes after the last output, so ask for it first.
        let code = stage.read_code();
        let ended = process.ensure_running();
        if print_more(&mut output)? > 0 {
            heard = Instant::now();
        }
        if let Some(code) = code {
            return Ok(code);
        }
        wait::ensure_not_interrupted()?;
        if let Err(error) = ended {
            let said = stage.kernel_said();
            return Err(error.context(format!("the virtual machine ended without an exit code\n{said}")));
        }
        if has_panicked(stage) {
            thread::sleep(LAST_WORDS);
            bail!("the kernel of the virtual machine has panicked\n{}", stage.kernel_said());
        }
        if started.elapsed() > options.limit {
            bail!("the program has run for {:?} (--limit)\n{}", options.limit, stage.kernel_said());
        }
        if heard.elapsed() > options.silence {
            bail!(
                "the program has printed nothing for {:?} (--silence)\n{}",
                options.silence,
                stage.kernel_said()
            );
        }
        thread::sleep(PAUSE);
    }
}

/// Prints what has come since the last time; how many bytes.
fn print_more(output: &mut File) -> Result<usize> {
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).context("cannot read the program's output")?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("cannot print the program's output")?;
    Ok(bytes.len())
}

fn has_panicked(stage: &Stage) -> bool {
    let said = fs::read(stage.console()).unwrap_or_default();
    String::from_utf8_lossy(&said).contains(PANIC)
}
