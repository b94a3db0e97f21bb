//! The bridges of the host, which containers are attached to.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::entry::{self, link_name};
use super::message;
use super::questions::link_entry;
use super::socket::Socket;
use crate::KernelError;
use crate::kind::address;
use crate::kind::link_name::LinkName;

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: LinkName,
    /// MTU in bytes. It follows the smallest port unless somebody has set it, so without ports it means little.
    pub mtu: u32,
    /// Largest MTU in bytes among its ports; `None` without ports.
    pub largest_port: Option<u32>,
    /// Its addresses, except link-local IPv6 ones.
    pub addresses: Vec<IpNetwork>,
}

/// Returns all bridges of the network namespace of this thread, by index.
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer.
pub fn bridges() -> Result<Vec<Bridge>, KernelError> {
    let mut socket = Socket::open()?;
    let links =
        socket.dump(&message::dump_links(), Vec::new, |links, body| links.extend(link_entry(body)))?;
    let addresses = socket.dump(&address::dump(0), Vec::new, |found, body| {
        found.extend(entry::address(body));
    })?;
    Ok(assemble(&links, &addresses))
}

fn assemble(links: &[LinkMessage], addresses: &[(u32, IpNetwork)]) -> Vec<Bridge> {
    let mut bridges: BTreeMap<u32, Bridge> = links
        .iter()
        .filter(|link| is_bridge(link))
        .filter_map(|link| {
            let index = link.header.index;
            let of_it = addresses.iter().filter(|(of, _)| *of == index);
            let addresses = of_it.map(|(_, address)| *address).collect();
            let name = link_name(link).ok()?;
            Some((index, Bridge { name, mtu: mtu(link), largest_port: None, addresses }))
        })
        .collect();
    for link in links {
        let bridge = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => Some(*index),
            _ => None,
        });
        if let Some(bridge) = bridge.and_then(|index| bridges.get_mut(&index)) {
            bridge.largest_port = bridge.largest_port.max(Some(mtu(link)));
        }
    }
    bridges.into_values().collect()
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Bridge)))
    })
}

fn mtu(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: InfoKind, mtu: u32, bridge: Option<u32>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
        ];
        link.attributes.extend(bridge.map(LinkAttribute::Controller));
        link
    }

    #[test]
    fn a_bridge_has_its_addresses_and_the_largest_of_its_ports() {
        let links = [
            link(3, "docker0", InfoKind::Bridge, 1450, None),
            link(4, "veth1", InfoKind::Veth, 1450, Some(3)),
            link(5, "veth2", InfoKind::Veth, 1500, Some(3)),
            link(6, "br-apps", InfoKind::Bridge, 1500, None),
            link(7, "eth0", InfoKind::Veth, 9000, None),
        ];
        let address: IpNetwork = "10.5.52.1/24".parse().unwrap();
        let bridges = assemble(&links, &[(3, address), (7, "192.168.64.11/24".parse().unwrap())]);
        let bridge = |name: &str, mtu, largest_port, addresses| Bridge {
            name: name.parse().unwrap(),
            mtu,
            largest_port,
            addresses,
        };
        assert_eq!(
            bridges,
            [bridge("docker0", 1450, Some(1500), vec![address]), bridge("br-apps", 1500, None, vec![])]
        );
    }
}
