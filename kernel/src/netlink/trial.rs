//! Tries out, in a network namespace that ends with the trial, whether the kernel can make a device.

use std::io;

use nix::sched::{CloneFlags, unshare};

use super::link_message::{create_vxlan, create_wireguard};
use super::socket::Socket;
use crate::KernelError;
use crate::kind::link::{Link, LinkKind, Vxlan};
use crate::kind::link_name::LinkName;

/// A device that a backend needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// `ip link add type vxlan`.
    Vxlan,
    /// `ip link add type wireguard`.
    Wireguard,
    /// A TUN device.
    Tun,
}

/// Why a trial did not make a device.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// There could be no trial.
    #[error("{0}")]
    Untried(String),
    /// The kernel's answer; `EOPNOTSUPP` if it lacks the kind.
    #[error(transparent)]
    Lacks(#[from] KernelError),
}

/// Tries to make such a device, which may load a module of the kernel. Blocks for a moment. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// [`TrialError`].
pub fn try_device(trial: Trial) -> Result<(), TrialError> {
    let inside = || {
        let untried = |reason: String| TrialError::Untried(reason);
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| untried(io::Error::from(errno).to_string()))?;
        let name: LinkName = "trial0".parse().map_err(|_| untried("trial0 is no name".to_owned()))?;
        let link = |kind| Link { kind, mac: None, mtu: 1400, up: false };
        match trial {
            Trial::Vxlan => {
                let vxlan =
                    Vxlan { vni: 1, port: 8472, underlay: None, local: None, learning: false, gbp: false };
                let request = create_vxlan(name, &link(LinkKind::Vxlan(vxlan.clone())), &vxlan, None);
                Ok(Socket::open().and_then(|mut socket| socket.change_one(request))?)
            }
            Trial::Wireguard => {
                let request = create_wireguard(name, &link(LinkKind::Wireguard));
                Ok(Socket::open().and_then(|mut socket| socket.change_one(request))?)
            }
            Trial::Tun => match std::fs::File::open("/dev/net/tun") {
                Ok(_) => Ok(()),
                Err(error) => Err(TrialError::Lacks(KernelError::Message(format!("/dev/net/tun: {error}")))),
            },
        }
    };
    // A thread of its own: nobody else must find itself in another namespace.
    let tried = std::thread::scope(|scope| scope.spawn(inside).join());
    tried.unwrap_or_else(|_| Err(TrialError::Untried("the trial panicked".to_owned())))
}
