//! Processes that run on, each with its log in a file, none outliving the program that started it.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::command;
use crate::wait::{self, GiveUp};

/// How many log lines a failure shows.
const SHOWN_LOG_LINES: usize = 15;

/// What the end of a log is headed by, wherever it is shown.
pub(crate) const LOG_HEAD: &str = "--- the end of ";

/// How long a process may take to end after SIGTERM.
const TERMINATE_LIMIT: Duration = Duration::from_secs(15);

/// What becomes of a process when the program that started it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// The kernel kills it, however the program ends.
    Bound,
    /// It lives on: `demo --keep`.
    Kept,
}

/// A process with its own session and process group. Dropping it kills the group, unless it is [`Lifetime::Kept`].
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    lifetime: Lifetime,
    child: Child,
}

impl Process {
    /// Starts `command`, its output appended to the file `log`.
    pub fn spawn(name: &str, command: &Command, log: &Path, lifetime: Lifetime) -> Result<Process> {
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log {} of {name}", log.display()))?;
        let err = out.try_clone().context("cannot duplicate a log's descriptor")?;
        let mut wrapped = match lifetime {
            Lifetime::Bound => {
                let mut wrapper = Command::new("setpriv");
                wrapper.args(["--pdeathsig", "KILL", "setsid"]);
                wrapper
            }
            Lifetime::Kept => Command::new("setsid"),
        };
        wrapped.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        wrapped.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = spawn_from_lasting_thread(wrapped)
            .with_context(|| format!("cannot start {name}: {}", command::line(command)))?;
        Ok(Process { name: name.to_owned(), log: log.to_owned(), lifetime, child })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id, which is also the id of its process group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The one child of the process.
    pub(crate) fn only_child(&self) -> Result<u32> {
        let pid = self.pid();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        children.trim().parse().with_context(|| format!("process {pid} has not one child but {children:?}"))
    }

    /// The file that its output goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// An error with the end of its log if the process has ended. For probes of [`wait::until`], which it ends.
    pub fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait().context("cannot ask for a process's state")? {
            None => Ok(()),
            Some(status) => Err(self.ended_error(status)),
        }
    }

    /// Waits until the process ends by itself.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait::until(&what, limit, || self.child.try_wait()?.ok_or_else(|| anyhow!("it still runs")))
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.raw_pid()?, signal)
            .with_context(|| format!("cannot send {signal:?} to {}", self.name))
    }

    /// Sends a signal to the whole process group.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        kill_process_group(self.raw_pid()?, signal)
            .with_context(|| format!("cannot send {signal:?} to the group of {}", self.name))
    }

    /// SIGTERM, and waits until it has ended.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_for_end(TERMINATE_LIMIT).with_context(|| self.last_lines())
    }

    /// `kill -9` on the process group, and waits until the process is gone.
    pub fn kill(mut self) -> Result<()> {
        self.kill_group()
    }

    /// The last lines of its log, headed by the file's name.
    pub fn last_lines(&self) -> String {
        last_lines(&self.log)
    }

    fn kill_group(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            self.signal_group(Signal::KILL)?;
            self.child.wait().with_context(|| format!("cannot wait for {} to go", self.name))?;
        }
        Ok(())
    }

    fn ended_error(&self, status: ExitStatus) -> anyhow::Error {
        GiveUp(format!("{} has ended ({status})\n{}", self.name, self.last_lines())).into()
    }

    fn raw_pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id out of range")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Bound
            && let Err(error) = self.kill_group()
        {
            eprintln!("cleaning up {}: {error:#}", self.name);
        }
    }
}

/// The last lines of a log file, headed by its name.
pub fn last_lines(log: &Path) -> String {
    let text = match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("{LOG_HEAD}{}: {error}", log.display()),
    };
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..];
    format!("{LOG_HEAD}{} ({} of {} lines)\n{}", log.display(), shown.len(), lines.len(), shown.join("\n"))
}

/// Starts the command from a thread that lives as long as the program.
///
/// The parent death signal fires when the *thread* that started the child ends, and test threads and scoped threads
/// end early.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                // A caller that has gone away gets no child; nobody could end it.
                if let Err(unclaimed) = reply.send(command.spawn())
                    && let Ok(mut child) = unclaimed.0
                {
                    let _ = child.kill();
                }
            }
        });
        Mutex::new(jobs)
    });
    let (reply, answer) = channel();
    let gone = || io::Error::other("the spawning thread has ended");
    spawner.lock().unwrap_or_else(PoisonError::into_inner).send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
