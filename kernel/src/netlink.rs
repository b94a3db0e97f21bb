//! The kernel of this host, over netlink.

mod apply;
mod bridges;
mod changes;
pub(crate) mod devices;
pub(crate) mod entry;
pub(crate) mod features;
pub(crate) mod fou;
pub(crate) mod generic;
mod holder;
mod interfaces;
mod link;
mod link_message;
mod linux;
pub(crate) mod lookup;
pub(crate) mod message;
mod networks;
pub(crate) mod nft;
pub(crate) mod object;
mod our_devices;
mod ports;
mod questions;
pub(crate) mod raw;
pub(crate) mod reading;
mod snapshot;
pub(crate) mod socket;
#[cfg(test)]
pub(crate) mod test_bytes;
mod trial;
pub(crate) mod wire;
pub(crate) mod wireguard;
pub(crate) mod words;

pub use bridges::{Bridge, bridges};
pub use fou::{FouLack, check_fou, other_ipip_device};
pub(crate) use holder::holder_of_port;
pub use holder::{Holder, port_holder};
pub use interfaces::{Interface, default_routes, interfaces, is_refused_from, may_change, name_of, route_to};
pub use linux::Linux;
pub use networks::{DeviceKind, HostNetwork, Origin, host_networks};
pub use object::Notification;
pub use our_devices::devices_of_our_kinds;
pub use ports::{Port, is_plugged, plug, unplug};
pub use trial::{Trial, TrialError, try_device};
pub use wireguard::{SILENT_AFTER, WireguardTraffic, has_wireguard, wireguard_peers};

use self::lookup::Lookup;
use self::socket::Socket;
use crate::KernelError;
use crate::kind::next_hop;

/// Returns whether the kernel has nftables, which the checks of senders need.
pub fn has_nftables() -> bool {
    nft::is_there()
}

/// Deletes the tables of allowed senders. Returns whether one existed.
///
/// # Errors
/// If the kernel refuses.
pub fn delete_senders() -> Result<bool, KernelError> {
    nft::delete_tables()
}

/// Returns whether such a table exists.
///
/// # Errors
/// If the kernel does not answer.
pub fn has_senders() -> Result<bool, KernelError> {
    nft::has_table()
}

/// Returns whether the kernel of the current network namespace supports next hop objects (5.3 and later).
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer.
pub async fn has_next_hops() -> Result<bool, KernelError> {
    let devices = Default::default();
    next_hop::are_known(&mut Lookup::new(&devices, Some(&mut Socket::open()?)))
}
