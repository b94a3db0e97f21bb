//! Hosts whose kernel encrypts, by WireGuard.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::end::End;
use flan_integration::{Host, Lab, LabOptions, wait};
use serde_json::json;

use crate::stage::{hosts_that_reach, killed_and_restarted_nothing_is_lost_or_changed, wait_until_reached};
use crate::wireguard::{
    NO_FLAGS, REACHED, a_key_is_rotated_under_traffic, a_peer_by_hand, a_peer_that_roams_stays_where_it_is,
    a_person_sees_each_peer, each_lease_has_the_key, large_transfers_arrive, network, no_secret_is_shown,
    nothing_passes_in_clear, public_key, put_leases_of_nobody,
};

const DEVICE: &str = "flannel-wg";

/// What another program takes away is back within this time, with a second for a machine that does other things.
const REPAIR: Duration = Duration::from_secs(4);

/// What a host's kernel has for this backend, without what changes with the traffic.
fn standing(host: &Host) -> Result<String> {
    let device = host.ip(&format!("-details -oneline link show {DEVICE}"))?;
    let (_, device) = device.split_once(": ").context("no index")?;
    let addresses = host.ip(&format!("-oneline -4 address show dev {DEVICE}"))?;
    let (_, addresses) = addresses.split_once(": ").context("no index")?;
    let routes = host.ip("-4 route show proto 102")?;
    let mut all = vec![device.to_owned(), addresses.to_owned(), routes];
    for part in
        ["public-key", "listen-port", "preshared-keys", "endpoints", "allowed-ips", "persistent-keepalive"]
    {
        all.push(sorted(&host.run("wg", &["show", DEVICE, part])?));
    }
    Ok(all.join("\n"))
}

/// The kernel lists peers in the order in which they came.
fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn hosts_encrypt_in_the_kernel_and_what_others_change_is_repaired() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, ends) = hosts_that_reach(lab, &network("auto"), &[NO_FLAGS; 2])?;
        every_kernel_knows_the_other_by_its_key(&hosts)?;
        each_lease_has_the_key(lab, &hosts)?;
        nothing_passes_in_clear(&mut hosts[0], &ends)?;
        killed_and_restarted_nothing_is_lost_or_changed(&mut hosts, standing)?;
        whatever_another_program_changes_is_repaired(&hosts, &ends)?;
        a_person_sees_each_peer(&hosts, "kernel")?;
        no_secret_is_shown(&hosts)?;
        an_agent_that_is_aborted_leaves_no_core(&hosts[0])
    })
}

fn every_kernel_knows_the_other_by_its_key(hosts: &[Host]) -> Result<()> {
    for (host, peer) in [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])] {
        assert_eq!(host.status()?["path"], json!({"path": "kernel", "reason": "the kernel has WireGuard"}));
        assert_eq!(host.run("wg", &["show", DEVICE, "public-key"])?.trim(), public_key(host)?);
        let peers = host.run("wg", &["show", DEVICE, "allowed-ips"])?;
        assert_eq!(peers.trim(), format!("{}\t{}", public_key(peer)?, peer.subnet_env()?.base()));
        let warnings = host.log_lines(&[" WARN "])?;
        ensure!(warnings.is_empty(), "{warnings:?}");
    }
    Ok(())
}

fn whatever_another_program_changes_is_repaired(hosts: &[Host], ends: &[End]) -> Result<()> {
    let host = &hosts[0];
    let (before, peer) = (standing(host)?, public_key(&hosts[1])?);
    for damage in [
        format!("wg set {DEVICE} peer {peer} remove"),
        format!("wg set {DEVICE} peer {peer} allowed-ips 10.9.0.0/24"),
        format!("wg set {DEVICE} peer {peer} preshared-key /dev/null"),
        format!("wg set {DEVICE} peer {peer} persistent-keepalive 7"),
        format!("wg set {DEVICE} peer $(wg genkey | wg pubkey) allowed-ips 10.5.250.0/24"),
        format!("wg set {DEVICE} listen-port 7"),
        format!("wg genkey > /run/other && wg set {DEVICE} private-key /run/other"),
        format!("ip link del {DEVICE}"),
        format!("ip link set {DEVICE} down"),
        format!("ip link set {DEVICE} mtu 1300"),
        format!("ip address flush dev {DEVICE}"),
        "ip route del 10.5.0.0/16".to_owned(),
    ] {
        let started = Instant::now();
        host.run("sh", &["-c", &damage])?;
        wait::until(&format!("{damage}, to be repaired"), REPAIR, || {
            let now = standing(host)?;
            ensure!(now == before, "{now}\ninstead of\n{before}");
            Ok(())
        })?;
        println!("{damage}: repaired after {:?}", started.elapsed());
    }
    wait_until_reached(&ends[0], &ends[1], REACHED)?;
    wait_until_reached(&ends[1], &ends[0], REACHED)
}

/// Its memory holds the key. The machine is ours alone, so its setting may change.
fn an_agent_that_is_aborted_leaves_no_core(host: &Host) -> Result<()> {
    std::fs::write("/proc/sys/kernel/core_pattern", "/run/core")?;
    let abort =
        |pid: &str| format!("prlimit --pid {pid} --core=unlimited; kill -ABRT {pid}; sleep 3; ls /run");
    let left = host.run("sh", &["-c", &format!("sleep 99 & pid=$!; {}", abort("$pid"))])?;
    ensure!(left.lines().any(|line| line.starts_with("core")), "not even another program left one: {left}");
    let pid = host.agent_pid().context("no agent")?.to_string();
    let left = host.run("sh", &["-c", &format!("rm /run/core*; {}", abort(&pid))])?;
    ensure!(!left.lines().any(|line| line.starts_with("core")), "{left}");
    Ok(())
}

/// A kernel's peer, a program's, and one that neither flan nor the kernel of this host knows anything of but its lease.
#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn peers_are_followed_by_their_key_wherever_they_are() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let user: &[&str] = &["--wireguard-path=user"];
        let (mut hosts, ends) = hosts_that_reach(lab, &network("auto"), &[&[], &[], user])?;
        assert_eq!(hosts[2].status()?["path"]["path"], json!("user"));
        large_transfers_arrive(&ends[1..], 4)?;
        let other = lab.host("other")?;
        other.ip("link add wg0 type wireguard")?;
        a_peer_by_hand(lab, &hosts[0], &other, "wg0")?;
        let target: std::net::Ipv4Addr = "10.5.200.1".parse()?;
        wait::until("the peer made by hand to answer", REACHED, || hosts[0].ping_once(target))?;
        a_key_is_rotated_under_traffic(&mut hosts[..2])?;
        a_new_key_replaces_the_old_one(lab, &hosts[0])?;
        a_peer_that_roams_stays_where_it_is(lab, &hosts, &ends)
    })
}

/// A host of flannel made itself a key at its last boot, and another at this one.
fn a_new_key_replaces_the_old_one(lab: &Lab, host: &Host) -> Result<()> {
    let subnet = "subnets/10.5.210.0-24";
    let key =
        || -> Result<String> { Ok(host.run("sh", &["-c", "wg genkey | wg pubkey"])?.trim().to_owned()) };
    let known = |key: &str, other: &str| {
        wait::until("the peer's new key", REACHED, || {
            let allowed = host.run("wg", &["show", DEVICE, "allowed-ips"])?;
            ensure!(allowed.contains(&format!("{key}\t10.5.210.0/24")), "{allowed}");
            ensure!(other.is_empty() || !allowed.contains(other), "{allowed}");
            Ok(())
        })
    };
    let (old, new) = (key()?, key()?);
    let lease = |key: &str| {
        format!(
            r#"{{"PublicIP":"192.168.64.200","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{key}"}}}}"#
        )
    };
    lab.store().put(subnet, &lease(&old))?;
    known(&old, "")?;
    // Without a port in the lease, the network's is meant.
    let endpoints = host.run("wg", &["show", DEVICE, "endpoints"])?;
    ensure!(endpoints.contains(&format!("{old}\t192.168.64.200:51820")), "{endpoints}");
    lab.store().put(subnet, &lease(&new))?;
    known(&new, &old)?;
    // Two leases of one host.
    lab.store().put("subnets/10.5.211.0-24", &lease(&new))?;
    wait::until("both subnets of the peer", REACHED, || {
        let allowed = host.run("wg", &["show", DEVICE, "allowed-ips"])?;
        let of_peer = allowed.lines().find(|line| line.starts_with(&new)).unwrap_or_default();
        ensure!(of_peer.contains("10.5.210.0/24") && of_peer.contains("10.5.211.0/24"), "{allowed}");
        Ok(())
    })?;
    lab.store().delete(subnet)?;
    wait::until("one subnet of the peer to be gone", REACHED, || {
        let allowed = host.run("wg", &["show", DEVICE, "allowed-ips"])?;
        ensure!(allowed.contains(&format!("{new}\t10.5.211.0/24\n")), "{allowed}");
        Ok(())
    })
}

/// A thousand leases are a thousand peers. The device goes with its namespace: the kernel takes its time for each peer.
#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn a_kernel_knows_a_thousand_peers() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let config = r#"{"Network":"10.0.0.0/8","SubnetMin":"10.200.0.0","Backend":{"Type":"wireguard"}}"#;
        let (hosts, ends) = hosts_that_reach(lab, config, &[NO_FLAGS; 2])?;
        put_leases_of_nobody(lab, 1000)?;
        wait::until("the kernel to know all peers", Duration::from_secs(30), || {
            let peers = hosts[0].run("wg", &["show", DEVICE, "peers"])?.lines().count();
            ensure!(peers == 1001, "{peers} peers");
            Ok(())
        })?;
        wait_until_reached(&ends[0], &ends[1], REACHED)
    })
}
