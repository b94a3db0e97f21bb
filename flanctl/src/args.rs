//! The command line of `flanctl`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use flan_agent_api::{
    AgentSocket, InterfaceArgs, NodeId, PublicIps, StoreArgs, SubnetDir, SubnetFile, Urls, WireguardKeyFile,
};
use flan_kernel::LinkName;
use flan_kernel::lan::{Mode, VlanId};
use flan_subnet_lease::{BackendConfig, NetworkName, Password, Subnets};
use ipnetwork::IpNetwork;
use macaddr::MacAddr6;

use crate::attach;
use crate::check::DEFAULT_SETTINGS;

/// Show and change which host holds which subnet
#[derive(Debug, Parser)]
#[command(name = "flanctl", version, after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Network that config and subnets are about, beside the default one
    #[arg(long, value_name = "NAME", global = true, help_heading = "Store")]
    pub(crate) network: Option<NetworkName>,

    /// Settings file of the agent. Used for what neither a flag nor the environment sets. /etc/default/fland by default, if
    /// it exists
    #[arg(long, value_name = "FILE", env = "FLAND_ENV_FILE", global = true, help_heading = "Store")]
    pub(crate) env_file: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Read, check or write the network config, which all hosts share
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Create, list or remove networks beside the default one
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Check the store, or copy it to another one
    #[command(subcommand)]
    Store(StoreCommand),
    /// List, reserve or release subnets
    #[command(subcommand)]
    Subnets(SubnetsCommand),
    /// Show what is wrong on this host, and what its agent does. Exits with 9 if something is wrong. Requires fland to run,
    /// and no store
    Status {
        #[command(flatten)]
        socket: AgentSocket,
        /// Show all hosts in short, as their agents tell the store. Requires the store, and no fland
        #[arg(short, long)]
        all: bool,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Form::Table)]
        output: Form,
        /// Look every two seconds, and print it again when something is new, if only a time
        #[arg(long)]
        watch: bool,
    },
    /// List the peers of this host, as its agent reaches them; with the wireguard backend also each peer's endpoint, latest
    /// handshake and bytes. Requires fland to run, and no store
    Peers {
        #[command(flatten)]
        socket: AgentSocket,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Form::Table)]
        output: Form,
        /// Look every two seconds, and print it again when something is new, if only a time
        #[arg(long)]
        watch: bool,
    },
    /// Look for every reason why packets do not pass, before and after this host joins: the store, the kernel, ports, packet
    /// filters, Docker, the path to other hosts. Changes nothing. Exits with 9 if something is wrong. Requires root
    Check(CheckArgs),
    /// Write an archive for a bug report: the result of check, what the agent and the store say, the kernel's state, packet
    /// filters, settings and logs. Passwords and keys are left out. Requires root
    Report(BugReportArgs),
    /// Find out which part of the way to a host or container works: its underlay address, the overlay with small and with the
    /// largest packets, and its agent. Exits with 9 if a part does not. Requires fland to run, and root; for the name of a
    /// container also the store
    Ping(PingArgs),
    /// Change this host's WireGuard key
    #[command(subcommand)]
    Wireguard(WireguardCommand),
    /// Prepare this host for flanneld. Stop fland first. Requires root. On vxlan, host-gw and alloc, no packet is lost
    HandOver(HandOverArgs),
    /// Take this host out of the network: delete its lease and everything that fland made here. Stop fland first.
    /// Requires root
    Leave(LeaveArgs),
    /// Give a container of this host an interface on the LAN, with an address there, until it ends or is detached. Beside
    /// flan: fland need not run. Requires root
    Attach(AttachArgs),
    /// Take a container off the LANs that flanctl attach gave it. One with a label comes back when it next starts.
    /// Requires root
    Detach(DetachArgs),
    /// List the containers of this host that are attached to a LAN
    Attachments(AttachmentsArgs),
    /// Print the script that completes flanctl's command line in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write man pages: flanctl.8, and one for each command
    Man {
        /// Directory, created if missing
        directory: PathBuf,
    },
    /// Wait until the agent on this host has leased a subnet and written the subnet file
    Wait {
        #[command(flatten)]
        subnet_file: SubnetFile,
        /// Give up after this time, for example 90s
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
        timeout: Duration,
        /// Write dockerd's options to this file afterwards, as variables for a unit's EnvironmentFile=: DOCKER_OPT_BIP,
        /// DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU, DOCKER_OPT_DIRECT_ROUTING if this dockerd needs it, and one with all of
        /// them
        #[arg(long, value_name = "FILE")]
        docker_opts: Option<PathBuf>,
        /// Name of the variable with all of dockerd's options
        #[arg(long, value_name = "NAME", default_value = "DOCKER_OPTS")]
        docker_opts_key: String,
        /// Let containers ask this host for the names of containers: add --dns for the address at which fland
        /// answers, as DOCKER_OPT_DNS, and behind it up to two servers of /etc/resolv.conf, for when fland is down
        #[arg(long, requires = "docker_opts")]
        docker_dns: bool,
    },
}

impl Command {
    /// Whether the command is about the default network or another one.
    pub(crate) fn is_about_a_network(&self) -> bool {
        matches!(self, Self::Config(ConfigCommand::Get | ConfigCommand::Set { .. }) | Self::Subnets(_))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the network config from the store
    Get,
    /// Check a network config and write it to the store. Agents use it after their next start
    Set {
        /// JSON file, or - for standard input
        file: PathBuf,
        /// Backend to add if FILE names none. vxlan by default
        #[arg(long, value_name = "TYPE", value_parser = PossibleValuesParser::new(BackendConfig::supported_names()))]
        backend: Option<String>,
        /// Write the config even if it strands existing leases
        #[arg(long)]
        force: bool,
    },
    /// Check a network config without writing it. Requires no store
    Validate {
        /// JSON file, or - for standard input
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Create a network. A host joins it when a container of its Docker needs it, or when told: flanctl network join
    Create(CreateArgs),
    /// List all networks, with the default one
    Ls {
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Form::Table)]
        output: Form,
    },
    /// Print a network's config, and the hosts that have joined it
    Inspect {
        /// Its name
        name: NetworkName,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = ReportForm::Text)]
        output: ReportForm,
    },
    /// Join this host to a network, from now on and after restarts. fland must run
    Join {
        /// Its name
        name: NetworkName,
        #[command(flatten)]
        socket: AgentSocket,
    },
    /// Take this host out of a network that flanctl network join named
    Leave {
        /// Its name
        name: NetworkName,
        #[command(flatten)]
        socket: AgentSocket,
    },
    /// Remove a network that no host has joined
    Rm {
        /// Its name
        name: NetworkName,
    },
}

/// A new network.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Its name
    pub(crate) name: NetworkName,
    /// Its addresses; twice for IPv4 and IPv6. May not overlap another network
    #[arg(long, value_name = "CIDR", required = true)]
    pub(crate) subnet: Vec<IpNetwork>,
    /// How packets reach other hosts
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "vxlan",
        value_parser = PossibleValuesParser::new(BackendConfig::repeatable_names()),
    )]
    pub(crate) backend: String,
    /// Prefix length of each host's IPv4 part. As flannel chooses by default: 24, or two bits more than --subnet has
    #[arg(long, value_name = "BITS")]
    pub(crate) subnet_len: Option<u8>,
    /// Prefix length of each host's IPv6 part. 64 by default
    #[arg(long, value_name = "BITS")]
    pub(crate) ipv6_subnet_len: Option<u8>,
    /// VXLAN network identifier. One that no network has by default
    #[arg(long, value_name = "NUMBER")]
    pub(crate) vni: Option<u32>,
    /// Label, for people and programs; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as team=web".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum WireguardCommand {
    /// Replace this host's private key by a new one, for instance because others may have read it. fland may run: it uses
    /// the new key within two seconds, and peers learn it from this host's lease. Packets under way meanwhile are lost
    RotateKey {
        #[command(flatten)]
        key_file: WireguardKeyFile,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Check each endpoint, and whether these credentials permit all that the agent does. Writes no key
    Check {
        /// Output format
        #[arg(short, long, value_enum, default_value_t = ReportForm::Text)]
        output: ReportForm,
    },
    /// Copy the network config and all leases to another store, which agents can then use
    Copy(CopyArgs),
}

/// Source and target of a copy.
#[derive(Debug, clap::Args)]
pub(crate) struct CopyArgs {
    /// URLs of the store to copy from, separated by commas. The --etcd-... credentials are for this store
    #[arg(long, value_name = "URLS", required = true)]
    pub(crate) from: Vec<Urls>,
    /// URLs of the store to copy to, separated by commas. The --to-... credentials are for this store
    #[arg(long, value_name = "URLS", required = true)]
    pub(crate) to: Vec<Urls>,
    /// CA file: certificates of the CAs that sign the certificates of --to. The system's CAs by default
    #[arg(long, value_name = "FILE", env = "FLAND_TO_CAFILE")]
    pub(crate) to_cafile: Option<PathBuf>,
    /// Client certificate file for --to
    #[arg(long, value_name = "FILE", env = "FLAND_TO_CERTFILE")]
    pub(crate) to_certfile: Option<PathBuf>,
    /// Key file of the client certificate for --to
    #[arg(long, value_name = "FILE", env = "FLAND_TO_KEYFILE")]
    pub(crate) to_keyfile: Option<PathBuf>,
    /// User name for --to
    #[arg(long, value_name = "NAME", env = "FLAND_TO_USERNAME")]
    pub(crate) to_username: Option<String>,
    /// Password for --to. Prefer the environment variable: `ps` shows flags
    #[arg(long, value_name = "PASSWORD", env = "FLAND_TO_PASSWORD", hide_env_values = true)]
    pub(crate) to_password: Option<Password>,
    /// Copy to a store that is not empty: overwrite keys that both have, keep keys that only --to has
    #[arg(long)]
    pub(crate) force: bool,
    /// Show what would be copied, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = ReportForm::Text)]
    pub(crate) output: ReportForm,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SubnetsCommand {
    /// List all leases, with what is wrong with the bad ones. Where fland runs, also when each host's agent last answered it
    Ls {
        #[command(flatten)]
        socket: AgentSocket,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Form::Table)]
        output: Form,
        /// Print the list again after each change
        #[arg(long)]
        watch: bool,
    },
    /// Show one lease in full
    Show {
        /// Subnet, for example 10.5.52.0/24; name of the host that holds it; or key of a lease that names no subnet
        #[arg(value_name = "SUBNET|HOST")]
        subnet: String,
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Form::Yaml)]
        output: Form,
    },
    /// Reserve a subnet for one host. A reservation never expires. If the host holds this subnet, its lease becomes the
    /// reservation. If it holds another one, it moves when fland next starts there, or at once with --now
    Reserve {
        /// Subnet, for example 10.5.52.0/24
        subnet: Subnets,
        /// Underlay address of the host, and one for IPv6 after a comma; or the host's name, if it holds a lease
        #[arg(long, value_name = "IP|HOST", value_delimiter = ',', required = true)]
        public_ip: Vec<String>,
        /// Move the host at once: delete its current lease in the same transaction. Its containers are cut off until you
        /// restart Docker there
        #[arg(long)]
        now: bool,
    },
    /// Delete a lease or a reservation. Stop fland on its host first: an agent that is alive takes its lease back at
    /// once, and this command says so and exits with 6
    Release {
        /// Subnet, for example 10.5.52.0/24; name of the host that holds it; or key of a lease that names no subnet
        #[arg(value_name = "SUBNET|HOST")]
        subnet: String,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
}

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) host: CheckedHost,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = ReportForm::Text)]
    pub(crate) output: ReportForm,
}

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub(crate) struct BugReportArgs {
    /// The archive, a new file. flan-report-HOST-TIME.tar.gz in this directory by default
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Print what would be in it, and write no file
    #[arg(long, conflicts_with = "file")]
    pub(crate) show: bool,
    #[command(flatten)]
    pub(crate) host: CheckedHost,
    #[command(flatten)]
    pub(crate) subnet_dir: SubnetDir,
}

/// How this host takes part, for `check` and `report`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckedHost {
    #[command(flatten)]
    pub(crate) interface: InterfaceArgs,
    #[command(flatten, next_help_heading = "This host")]
    pub(crate) node_id: NodeId,
    #[command(flatten)]
    pub(crate) subnet_file: SubnetFile,
    #[command(flatten)]
    pub(crate) socket: AgentSocket,
    /// Docker's API, a Unix socket
    #[arg(long, value_name = "FILE", env = "FLAND_DOCKER_API", default_value = "/run/docker.sock")]
    pub(crate) docker_api: PathBuf,
    /// Docker's settings file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SETTINGS)]
    pub(crate) docker_settings: PathBuf,
}

/// What to probe.
#[derive(Debug, clap::Args)]
pub(crate) struct PingArgs {
    /// Name or address of a host, one of its subnets, or name or address of a container on another host
    #[arg(value_name = "HOST|SUBNET|CONTAINER")]
    pub(crate) target: String,
    /// Packets of each kind
    #[arg(short, long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) count: u16,
    /// Time between two packets of a kind, from 10ms to 1h; longer while an answer is missing, for which it waits a second
    #[arg(short, long, value_name = "DURATION", default_value = "500ms", value_parser = ping_interval)]
    pub(crate) interval: Duration,
    #[command(flatten)]
    pub(crate) socket: AgentSocket,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = ReportForm::Text)]
    pub(crate) output: ReportForm,
}

fn ping_interval(text: &str) -> Result<Duration, String> {
    const ENDS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));
    let interval = humantime::parse_duration(text)
        .map_err(|why| format!("{why}; expected a time such as 500ms or 1s"))?;
    match interval >= ENDS.0 && interval <= ENDS.1 {
        true => Ok(interval),
        false => Err("from 10ms to 1h are possible".to_owned()),
    }
}

/// Where attachments are recorded.
#[derive(Debug, clap::Args)]
pub(crate) struct AttachmentsDir {
    /// Directory of records of what is attached; a reboot must empty it
    #[arg(
        long,
        value_name = "DIRECTORY",
        env = "FLAND_ATTACHMENTS",
        default_value = "/run/flan/attachments"
    )]
    pub(crate) attachments: PathBuf,
}

/// Arguments of `attach`.
#[derive(Debug, clap::Args)]
pub(crate) struct AttachArgs {
    /// Container: its name or id. It must run
    #[arg(required_unless_present = "labelled")]
    pub(crate) container: Option<String>,
    /// Interface of this host on the LAN, such as eth0; with --mode bridge, a bridge
    #[arg(long, value_name = "INTERFACE", required_unless_present = "labelled")]
    pub(crate) parent: Option<LinkName>,
    /// VLAN, 1 to 4094: frames go out with its tag. The device for it, such as eth0.5, is made if it is not there, and
    /// removed with the last container on it
    #[arg(long, value_name = "ID")]
    pub(crate) vlan: Option<VlanId>,
    /// Address on the LAN with its prefix length, such as 192.168.1.77/24; may be repeated, also for IPv6. Somebody else
    /// who has it is found, and the container is not attached
    #[arg(
        long,
        value_name = "ADDRESS/LENGTH",
        value_parser = attach::with_length,
        required_unless_present = "labelled",
    )]
    pub(crate) address: Vec<IpNetwork>,
    /// The LAN's gateway, which becomes the container's; once for each family. flan's networks stay reachable as before
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) gateway: Vec<IpAddr>,
    /// macvlan: the interface is a macvlan device on the parent, and cannot reach this host itself. bridge: it is a port of
    /// the parent, a bridge, and reaches everybody on it
    #[arg(long, value_name = "MODE", default_value = "macvlan")]
    pub(crate) mode: Mode,
    /// MAC of the interface. Random by default
    #[arg(long, value_name = "MAC")]
    pub(crate) mac: Option<MacAddr6>,
    /// Name of the interface in the container. The first free one of lan0, lan1, ... by default
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<LinkName>,
    /// Stay, and attach each container with a label flan.attach when it starts, as the service flan-attach does. A label
    /// says what the flags say: flan.attach=parent=eth0,address=192.168.1.77/24,gateway=192.168.1.1. Labels such as
    /// flan.attach.storage are for further LANs
    #[arg(
        long,
        conflicts_with_all = ["container", "parent", "vlan", "address", "gateway", "mode", "mac", "name", "output"],
    )]
    pub(crate) labelled: bool,
    /// Docker's API, a Unix socket. That of podman works as well
    #[arg(long, value_name = "FILE", env = "FLAND_DOCKER_API", default_value = "/run/docker.sock")]
    pub(crate) docker_api: PathBuf,
    #[command(flatten)]
    pub(crate) subnet_file: SubnetFile,
    #[command(flatten)]
    pub(crate) subnet_dir: SubnetDir,
    #[command(flatten)]
    pub(crate) place: AttachmentsDir,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = ReportForm::Text)]
    pub(crate) output: ReportForm,
}

/// Arguments of `detach`.
#[derive(Debug, clap::Args)]
pub(crate) struct DetachArgs {
    /// Container: its name, or at least 12 characters of its id
    pub(crate) container: String,
    /// Interface in the container. All that flanctl attach made by default
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<LinkName>,
    #[command(flatten)]
    pub(crate) place: AttachmentsDir,
}

/// Arguments of `attachments`.
#[derive(Debug, clap::Args)]
pub(crate) struct AttachmentsArgs {
    #[command(flatten)]
    pub(crate) place: AttachmentsDir,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    pub(crate) output: Form,
}

/// Arguments of a change of this host.
#[derive(Debug, clap::Args)]
pub(crate) struct HostArgs {
    #[command(flatten)]
    pub(crate) subnet_file: SubnetFile,
    #[command(flatten)]
    pub(crate) subnet_dir: SubnetDir,
    /// Show what would be done, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = ReportForm::Text)]
    pub(crate) output: ReportForm,
}

/// Arguments of `hand-over`.
#[derive(Debug, clap::Args)]
pub(crate) struct HandOverArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    #[command(flatten)]
    pub(crate) key_file: WireguardKeyFile,
}

/// Arguments of `leave`.
#[derive(Debug, clap::Args)]
pub(crate) struct LeaveArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Keep the lease in the store, so that this host gets the same subnet if it returns before the lease expires
    #[arg(long)]
    pub(crate) keep_lease: bool,
    /// File with dockerd's options that flanctl wait wrote
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/docker_opts.env")]
    pub(crate) docker_opts: PathBuf,
    #[command(flatten)]
    pub(crate) node_id: NodeId,
    #[command(flatten)]
    pub(crate) public_ips: PublicIps,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people
    #[value(alias = "text")]
    Table,
    /// For people, with more columns
    Wide,
    /// For programs. apiVersion changes with the format
    Json,
    /// The same as YAML
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportForm {
    /// For people
    Text,
    /// For programs. apiVersion changes with the format
    Json,
    /// The same as YAML
    Yaml,
}

const AFTER_HELP: &str = "\
Flags that say how to reach the store can also be set by environment variables: FLAND_ and the flag's name in upper \
case with underscores, or FLANNELD_ and the same. What neither sets is read from /etc/default/fland, or from another \
file (--env-file). A flag overrides the environment, which overrides the file. On a host with the embedded store \
(FLAND_EMBEDDED_STORE), flanctl connects to it as the agent does.

Exit codes:
  0  done
  1  error without a code of its own
  2  command line, file or setting that cannot work; no root privileges; no terminal to ask for confirmation
  3  the store cannot be reached
  4  the store refuses these credentials
  5  there is no network config in the store
  6  refused, with the reason: fland runs, the subnet is taken, its holder is alive, ...
  7  there is no such lease or network
  8  timed out
  9  something is wrong, as the output says";

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
