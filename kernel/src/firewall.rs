//! The packet filter rules that the agent needs: masquerading, and forwarding despite Docker's drop policy.

mod flannel;
mod iptables;
mod nft;
pub mod others;
mod ours;
mod program;

use ipnetwork::IpNetwork;

pub use ours::OwnRules;

use crate::KernelError;
use crate::kind::link_name::LinkName;

/// The packet filter. Adapters: [`Linux`], and one in memory for tests (feature `fake`).
pub trait Firewall: Send {
    /// Makes our rules exactly what `ruleset` says and leaves all other rules alone. Idempotent: existing rules are not
    /// written again. Returns whether anything changed.
    fn apply(&mut self, ruleset: &Ruleset) -> impl Future<Output = Result<bool, FirewallError>> + Send;
}

/// All rules that we want. Rules of ours that are not in here are removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// One entry for each address family of each network. Packets from one network to another are dropped.
    pub families: Vec<FamilyRules>,
    /// Masquerade packets that leave the overlay network (`--ip-masq`).
    pub masquerade: bool,
    /// Networks, each with a device through which its packets enter and leave this host. Packets that arrive through it for
    /// the network, or leave through it from the network, are forwarded. Empty for no such rules. Packets between bridges
    /// of this host are not covered: Docker isolates these from each other.
    pub forward: Vec<(IpNetwork, LinkName)>,
}

/// The networks of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyRules {
    /// The whole overlay network.
    pub network: IpNetwork,
    /// This host's subnet in it.
    pub subnet: IpNetwork,
}

/// Why the rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// A required program could not be started.
    #[error("cannot run {program}: {source}; is it installed?")]
    Start {
        /// `nft`, `iptables`, `ip6tables` or a variant of these.
        program: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// The kernel refused a request.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A program reported an error.
    #[error("{command}: {message}")]
    Refused {
        /// The command line.
        command: String,
        /// The end of its error output.
        message: String,
    },
}

/// The packet filter of Linux: masquerading and the isolation of networks through `nft`, in the tables `inet flan` and
/// `inet flan-networks`; forwarding through `iptables` and
/// `ip6tables`, in the chain `FLAN-FORWARD`. Touches nothing else.
#[derive(Debug)]
pub struct Linux {
    masquerade: nft::Table,
    networks: nft::Table,
    forwarding: [iptables::Forwarding; 2],
}

impl Linux {
    /// Creates it without reading or writing anything. [`Firewall::apply`] must be called in a tokio runtime.
    pub fn new() -> Self {
        Self {
            masquerade: nft::Table::masquerade(),
            networks: nft::Table::networks(),
            forwarding: [false, true].map(iptables::Forwarding::new),
        }
    }
}

impl Default for Linux {
    fn default() -> Self {
        Self::new()
    }
}

impl Firewall for Linux {
    async fn apply(&mut self, ruleset: &Ruleset) -> Result<bool, FirewallError> {
        // A failure here must not keep the others from being repaired.
        let mut results = vec![self.masquerade.apply(ruleset).await, self.networks.apply(ruleset).await];
        for family in &mut self.forwarding {
            results.push(family.apply(ruleset).await);
        }
        results.into_iter().try_fold(false, |changed, result| Ok(changed | result?))
    }
}

/// Formats the network of `network`, which may have host bits set.
fn prefix(network: IpNetwork) -> String {
    format!("{}/{}", network.network(), network.prefix())
}
