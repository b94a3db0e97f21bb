//! The settings of a data path.

use std::net::Ipv4Addr;

use flan_kernel::LinkName;
use flan_kernel::tun::TunMode;
use ipnetwork::Ipv4Network;

#[derive(Debug, Clone)]
pub(in crate::udp) struct Settings {
    pub(in crate::udp) device: LinkName,
    pub(in crate::udp) tun: TunMode,
    pub(in crate::udp) gso: bool,
    pub(in crate::udp) gro: bool,
    /// The underlay address that datagrams are sent from and arrive at.
    pub(in crate::udp) local: Ipv4Addr,
    pub(in crate::udp) port: u16,
    /// The device's address: the source of ICMP errors.
    pub(in crate::udp) address: Ipv4Addr,
    /// Bytes of the largest inner packet.
    pub(in crate::udp) mtu: u32,
    /// This host's subnet, if packets must be for it and come from that of their sender.
    pub(in crate::udp) strict: Option<Ipv4Network>,
}

impl Settings {
    /// Returns whether each packet is read, sent, received and written by its own call, as in flannel.
    pub(super) fn is_plain(&self) -> bool {
        !self.tun.vnet_header && !self.gso && !self.gro
    }
}
