//! The interface that a link is to stand on, and why it cannot.

use std::net::IpAddr;
use std::path::Path;

use netlink_packet_route::link::InfoKind;

use super::tables::{Link, Tables};
use super::{LanError, LanLink, Mode};

/// Finds the parent, and checks that it can carry the link and that the host does not have the addresses itself.
pub(super) async fn find(host: &Tables, wanted: &LanLink) -> Result<Link, LanError> {
    let links = host.links().await?;
    let Some(parent) = links.iter().find(|link| link.name == wanted.parent) else {
        let others: Vec<&str> = links
            .iter()
            .filter(|link| is_on_ethernet(link) && !is_ours(link) && link.controller.is_none())
            .map(|link| link.name.as_str())
            .collect();
        let text = format!("this host has no interface {}; it has {}", wanted.parent, others.join(", "));
        return Err(LanError::Unsuitable(text));
    };
    let is_wireless = Path::new("/sys/class/net").join(parent.name.as_str()).join("phy80211").exists();
    let above = links.iter().find(|link| Some(link.index) == parent.controller);
    if let Some(why) = why_not(parent, above, is_wireless, wanted) {
        return Err(LanError::Unsuitable(format!("{} {why}", parent.name)));
    }
    let own = host.addresses().await?;
    let is_of_this_host = |ip: IpAddr| own.iter().any(|(_, address, _)| address.ip() == ip);
    if let Some(gateway) = wanted.gateways.iter().find(|gateway| is_of_this_host(**gateway))
        && wanted.mode == Mode::Macvlan
    {
        let text = format!(
            "{gateway} is an address of this host, which a macvlan cannot reach; use the mode bridge"
        );
        return Err(LanError::Unsuitable(text));
    }
    for (index, address, _) in own {
        if wanted.addresses.iter().any(|wanted| wanted.ip() == address.ip()) {
            let on = links
                .iter()
                .find(|link| link.index == index)
                .map_or("an interface", |link| link.name.as_str());
            return Err(LanError::Unsuitable(format!(
                "this host itself has the address {} on {on}",
                address.ip()
            )));
        }
    }
    Ok(parent.clone())
}

/// Returns why the parent cannot carry the link.
fn why_not(parent: &Link, above: Option<&Link>, is_wireless: bool, wanted: &LanLink) -> Option<String> {
    let name = parent.name.as_str();
    let is_bridge = parent.kind == Some(InfoKind::Bridge);
    if !is_on_ethernet(parent) {
        return Some("is no Ethernet interface".to_owned());
    }
    if is_ours(parent) {
        return Some("is flan's own; the parent is an interface on the LAN".to_owned());
    }
    if !parent.is_up {
        return Some(format!("is down; first: ip link set {name} up"));
    }
    match wanted.mode {
        Mode::Bridge if !is_bridge => {
            return Some(
                "is no bridge; name a bridge that is on the LAN, or use the mode macvlan".to_owned(),
            );
        }
        Mode::Bridge if wanted.vlan.is_some() && !parent.filters_vlans => {
            return Some(format!(
                "does not tell VLANs apart; first: ip link set {name} type bridge vlan_filtering 1"
            ));
        }
        Mode::Bridge => return None,
        Mode::Macvlan => {}
    }
    if let Some(above) = above {
        let instead = match above.kind {
            Some(InfoKind::Bridge) => format!("; use {} with the mode bridge", above.name),
            Some(InfoKind::Bond) => format!("; use {}", above.name),
            _ => ", so it carries no macvlan".to_owned(),
        };
        return Some(format!("is a port of {}{instead}", above.name));
    }
    if !parent.has_carrier {
        return Some("has no carrier: is its cable in?".to_owned());
    }
    is_wireless.then(|| {
        "is wireless: an access point drops frames of a MAC that did not log in, so no macvlan works there".to_owned()
    })
}

fn is_on_ethernet(link: &Link) -> bool {
    link.is_ethernet && !link.is_loopback
}

fn is_ours(link: &Link) -> bool {
    let name = link.name.as_str();
    name.starts_with("flannel") || name.starts_with("flan-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eth0() -> Link {
        Link::ethernet(2, "eth0".parse().unwrap())
    }

    fn br0() -> Link {
        Link { name: "br0".parse().unwrap(), index: 3, kind: Some(InfoKind::Bridge), ..eth0() }
    }

    fn wanted(mode: Mode, vlan: Option<&str>) -> LanLink {
        LanLink {
            parent: "eth0".parse().unwrap(),
            vlan: vlan.map(|text| text.parse().unwrap()),
            mode,
            name: None,
            mac: None,
            addresses: vec!["192.168.1.77/24".parse().unwrap()],
            gateways: Vec::new(),
            kept: Vec::new(),
            counted_in: String::new(),
        }
    }

    #[test]
    fn an_interface_on_the_lan_carries_macvlans_and_a_bridge_ports() {
        assert_eq!(why_not(&eth0(), None, false, &wanted(Mode::Macvlan, Some("5"))), None);
        assert_eq!(why_not(&br0(), None, false, &wanted(Mode::Bridge, None)), None);
        let filters = Link { filters_vlans: true, ..br0() };
        assert_eq!(why_not(&filters, None, false, &wanted(Mode::Bridge, Some("5"))), None);
    }

    #[test]
    fn an_interface_that_cannot_is_refused_with_what_would_work() {
        let says = |parent: &Link, above: Option<&Link>, is_wireless, wanted: &LanLink, part: &str| {
            let why = why_not(parent, above, is_wireless, wanted).unwrap();
            assert!(why.contains(part), "{why}");
        };
        let macvlan = wanted(Mode::Macvlan, None);
        says(&Link { is_up: false, ..eth0() }, None, false, &macvlan, "ip link set eth0 up");
        says(&Link { is_ethernet: false, ..eth0() }, None, false, &macvlan, "no Ethernet");
        says(&Link { name: "flannel.1".parse().unwrap(), ..eth0() }, None, false, &macvlan, "flan's own");
        says(&eth0(), Some(&br0()), false, &macvlan, "port of br0; use br0 with the mode bridge");
        let bond = Link { kind: Some(InfoKind::Bond), name: "bond0".parse().unwrap(), ..eth0() };
        says(&eth0(), Some(&bond), false, &macvlan, "port of bond0; use bond0");
        says(&eth0(), None, true, &macvlan, "wireless");
        says(&Link { has_carrier: false, ..eth0() }, None, false, &macvlan, "no carrier");
        says(&eth0(), None, false, &wanted(Mode::Bridge, None), "no bridge");
        says(&br0(), None, false, &wanted(Mode::Bridge, Some("5")), "vlan_filtering 1");
    }
}
