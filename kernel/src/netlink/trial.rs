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

/// Tries to make such a device, which may load a module of the kernel. Blocks for a moment. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` if it lacks the kind.
pub fn try_device(trial: Trial) -> Result<(), KernelError> {
    let inside = || {
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(errno) => KernelError::Errno(errno),
            None => KernelError::Message(error.to_string()),
        };
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        let name: LinkName = "trial0"
            .parse()
            .map_err(|_| KernelError::Message("no device may be called trial0".to_owned()))?;
        let link = |kind| Link { kind, mac: None, mtu: 1400, up: false };
        match trial {
            Trial::Vxlan => {
                let vxlan =
                    Vxlan { vni: 1, port: 8472, underlay: None, local: None, learning: false, gbp: false };
                let request = create_vxlan(name, &link(LinkKind::Vxlan(vxlan.clone())), &vxlan, None);
                Socket::open()?.change_one(request)
            }
            Trial::Wireguard => {
                Socket::open()?.change_one(create_wireguard(name, &link(LinkKind::Wireguard)))
            }
            Trial::Tun => std::fs::File::open("/dev/net/tun").map(drop).map_err(failed),
        }
    };
    // A thread of its own: nobody else must find itself in another namespace.
    let tried = std::thread::scope(|scope| scope.spawn(inside).join());
    tried.unwrap_or_else(|_| Err(KernelError::Message("the trial panicked".to_owned())))
}
