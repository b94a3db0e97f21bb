//! Interfaces that never lead to peers, even with addresses and routes. dhcpcd, for example, configures every interface
//! that it finds.

use flan_kernel::netlink::Interface;

/// Bridges that container runtimes and CNI plugins create under a fixed name.
const CONTAINER_BRIDGES: [&str; 6] =
    ["docker0", "docker_gwbridge", "cni0", "cni-podman0", "podman0", "nerdctl0"];

/// Returns why the interface is never chosen unless named. A bridge with the host's own address can be the external
/// interface, and so can a veth outside a bridge, often the only one in a namespace.
pub(super) fn never(interface: &Interface, all: &[Interface]) -> Option<&'static str> {
    let name = interface.name.as_str();
    if is_overlay_device(name) {
        return Some("a device of the overlay network");
    }
    if CONTAINER_BRIDGES.contains(&name) || is_docker_network(name) {
        return Some("a bridge for containers");
    }
    let is_bridge = |index| all.iter().any(|other| other.index == index && other.bridge);
    interface.master.is_some_and(is_bridge).then_some("a port of a bridge")
}

/// Recognises devices of flan and flannel with any VNI, since those of other or former networks are no better.
fn is_overlay_device(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    ["flannel0", "flannel-wg", "flannel-wg-v6"].contains(&name)
        || ["flannel.", "flannel-v6."].iter().any(|kind| name.strip_prefix(kind).is_some_and(is_number))
}

/// Recognises `br-` followed by the first twelve hexadecimal digits of the network's id.
fn is_docker_network(name: &str) -> bool {
    let is_id = |text: &str| {
        text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    name.strip_prefix("br-").is_some_and(is_id)
}

#[cfg(test)]
mod tests {
    use super::super::tests::interface;
    use super::*;

    #[test]
    fn devices_of_overlays_and_containers_are_none() {
        for name in [
            "flannel.1",
            "flannel.4096",
            "flannel-v6.1",
            "flannel0",
            "flannel-wg",
            "docker0",
            "docker_gwbridge",
            "br-0123456789ab",
            "cni0",
        ] {
            assert!(never(&interface(name, 7, &[]), &[]).is_some(), "{name}");
        }
        for name in ["eth0", "br0", "br-lan", "br-0123456789AB", "flannel", "flannel.x", "tun0", "bond0"] {
            assert_eq!(never(&interface(name, 7, &[]), &[]), None, "{name}");
        }
    }

    #[test]
    fn a_port_of_a_bridge_is_none_but_the_bridge_and_the_member_of_a_vrf_are_some() {
        let bridge = Interface { bridge: true, ..interface("br0", 3, &[]) };
        let vrf = interface("vrf-blue", 4, &[]);
        let port = |master| Interface { master, ..interface("veth1234", 7, &[]) };
        let all = [bridge.clone(), vrf];
        assert_eq!(never(&port(Some(3)), &all), Some("a port of a bridge"));
        assert_eq!(never(&port(Some(4)), &all), None);
        assert_eq!(never(&port(None), &all), None);
        assert_eq!(never(&bridge, &all), None);
    }
}
