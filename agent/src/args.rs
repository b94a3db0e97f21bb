//! The command line of `fland`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use flan_agent_api::{
    AgentSocket, InterfaceArgs, NodeId, StoreArgs, SubnetDir, SubnetFile, WireguardKeyFile,
};
use flan_subnet_lease::{NetworkName, NodeIdentity, OverlapPolicy, PathChoice};

use crate::docker_args::DockerArgs;
use crate::embedded_args::EmbeddedArgs;
use crate::flag_values::{duration, path_choice, switch};
use crate::log::LogArgs;
use crate::names_args::NamesArgs;
use crate::probe_args::ProbeArgs;
use crate::store_command::StoreCommand;

/// Connect this host's containers to those of the other hosts
///
/// fland leases a subnet for this host's docker0 bridge from the store (etcd, or a host with the embedded store),
/// writes it to a file for dockerd, and programs the kernel to send packets for the other hosts' subnets to those
/// hosts. It runs until it is stopped. Packets flow on after that, except on udp where fland itself moves them.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "fland",
    version,
    after_help = AFTER_HELP,
    disable_help_subcommand = true,
    // Flags of the agent and a subcommand exclude each other, so the agent's environment cannot make a subcommand fail.
    // fland, unlike flanctl, takes the store's flags only before a subcommand.
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    mut_args(|arg| switch(arg).global(false))
)]
pub struct Args {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Option<Command>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub store: StoreArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub embedded: EmbeddedArgs,

    #[command(flatten, next_help_heading = "External interface")]
    #[allow(missing_docs)]
    pub interface: InterfaceArgs,

    /// UDP port that peers send packets of the wireguard backend to, if a NAT translates it. By default the port of the
    /// network config (Backend.ListenPort)
    #[arg(
        long,
        value_name = "PORT",
        env = "FLAND_PUBLIC_PORT",
        value_parser = clap::value_parser!(u16).range(1..),
        help_heading = "External interface"
    )]
    pub public_port: Option<u16>,

    #[command(flatten, next_help_heading = "Lease")]
    #[allow(missing_docs)]
    pub subnet_file: SubnetFile,

    /// Networks to join beside the default one, separated by commas: those that flanctl network create made. To join and leave
    /// one without a restart: flanctl network join and leave
    #[arg(long, value_name = "NAMES", env = "FLAND_NETWORKS", value_delimiter = ',', help_heading = "Lease")]
    pub networks: Vec<NetworkName>,

    #[command(flatten, next_help_heading = "Lease")]
    #[allow(missing_docs)]
    pub subnet_dir: SubnetDir,

    /// Directory in which fland keeps what it must know after a restart: the networks of flanctl network join, and the networks
    /// and containers of Docker
    #[arg(
        long,
        value_name = "DIRECTORY",
        env = "FLAND_STATE_DIR",
        default_value = "/var/lib/flan",
        help_heading = "Lease"
    )]
    pub state_dir: PathBuf,

    /// Lifetime of the lease after this agent has stopped, for example 24h or 90m. From 60s to 1y
    #[arg(
        long,
        value_name = "DURATION",
        env = "FLAND_SUBNET_LEASE_TTL",
        default_value = "24h",
        value_parser = lease_ttl,
        help_heading = "Lease"
    )]
    pub subnet_lease_ttl: Duration,

    /// Renew the lease at the latest this many minutes before it ends. Must be less than --subnet-lease-ttl. fland
    /// renews it after a third of its lifetime in any case
    #[arg(long, value_name = "MINUTES", env = "FLAND_SUBNET_LEASE_RENEW_MARGIN", help_heading = "Lease")]
    pub subnet_lease_renew_margin: Option<u32>,

    /// Name of this host in listings. The host name by default
    #[arg(long, value_name = "NAME", env = "FLAND_NODE_NAME", help_heading = "Lease")]
    pub node_name: Option<String>,

    #[command(flatten, next_help_heading = "Lease")]
    #[allow(missing_docs)]
    pub node_id: NodeId,

    /// Tell the store how this host is, below PREFIX/status, for flanctl status --all: whether it is ready, and its problems.
    /// If not, the store learns only that this agent lives
    #[arg(long, env = "FLAND_PUBLISH_STATUS", default_value = "true", help_heading = "Lease")]
    pub publish_status: bool,

    /// What to do if every free subnet overlaps another network of this host: refuse (wait until another one is free)
    /// or warn (take one, and log a warning). A subnet that this host already holds is kept in either case
    #[arg(
        long,
        value_name = "refuse|warn",
        env = "FLAND_SUBNET_OVERLAP",
        value_enum,
        default_value_t = SubnetOverlap::Refuse,
        hide_possible_values = true,
        help_heading = "Lease"
    )]
    pub subnet_overlap: SubnetOverlap,

    /// Masquerade packets that leave the overlay network
    #[arg(long, env = "FLAND_IP_MASQ", default_value = "false", help_heading = "Packets")]
    pub ip_masq: bool,

    /// Accept overlay packets only from the addresses of current peers. Requires nftables in the kernel
    #[arg(long, env = "FLAND_SOURCE_CHECK", default_value = "true", help_heading = "Packets")]
    pub source_check: bool,

    /// Keep a rule at the top of the iptables FORWARD chain that accepts overlay packets, which Docker drops otherwise
    #[arg(long, env = "FLAND_IPTABLES_FORWARD_RULES", default_value = "true", help_heading = "Packets")]
    pub iptables_forward_rules: bool,

    /// Drop packets for this host's subnet while no bridge holds it, instead of sending them back out
    #[arg(long, env = "FLAND_IP_BLACKHOLE_ROUTE", default_value = "false", help_heading = "Packets")]
    pub ip_blackhole_route: bool,

    /// Compare the kernel with the plan at this interval, even if nothing seems to have changed. At least 1s
    #[arg(
        long,
        value_name = "DURATION",
        env = "FLAND_RESYNC_INTERVAL",
        default_value = "60s",
        value_parser = resync_interval,
        help_heading = "Packets"
    )]
    pub resync_interval: Duration,

    /// Distrust a lease list that is missing more than this percentage of the known peers, as after the store was wiped or
    /// restored: keep packets flowing to them for --mass-loss-grace
    #[arg(
        long,
        value_name = "PERCENT",
        env = "FLAND_MASS_LOSS_PERCENT",
        default_value_t = 50,
        value_parser = clap::value_parser!(u8).range(0..=100),
        help_heading = "Packets"
    )]
    pub mass_loss_percent: u8,

    /// How long to keep peers that a distrusted lease list is missing, unless they reappear earlier. With 0s, fland
    /// trusts every list
    #[arg(
        long,
        value_name = "DURATION",
        env = "FLAND_MASS_LOSS_GRACE",
        default_value = "60s",
        value_parser = humantime::parse_duration,
        help_heading = "Packets"
    )]
    pub mass_loss_grace: Duration,

    /// Who moves the packets of the udp backend on this host: auto (the kernel where it can), kernel (or refuse to
    /// start) or user (fland itself). Default: what the network config says (Backend.Path), and auto without that
    #[arg(
        long,
        value_name = "auto|kernel|user",
        env = "FLAND_UDP_PATH",
        value_parser = path_choice,
        help_heading = "Packets"
    )]
    pub udp_path: Option<PathChoice>,

    /// Who encrypts with the wireguard backend on this host: auto (the kernel where it can), kernel (or refuse to start)
    /// or user (fland itself). Default: what the network config says (Backend.Path), and auto without that
    #[arg(
        long,
        value_name = "auto|kernel|user",
        env = "FLAND_WIREGUARD_PATH",
        value_parser = path_choice,
        help_heading = "Packets"
    )]
    pub wireguard_path: Option<PathChoice>,

    #[command(flatten, next_help_heading = "Packets")]
    #[allow(missing_docs)]
    pub wireguard_key_file: WireguardKeyFile,

    /// Features to disable in the udp backend on this host, on its user path. Features that the kernel lacks are disabled
    /// automatically
    #[arg(
        long,
        value_name = "MODE",
        env = "FLAND_UDP_WITHOUT",
        value_enum,
        value_delimiter = ',',
        help_heading = "Packets"
    )]
    pub udp_without: Vec<UdpMode>,

    #[command(flatten, next_help_heading = "Docker")]
    #[allow(missing_docs)]
    pub docker: DockerArgs,

    #[command(flatten, next_help_heading = "Names")]
    #[allow(missing_docs)]
    pub names: NamesArgs,

    #[command(flatten, next_help_heading = "Observation")]
    #[allow(missing_docs)]
    pub socket: AgentSocket,

    #[command(flatten, next_help_heading = "Observation")]
    #[allow(missing_docs)]
    pub probes: ProbeArgs,

    /// Address on which to answer GET /healthz and GET /status. 0.0.0.0 stands for every IPv4 address of this host
    #[arg(
        long,
        value_name = "IP",
        env = "FLAND_HEALTHZ_IP",
        default_value = "127.0.0.1",
        help_heading = "Observation"
    )]
    pub healthz_ip: IpAddr,

    /// TCP port on which to answer GET /healthz and GET /status. 0 disables both
    #[arg(
        long,
        value_name = "PORT",
        env = "FLAND_HEALTHZ_PORT",
        default_value_t = 0,
        help_heading = "Observation"
    )]
    pub healthz_port: u16,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// Commands other than running an agent.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    #[allow(missing_docs)]
    Store(StoreCommand),
    /// Print the script that completes fland's command line in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write man pages: fland.8, and one for each command
    Man {
        /// Directory, created if missing
        directory: PathBuf,
    },
}

/// What to do if every free subnet overlaps a network of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SubnetOverlap {
    /// Wait for another.
    Refuse,
    /// Take one, and warn.
    Warn,
}

impl From<SubnetOverlap> for OverlapPolicy {
    fn from(wanted: SubnetOverlap) -> Self {
        match wanted {
            SubnetOverlap::Refuse => Self::Refuse,
            SubnetOverlap::Warn => Self::Warn,
        }
    }
}

/// Features that make the udp backend fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UdpMode {
    /// Large TCP and UDP packets to and from the device (virtio-net headers, TSO, USO)
    TunOffload,
    /// Many datagrams in one send (UDP_SEGMENT)
    Gso,
    /// Many datagrams in one receive (UDP_GRO)
    Gro,
}

const AFTER_HELP: &str = "\
Each flag can also be set by an environment variable: FLAND_ and the flag's name in upper case with underscores \
(FLAND_IP_MASQ), or FLANNELD_ and the same. A flag overrides FLAND_, which overrides FLANNELD_.

Exit codes:
  0  stopped by SIGTERM or SIGINT; routes, lease and subnet file remain
  1  error at run time; the reason is on standard error
  2  setting that cannot work; the reason is on standard error";

impl Args {
    /// Returns the renew margin, which must be shorter than the lease.
    ///
    /// # Errors
    /// If it is not; names both flags.
    pub fn renew_margin(&self) -> Result<Option<Duration>, String> {
        let Some(minutes) = self.subnet_lease_renew_margin else { return Ok(None) };
        let margin = Duration::from_secs(60 * u64::from(minutes));
        if margin >= self.subnet_lease_ttl {
            let ttl = humantime::format_duration(self.subnet_lease_ttl);
            return Err(format!(
                "--subnet-lease-renew-margin {minutes} (minutes) is not less than --subnet-lease-ttl {ttl}"
            ));
        }
        Ok(Some(margin))
    }

    /// Returns the identity of this host, independent of its address: from the flags, else host name and machine id.
    pub fn identity(&self) -> NodeIdentity {
        let name = || Some(hostname::get().ok()?.to_string_lossy().into_owned());
        let host = self.node_name.clone().or_else(name);
        let host = host.filter(|name| !name.is_empty()).map(String::into_boxed_str);
        NodeIdentity { host, id: self.node_id.id() }
    }
}

fn lease_ttl(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(60))
}

fn resync_interval(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn read(arguments: &[&str]) -> Result<Args, String> {
        Args::try_parse_from(std::iter::once("fland").chain(arguments.iter().copied()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_of_its_name() {
        let command = Args::command();
        let flags = command.get_subcommands().flat_map(clap::Command::get_arguments);
        for arg in command.get_arguments().chain(flags) {
            let Some(name) = arg.get_long().filter(|name| !["help", "version"].contains(name)) else {
                continue;
            };
            let variable = format!("FLAND_{}", name.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(std::ffi::OsStr::to_str), Some(variable.as_str()));
        }
    }

    #[test]
    fn switches_are_given_bare_or_with_a_value() {
        assert!(!read(&[]).unwrap().ip_masq);
        assert!(read(&["--ip-masq"]).unwrap().ip_masq);
        assert!(!read(&["--ip-masq=false"]).unwrap().ip_masq);
        assert!(read(&["--ip-masq=1"]).unwrap().ip_masq && read(&["--ip-masq=True"]).unwrap().ip_masq);
        assert!(!read(&["--iptables-forward-rules=false"]).unwrap().iptables_forward_rules);
        assert_eq!(
            (read(&["-v"]).unwrap().log.v, read(&["-v=5"]).unwrap().log.v, read(&["-v", "3"]).unwrap().log.v),
            (1, 5, 3)
        );
    }

    #[test]
    fn flags_of_the_agent_are_none_of_the_store() {
        for flag in ["--etcd-endpoints=http://10.0.0.2:2379", "--ip-masq", "--embedded-store=/data"] {
            assert!(read(&["store", flag]).unwrap_err().contains("unexpected argument"), "{flag}");
        }
        assert!(read(&["--ip-masq", "store"]).is_err(), "an agent and a store at once");
    }

    #[test]
    fn the_status_is_for_this_host_alone_unless_told_otherwise() {
        assert!(read(&["--healthz-port", "8471"]).unwrap().healthz_ip.is_loopback());
        assert!(read(&["--healthz-ip", "0.0.0.0"]).unwrap().healthz_ip.is_unspecified());
    }

    #[test]
    fn a_value_that_cannot_work_is_named_with_what_would() {
        let error = read(&["--subnet-lease-ttl", "5s"]).unwrap_err();
        assert!(error.contains("5s") && error.contains("at least 1m is needed"), "{error}");
        assert!(read(&["--subnet-lease-ttl", "1000years"]).unwrap_err().contains("at most 1y"));
        assert!(read(&["--iface-regex", "("]).unwrap_err().contains("unclosed group"));
        let margin =
            read(&["--subnet-lease-ttl=30m", "--subnet-lease-renew-margin=60"]).unwrap().renew_margin();
        assert_eq!(
            margin.unwrap_err(),
            "--subnet-lease-renew-margin 60 (minutes) is not less than --subnet-lease-ttl 30m"
        );
        assert!(read(&["--public-ip", "fd00::1"]).unwrap_err().contains("fd00::1"));
        assert!(read(&["--iface", "eth0", "--iface-can-reach", "1.2.3.4"]).is_err());
    }
}
