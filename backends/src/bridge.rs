//! The bridge to which containers of a network beside the default one are attached. docker0 is Docker's own.

use std::net::{IpAddr, Ipv4Addr};

use flan_kernel::{Address, Addresses, Link, LinkKind, LinkName, Links, Plan};
use flan_subnet_lease::{Family, NetworkName, PerFamily};
use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use sha2::{Digest, Sha256};

const PREFIX: &str = LinkKind::BRIDGE_PREFIX;
/// Nothing is sent by it.
const RESOLVER_MTU: u32 = 1500;
/// Most bytes of a device's name.
const MOST_BYTES: usize = 15;

/// Returns the name of a network's bridge: `flan-` and its name or, if that is too long, the beginning of a hash of it.
pub fn device_of(network: &NetworkName) -> Option<LinkName> {
    let named = format!("{PREFIX}{network}");
    let text = if named.len() <= MOST_BYTES {
        named
    } else {
        let hash = Sha256::digest(network.as_str());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{PREFIX}{}", &hash[..MOST_BYTES - PREFIX.len()])
    };
    text.parse().ok()
}

/// The address of this host's DNS server for the names of containers. It is link-local, and so no other host's.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);

/// Returns the name of the device with [`RESOLVER`], which is no network's: their names begin with a letter or digit.
pub fn resolver_device() -> LinkName {
    "flan-_dns".parse().expect("a name that is short enough")
}

/// Plans the device with [`RESOLVER`]: a bridge without ports.
pub fn plan_resolver(plan: &mut dyn Plan) {
    let v4 = Some(IpAddr::V4(RESOLVER).into());
    self::plan(resolver_device(), &PerFamily { v4, v6: None }, RESOLVER_MTU, plan);
}

/// Returns whether a bridge of ours may have this name.
pub(crate) fn is_name(name: LinkName) -> bool {
    name.as_str().starts_with(PREFIX)
}

/// Plans the bridge with these addresses. Its MAC depends on its address alone, so that containers need not learn another
/// one after a restart.
pub fn plan(name: LinkName, addresses: &PerFamily<IpNetwork>, mtu: u32, plan: &mut dyn Plan) {
    let Some(first) = addresses.values().next() else { return };
    let link = Link { kind: LinkKind::Bridge, mac: Some(mac_of(name, *first)), mtu, up: true };
    plan.add::<Links>(name, link.into());
    for family in Family::ALL {
        if let Some(address) = addresses.get(family) {
            plan.add::<Addresses>(Address { link: name, address: *address }, ());
        }
    }
}

fn mac_of(name: LinkName, address: IpNetwork) -> MacAddr6 {
    let hash = Sha256::digest(format!("{name} {address}"));
    // Locally administered, of one station.
    MacAddr6::new(0x02, hash[0], hash[1], hash[2], hash[3], hash[4])
}

#[cfg(test)]
mod tests {
    use flan_kernel::State;

    use super::*;

    fn name(network: &str) -> String {
        device_of(&network.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn a_short_network_names_its_bridge_and_a_long_one_has_a_hash() {
        assert_eq!(
            (name("blue"), name("ten-bytes-")),
            ("flan-blue".to_owned(), "flan-ten-bytes-".to_owned())
        );
        let (one, other) = (name("the-network-of-the-web"), name("the-network-of-the-data"));
        assert_eq!((one.len(), other.len()), (MOST_BYTES, MOST_BYTES));
        assert_ne!(one, other);
    }

    #[test]
    fn the_bridge_has_the_first_address_of_each_family() {
        let mut addresses = PerFamily::default();
        addresses.set(Family::V4, "10.7.1.1/24".parse().unwrap());
        addresses.set(Family::V6, "fd00:7:0:1::1/64".parse().unwrap());
        let mut state = State::default();
        plan(device_of(&"blue".parse().unwrap()).unwrap(), &addresses, 1450, &mut state);
        let planned: Vec<String> = state.addresses.keys().map(ToString::to_string).collect();
        assert_eq!(planned, ["10.7.1.1/24 dev flan-blue", "fd00:7:0:1::1/64 dev flan-blue"]);
        let link = &state.links[&"flan-blue".parse().unwrap()];
        assert_eq!((link.mtu, link.up, &link.kind), (1450, true, &LinkKind::Bridge));
    }
}
