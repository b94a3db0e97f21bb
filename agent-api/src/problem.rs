//! Problems on this host while the agent itself works. Each kind has a code, the same in the log, the status, the metrics,
//! `flanctl check` and the manual.

use std::fmt;
use std::time::SystemTime;

use serde::de::Error as _;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets are lost, or will be.
    Error,
    /// Packets flow. Something is not as its owner expects, or will fail later.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

macro_rules! codes {
    ($($(#[doc = $meaning:literal])+ $code:ident = $number:literal, $name:literal, $severity:ident, $remedy:literal;)+) => {
        /// The kinds of problems. Their numbers and names are stable, for scripts and searches.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $($(#[doc = $meaning])+ $code = $number,)+
        }

        impl Code {
            /// All kinds but [`Unknown`](Self::Unknown), by number.
            pub const ALL: &[Self] = {
                const WITH_UNKNOWN: &[Code] = &[$(Code::$code),+];
                WITH_UNKNOWN.split_at(1).1
            };

            /// Returns its name, such as `peer-mtu`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$code => $name,)+ }
            }

            /// Returns how bad it is.
            pub fn severity(self) -> Severity {
                match self { $(Self::$code => Severity::$severity,)+ }
            }

            /// Returns what to do about it in general.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$code => $remedy,)+ }
            }
        }
    };
}

codes! {
    /// One that another version of the agent knows.
    Unknown = 0, "unknown", Error,
        "use the flanctl of the agent's version";
    /// The agent has no lease yet, or not all that it needs for it.
    NotReady = 1, "not-ready", Error,
        "see what it waits for, and run flanctl check";
    /// The kernel is not as planned.
    Kernel = 2, "kernel", Error,
        "remove what the text names; fland tries again by itself";
    /// Our lease cannot be renewed.
    Lease = 3, "lease", Error,
        "run flanctl store check; the lease is kept until its time runs out";
    /// The store cannot be used, so that the view of the leases may be out of date.
    Store = 4, "store", Warning,
        "run flanctl store check; packets flow on as before";
    /// The network config in the store is missing, bad, or not the one in use.
    Config = 5, "config", Error,
        "mend it with flanctl config set, or restart fland where the text says so";
    /// Peers with a good lease cannot be reached by this backend from this host.
    OutOfReach = 6, "out-of-reach", Error,
        "give the hosts what the backend needs: flanctl status has the reason for each";
    /// Some leases are bad, and their holders get no packets.
    BadLease = 7, "bad-lease", Warning,
        "run flanctl subnets ls for the reasons, and flanctl subnets release for a lease that nobody needs";
    /// A start would choose another external interface than the one in use.
    OtherInterface = 8, "other-interface", Warning,
        "restart fland to move, or name the interface with --iface";
    /// The address that peers send to is of a kind that rarely works, such as link-local.
    DoubtfulAddress = 9, "doubtful-address", Warning,
        "give the interface another address, or choose with --iface or --public-ip";
    /// Our own subnet overlaps a network or route of this host.
    SubnetOverlap = 10, "subnet-overlap", Error,
        "change that network, or have another subnet leased";
    /// A peer's subnet overlaps a network or route of this host.
    PeerOverlap = 11, "peer-overlap", Error,
        "change that network, or give the peer another subnet with flanctl subnets reserve";
    /// A peer does not answer on the overlay.
    PeerUnreachable = 12, "peer-unreachable", Error,
        "let the encapsulation pass between the hosts; flanctl ping tries each part of the way";
    /// Large packets do not reach a peer.
    PeerMtu = 13, "peer-mtu", Error,
        "raise the MTU on the way, or lower that of this host's external interface";
    /// Packets to a peer are lost.
    PeerLoss = 14, "peer-loss", Warning,
        "look for a full or faulty link between the hosts";
    /// The agent of a peer does not answer, although packets pass.
    PeerAgent = 15, "peer-agent", Warning,
        "start fland there, or open the port of the probes";
    /// Packet filter rules of another program can drop packets that we forward or receive.
    PacketFilter = 16, "packet-filter", Error,
        "add the rule that the text names, which lets them pass";
    /// A device or socket of another program has the port of our backend.
    PortTaken = 17, "port-taken", Error,
        "stop or delete what has it, or choose another port in the network config";
    /// A device of another program receives IPIP packets, which the kernel path of udp takes or drops.
    OtherTunnel = 18, "other-tunnel", Error,
        "start fland with --udp-path user, or remove the device";
    /// docker0 or the CNI bridge differs from `subnet.env`.
    BridgeDiffers = 19, "bridge-differs", Error,
        "restart Docker with what subnet.env says";
    /// A reservation of this host became an ordinary lease.
    ReservationLost = 20, "reservation-lost", Warning,
        "reserve it again with flanctl subnets reserve";
    /// Another machine claims our lease.
    Clone = 21, "clone", Error,
        "give each machine its own /etc/machine-id, or --node-id";
    /// The network config works, but perhaps not as its author expects.
    DoubtfulConfig = 22, "doubtful-config", Warning,
        "change the config with flanctl config set";
    /// Overlay packets are accepted from any sender, because the kernel cannot check them.
    UncheckedSenders = 23, "unchecked-senders", Warning,
        "use a kernel with nftables";
    /// A WireGuard peer that packets are sent to has had no handshake for three minutes.
    SilentPeer = 24, "silent-peer", Error,
        "see that the peer runs and that its UDP port can be reached";
    /// The file of this host's WireGuard key is gone, or holds no key.
    WireguardKey = 25, "wireguard-key", Warning,
        "bring the file back, or make another key with flanctl wireguard rotate-key";
    /// Docker does not show the networks of the store as they are, or this host's containers are not known there.
    DockerNetworks = 26, "docker-networks", Error,
        "do what the text says about the network that it names";
    /// The names of containers are not served on some bridge.
    Names = 27, "names", Warning,
        "stop what has port 53 there, or start fland with --names=false";
    /// We have a user for the store, but its authentication is off.
    AuthenticationOff = 28, "authentication-off", Warning,
        "turn it on: etcdctl auth enable";
    /// There is no interface that peers could send to, or it is down.
    NoInterface = 29, "no-interface", Error,
        "bring the interface up, or name another with --iface";
    /// This kernel lacks what the backend needs.
    KernelFeature = 30, "kernel-feature", Error,
        "install the kernel's modules, or choose another backend";
    /// The kernel does not forward packets.
    ForwardingOff = 31, "forwarding-off", Error,
        "switch it on with sysctl, and see what switches it off";
    /// The kernel drops packets of peers, because it would answer them by another interface.
    ReversePath = 32, "reverse-path", Error,
        "set rp_filter to 2 on that interface";
    /// Packets for peers' containers leave by another device than ours.
    RouteElsewhere = 33, "route-elsewhere", Error,
        "remove the route or the rule (ip rule) that leads elsewhere";
    /// A table of the kernel is nearly full.
    TableFull = 34, "table-full", Warning,
        "raise its limit with sysctl";
    /// Packets between other machines on our bridge pass this host's packet filter.
    BridgeFilter = 35, "bridge-filter", Warning,
        "set net.bridge.bridge-nf-call-iptables to 0 unless other programs need it";
    /// Docker's version or options do not fit.
    DockerSettings = 36, "docker-settings", Error,
        "change /etc/docker/daemon.json or dockerd's options as the text says, and restart Docker";
    /// The clock of this host differs from that of the store.
    ClockSkew = 37, "clock-skew", Warning,
        "run a time service, such as chrony, on both";
    /// Another machine has this host's address or name of its own lease.
    AddressTaken = 38, "address-taken", Error,
        "give each machine its own address";
    /// No agent runs on this host, which has joined the network.
    AgentDown = 39, "agent-down", Error,
        "start it with systemctl start fland, and see journalctl -u fland";
    /// A flanneld runs beside fland.
    OtherAgent = 40, "other-agent", Error,
        "stop one of the two";
    /// The subnet file is missing or bad, or does not say what this host's lease says.
    SubnetFile = 41, "subnet-file", Error,
        "restart fland, which writes it, and then Docker";
}

impl fmt::Display for Code {
    /// `FLAN-E012`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FLAN-E{:03}", *self as u16)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    /// A code of a later version becomes [`Code::Unknown`].
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let known = Self::ALL.iter().find(|code| code.to_string() == text);
        Ok(known.copied().unwrap_or(Self::Unknown))
    }
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// Its kind.
    pub code: Code,
    /// What is wrong, and what to do in this case.
    pub text: String,
    /// When it was first seen.
    #[serde(deserialize_with = "of_rfc3339")]
    pub since: SystemTime,
}

impl Serialize for Problem {
    /// With what follows from the code.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut problem = serializer.serialize_struct("Problem", 6)?;
        problem.serialize_field("code", &self.code)?;
        problem.serialize_field("name", self.code.name())?;
        problem.serialize_field("severity", &self.code.severity())?;
        problem.serialize_field("text", &self.text)?;
        problem.serialize_field("remedy", self.code.remedy())?;
        problem.serialize_field("since", &humantime::format_rfc3339_seconds(self.since).to_string())?;
        problem.end()
    }
}

fn of_rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_problem_is_written_with_what_follows_from_its_code_and_read_without() {
        let text = "8472 is taken by vxlan10".to_owned();
        let problem = Problem { code: Code::PortTaken, text, since: SystemTime::UNIX_EPOCH };
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "code": "FLAN-E017", "name": "port-taken", "severity": "error", "text": "8472 is taken by vxlan10",
                "remedy": "stop or delete what has it, or choose another port in the network config",
                "since": "1970-01-01T00:00:00Z",
            })
        );
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }

    #[test]
    fn no_two_codes_share_a_number_or_a_name() {
        let shown: BTreeSet<String> = Code::ALL.iter().map(ToString::to_string).collect();
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!((shown.len(), names.len()), (Code::ALL.len(), Code::ALL.len()));
        assert!(!Code::ALL.contains(&Code::Unknown) && Code::ALL.is_sorted());
    }
}
