use proptest::prelude::*;

use super::*;
use crate::backend_config::{PathChoice, UdpConfig, VxlanConfig, WireguardConfig, WireguardMode};

fn parse(json: &str) -> Result<NetworkConfig, String> {
    NetworkConfig::parse(json.as_bytes()).map_err(|error| error.to_string())
}

/// Parses a config with these fields and a backend.
fn with_backend(fields: &str) -> Result<NetworkConfig, String> {
    parse(&format!(r#"{{{fields}, "Backend": {{"Type": "vxlan"}}}}"#))
}

/// Parses a config with a valid network and these fields.
fn with_network(fields: &str) -> Result<NetworkConfig, String> {
    parse(&format!(r#"{{"Network": "10.5.0.0/16", {fields}}}"#))
}

fn warnings(config: &NetworkConfig) -> Vec<String> {
    config.warnings.iter().map(ToString::to_string).collect()
}

fn v4(config: &NetworkConfig) -> (String, u8, String, String) {
    let pool = config.pools.v4.unwrap();
    (pool.network().to_string(), pool.subnet_len(), pool.min().to_string(), pool.max().to_string())
}

#[test]
fn a_network_and_a_backend_get_flannels_defaults() {
    let config = parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
    assert_eq!(v4(&config), ("10.5.0.0/16".into(), 24, "10.5.1.0".into(), "10.5.255.0".into()));
    assert_eq!(config.pools.v4.unwrap().capacity(), 255);
    assert_eq!(config.backend, BackendConfig::Vxlan(VxlanConfig::default()));
    assert_eq!((config.pools.v6, config.warnings), (None, vec![]));
}

#[test]
fn of_a_config_that_is_junk_little_is_said() {
    let long = |bytes: usize| parse(&format!(r#"{{"Network": "{}"}}"#, "A".repeat(bytes))).unwrap_err();
    assert_eq!(
        long(1 << 20),
        "the network config has 1048591 bytes; fland reads at most 65536: write a smaller one with flanctl config set"
    );
    assert!(long(60_000).contains("A... (60002 bytes) cannot be read") && long(60_000).len() < 500);
    let text = format!(r#""{}""#, "A".repeat(60_000));
    assert!(parse(&text).unwrap_err().len() < 500, "a text is no object");
    let fields: String = (0..2000).map(|number| format!(r#""f{number}\u001b": 1, "#)).collect();
    let warnings = warnings(&with_backend(&format!(r#"{fields}"Network": "10.5.0.0/16""#)).unwrap());
    assert!(warnings.len() <= 21, "{} warnings", warnings.len());
    assert!(warnings.last().unwrap().contains("more fields"), "{warnings:?}");
    assert!(warnings.iter().all(|warning| !warning.contains('\u{1b}')), "{warnings:?}");
}

#[test]
fn a_config_without_backend_is_udp_and_says_so() {
    let config = parse(r#"{"Network": "10.5.0.0/16"}"#).unwrap();
    assert_eq!(config.backend, BackendConfig::Udp(UdpConfig::default()));
    assert_eq!(
        warnings(&config),
        [concat!(
            "the network config names no Backend: flannel takes udp then, and so does fland; write it out, as ",
            r#""Backend": {"Type": "udp"}, or as "Backend": {"Type": "vxlan"} for vxlan"#
        )]
    );
}

#[test]
fn a_backend_that_says_nothing_is_refused() {
    for (backend, message) in [
        ("{}", "Backend.Type is missing: fland has vxlan, udp, host-gw, alloc and wireguard"),
        (r#"{"VNI": 7}"#, "Backend.Type is missing: fland has vxlan, udp, host-gw, alloc and wireguard"),
        (r#"{"Type": null}"#, "Backend.Type is missing: fland has vxlan, udp, host-gw, alloc and wireguard"),
        (
            r#"{"Type": ""}"#,
            "Backend.Type \"\" is not a backend of this fland; vxlan, udp, host-gw, alloc and wireguard are",
        ),
        ("null", r#"Backend null is not an object; {"Type": "vxlan"} is one"#),
        (r#""vxlan""#, r#"Backend "vxlan" is not an object; {"Type": "vxlan"} is one"#),
        (r#"["vxlan"]"#, r#"Backend ["vxlan"] is not an object; {"Type": "vxlan"} is one"#),
    ] {
        assert_eq!(with_network(&format!(r#""Backend": {backend}"#)).unwrap_err(), message);
    }
}

#[test]
fn of_a_field_that_is_there_twice_the_last_one_counts_and_a_warning_says_so() {
    let config = parse(
        r#"{"Network": "10.5.0.0/16", "network": "10.6.0.0/16", "SubnetLen": 26, "SubnetLen": 25,
            "Backend": {"Type": "udp"}, "BACKEND": {"Type": "vxlan", "VNI": 2, "vni": 7}}"#,
    )
    .unwrap();
    assert_eq!(v4(&config), ("10.6.0.0/16".into(), 25, "10.6.0.128".into(), "10.6.255.128".into()));
    assert_eq!(config.backend, BackendConfig::Vxlan(VxlanConfig { vni: 7, ..VxlanConfig::default() }));
    let twice = |field: &str, names: &str| {
        format!(
            "the network config has the field {field} 2 times, as {names}; the last one counts, as with flannel"
        )
    };
    assert_eq!(
        warnings(&config),
        [
            twice("Backend.VNI", "VNI and vni"),
            twice("Network", "Network and network"),
            twice("SubnetLen", "SubnetLen and SubnetLen"),
            twice("Backend", "Backend and BACKEND"),
        ]
    );
    let error = with_network(r#""Backend": {"Type": "vxlan"}, "backend": null"#).unwrap_err();
    assert!(error.starts_with("Backend null is not an object"), "{error}");
}

#[test]
fn a_byte_order_mark_is_passed_over_and_told() {
    let json = "\u{feff}{\"Network\": \"10.5.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}";
    let config = parse(json).unwrap();
    assert!(config.agrees_with(&parse(json.trim_start_matches('\u{feff}')).unwrap()));
    assert_eq!(
        warnings(&config),
        ["the network config begins with a byte order mark, which flanneld refuses and fland ignores; \
             flanctl config set writes the config without it"]
    );
    let utf16: Vec<u8> = json.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let error = NetworkConfig::parse(&utf16).unwrap_err().to_string();
    assert_eq!(error, "the network config is UTF-16 text; save it as UTF-8");
}

#[test]
fn what_flannel_is_told_of_nftables_changes_nothing() {
    let vxlan = r#""Backend": {"Type": "vxlan"}"#;
    let plain = with_network(vxlan).unwrap();
    for value in ["true", "false"] {
        assert_eq!(with_network(&format!(r#""EnableNFTables": {value}, {vxlan}"#)).unwrap(), plain);
    }
}

#[test]
fn what_fland_runs_is_supported_and_the_rest_refused_by_name() {
    let both = r#""EnableIPv6": true, "IPv6Network": "fd00:5::/48""#;
    let on = |backend: &str| format!(r#""Backend": {{"Type": "{backend}"}}"#);
    let judge = |fields: &str| {
        with_network(fields).and_then(|config| config.supported().map_err(|error| error.to_string()))
    };
    for backend in ["vxlan", "host-gw", "alloc", "udp", "wireguard"] {
        assert_eq!(judge(&on(backend)), Ok(()), "{backend}");
    }
    for backend in ["vxlan", "host-gw", "alloc", "wireguard"] {
        assert_eq!(judge(&format!("{both}, {}", on(backend))), Ok(()), "{backend}");
    }
    assert_eq!(judge(r#""Backend": {"Type": "vxlan", "DirectRouting": true}"#), Ok(()));
    let udp = "EnableIPv6 true does not work with backend udp, which does not carry IPv6; \
               vxlan, host-gw, alloc and wireguard carry it";
    assert_eq!(judge(&format!("{both}, {}", on("udp"))), Err(udp.to_owned()));
    let implied = format!("{udp}; without Backend in the network config the backend is udp");
    assert_eq!(judge(both), Err(implied));
    let refused =
        "Backend.Type \"ipip\" is not a backend of this fland; vxlan, udp, host-gw, alloc and wireguard are";
    assert_eq!(judge(&on("ipip")), Err(refused.to_owned()));
}

#[test]
fn a_lease_names_the_backends_that_flannel_names_there() {
    for (backend, named) in
        [("vxlan", Some("vxlan")), ("udp", None), ("host-gw", Some("host-gw")), ("alloc", None)]
    {
        let config = with_network(&format!(r#""Backend": {{"Type": "{backend}"}}"#)).unwrap();
        assert_eq!((config.backend.name(), config.backend.lease_type()), (backend, named));
    }
}

#[test]
fn wireguard_is_configured_as_flannels() {
    let with = |fields: &str| {
        with_network(&format!(r#""Backend": {{"Type": "wireguard"{fields}}}"#))
            .map(|config| config.backend)
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        with(r#", "PSK": "", "Mode": "Separate""#),
        Ok(BackendConfig::Wireguard(WireguardConfig::default()))
    );
    let psk = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    let all = format!(
        r#", "ListenPort": 7000, "ListenPortV6": 7001, "PSK": "{psk}", "MTU": 1400, "Mode": "auto",
        "PersistentKeepaliveInterval": 30, "Path": "user""#
    );
    let wanted = WireguardConfig {
        listen_port: 7000,
        listen_port_v6: 7001,
        preshared_key: Some(psk.parse().unwrap()),
        mtu: Some(1400),
        mode: WireguardMode::Auto,
        keepalive: 30,
        path: PathChoice::User,
    };
    assert_eq!(with(&all), Ok(BackendConfig::Wireguard(wanted)));
    for (fields, error) in [
        (r#", "Mode": "both""#, "Backend.Mode \"both\" is none of separate, auto, ipv4 and ipv6"),
        (r#", "MTU": 600"#, "Backend.MTU 600 is not a number from 656 to 65535"),
        (
            r#", "PersistentKeepaliveInterval": 70000"#,
            "Backend.PersistentKeepaliveInterval 70000 is not a number from 0 to 65535",
        ),
        (
            r#", "PSK": "c2VjcmV0""#,
            "Backend.PSK (not shown here) is no WireGuard key: it has 6 bytes, a key has 32",
        ),
        (r#", "PSK": 31415"#, "Backend.PSK (not shown here) has the wrong type: a text is expected"),
    ] {
        assert_eq!(with(fields), Err(error.to_owned()));
    }
    let over = |mode: &str| -> Vec<String> {
        let config =
            with_network(&format!(r#""Backend": {{"Type": "wireguard", "Mode": "{mode}"}}"#)).unwrap();
        config.over_underlay().map(|(family, network)| format!("{network} over {family}")).collect()
    };
    assert_eq!(over("separate"), ["10.5.0.0/16 over IPv4"]);
    assert_eq!(over("ipv6"), ["10.5.0.0/16 over IPv6"]);
    let both = with_network(
        r#""EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "wireguard", "ListenPortV6": 51820}"#,
    );
    assert!(both.unwrap_err().to_string().contains("Backend.ListenPortV6 51820 is ListenPort, too"));
}

#[test]
fn names_are_matched_without_regard_to_case() {
    let config =
        parse(r#"{"network": "10.5.7.9/16", "SUBNETLEN": 28, "backend": {"type": "VXLAN", "vni": 7}}"#)
            .unwrap();
    assert_eq!(v4(&config), ("10.5.0.0/16".into(), 28, "10.5.0.16".into(), "10.5.255.240".into()));
    assert_eq!(config.backend, BackendConfig::Vxlan(VxlanConfig { vni: 7, ..VxlanConfig::default() }));
}

#[test]
fn a_network_smaller_than_22_bits_is_cut_in_four() {
    let config = with_backend(r#""Network": "10.5.0.0/26""#).unwrap();
    assert_eq!(v4(&config), ("10.5.0.0/26".into(), 28, "10.5.0.16".into(), "10.5.0.48".into()));
    assert_eq!(v4(&with_backend(r#""Network": "10.5.0.0/28""#).unwrap()).1, 30);
}

#[test]
fn both_families_are_read() {
    let config =
        with_network(r#""EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}"#)
            .unwrap();
    let v6 = config.pools.v6.unwrap();
    assert_eq!((v6.subnet_len(), v6.min().to_string()), (64, "fd00:5:0:1::".into()));
    assert_eq!(v6.max().to_string(), "fd00:5:0:ffff::");
}

#[test]
fn ipv6_alone_is_enough() {
    let config =
        with_backend(r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "2000::/3""#).unwrap();
    assert_eq!(config.pools.v4, None);
    assert_eq!(config.pools.v6.unwrap().capacity(), (1 << 61) - 1);
}

#[test]
fn a_misspelt_field_is_told() {
    let config =
        parse(r#"{"Network": "10.5.0.0/16", "SubnetLenn": 26, "Backend": {"Type": "vxlan", "VIN": 2}}"#);
    let told = |field: &str| {
        format!(
            "the network config has the field {field}, which neither flannel nor fland knows; it is ignored"
        )
    };
    assert_eq!(warnings(&config.unwrap()), [told("Backend.VIN"), told("SubnetLenn")]);
}

#[test]
fn an_error_names_the_field_the_value_and_what_would_work() {
    for (fields, message) in [
        (
            r#""Network": "10.5.0.0/16", "SubnetMin": "10.4.0.0""#,
            "SubnetMin 10.4.0.0 is outside Network 10.5.0.0/16",
        ),
        (
            r#""Network": "10.5.0.0/16", "SubnetMax": "10.5.9.1""#,
            "SubnetMax 10.5.9.1 is not on a boundary of /24 subnets; 10.5.9.0 is",
        ),
        (
            r#""Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0""#,
            "SubnetMin 10.5.9.0 is above SubnetMax 10.5.8.0",
        ),
        (
            r#""Network": "10.5.0.0/16", "SubnetLen": 17"#,
            "SubnetLen 17 is not from 18 to 30, as Network is a /16",
        ),
        (r#""Network": "10.5.0.0/16", "SubnetLen": 300"#, "SubnetLen 300 is not a number from 0 to 30"),
        (r#""Network": "10.5.0.0""#, "Network \"10.5.0.0\" cannot be read; expected 10.5.0.0/16"),
        (
            r#""Network": "127.0.0.0/16""#,
            "Network 127.0.0.0/16 contains no host addresses; 10.5.0.0/16 would",
        ),
        (
            r#""Network": "10.5.0.0/29""#,
            "Network 10.5.0.0/29 is too small for four subnets; the smallest is a /28",
        ),
        (r#""Network": "10.5.0/16""#, "Network \"10.5.0/16\" cannot be read; expected 10.5.0.0/16"),
        (r#""Network": "fd00::/48""#, "Network fd00::/48 is not an IPv4 network; 10.5.0.0/16 would be"),
        (
            r#""Network": "10.5.0.0/16", "SubnetMin": """#,
            "SubnetMin \"\" cannot be read; expected an address",
        ),
        (r#""EnableIPv4": false"#, "EnableIPv4 false leaves no family: set EnableIPv6 to true"),
    ] {
        assert_eq!(with_backend(fields).unwrap_err(), message);
    }
    for (setting, message) in [
        (r#""vxlan", "VNI": 16777216"#, "VNI 16777216 is not a number from 1 to 9999999"),
        (r#""vxlan", "VNI": 0"#, "VNI 0 is not a number from 1 to 9999999"),
        (r#""vxlan", "Port": 70000"#, "Port 70000 is not a number from 0 to 65535"),
        (r#""udp", "Port": 70000"#, "Port 70000 is not a number from 0 to 65535"),
        (r#""vxlan", "MTU": 0"#, "MTU 0 is not a number from 646 to 65535"),
    ] {
        let error = with_network(&format!(r#""Backend": {{"Type": {setting}}}"#)).unwrap_err();
        assert_eq!(error, format!("Backend.{message}"));
    }
    assert_eq!(
        parse("{}").unwrap_err(),
        "Network is missing: give the IPv4 network to take subnets from, such as 10.5.0.0/16, or set EnableIPv4 to false"
    );
    assert!(parse("[1]").unwrap_err().starts_with("the network config is not a JSON object"));
}

const NAMES: [&str; 12] = [
    "Network",
    "IPv6Network",
    "EnableIPv4",
    "EnableIPv6",
    "SubnetLen",
    "SubnetMin",
    "Backend",
    "Type",
    "VNI",
    "MTU",
    "Port",
    "",
];
const VALUES: [&str; 12] = [
    r#""10.5.0.0/16""#,
    r#""fd00::/8""#,
    r#""10.5.1.0""#,
    r#""udp""#,
    r#""VXLAN""#,
    "true",
    "null",
    "24",
    "-1",
    "1e999",
    "[]",
    r#"{"Type": "vxlan", "type": null}"#,
];

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(json: Vec<u8>) {
        let _ = NetworkConfig::parse(&json);
    }

    /// Objects with known names, in any case and number, and values of all types.
    #[test]
    fn any_fields_are_read_without_panic(
        fields in proptest::collection::vec((0..NAMES.len(), 0..VALUES.len(), any::<bool>()), 0..8),
    ) {
        let object = |fields: &[(usize, usize, bool)]| {
            let fields = fields.iter().map(|(name, value, upper)| {
                let name = if *upper { NAMES[*name].to_uppercase() } else { NAMES[*name].to_owned() };
                format!("{name:?}: {}", VALUES[*value])
            });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        };
        let (outer, inner) = fields.split_at(fields.len() / 2);
        let _ = parse(&object(&fields)).map(|config| config.supported().is_ok());
        let json = with_network(&format!(r#""Backend": {}, "x": {}"#, object(inner), object(outer)));
        let _ = json.map(|config| config.supported().is_ok());
    }

    #[test]
    fn every_subnet_of_a_pool_is_its_own_and_inside(bits in 0x0100_0000u32..0x7f00_0000, length in 8u8..=28, extra in 2u8..=14, pick: u32) {
        let fields = format!(r#""Network": "{}/{length}", "SubnetLen": {}"#,
            Family::V4.address(bits.into()), (length + extra).min(30));
        let pool = with_backend(&fields).unwrap().pools.v4.unwrap();
        let index = u128::from(pick) % pool.capacity();
        let subnet = pool.subnet(index).unwrap();
        prop_assert!(pool.admits(&subnet));
        prop_assert_eq!(pool.indices(&subnet), Some((index, index)));
        prop_assert_eq!(pool.subnet(pool.capacity()), None);
    }
}
