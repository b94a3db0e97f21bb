//! FOU ("foo over UDP", `linux/fou.h`): UDP ports on which the kernel takes packets out of datagrams.

mod check;
mod watch;

use std::net::Ipv4Addr;

pub use check::{FouLack, check_fou, other_ipip_device};
pub(super) use watch::Watch;

use super::generic::Generic;
use super::raw::attribute;
use super::wire::{Attributes, u16_at, u32_at};
use crate::KernelError;
use crate::kind::fou_port::FouPort;

const FAMILY: &str = "fou";

const ADD: u8 = 1;
const DELETE: u8 = 2;
const GET: u8 = 3;

const PORT: u16 = 1;
const ADDRESS_FAMILY: u16 = 2;
const PROTOCOL: u16 = 3;
const TYPE: u16 = 4;
const LOCAL_V4: u16 = 6;
const PEER_V4: u16 = 8;
const DEVICE: u16 = 11;

/// `FOU_ENCAP_DIRECT`: nothing between the UDP header and the packet.
const DIRECT: u8 = 1;

/// A FOU port of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) port: u16,
    /// As ours are: for IPv4 packets in IPv4 datagrams to one address of this host, from anybody.
    pub(crate) ours: Option<FouPort>,
    /// In the style of `ip fou show`.
    pub(crate) shown: String,
}

/// Opens a socket for FOU in the current network namespace. `None` if the kernel lacks it.
pub(crate) fn socket() -> Result<Option<Generic>, KernelError> {
    Generic::open(FAMILY)
}

pub(crate) fn ports(fou: &mut Generic) -> Result<Vec<Found>, KernelError> {
    fou.dump(GET, |attributes| found(&attributes))
}

pub(crate) fn add(fou: &mut Generic, port: &FouPort) -> Result<(), KernelError> {
    fou.change(ADD, &attributes(port))
}

pub(crate) fn delete(fou: &mut Generic, port: &FouPort) -> Result<(), KernelError> {
    fou.change(DELETE, &attributes(port))
}

fn attributes(port: &FouPort) -> Vec<u8> {
    let mut attributes = Vec::new();
    attribute(&mut attributes, PORT, &port.port.to_be_bytes());
    attribute(&mut attributes, ADDRESS_FAMILY, &[libc::AF_INET as u8]);
    attribute(&mut attributes, PROTOCOL, &[libc::IPPROTO_IPIP as u8]);
    attribute(&mut attributes, TYPE, &[DIRECT]);
    attribute(&mut attributes, LOCAL_V4, &port.address.octets());
    attributes
}

fn found(attributes: &Attributes<'_>) -> Option<Found> {
    let find = |kind| attributes.clone().find(kind);
    let byte = |kind| find(kind)?.first().copied();
    let port = u16_at(find(PORT)?, 0).map(u16::from_be)?;
    let protocol = byte(PROTOCOL)?;
    // 0.0.0.0 stands for any address.
    let address = |kind| {
        let address =
            find(kind).and_then(|value| value.first_chunk::<4>()).map(|&value| Ipv4Addr::from(value));
        address.filter(|address| !address.is_unspecified())
    };
    let local = address(LOCAL_V4);
    let is_like_ours = i32::from(byte(ADDRESS_FAMILY)?) == libc::AF_INET
        && i32::from(protocol) == libc::IPPROTO_IPIP
        && byte(TYPE) == Some(DIRECT)
        && address(PEER_V4).is_none()
        && find(DEVICE).is_none_or(|index| u32_at(index, 0) == Some(0));
    let ours = local.filter(|_| is_like_ours).map(|address| FouPort { address, port });
    let local = local.map_or_else(|| "any".to_owned(), |address| address.to_string());
    Some(Found { port, ours, shown: format!("FOU port {port} local {local} ipproto {protocol}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_as_it_was_written() {
        let port = FouPort { address: Ipv4Addr::new(192, 168, 64, 11), port: 8285 };
        let found = found(&Attributes(&attributes(&port))).unwrap();
        assert_eq!(found.ours, Some(port));
        assert_eq!(found.shown, "FOU port 8285 local 192.168.64.11 ipproto 4");
    }

    #[test]
    fn a_port_for_every_address_is_not_ours() {
        let written = attributes(&FouPort { address: Ipv4Addr::UNSPECIFIED, port: 8285 });
        let found = found(&Attributes(&written)).unwrap();
        assert_eq!((found.port, found.ours), (8285, None));
        assert_eq!(found.shown, "FOU port 8285 local any ipproto 4");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = found(&Attributes(&bytes));
        }
    }
}
