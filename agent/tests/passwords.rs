//! `fland` refuses a password in a URL, and never prints it.

// A failing helper fails its test.
#![allow(clippy::unwrap_used)]

#[path = "../../agent-api/tests/support/mod.rs"]
mod support;

use std::process::Command;

use clap::CommandFactory;
use flan_agent::args::Args;
use support::{LISTS, UrlFlag, ensure_discreet, said, url_flags};

/// Returns a `fland` command that is refused before it does anything. It gets a directory if it requires one.
fn fland(flag: &UrlFlag, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fland"));
    command.env_clear().env("RUST_LOG", "trace").args(&flag.commands).args(arguments);
    if flag.flag.starts_with("--store-") {
        command.arg("--embedded-store=/no/such/directory");
    }
    command
}

#[test]
fn no_flag_that_takes_urls_repeats_a_user() {
    let flags = url_flags(&Args::command());
    let names: Vec<_> = flags.iter().map(|flag| flag.flag.as_str()).collect();
    assert_eq!(names, ["--etcd-endpoints", "--store-listen", "--listen-client-urls"]);
    for flag in &flags {
        for list in LISTS {
            let (name, variable) = (&flag.flag, flag.variable.as_deref().unwrap());
            let flannels = variable.replace("FLAND_", "FLANNELD_");
            let joined = format!("{name}={list}");
            let mut commands =
                vec![fland(flag, &[name, list]), fland(flag, &[&joined]), fland(flag, &[&joined[1..]])];
            for variable in [variable, &flannels] {
                let mut command = fland(flag, &[]);
                command.env(variable, list);
                commands.push(command);
            }
            for command in commands {
                let about = format!("{command:?}");
                let (code, said) = said(command);
                ensure_discreet(&said, &about);
                let remedies = [&["--etcd-username", "FLAND_ETCD_PASSWORD"][..], &["client certificates"]];
                let remedies = remedies[usize::from(name.contains("listen"))];
                assert_eq!(code, Some(2), "{about}: {said}");
                assert!(said.contains("***@"), "{about}: {said}");
                assert!(remedies.iter().all(|remedy| said.contains(remedy)), "{about}: {said}");
            }
        }
    }
}

#[test]
fn a_url_where_none_is_taken_is_not_repeated_with_its_user() {
    let agent = UrlFlag { commands: vec![], flag: String::new(), variable: None, required: vec![] };
    let store = UrlFlag { commands: vec!["store".to_owned()], ..agent.clone() };
    for list in LISTS {
        let commands = [
            fland(&agent, &[list]),
            fland(&agent, &["--etcd-endpoints", "http://127.0.0.1:9,", list]),
            fland(&agent, &["--etcd-endpoint", list]),
            fland(&agent, &[&format!("--etcd-endpoint={list}")]),
            fland(&agent, &["--healthz-ip", list]),
            fland(&agent, &["--store-listen", list]),
            fland(&agent, &["--embedded-store=/no/such/directory", "--etcd-endpoints", list]),
            fland(&store, &[list]),
            fland(&store, &["--etcd-endpoints", list]),
            fland(&store, &["--store-insecure", list]),
            fland(&store, &[&format!("--store-insecure={list}")]),
        ];
        for command in commands {
            let about = format!("{command:?}");
            let (code, said) = said(command);
            ensure_discreet(&said, &about);
            assert_eq!(code, Some(2), "{about}: {said}");
        }
    }
}

#[test]
fn the_help_and_the_settings_as_read_do_not_show_it_either() {
    for list in LISTS {
        for variable in ["FLAND_ETCD_ENDPOINTS", "FLANNELD_ETCD_ENDPOINTS"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_fland"));
            command.env_clear().env(variable, list).arg("--help");
            ensure_discreet(&said(command).1, variable);
        }
        for flag in url_flags(&Args::command()) {
            let arguments = ["fland".to_owned()].into_iter().chain(flag.commands);
            let arguments =
                arguments.chain(["--embedded-store=/data".to_owned(), format!("{}={list}", flag.flag)]);
            let arguments =
                arguments.filter(|word| flag.flag.starts_with("--store-") || !word.contains("/data"));
            let args = <Args as clap::Parser>::try_parse_from(arguments).unwrap();
            ensure_discreet(&format!("{args:?}"), &flag.flag);
        }
    }
}
