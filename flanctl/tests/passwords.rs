//! `flanctl` refuses a password in a URL, and never prints it.

// A failing helper fails its test.
#![allow(clippy::unwrap_used)]

#[path = "../../agent-api/tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::Command;

use support::{LISTS, UrlFlag, ensure_discreet, said, url_flags};

/// Commands that ask the store first. Others would change this host, or wait.
const HARMLESS: [&[&str]; 4] =
    [&["config", "get"], &["store", "check"], &["store", "copy"], &["subnets", "ls"]];

/// Returns a `flanctl` command with this settings file, and with what it requires besides the flag.
fn flanctl(flag: &UrlFlag, file: &EnvFile) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanctl"));
    command.env_clear().env("FLAND_ENV_FILE", &file.0).args(&flag.commands);
    for (number, required) in flag.required.iter().enumerate() {
        command.arg(format!("{required}=http://127.0.0.1:{}", number + 1));
    }
    command
}

/// A settings file, deleted when dropped.
struct EnvFile(PathBuf);

impl EnvFile {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("flanctl-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    /// Creates a file with this variable.
    fn with(name: &str, variable: &str, value: &str) -> Self {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
        Self::new(name, &format!("FLAND_EMBEDDED_STORE=/data\n{variable}=\"{quoted}\"\n"))
    }
}

impl Drop for EnvFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Returns the settings to use instead of a user in this flag.
fn remedies(flag: &str) -> [&'static str; 2] {
    match flag {
        "--to" => ["--to-username", "FLAND_TO_PASSWORD"],
        _ => ["--etcd-username", "FLAND_ETCD_PASSWORD"],
    }
}

fn ensure_refused(command: Command, remedies: [&str; 2]) {
    let about = format!("{command:?}");
    let (code, said) = said(command);
    ensure_discreet(&said, &about);
    assert_eq!(code, Some(2), "{about}: {said}");
    assert!(said.contains("***@"), "{about}: {said}");
    assert!(remedies.iter().all(|remedy| said.contains(remedy)), "{about}: {said}");
}

#[test]
fn no_flag_that_takes_urls_repeats_a_user() {
    let empty = EnvFile::new("empty", "");
    let flags = url_flags(&flan_ctl::command());
    for wanted in ["--etcd-endpoints", "--from", "--to"] {
        assert!(flags.iter().any(|flag| flag.flag == wanted), "{wanted} is not found: {flags:?}");
    }
    for flag in flags {
        let is_everywhere = flag.flag == "--etcd-endpoints";
        let harmless = HARMLESS.iter().any(|words| flag.commands == *words);
        assert!(harmless || is_everywhere, "say where {flag:?} can be tried without changing this host");
        // A copy has its own flags for both stores.
        if !harmless || (is_everywhere && flag.commands.ends_with(&["copy".to_owned()])) {
            continue;
        }
        for list in LISTS {
            let mut given = flanctl(&flag, &empty);
            given.arg(format!("{}={list}", flag.flag));
            ensure_refused(given, remedies(&flag.flag));
            let mut given = flanctl(&flag, &empty);
            given.args([&flag.flag[1..], list]);
            ensure_refused(given, remedies(&flag.flag));
            for variable in
                flag.variable.iter().flat_map(|name| [name.clone(), name.replacen("FLAND", "FLANNELD", 1)])
            {
                let mut given = flanctl(&flag, &empty);
                given.env(&variable, list);
                ensure_refused(given, remedies(&flag.flag));
                let file = EnvFile::with("flag", &variable, list);
                ensure_refused(flanctl(&flag, &file), remedies(&flag.flag));
            }
        }
    }
}

#[test]
fn the_settings_of_a_store_on_this_host_are_not_repeated_with_a_user() {
    let commands = ["config", "get"].map(str::to_owned).to_vec();
    let get = UrlFlag { commands, flag: String::new(), variable: None, required: vec![] };
    for variable in ["FLAND_STORE_LISTEN", "FLAND_LISTEN_CLIENT_URLS"] {
        for list in LISTS {
            let file = EnvFile::with("listen", variable, list);
            // An invalid listen URL names no store, so the default is used.
            ensure_discreet(&said(flanctl(&get, &file)).1, &format!("{variable} in a file"));
        }
    }
}

#[test]
fn a_url_where_none_is_taken_is_not_repeated_with_its_user() {
    let empty = EnvFile::new("nothing", "");
    let none = UrlFlag { commands: vec![], flag: String::new(), variable: None, required: vec![] };
    for list in LISTS {
        for words in [
            &["config", "get", list][..],
            &[list],
            &["config", list],
            &["--etcd-endpoints", "http://127.0.0.1:9,", list],
            &["--etcd-endpoint", list, "config", "get"],
            &["subnets", "ls", "-o", list],
            &["store", "copy", "--from", list],
            &["store", "copy", "--from", list, "--to", list],
            &["subnets", "reserve", list, "--public-ip", list],
            &["wait", "--timeout", list],
        ] {
            let mut command = flanctl(&none, &empty);
            command.args(words);
            let (code, said) = said(command);
            ensure_discreet(&said, &format!("{words:?}"));
            assert_eq!(code, Some(2), "{words:?}: {said}");
        }
    }
}
