//! URLs with a user and password, for every flag that takes URLs. No output may repeat the user.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use clap::{Arg, Command as Definition};

/// Lists of URLs, each with a user where somebody may write one.
pub(crate) const LISTS: [&str; 22] = [
    "http://wally:s3cret@10.0.0.2:2379",
    "https://wally:s3cret@[fd00::2]:2379/",
    "http://s3cret@10.0.0.2:2379",
    "http://wally:s3cret@",
    "wally:s3cret@10.0.0.2:2379",
    "//wally:s3cret@10.0.0.2:2379",
    "http://wally:s3cret@10.0.0.2:port",
    "http://wally:s3cret@10.0.0.2:99999",
    "ftp://wally:s3cret@10.0.0.2:2379",
    "etcd+http://wally:s3cret@10.0.0.2:2379",
    "http://wally:s3cret@4711@10.0.0.2:2379",
    "http://wally:%733cret@10.0.0.2:2379",
    "http://wally:s3cret%4010.0.0.2:2379",
    " http://wally:s3cret 4711@10.0.0.2:2379 ",
    "http://wally:4711/s3cret@10.0.0.2:2379",
    "http://wally:4711#s3cret?4711@10.0.0.2:2379",
    "http://wally:s3\"cret'\u{1b}[0m@10.0.0.2:2379",
    "http://127.0.0.1:9,http://wally:s3cret@10.0.0.2:2379",
    "http://wally:s3cret@10.0.0.2:2379, http://127.0.0.1:9",
    "http://wally:4711,s3cret@10.0.0.2:2379",
    "http://127.0.0.1:9,wally:s3cret,4711,s3cret@10.0.0.2:2379",
    "http://wally:s3,http://cret@10.0.0.2:2379",
];

/// Parts of the URLs that must not be shown.
const SECRETS: [&str; 5] = ["wally", "s3", "cret", "4711", "%73"];

/// A flag that takes URLs, from the definition of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UrlFlag {
    /// The subcommands before it.
    pub(crate) commands: Vec<String>,
    /// Its name, with the dashes.
    pub(crate) flag: String,
    /// The variable that stands in for it.
    pub(crate) variable: Option<String>,
    /// The other flags that the command requires.
    pub(crate) required: Vec<String>,
}

/// Returns all flags of a command and its subcommands that take URLs, according to their value names or help.
pub(crate) fn url_flags(definition: &Definition) -> Vec<UrlFlag> {
    let mut definition = definition.clone();
    definition.build();
    let mut found = Vec::new();
    search(&definition, &[], &mut found);
    found
}

fn search(command: &Definition, path: &[String], found: &mut Vec<UrlFlag>) {
    let dashed = |arg: &Arg| arg.get_long().map(|name| format!("--{name}"));
    for arg in command.get_arguments().filter(|arg| takes_urls(arg)) {
        let required = command.get_arguments().filter(|other| other.is_required_set() && *other != arg);
        found.push(UrlFlag {
            commands: path.to_vec(),
            flag: dashed(arg).unwrap(),
            variable: arg.get_env().map(|name| name.to_str().unwrap().to_owned()),
            required: required.filter_map(dashed).collect(),
        });
    }
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        search(inner, &[path, &[inner.get_name().to_owned()]].concat(), found);
    }
}

fn takes_urls(arg: &Arg) -> bool {
    let names = arg.get_value_names().unwrap_or_default();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
    names.iter().any(|name| name.contains("URL"))
        || help.contains("URL")
        || defaults.into_iter().any(|value| value.contains("://"))
}

/// Runs a command that must end soon. Returns its exit code and whole output.
pub(crate) fn said(mut command: Command) -> (Option<i32>, String) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// Asserts that the output repeats nothing of a user.
pub(crate) fn ensure_discreet(said: &str, about: &str) {
    // Addresses and log times contain digits of their own.
    let said = said.replace("10.0.0.2:2379", "");
    let is_time =
        |text: &str| text.contains('T') && text.chars().all(|c| c.is_ascii_digit() || "-T:.".contains(c));
    for line in said.lines() {
        let text = line.split_once("Z ").filter(|(time, _)| is_time(time)).map_or(line, |(_, text)| text);
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} is told by {about}: {said}");
        }
    }
}
