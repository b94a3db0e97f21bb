//! What a virtual machine does once it has its root, as a script.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use super::inside::WORD;
use super::kernel::Kernel;
use crate::wait::FACTOR_VARIABLE;

/// What is to be done inside.
#[derive(Debug)]
pub(super) struct Job {
    kind: &'static str,
    directory: PathBuf,
    /// The program with its arguments; nothing for a shell.
    program: Vec<String>,
    variables: Vec<(String, String)>,
    /// Rows and columns of the terminal.
    size: String,
}

impl Job {
    /// Runs a program; under systemd at each boot.
    pub(super) fn of(program: &[String], systemd: bool, time_factor: u32) -> Result<Job> {
        let mut program = program.to_vec();
        // Others are found on the PATH inside.
        if let Some(first) = program.first_mut()
            && first.contains('/')
        {
            *first = super::shared(Path::new(first))?.to_string_lossy().into_owned();
        }
        Ok(Job { kind: if systemd { "systemd" } else { "program" }, program, ..Job::shell(time_factor)? })
    }

    /// Runs a shell on the terminal.
    pub(super) fn shell(time_factor: u32) -> Result<Job> {
        let mut variables: Vec<_> =
            env::vars().filter(|(name, _)| name.starts_with("FLAN_") || name == "STORE").collect();
        variables.push((FACTOR_VARIABLE.to_owned(), time_factor.to_string()));
        variables.push(("RUST_LIB_BACKTRACE".to_owned(), "0".to_owned()));
        Ok(Job {
            kind: "shell",
            directory: super::current_dir()?,
            program: Vec::new(),
            variables,
            size: terminal_size(),
        })
    }

    /// What it adds to the kernel's command line.
    pub(super) fn words(&self) -> String {
        format!("{WORD}={}", self.kind)
    }

    /// The script, which a shell of the machine runs.
    pub(super) fn script(&self, kernel: &Kernel) -> String {
        let settings = [
            ("kind", self.kind),
            ("directory", &self.directory.to_string_lossy()),
            ("modules", &kernel.modules.to_string_lossy()),
            ("size", &self.size),
        ];
        let mut script = String::new();
        for (name, value) in settings {
            script += &format!("{name}={}\n", quoted(value));
        }
        for (name, value) in &self.variables {
            script += &format!("export {name}={}\n", quoted(value));
        }
        let words: Vec<_> = self.program.iter().map(|word| quoted(word)).collect();
        script += &format!(
            "program() {{ {}; }}\n",
            if words.is_empty() { "true".to_owned() } else { words.join(" ") }
        );
        script + include_str!("job.sh")
    }
}

/// One word of a shell's.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `ROWS COLUMNS` as stty takes them; nothing where there is no terminal.
fn terminal_size() -> String {
    let size = Command::new("stty").arg("size").stdin(Stdio::inherit()).stderr(Stdio::null()).output();
    let text = size.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    match text.trim().split_once(' ') {
        Some((rows, columns)) => format!("rows {rows} columns {columns}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_word_of_any_characters_is_one_word_to_a_shell() {
        let word = "it's $HOME `ls` \"x\" \\ \n*";
        let output =
            Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
    }
}
