//! A host as flanneld sets one up, made by hand: device, forwarding, peers and lease as flannel's vxlan backend has
//! them. It stands for a flannel host beside flan hosts, and for what a flanneld leaves when it is stopped.

use std::fmt::Display;
use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::overlay::DEVICE;
use crate::store::Store;
use crate::subnet_env::SubnetEnv;

/// Seconds that flannel's leases live.
pub const LEASE_SECONDS: u32 = 86_400;

/// The value of a vxlan lease, byte for byte as flannel writes it.
pub fn lease_value(public_ip: impl Display, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// The value of a udp lease, byte for byte as flannel writes it.
pub fn udp_lease_value(public_ip: impl Display) -> String {
    format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null}}"#)
}

/// Sets the host up with `env`'s subnet: device, forwarding, rules, subnet.env and a lease of its own etcd lease.
/// Returns the device's MAC.
pub fn set_up(host: &Host, store: &Store, env: &SubnetEnv) -> Result<String> {
    let mac = set_up_kernel(host, env)?;
    let value = lease_value(host.address(), &mac);
    store.put_leased(&format!("subnets/{}", env.key()), &value, LEASE_SECONDS)?;
    write_subnet_env(host, env)?;
    Ok(mac)
}

/// The kernel's part of [`set_up`].
pub fn set_up_kernel(host: &Host, env: &SubnetEnv) -> Result<String> {
    let public_ip = host.address();
    host.ip(&format!(
        "link add {DEVICE} type vxlan id 1 dev eth0 local {public_ip} dstport 8472 nolearning"
    ))?;
    host.ip(&format!("link set {DEVICE} mtu {}", env.mtu))?;
    host.ip(&format!("address add {}/32 dev {DEVICE}", env.base_address()))?;
    host.ip(&format!("link set {DEVICE} up"))?;
    host.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
    add_rules(host, env)?;
    host.vtep_mac()
}

/// What flanneld's iptables mode does at its start, whatever stands: its chains are emptied, then filled.
pub fn add_rules(host: &Host, env: &SubnetEnv) -> Result<()> {
    let (network, subnet) = (env.network, env.base());
    let forward = ["-s", "-d"].map(|way| (format!("{way} {network}"), "ACCEPT"));
    fill_chain(host, "filter", "FLANNEL-FWD", "FORWARD", "flanneld forward", &forward)?;
    if !env.ip_masq {
        return Ok(());
    }
    let masquerade = [
        ("-m mark --mark 0x4000/0x4000".to_owned(), "RETURN"),
        (format!("-s {subnet} -d {network}"), "RETURN"),
        (format!("-s {network} -d {subnet}"), "RETURN"),
        (format!("! -s {network} -d {subnet}"), "RETURN"),
        (format!("-s {network} ! -d 224.0.0.0/4"), "MASQUERADE --random-fully"),
        (format!("! -s {network} -d {network}"), "MASQUERADE --random-fully"),
    ];
    fill_chain(host, "nat", "FLANNEL-POSTRTG", "POSTROUTING", "flanneld masq", &masquerade)
}

fn fill_chain(
    host: &Host,
    table: &str,
    chain: &str,
    from: &str,
    comment: &str,
    rules: &[(String, &str)],
) -> Result<()> {
    let run = |words: &str| {
        let words = words.split(' ').map(|word| if word == "COMMENT" { comment } else { word });
        host.run("iptables", &["-w", "-t", table].into_iter().chain(words).collect::<Vec<_>>())
    };
    let comment = "-m comment --comment COMMENT";
    if run(&format!("-N {chain}")).is_err() {
        run(&format!("-F {chain}"))?;
    }
    let jump = format!("{from} {comment} -j {chain}");
    if run(&format!("-C {jump}")).is_ok() {
        run(&format!("-D {jump}"))?;
    }
    run(&format!("-A {jump}"))?;
    rules.iter().try_for_each(|(packets, target)| {
        run(&format!("-A {chain} {packets} {comment} -j {target}")).map(drop)
    })
}

/// Adds a peer to a host that was [`set_up`]: neighbour, FDB entry and route, without a protocol of their own.
pub fn add_peer(host: &Host, subnet: &SubnetEnv, mac: &str, public_ip: Ipv4Addr) -> Result<()> {
    let base = subnet.base_address();
    host.ip(&format!("neighbour replace {base} lladdr {mac} dev {DEVICE} nud permanent"))?;
    host.run(
        "bridge",
        &["fdb", "replace", mac, "dev", DEVICE, "dst", &public_ip.to_string(), "self", "permanent"],
    )?;
    host.ip(&format!("route replace {} via {base} dev {DEVICE} onlink", subnet.base()))?;
    Ok(())
}

fn write_subnet_env(host: &Host, env: &SubnetEnv) -> Result<()> {
    let file = host.subnet_file();
    let dir = file.parent().context("subnet.env is in no directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let SubnetEnv { network, subnet, mtu, ip_masq } = env;
    let text = format!(
        "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={ip_masq}\n"
    );
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
