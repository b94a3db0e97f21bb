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

/// The rules that flanneld's iptables mode makes.
pub fn add_rules(host: &Host, env: &SubnetEnv) -> Result<()> {
    let (network, subnet) = (env.network, env.base());
    let in_chain = |table: &str, chain: &str, from: &str, comment: &str, rules: &[String]| -> Result<()> {
        let run = |rule: &str| {
            let words = rule.split(' ').map(|word| if word == "{}" { comment } else { word });
            host.run("iptables", &["-w", "-t", table].into_iter().chain(words).collect::<Vec<_>>())
        };
        run(&format!("-N {chain}"))?;
        run(&format!("-A {from} -m comment --comment {{}} -j {chain}"))?;
        rules.iter().try_for_each(|rule| run(&format!("-A {chain} {rule}")).map(drop))
    };
    let accept = |direction| format!("{direction} {network} -m comment --comment {{}} -j ACCEPT");
    let forward = [accept("-s"), accept("-d")];
    in_chain("filter", "FLANNEL-FWD", "FORWARD", "flanneld forward", &forward)?;
    if !env.ip_masq {
        return Ok(());
    }
    let rule = |what: &str, then: &str| format!("{what} -m comment --comment {{}} -j {then}");
    let masquerade = [
        rule("-m mark --mark 0x4000/0x4000", "RETURN"),
        rule(&format!("-s {subnet} -d {network}"), "RETURN"),
        rule(&format!("-s {network} -d {subnet}"), "RETURN"),
        rule(&format!("! -s {network} -d {subnet}"), "RETURN"),
        rule(&format!("-s {network} ! -d 224.0.0.0/4"), "MASQUERADE --random-fully"),
        rule(&format!("! -s {network} -d {network}"), "MASQUERADE --random-fully"),
    ];
    in_chain("nat", "FLANNEL-POSTRTG", "POSTROUTING", "flanneld masq", &masquerade)
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
