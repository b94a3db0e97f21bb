//! Leases, their keys and the network config: no text from the store makes a reader panic, and what was read means the
//! same once written and read again. What is too large for any of them is cut, to be kept and to be shown.

use flan_subnet_lease::{
    BackendConfig, Family, LeaseAttributes, NetworkConfig, SubnetPool, Subnets, VxlanData, kept, printable,
    shown, shown_bytes,
};
use serde_json::{Map, Value, json};

/// Bytes of a key that is kept whole, and of a text that is shown whole.
const WHOLE: usize = 256;
/// What `bytes` are repeated to: more than a lease may have.
const LARGE: usize = 10_000;

/// `bytes` are any of the three.
pub fn check(bytes: &[u8]) {
    check_cut(bytes, bytes);
    if !bytes.is_empty() {
        check_cut(bytes, &bytes.repeat(LARGE.div_ceil(bytes.len())));
    }
    check_attributes(bytes);
    check_config(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_subnets(text);
    }
}

/// Checks what is kept of a key and a value, and what is shown of both.
fn check_cut(bytes: &[u8], large: &[u8]) {
    let (key, value) = kept(large, large.to_vec());
    let is_whole = large.len() <= WHOLE && std::str::from_utf8(large).is_ok();
    assert_eq!(is_whole, key.as_bytes() == large, "key {key:?}");
    assert!(is_whole || key.contains('\u{fffd}') && key.len() <= WHOLE, "key {key:?}");
    assert!(is_whole || Subnets::from_key(&key).is_err(), "what was cut is a key: {key}");
    // Which of two like keys it is can still be told.
    let other = kept(&[large, b"A"].concat(), Vec::new()).0;
    assert_ne!(key, other, "two keys are one");
    let most = LeaseAttributes::MOST_BYTES;
    assert!(large.starts_with(&value) && value.capacity() <= large.len().min(most + 1), "{}", value.len());
    assert_eq!(value.len(), large.len().min(most + 1));
    assert!(value.len() <= most || LeaseAttributes::from_json(&value).is_err(), "what was cut is a lease");

    let text = String::from_utf8_lossy(large);
    for shown in [shown(&text).into_owned(), shown_bytes(large), shown_bytes(key.as_bytes())] {
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(shown.len() <= 10 * WHOLE + 30, "{} bytes are shown", shown.len());
        assert_eq!(printable(&shown), shown, "made printable twice");
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(text.len() > WHOLE || shown(text) == printable(text), "{text:?}");
    }
}

fn check_attributes(json: &[u8]) {
    let Ok(attributes) = LeaseAttributes::from_json(json) else { return };
    let _ = attributes.holder();
    let written = attributes.to_json();
    if written.len() > LeaseAttributes::MOST_BYTES {
        return; // numbers may be longer than they were
    }
    let again = LeaseAttributes::from_json(&written).expect("our own lease cannot be read");
    assert_eq!(again, attributes, "{}", written.escape_ascii());
    for family in Family::ALL {
        if let Some(vxlan) = attributes.vxlan(family) {
            let written = serde_json::to_value(vxlan).expect("VTEP data cannot be written");
            let again: VxlanData = serde_json::from_value(written).expect("our own VTEP data cannot be read");
            assert_eq!(again, vxlan);
        }
    }
}

fn check_subnets(text: &str) {
    if let Ok(subnets) = Subnets::from_key(text) {
        assert_eq!(subnets.key(), text, "two keys for the same subnets");
    }
    if let Ok(subnets) = text.parse::<Subnets>() {
        assert_eq!(Subnets::from_key(&subnets.key()), Ok(subnets));
        assert_eq!(subnets.to_string().parse(), Ok(subnets));
        assert!(subnets.overlaps(&subnets));
        assert!(
            subnets.iter().all(|(_, subnet)| subnet.ip() == subnet.network()),
            "{subnets} is off its boundary"
        );
    }
}

fn check_config(json: &[u8]) {
    let Ok(config) = NetworkConfig::parse(json) else { return };
    let _ = config.supported().map_err(|error| error.to_string());
    for warning in &config.warnings {
        let _ = warning.to_string();
    }
    for (_, pool) in config.pools.iter() {
        check_pool(pool);
    }
    let written = config_json(&config).to_string();
    let again = NetworkConfig::parse(written.as_bytes()).unwrap_or_else(|error| panic!("{written}: {error}"));
    assert_eq!((&again.pools, &again.backend), (&config.pools, &config.backend), "{written}");
    assert!(again.warnings.is_empty(), "{written}");
}

fn check_pool(pool: &SubnetPool) {
    assert!(pool.min() <= pool.max() && pool.capacity() > 0);
    for end in [pool.min(), pool.max()] {
        let subnet = ipnetwork::IpNetwork::new(end, pool.subnet_len()).expect("a length that is too long");
        assert!(pool.admits(&subnet), "{pool:?} does not hold its own {subnet}");
    }
}

/// The config as a person would write it.
fn config_json(config: &NetworkConfig) -> Value {
    let mut fields = Map::new();
    for (family, prefix, enable) in [(Family::V4, "", "EnableIPv4"), (Family::V6, "IPv6", "EnableIPv6")] {
        let pool = config.pools.get(family);
        fields.insert(enable.to_owned(), pool.is_some().into());
        if let Some(pool) = pool {
            fields.insert(format!("{prefix}Network"), pool.network().to_string().into());
            fields.insert(format!("{prefix}SubnetLen"), pool.subnet_len().into());
            fields.insert(format!("{prefix}SubnetMin"), pool.min().to_string().into());
            fields.insert(format!("{prefix}SubnetMax"), pool.max().to_string().into());
        }
    }
    fields.insert("Backend".to_owned(), backend_json(&config.backend));
    fields.into()
}

fn backend_json(backend: &BackendConfig) -> Value {
    let name = backend.name();
    match backend {
        BackendConfig::Vxlan(vxlan) => json!({
            "Type": name, "VNI": vxlan.vni, "Port": vxlan.port, "GBP": vxlan.gbp,
            "DirectRouting": vxlan.direct_routing, "Learning": vxlan.learning, "MTU": vxlan.mtu,
        }),
        BackendConfig::Udp(udp) => json!({
            "Type": name, "Port": udp.port, "StrictSource": udp.strict_source, "TunOffload": udp.tun_offload,
            "GSO": udp.gso, "GRO": udp.gro,
        }),
        BackendConfig::Wireguard(wireguard) => json!({
            "Type": name, "ListenPort": wireguard.listen_port, "ListenPortV6": wireguard.listen_port_v6,
        }),
        BackendConfig::HostGw(host_gw) => json!({ "Type": name, "StrictSource": host_gw.strict_source }),
        BackendConfig::Alloc => json!({ "Type": name }),
    }
}
