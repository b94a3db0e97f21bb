//! Compares the bridge of the containers with `subnet.env`. dockerd may have started before the agent or with an older
//! file.

use flan_agent_api::SubnetEnv;
use flan_kernel::LinkName;
use flan_kernel::netlink::Bridge;
use flan_subnet_lease::Family;
use ipnetwork::IpNetwork;

/// The default bridges of Docker and of the CNI plugin.
const DEFAULTS: [&str; 2] = [DOCKERS, "cni0"];
const DOCKERS: &str = "docker0";

/// MTU of a bridge without ports that nobody has configured.
const DEFAULT_MTU: u32 = 1500;

/// Returns the bridges with addresses within our subnets, and these addresses.
pub fn in_our_subnets(bridges: &[Bridge], env: &SubnetEnv) -> Vec<(LinkName, IpNetwork)> {
    let is_ours = |address: &IpNetwork| {
        env.bridges.get(Family::of(address.ip())).is_some_and(|ours| is_within(*address, *ours))
    };
    bridges
        .iter()
        .flat_map(|bridge| bridge.addresses.iter().map(|address| (bridge.name, *address)))
        .filter(|(_, address)| is_ours(address))
        .collect()
}

/// Describes what differs from `subnet.env`, and what to do; `None` if nothing does or there is no bridge.
/// `masquerading` are the bridges whose packets to other hosts get this host's address.
pub fn difference(bridges: &[Bridge], masquerading: &[LinkName], env: &SubnetEnv) -> Option<String> {
    let ours = in_our_subnets(bridges, env);
    let mut wrong: Vec<String> = env
        .bridges
        .iter()
        .filter(|(family, _)| !ours.iter().any(|(_, address)| Family::of(address.ip()) == *family))
        .filter_map(|(family, own)| elsewhere(bridges, family, *own))
        .collect();
    for bridge in bridges.iter().filter(|bridge| ours.iter().any(|(name, _)| *name == bridge.name)) {
        wrong.extend(other_mtu(bridge, env.mtu));
        if masquerading.contains(&bridge.name) {
            wrong.push(masqueraded(bridge.name, env.ip_masq));
        }
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

fn is_within(address: IpNetwork, subnet: IpNetwork) -> bool {
    subnet.contains(address.ip()) && address.prefix() >= subnet.prefix()
}

/// Describes a default bridge whose addresses of the family are all outside our subnet.
fn elsewhere(bridges: &[Bridge], family: Family, own: IpNetwork) -> Option<String> {
    let (name, address) =
        bridges.iter().filter(|bridge| DEFAULTS.contains(&bridge.name.as_str())).find_map(|bridge| {
            let mut addresses = bridge.addresses.iter();
            Some((bridge.name, addresses.find(|address| Family::of(address.ip()) == family)?))
        })?;
    let subnet = format!("{}/{}", own.network(), own.prefix());
    Some(format!(
        "{name} has {address}, which is not in this host's subnet {subnet}, so other hosts do not reach its containers; {}",
        renew(name)
    ))
}

fn other_mtu(bridge: &Bridge, mtu: u32) -> Option<String> {
    let name = bridge.name;
    let carries = bridge.largest_port.or_else(|| Some(bridge.mtu).filter(|mtu| *mtu != DEFAULT_MTU))?;
    let so = match carries.cmp(&mtu) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Greater => "large packets to other hosts are lost",
        std::cmp::Ordering::Less => "packets are smaller than they could be",
    };
    Some(format!(
        "containers at {name} have an MTU of {carries}, and subnet.env says {mtu}, so {so}; {}",
        renew(name)
    ))
}

fn masqueraded(name: LinkName, ours: bool) -> String {
    let cure = match (name.as_str() == DOCKERS, ours) {
        (true, true) => "restart Docker (systemctl restart docker), so that it reads FLANNEL_IPMASQ=true in \
                         subnet.env and leaves masquerading to fland (--ip-masq=false)"
            .to_owned(),
        (true, false) => {
            "set FLAND_IP_MASQ=true in /etc/default/fland and restart first fland (systemctl restart \
                          fland), then Docker (systemctl restart docker)"
                .to_owned()
        }
        (false, _) => {
            "create its network with -o com.docker.network.bridge.enable_ip_masquerade=false, and start \
                       fland with --ip-masq"
                .to_owned()
        }
    };
    format!(
        "Docker masquerades what containers at {name} send to other hosts, so containers there see this host's address \
         in place of the container's; {cure}"
    )
}

/// Returns how to bring the bridge in line with `subnet.env`.
fn renew(name: LinkName) -> String {
    if name.as_str() == "cni0" {
        return "stop its containers, delete it (ip link del cni0) and start them again".to_owned();
    }
    "restart Docker with what subnet.env says (systemctl restart docker)".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(ip_masq: bool) -> SubnetEnv {
        let text = format!(
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ={ip_masq}\n"
        );
        SubnetEnv::parse(&text).unwrap()
    }

    fn bridge(name: &str, address: &str) -> Bridge {
        let addresses = address.split_whitespace().map(|address| address.parse().unwrap()).collect();
        Bridge { name: name.parse().unwrap(), mtu: 1500, largest_port: None, addresses }
    }

    fn told(bridges: &[Bridge]) -> Option<String> {
        difference(bridges, &[], &env(true))
    }

    #[test]
    fn a_bridge_in_the_subnet_is_right_whatever_its_name() {
        assert_eq!(told(&[bridge("docker0", "10.5.52.1/24")]), None);
        assert_eq!(told(&[bridge("docker0", "10.5.52.1/25")]), None, "the lower half");
        assert_eq!(told(&[bridge("docker0", "172.17.0.1/16"), bridge("br-apps", "10.5.52.1/24")]), None);
        assert_eq!(told(&[bridge("docker0", "172.17.0.1/16"), bridge("cni0", "10.5.52.1/24")]), None);
        assert_eq!(told(&[bridge("docker0", ""), bridge("virbr0", "192.168.122.1/24")]), None);
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn a_default_bridge_elsewhere_is_named_with_both() {
        assert_eq!(
            told(&[bridge("docker0", "172.17.0.1/16"), bridge("virbr0", "192.168.122.1/24")]).unwrap(),
            "docker0 has 172.17.0.1/16, which is not in this host's subnet 10.5.52.0/24, so other hosts do not reach its \
             containers; restart Docker with what subnet.env says (systemctl restart docker)"
        );
        let wide = told(&[bridge("docker0", "10.5.52.1/16")]).unwrap();
        assert!(wide.starts_with("docker0 has 10.5.52.1/16, which is not in"), "{wide}");
        let cni = told(&[bridge("cni0", "10.5.7.1/24")]).unwrap();
        assert!(cni.ends_with("delete it (ip link del cni0) and start them again"), "{cni}");
    }

    #[test]
    fn each_family_in_use_is_compared_where_the_bridge_has_it() {
        let text = "FLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPV6_SUBNET=fd00:5:0:34::1/64\nFLANNEL_MTU=1450\n";
        let env = SubnetEnv::parse(text).unwrap();
        let told = |addresses| difference(&[bridge("docker0", addresses)], &[], &env);
        assert_eq!(told("10.5.52.1/24"), None, "a Docker without IPv6");
        assert_eq!(told("10.5.52.1/24 fd00:5:0:34::1/64"), None);
        assert!(told("10.5.52.1/24 fd00:9::1/64").unwrap().contains("subnet fd00:5:0:34::/64"));
    }

    #[test]
    fn the_mtu_is_that_of_the_containers_where_there_are_any() {
        let mtu =
            |mtu, largest_port| told(&[Bridge { mtu, largest_port, ..bridge("docker0", "10.5.52.1/24") }]);
        assert_eq!(mtu(1500, None), None, "Docker leaves it so until a container starts");
        assert_eq!(mtu(1450, Some(1450)), None);
        assert_eq!(
            mtu(1450, Some(1500)).unwrap(),
            "containers at docker0 have an MTU of 1500, and subnet.env says 1450, so large packets to other hosts are \
             lost; restart Docker with what subnet.env says (systemctl restart docker)"
        );
        assert!(
            mtu(1400, None)
                .unwrap()
                .contains("have an MTU of 1400, and subnet.env says 1450, so packets are smaller")
        );
    }

    #[test]
    fn masquerading_is_told_with_what_ends_it() {
        let docker0 = [bridge("docker0", "10.5.52.1/24")];
        let told = |ip_masq| difference(&docker0, &["docker0".parse().unwrap()], &env(ip_masq)).unwrap();
        let seen = "Docker masquerades what containers at docker0 send to other hosts, so containers there see this host's \
                    address in place of the container's; ";
        assert!(told(false).starts_with(&format!("{seen}set FLAND_IP_MASQ=true in /etc/default/fland")));
        assert!(told(true).starts_with(&format!("{seen}restart Docker (systemctl restart docker), so that")));
        let apps = [bridge("br-apps", "10.5.52.129/25")];
        let told = difference(&apps, &["br-apps".parse().unwrap()], &env(true)).unwrap();
        assert!(told.contains("enable_ip_masquerade=false"), "{told}");
    }

    #[test]
    fn all_that_differs_is_told() {
        let docker0 = Bridge { largest_port: Some(1500), ..bridge("docker0", "10.5.52.1/24") };
        let told = difference(&[docker0], &["docker0".parse().unwrap()], &env(true)).unwrap();
        assert!(told.contains("an MTU of 1500") && told.contains("masquerades"), "{told}");
    }
}
