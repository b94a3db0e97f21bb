//! The packet filter rules that the agent needs: masquerading, and forwarding that Docker's policy would drop.

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
    /// Makes our rules exactly what `ruleset` says, leaving everybody else's alone. Idempotent: rules that already
    /// stand are not written again. The answer says whether anything had to be changed.
    fn apply(&mut self, ruleset: &Ruleset) -> impl Future<Output = Result<bool, FirewallError>> + Send;
}

/// All rules that we want; what is not in here is removed from what is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// One entry for each address family in use.
    pub families: Vec<FamilyRules>,
    /// Masquerade what leaves the overlay network (`--ip-masq`).
    pub masquerade: bool,
    /// Devices by which packets of the overlay network enter and leave this host: what comes in by one for the
    /// network, or goes out by one from the network, is forwarded. None for no such rules. What stays between
    /// bridges of this host is not our concern, as Docker keeps them apart.
    pub forward: Vec<LinkName>,
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
    /// A program that we need could not be started.
    #[error("cannot run {program}: {source}; is it installed?")]
    Start {
        /// `nft`, `iptables` or `ip6tables` and their kin.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refused what we asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A program that we ran refused what we asked.
    #[error("{command}: {message}")]
    Refused {
        /// The command line.
        command: String,
        /// Its last words.
        message: String,
    },
}

/// The packet filter of Linux: masquerading through `nft`, in the table `inet flan`; forwarding through `iptables` and
/// `ip6tables`, in the chain `FLAN-FORWARD`. Nothing else is touched.
#[derive(Debug)]
pub struct Linux {
    masquerade: nft::Masquerade,
    forwarding: [iptables::Forwarding; 2],
}

impl Linux {
    /// Nothing is read or written before the first [`Firewall::apply`], which must be called in a tokio runtime.
    pub fn new() -> Self {
        Self {
            masquerade: nft::Masquerade::default(),
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
        // One that fails must not keep the others from being put right.
        let mut results = vec![self.masquerade.apply(ruleset).await];
        for family in &mut self.forwarding {
            results.push(family.apply(ruleset).await);
        }
        results.into_iter().try_fold(false, |changed, result| Ok(changed | result?))
    }
}

/// The network of `network` as text, even if that has the address of a host in it.
fn prefix(network: IpNetwork) -> String {
    format!("{}/{}", network.network(), network.prefix())
}
