//! The command line of `flanctl`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand, ValueEnum};
use flan_agent::store_args::StoreArgs;
use flan_agent::urls::Urls;
use flan_subnet_lease::{BackendConfig, Password, Subnets};

use crate::host::HostArgs;
use crate::leave::LeaveArgs;

/// Shows and changes who holds which subnet.
#[derive(Debug, Parser)]
#[command(name = "flanctl", version, after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Settings file of the agent. Used for what neither a flag nor the environment sets. /etc/default/fland by default, if
    /// it exists
    #[arg(long, value_name = "FILE", env = "FLAND_ENV_FILE", global = true, help_heading = "Store")]
    pub(crate) env_file: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The network config, which all hosts share
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The store: check it, or copy it to another
    #[command(subcommand)]
    Store(StoreCommand),
    /// The leases: who holds which subnet
    #[command(subcommand)]
    Subnets(SubnetsCommand),
    /// Prepare this host for flanneld. Stop fland first. Needs root. On vxlan, host-gw and alloc no packet is lost
    HandOver(HostArgs),
    /// Take this host out of the network: delete its lease and all that fland has made here. fland must be stopped.
    /// Needs root
    Leave(LeaveArgs),
    /// Wait until the agent on this host has leased a subnet and written its file
    Wait {
        /// The file that the agent writes
        #[arg(
            long,
            value_name = "FILE",
            env = "FLAND_SUBNET_FILE",
            default_value = "/run/flannel/subnet.env"
        )]
        subnet_file: PathBuf,
        /// Give up after this time, such as 60s
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
        timeout: Duration,
        /// Then write dockerd's options to this file, as variables for a unit's EnvironmentFile=: DOCKER_OPT_BIP,
        /// DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU, where this dockerd needs it DOCKER_OPT_DIRECT_ROUTING, and all together
        #[arg(long, value_name = "FILE")]
        docker_opts: Option<PathBuf>,
        /// Name of the variable with all of dockerd's options together
        #[arg(long, value_name = "NAME", default_value = "DOCKER_OPTS")]
        docker_opts_key: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the network config from the store
    Get,
    /// Check a network config and write it to the store. Agents take it at their next start
    Set {
        /// A JSON file, or - for standard input
        file: PathBuf,
        /// Backend to add where FILE names none; vxlan by default
        #[arg(long, value_name = "TYPE", value_parser = PossibleValuesParser::new(BackendConfig::supported_names()))]
        backend: Option<String>,
        /// Write the config even if it strands existing leases
        #[arg(long)]
        force: bool,
    },
    /// Check a network config without writing it; needs no store
    Validate {
        /// A JSON file, or - for standard input
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Ask each endpoint how it is, and the store whether these credentials may do what the agent does. Writes no key
    Check {
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t = ReportForm::Text)]
        output: ReportForm,
    },
    /// Copy the network config and all leases into another store, from which agents can go on
    Copy(CopyArgs),
}

/// From where to where.
#[derive(Debug, clap::Args)]
pub(crate) struct CopyArgs {
    /// URLs of the store to copy from, separated by commas; the credentials of --etcd-... are for this one
    #[arg(long, value_name = "URLS", required = true)]
    pub(crate) from: Vec<Urls>,
    /// URLs of the store to copy to, separated by commas; the credentials of --to-... are for this one
    #[arg(long, value_name = "URLS", required = true)]
    pub(crate) to: Vec<Urls>,
    /// File with the authorities that sign the certificates of --to; the system's by default
    #[arg(long, value_name = "FILE", env = "FLAND_TO_CAFILE")]
    pub(crate) to_cafile: Option<PathBuf>,
    /// File with our own certificate for --to
    #[arg(long, value_name = "FILE", env = "FLAND_TO_CERTFILE")]
    pub(crate) to_certfile: Option<PathBuf>,
    /// File with the key of our own certificate for --to
    #[arg(long, value_name = "FILE", env = "FLAND_TO_KEYFILE")]
    pub(crate) to_keyfile: Option<PathBuf>,
    /// User name in --to
    #[arg(long, value_name = "NAME", env = "FLAND_TO_USERNAME")]
    pub(crate) to_username: Option<String>,
    /// Password in --to; better given in the environment, where `ps` does not show it
    #[arg(long, value_name = "PASSWORD", env = "FLAND_TO_PASSWORD", hide_env_values = true)]
    pub(crate) to_password: Option<Password>,
    /// Copy into a store that is not empty: overwrite what both have, leave what only --to has
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would be done, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = ReportForm::Text)]
    pub(crate) output: ReportForm,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SubnetsCommand {
    /// List all leases, the bad ones with their reason
    Ls {
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t = Form::Table)]
        output: Form,
        /// Print the list again after each change
        #[arg(long)]
        watch: bool,
    },
    /// Show one lease in full
    Show {
        /// Such as 10.5.52.0/24, the name of the host that holds it, or the key of a lease that names no subnet
        #[arg(value_name = "SUBNET|HOST")]
        subnet: String,
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t = Form::Yaml)]
        output: Form,
    },
    /// Reserve a subnet for one host; a reservation never expires. If the host holds this subnet, its lease becomes the
    /// reservation. If it holds another, it moves at the next start of fland there, or at once with --now
    Reserve {
        /// Such as 10.5.52.0/24
        subnet: Subnets,
        /// The host's underlay address, with a second one, after a comma, for IPv6; or its name, where it holds a lease
        #[arg(long, value_name = "IP|HOST", value_delimiter = ',', required = true)]
        public_ip: Vec<String>,
        /// Move the host at once: delete its current lease in the same transaction. Its containers are cut off until you
        /// restart Docker there
        #[arg(long)]
        now: bool,
    },
    /// Delete a lease or a reservation. An agent that is alive takes its lease back at once; then this says so and
    /// exits with 6. Stop fland on that host first
    Release {
        /// Such as 10.5.52.0/24, the name of the host that holds it, or the key of a lease that names no subnet
        #[arg(value_name = "SUBNET|HOST")]
        subnet: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people
    Table,
    /// For people with wide terminals
    Wide,
    /// For programs; apiVersion tells when the form changes
    Json,
    /// The same as YAML
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportForm {
    /// For people
    Text,
    /// For programs; apiVersion tells when the form changes
    Json,
    /// The same as YAML
    Yaml,
}

const AFTER_HELP: &str = "\
Flags that say how to reach the store are also read from the environment: FLAND_ and the flag's name in upper case \
with underscores, else FLANNELD_ and the same; what is not there is read from /etc/default/fland, or from another file \
(--env-file). A flag wins over the environment, which wins over the file. On a host that carries the store \
(FLAND_EMBEDDED_STORE), flanctl dials it as the agent does.

Exit codes:
  0  done
  1  an error that has no code of its own
  2  a command line, file or setting that cannot work; not root; nobody at the terminal to ask
  3  the store cannot be reached
  4  the store refuses these credentials
  5  there is no network config in the store
  6  refused, with the reason: fland runs, the subnet is taken, its holder is alive, ...
  7  there is no such lease
  8  timed out";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Args;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_output_of_the_flags_shows_a_password() {
        let urls = "http://u:s3cret@10.0.0.2:2379";
        let command = ["flanctl", "store", "copy", "--from", urls, "--to", urls, "--etcd-endpoints", urls];
        let passwords = ["--etcd-password=s3cret", "--to-password=s3cret"];
        let args = Args::try_parse_from([&command[..], &passwords].concat()).unwrap();
        let shown = format!("{args:?}");
        assert!(
            shown.matches("http://***@10.0.0.2:2379").count() == 3 && !shown.contains("s3cret"),
            "{shown}"
        );
    }
}
