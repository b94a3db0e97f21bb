//! Commands that end: run one somewhere, and get what it printed or an error that says what went wrong.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait;

/// Longest time that a command run by [`run`] may take before it is killed.
const LIMIT: Duration = Duration::from_secs(90);

/// Where a command runs: a network namespace, a host, a container. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Place {
    prefix: Vec<OsString>,
}

/// What a command left behind.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output, with invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, with invalid UTF-8 replaced.
    pub stderr: String,
}

impl Place {
    /// A place that is entered by the given command, to which the command to run is appended.
    pub fn entered_by<S: Into<OsString>>(prefix: impl IntoIterator<Item = S>) -> Place {
        Place { prefix: prefix.into_iter().map(Into::into).collect() }
    }

    /// A command that will run `program` here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match self.prefix.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        }
    }

    /// A place that is entered from here.
    pub fn then<S: Into<OsString>>(&self, prefix: impl IntoIterator<Item = S>) -> Place {
        let mut inner = self.clone();
        inner.prefix.extend(prefix.into_iter().map(Into::into));
        inner
    }

    /// Runs `program` here to its end and returns its standard output; a failure is an error.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
        stdout(self.command(program).args(args))
    }
}

/// Runs the command to its end; every exit code is fine. Killed after 90 s.
pub fn run(command: &Command) -> Result<Outcome> {
    run_with_input(command, "")
}

/// As [`run`], with `input` on its standard input.
pub fn run_with_input(command: &Command, input: &str) -> Result<Outcome> {
    let mut bounded = Command::new("timeout");
    bounded
        .args(["--kill-after=1", &wait::scaled(LIMIT).as_secs().to_string()])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    let mut child = bounded
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let mut stdin = child.stdin.take().context("no pipe to the command")?;
    // Fed from a second thread: a command that prints before it has read everything would block both sides.
    let output = thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    })
    .with_context(|| format!("cannot read from {}", line(command)))?;
    Ok(Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs the command to its end and returns its standard output; an exit code other than 0 is an error with what it
/// printed.
pub fn stdout(command: &Command) -> Result<String> {
    let outcome = run(command)?;
    outcome.succeeded(&line(command))?;
    Ok(outcome.stdout)
}

impl Outcome {
    /// An error with the command's output unless it ended with 0.
    pub fn succeeded(&self, what: &str) -> Result<()> {
        let code = self.code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
        let said = [self.stderr.trim(), self.stdout.trim()].into_iter().find(|text| !text.is_empty());
        ensure!(self.code == Some(0), "{what} ended with {code}: {}", said.unwrap_or("no output"));
        Ok(())
    }
}

/// The command as one would type it, for messages.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
