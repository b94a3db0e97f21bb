//! Who holds what we want, in the words of `ip(8)`.

use std::fmt::Write;

use super::entry::{RawRoute, RawTarget};
use super::next_hop::Shown;
use crate::state::LinkName;

/// A route of another program: `10.5.3.0/24 via 192.168.64.1 dev eth0 proto static`.
pub(super) fn route(route: &RawRoute, name: impl FnMut(u32) -> Option<LinkName>) -> String {
    let mut text = route.key.to_string();
    match route.target {
        RawTarget::Device { index, gateway, .. } => {
            if let Some(gateway) = gateway {
                let _ = write!(text, " via {gateway}");
            }
            device(&mut text, Some(index), name);
        }
        RawTarget::NextHop { id, index } => {
            let _ = write!(text, " nhid {}", id.0);
            device(&mut text, index, name);
        }
        RawTarget::Blackhole => text.insert_str(0, "blackhole "),
        RawTarget::Several => text.push_str(" with several next hops"),
        RawTarget::Other(kind) => text.insert_str(0, kind_of_route(kind)),
    }
    let _ = write!(text, " proto {}", protocol(route.protocol));
    text
}

/// A next hop object of another program: `nexthop id 168100608 via 192.168.64.1 dev eth0 proto zebra`.
pub(super) fn next_hop(shown: &Shown, name: impl FnMut(u32) -> Option<LinkName>) -> String {
    let mut text = format!("nexthop {}", shown.id);
    if let Some(gateway) = shown.gateway {
        let _ = write!(text, " via {gateway}");
    }
    device(&mut text, shown.index, name);
    let _ = write!(text, " proto {}", protocol(shown.protocol));
    text
}

fn device(text: &mut String, index: Option<u32>, mut name: impl FnMut(u32) -> Option<LinkName>) {
    let Some(index) = index else { return };
    let _ = match name(index) {
        Some(name) => write!(text, " dev {name}"),
        None => write!(text, " dev if{index}"),
    };
}

fn kind_of_route(kind: u8) -> &'static str {
    match kind {
        libc::RTN_LOCAL => "local ",
        libc::RTN_BROADCAST => "broadcast ",
        libc::RTN_ANYCAST => "anycast ",
        libc::RTN_MULTICAST => "multicast ",
        libc::RTN_UNREACHABLE => "unreachable ",
        libc::RTN_PROHIBIT => "prohibit ",
        libc::RTN_THROW => "throw ",
        _ => "",
    }
}

/// The names of iproute2's `rt_protos`.
fn protocol(number: u8) -> String {
    let name = match number {
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        8 => "gated",
        9 => "ra",
        11 => "zebra",
        12 => "bird",
        16 => "dhcp",
        18 => "keepalived",
        42 => "babel",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        number => return number.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{NextHopId, RouteKey};

    fn name(index: u32) -> Option<LinkName> {
        (index == 2).then(|| "eth0".parse().unwrap())
    }

    fn shown(protocol: u8, metric: u32, target: RawTarget) -> String {
        let key = RouteKey { destination: "10.5.3.0/24".parse().unwrap(), metric };
        route(&RawRoute { key, protocol, target }, name)
    }

    #[test]
    fn a_route_is_shown_as_by_ip_route() {
        let gateway = Some("192.168.64.1".parse().unwrap());
        let via = |index| RawTarget::Device { index, gateway, onlink: false };
        assert_eq!(shown(4, 0, via(2)), "10.5.3.0/24 via 192.168.64.1 dev eth0 proto static");
        assert_eq!(shown(102, 7, via(9)), "10.5.3.0/24 metric 7 via 192.168.64.1 dev if9 proto 102");
        assert_eq!(shown(12, 0, RawTarget::Blackhole), "blackhole 10.5.3.0/24 proto bird");
        assert_eq!(shown(3, 0, RawTarget::Other(libc::RTN_THROW)), "throw 10.5.3.0/24 proto boot");
        assert_eq!(shown(11, 0, RawTarget::Several), "10.5.3.0/24 with several next hops proto zebra");
        let object = RawTarget::NextHop { id: NextHopId(5), index: None };
        assert_eq!(shown(11, 0, object), "10.5.3.0/24 nhid 5 proto zebra");
    }

    #[test]
    fn a_next_hop_is_shown_as_by_ip_nexthop() {
        let gateway = Some("192.168.64.1".parse().unwrap());
        let shown = Shown { id: NextHopId(5), protocol: 11, index: Some(2), gateway, onlink: false };
        assert_eq!(next_hop(&shown, name), "nexthop id 5 via 192.168.64.1 dev eth0 proto zebra");
        let group = Shown { index: None, gateway: None, ..shown };
        assert_eq!(next_hop(&group, name), "nexthop id 5 proto zebra");
    }
}
