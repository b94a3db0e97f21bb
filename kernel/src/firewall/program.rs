//! Runs the programs that configure the packet filter.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use std::{env, io};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::FirewallError;

/// How long a program may take. The `iptables` family waits up to 5 s of this for its lock.
const LIMIT: Duration = Duration::from_secs(10);

/// Where `nft` and `iptables` are; the `PATH` of a service or a user may lack these.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

pub(super) fn exists(program: &str) -> bool {
    path(program).is_some()
}

pub(super) fn path(program: &str) -> Option<PathBuf> {
    find(program, env::var_os("PATH"))
}

/// Runs `program` with `input` on its standard input, and returns its standard output.
pub(super) async fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, FirewallError> {
    let command = format!("{program} {}", arguments.join(" "));
    let refused = |message: String| FirewallError::Refused { command: command.clone(), message };
    let output = match timeout(LIMIT, output(program, arguments, input)).await {
        Ok(output) => output.map_err(|source| FirewallError::Start { program, source })?,
        Err(_) => return Err(refused(format!("no answer within {} s", LIMIT.as_secs()))),
    };
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(|_| refused("its output is not UTF-8".into()));
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(refused(if words.is_empty() { output.status.to_string() } else { words }))
}

async fn output(program: &'static str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let path = path(program).ok_or(io::ErrorKind::NotFound)?;
    let mut child = Command::new(path)
        .args(arguments)
        // We compare and report its output.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that ends without reading all input explains that on its standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    output
}

fn find(program: &str, path: Option<OsString>) -> Option<PathBuf> {
    let path = path.unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_comes_out_again() {
        assert_eq!(run("cat", &[], "one\ntwo\n").await.unwrap(), "one\ntwo\n");
    }

    #[tokio::test]
    async fn a_refusal_says_what_was_run_and_its_last_words() {
        let error = run("sh", &["-c", "echo no such table >&2; exit 1"], "").await.unwrap_err();
        assert_eq!(error.to_string(), "sh -c echo no such table >&2; exit 1: no such table");
        let error = run("false", &[], "").await.unwrap_err();
        assert_eq!(error.to_string(), "false : exit status: 1");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        assert!(!exists("no-such-program-anywhere"));
        let error = run("no-such-program-anywhere", &[], "").await.unwrap_err();
        assert!(error.to_string().contains("no-such-program-anywhere"), "{error}");
    }

    #[test]
    fn a_program_is_found_past_the_path_and_only_if_executable() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nft-like");
        std::fs::write(&file, "").unwrap();
        let path = || Some(directory.path().as_os_str().to_owned());
        assert_eq!(find("nft-like", path()), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("nft-like", path()), Some(file));
        assert_eq!(find("nft-like", None), None);
    }
}
