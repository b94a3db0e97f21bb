use clap::Parser;
use flan_subnet_lease::NetworkConfig;

use super::*;

const V4: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const V6: &str = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}"#;
const BOTH: &str = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}"#;

pub(super) fn interface(name: &str, index: u32, addresses: &[&str]) -> Interface {
    Interface {
        name: name.parse().unwrap(),
        index,
        mtu: 1500,
        up: true,
        carrier: true,
        loopback: name == "lo",
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        confined: BTreeSet::new(),
        bridge: false,
        master: None,
    }
}

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    interface: InterfaceArgs,
}

pub(super) fn args(arguments: &[&str]) -> InterfaceArgs {
    Flags::parse_from(std::iter::once("fland").chain(arguments.iter().copied())).interface
}

pub(super) fn overlays(config: &str) -> Overlays {
    NetworkConfig::parse(config.as_bytes()).unwrap().networks().collect()
}

fn host() -> Vec<Interface> {
    vec![
        interface("lo", 1, &["127.0.0.1/8"]),
        interface("eth0", 2, &["192.168.64.11/24", "192.168.64.111/24"]),
        interface("ens5", 3, &["10.0.0.11/8", "fd64::11/64", "fe80::11/64"]),
    ]
}

fn choose(survey: &Survey, arguments: &[&str], config: &str) -> Result<External, String> {
    let (args, overlays) = (args(arguments), overlays(config));
    Selection { args: &args, overlays: &overlays }.choose(survey).map_err(|error| error.to_string())
}

fn find(arguments: &[&str], config: &str) -> Result<External, String> {
    choose(&Survey { interfaces: host(), ..Survey::default() }, arguments, config)
}

fn shown(external: &External) -> (String, String) {
    (external.underlay.link.to_string(), external.underlay.addresses.v4.unwrap().to_string())
}

fn found(arguments: &[&str]) -> (String, String) {
    shown(&find(arguments, V4).unwrap())
}

/// Chooses by the default routes of the interfaces `routes`, in this order.
fn by_route(interfaces: Vec<Interface>, routes: &[u32], config: &str) -> Result<External, String> {
    choose(&Survey { interfaces, default_routes: routes.to_vec(), way: None }, &[], config)
}

fn doubt_about(interfaces: Vec<Interface>, routes: &[u32], arguments: &[&str]) -> Option<String> {
    let survey = Survey { interfaces, default_routes: routes.to_vec(), way: None };
    let (args, overlays) = (args(arguments), overlays(V4));
    let selection = Selection { args: &args, overlays: &overlays };
    selection.doubt(&selection.choose(&survey).unwrap(), &survey)
}

#[test]
fn an_interface_is_found_by_name_address_or_pattern_and_the_first_match_wins() {
    assert_eq!(found(&["--iface", "ens5"]), ("ens5".into(), "10.0.0.11".into()));
    assert_eq!(found(&["--iface", "192.168.64.111"]), ("eth0".into(), "192.168.64.111".into()));
    assert_eq!(found(&["--iface", "nope", "--iface", "eth0"]), ("eth0".into(), "192.168.64.11".into()));
    assert_eq!(found(&["--iface-regex", "^e"]), ("eth0".into(), "192.168.64.11".into()));
    assert_eq!(found(&["--iface-regex", r"^10\.0"]), ("ens5".into(), "10.0.0.11".into()));
}

#[test]
fn what_peers_send_to_may_differ_from_what_we_send_from() {
    let external = find(&["--iface", "eth0", "--public-ip", "203.0.113.5"], V4).unwrap();
    assert_eq!(external.underlay.addresses.v4, Some("192.168.64.11".parse().unwrap()));
    assert_eq!(external.public_ips.v4, Some("203.0.113.5".parse().unwrap()));
}

#[test]
fn what_peers_send_to_is_what_we_send_from_where_the_interface_has_it() {
    assert_eq!(
        found(&["--iface", "eth0", "--public-ip", "192.168.64.111"]),
        ("eth0".into(), "192.168.64.111".into())
    );
    // An explicit request is always met.
    assert_eq!(
        found(&["--iface", "192.168.64.11", "--public-ip", "192.168.64.111"]),
        ("eth0".into(), "192.168.64.11".into())
    );
}

#[test]
fn both_families_come_from_one_interface_and_link_local_addresses_do_not_count() {
    let external = find(&["--iface", "ens5"], BOTH).unwrap();
    assert_eq!(external.public_ips.v6, Some("fd64::11".parse().unwrap()));
    let error = find(&["--iface", "eth0"], V6).unwrap_err();
    assert_eq!(error, "interface eth0 has no IPv6 address, and the network uses IPv6");
}

#[test]
fn an_address_that_no_peer_can_send_to_is_refused() {
    assert_eq!(
        find(&["--iface-regex", "."], V4).unwrap_err(),
        "peers cannot send to 127.0.0.1 (IPv4 of lo), as it is not the address of one host; choose with --iface or --public-ip"
    );
    assert!(
        find(&["--iface", "eth0", "--public-ip", "10.5.9.9"], V4)
            .unwrap_err()
            .contains("inside the overlay network")
    );
}

#[test]
fn what_is_not_there_is_named_beside_what_is() {
    assert_eq!(
        find(&["--iface", "eth7"], V4).unwrap_err(),
        "no interface is called eth7; there are: eth0 (192.168.64.11 192.168.64.111), ens5 (10.0.0.11 fd64::11 fe80::11)"
    );
}

#[test]
fn the_interface_that_holds_the_public_ip_is_taken_whatever_the_default_route_says() {
    let at = |arguments: &[&str], config| {
        let survey = Survey { interfaces: host(), default_routes: vec![2], way: None };
        choose(&survey, arguments, config).unwrap()
    };
    let external = at(&["--public-ip", "10.0.0.11"], V4);
    assert_eq!(shown(&external), ("ens5".into(), "10.0.0.11".into()));
    assert_eq!(shown(&at(&["--public-ip", "192.168.64.111"], V4)), ("eth0".into(), "192.168.64.111".into()));
    let external = at(&["--public-ip", "203.0.113.5", "--public-ipv6", "fd64::11"], BOTH);
    assert_eq!(shown(&external), ("ens5".into(), "10.0.0.11".into()));
    assert_eq!(external.public_ips.v4, Some("203.0.113.5".parse().unwrap()));
    // An address of an unused family does not count.
    assert_eq!(shown(&at(&["--public-ipv6", "fd64::11"], V4)).0, "eth0");
}

#[test]
fn a_public_ip_that_no_interface_holds_is_that_of_a_nat() {
    let mut interfaces = host();
    interfaces[0].addresses.push("203.0.113.5/32".parse().unwrap());
    for ip in ["203.0.113.5", "203.0.113.6"] {
        let survey = Survey { interfaces: interfaces.clone(), default_routes: vec![2], way: None };
        let external = choose(&survey, &["--public-ip", ip], V4).unwrap();
        assert_eq!(shown(&external), ("eth0".into(), "192.168.64.11".into()), "{ip}");
        assert_eq!(external.public_ips.v4, Some(ip.parse().unwrap()));
    }
}

#[test]
fn a_named_interface_wins_over_the_one_with_the_public_ip() {
    let external = find(&["--iface", "eth0", "--public-ip", "10.0.0.11"], V4).unwrap();
    assert_eq!(shown(&external), ("eth0".into(), "192.168.64.11".into()));
}

#[test]
fn default_routes_by_our_own_devices_and_those_of_containers_are_passed_over() {
    let mut interfaces = host();
    interfaces.extend([
        interface("flannel.1", 4, &["192.168.64.77/24", "10.5.1.0/32"]),
        interface("docker0", 5, &["10.5.1.1/24"]),
        interface("mybridge", 6, &["10.5.1.1/24"]),
    ]);
    let external = by_route(interfaces.clone(), &[4, 5, 6, 3], V4).unwrap();
    assert_eq!(shown(&external), ("ens5".into(), "10.0.0.11".into()));
    let error = by_route(interfaces.clone(), &[4, 5], V4).unwrap_err();
    assert!(
        error.starts_with(
            "default routes lead only by flannel.1 (a device of the overlay network), docker0 (a bridge for \
             containers); name the external interface with --iface. There are: eth0 ("
        ),
        "{error}"
    );
    assert!(by_route(interfaces.clone(), &[6], V4).unwrap_err().contains("inside the overlay network"));
    assert!(by_route(interfaces, &[], V4).unwrap_err().starts_with("there is no default route"));
}

#[test]
fn an_interface_without_an_address_of_each_family_is_passed_over() {
    let external = by_route(host(), &[2, 3], BOTH).unwrap();
    assert_eq!(shown(&external), ("ens5".into(), "10.0.0.11".into()));
    let error = by_route(host(), &[2], BOTH).unwrap_err();
    assert_eq!(error, "interface eth0 has no IPv6 address, and the network uses IPv6");
}

#[test]
fn a_bridge_with_the_hosts_address_is_taken_by_default_route_and_its_ports_are_not() {
    let bridge = Interface { bridge: true, ..interface("br0", 5, &["192.168.64.12/24"]) };
    let port = Interface { master: Some(5), ..interface("veth0", 6, &["169.254.3.3/16"]) };
    let external = by_route(vec![port, bridge], &[6, 5], V4).unwrap();
    assert_eq!(shown(&external), ("br0".into(), "192.168.64.12".into()));
}

#[test]
fn a_pattern_finds_no_device_of_ours_and_no_address_of_the_overlay() {
    let interfaces = vec![
        interface("flannel.1", 2, &["10.5.1.0/32"]),
        interface("mybridge", 3, &["10.5.1.1/24"]),
        interface("ens5", 4, &["10.0.0.11/8"]),
    ];
    let survey = Survey { interfaces, ..Survey::default() };
    assert_eq!(shown(&choose(&survey, &["--iface-regex", r"^10\."], V4).unwrap()).0, "ens5");
    assert_eq!(shown(&choose(&survey, &["--iface-regex", "^f|^e"], V4).unwrap()).0, "ens5");
}

#[test]
fn addresses_that_rarely_work_come_last_and_are_told_of() {
    let only = |addresses: &[&str]| vec![interface("eth0", 2, addresses)];
    for better in ["192.168.88.3/24", "10.0.0.1/8"] {
        let interfaces = only(&["169.254.7.7/16", "127.0.0.5/8", "10.5.9.9/16", better]);
        let external = by_route(interfaces.clone(), &[2], V4).unwrap();
        assert_eq!(shown(&external).1, better.split('/').next().unwrap());
        assert_eq!(doubt_about(interfaces, &[2], &[]), None);
    }
    let interfaces = only(&["127.0.0.5/8", "169.254.7.7/16"]);
    assert_eq!(shown(&by_route(interfaces.clone(), &[2], V4).unwrap()).1, "169.254.7.7");
    assert_eq!(
        doubt_about(interfaces.clone(), &[2], &[]).unwrap(),
        "peers are told to send to 169.254.7.7 of eth0, and only hosts on the same link reach such a link-local address, \
         if any do; give eth0 another address, or choose with --iface or --public-ip"
    );
    // The flag is an explicit choice.
    assert!(doubt_about(interfaces, &[], &["--iface", "169.254.7.7"]).is_some());
}

#[test]
fn an_address_of_host_scope_comes_last_and_is_told_of() {
    let confined = |ip: &str| BTreeSet::from([ip.parse().unwrap()]);
    let both = ["10.1.1.1/32", "192.168.88.3/24"];
    let eth0 = Interface { confined: confined("10.1.1.1"), ..interface("eth0", 2, &both) };
    assert_eq!(shown(&by_route(vec![eth0], &[2], V4).unwrap()).1, "192.168.88.3");
    let eth0 = Interface { confined: confined("10.1.1.1"), ..interface("eth0", 2, &both[..1]) };
    assert!(doubt_about(vec![eth0], &[2], &[]).unwrap().contains("10.1.1.1 of eth0"));
}

#[test]
fn a_default_route_by_an_interface_with_a_good_address_comes_before_one_with_a_doubtful_address() {
    let interfaces =
        vec![interface("usb0", 2, &["169.254.7.7/16"]), interface("eth0", 3, &["192.168.88.3/24"])];
    assert_eq!(shown(&by_route(interfaces.clone(), &[2, 3], V4).unwrap()).0, "eth0");
    assert_eq!(shown(&by_route(interfaces, &[2], V4).unwrap()).0, "usb0");
}
