//! The command line of flan, as a lab runs it.

use std::process::Command;

use anyhow::Result;

use crate::command::{self, Outcome, Place};
use crate::tools;

/// Runs `flanctl` with the client URLs of a store, the prefix of its keys and these arguments; any exit code is fine.
pub(crate) fn run(place: &Place, etcd: (&str, &str), args: &[&str], input: &str) -> Result<Outcome> {
    command::run_with_input(&command(place, etcd, args)?, input)
}

/// The same, still to be run.
pub(crate) fn command(place: &Place, etcd: (&str, &str), args: &[&str]) -> Result<Command> {
    let mut command = place.command(tools::flan_binary("flanctl")?);
    // Not the settings of the machine.
    command.env("FLAND_ENV_FILE", "/dev/null");
    command.args(["--etcd-endpoints", etcd.0, "--etcd-prefix", etcd.1]).args(args);
    Ok(command)
}
