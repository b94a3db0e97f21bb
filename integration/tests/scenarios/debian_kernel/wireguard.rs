//! Hosts whose kernel encrypts, by WireGuard.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::end::End;
use flan_integration::host::{STATUS_FLAGS, WIREGUARD_KEY, contains, on_all};
use flan_integration::{Host, Lab, LabOptions, wait};
use serde_json::{Value, json};

use crate::stage::{bare_hosts, ends_of, wait_until_reached};

const PSK: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
const DEVICE: &str = "flannel-wg";

/// Pings answered in each phase of a story.
const PHASE: usize = 100;

const REACHED: Duration = Duration::from_secs(15);

/// What another program takes away is back within this time, with a second for a machine that does other things.
const REPAIR: Duration = Duration::from_secs(4);

fn network(fields: &str) -> String {
    format!(
        r#"{{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{{"Type":"wireguard","PSK":"{PSK}","Path":"kernel"{fields}}}}}"#
    )
}

fn hosts(lab: &Lab, count: usize) -> Result<(Vec<Host>, Vec<End>)> {
    lab.set_network(&network(""))?;
    let mut hosts = bare_hosts(lab, count)?;
    on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
    let ends = ends_of(&hosts)?;
    for from in &ends {
        for to in ends.iter().filter(|to| to.address != from.address) {
            wait_until_reached(from, to, REACHED)?;
        }
    }
    Ok((hosts, ends))
}

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

fn public_key(host: &Host) -> Result<String> {
    Ok(host.run("wg", &["show", DEVICE, "public-key"])?.trim().to_owned())
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn hosts_encrypt_in_the_kernel_and_what_others_change_is_repaired() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, ends) = hosts(lab, 2)?;
        every_host_is_known_by_its_key(lab, &hosts)?;
        nothing_passes_in_clear(&mut hosts[0], &ends)?;
        killed_and_restarted_nothing_is_lost_or_changed(&mut hosts)?;
        whatever_another_program_changes_is_repaired(&hosts, &ends)?;
        a_person_sees_each_peer(&hosts)?;
        no_secret_is_shown(&hosts)
    })
}

fn every_host_is_known_by_its_key(lab: &Lab, hosts: &[Host]) -> Result<()> {
    for (host, peer) in [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])] {
        assert_eq!(
            host.status()?["path"],
            json!({"path": "kernel", "reason": "Backend.Path in the network config asks for it"})
        );
        let env = host.subnet_env()?;
        assert_eq!(env.mtu, 1420);
        let text = lab.store().value(&format!("subnets/{}", env.key()))?.context("no lease")?;
        let key = public_key(host)?;
        let data = format!(r#""BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}}"#);
        ensure!(text.contains(&data), "{text}");
        // Debian's wg reads our file.
        let piped = format!("wg pubkey < {WIREGUARD_KEY}");
        assert_eq!(host.run("sh", &["-c", &piped])?.trim(), key);
        let mode = host.run("stat", &["-c", "%a", WIREGUARD_KEY])?;
        assert_eq!(mode.trim(), "600");
        let peers = host.run("wg", &["show", DEVICE, "allowed-ips"])?;
        assert_eq!(peers.trim(), format!("{}\t{}", public_key(peer)?, peer.subnet_env()?.base()));
        let warnings = host.log_lines(&[" WARN "])?;
        ensure!(warnings.is_empty(), "{warnings:?}");
    }
    Ok(())
}

fn nothing_passes_in_clear(host: &mut Host, ends: &[End]) -> Result<()> {
    let tap = host.wiretap()?;
    // The text is the pattern of the pings.
    let text = "flan in clear!!!";
    let pattern: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let target = ends[1].address.to_string();
    ends[0]
        .place
        .run("ping", ["-n", "-c", "5", "-i", "0.2", "-W", "1", "-s", "200", "-p", &pattern, &target])?;
    let bytes = tap.stop()?;
    ensure!(bytes.len() > 5 * 250, "only {} bytes passed", bytes.len());
    ensure!(!contains(&bytes, text.as_bytes()), "the text of a ping passed in clear");
    ensure!(!contains(&bytes, &ends[1].address.octets()), "an inner address passed in clear");
    Ok(())
}

fn killed_and_restarted_nothing_is_lost_or_changed(hosts: &mut [Host]) -> Result<()> {
    let before = standing(&hosts[0])?;
    let targets = [hosts[1].subnet_env()?.base_address(), hosts[0].subnet_env()?.base_address()];
    let mut pings = [hosts[0].ping(targets[0])?, hosts[1].ping(targets[1])?];
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    hosts[0].kill_agent()?;
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    hosts[0].start_agent_with(&STATUS_FLAGS)?;
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    for ping in pings {
        let report = ping.stop()?;
        println!("killed and restarted: {report:?}");
        report.nothing_lost(PHASE)?;
    }
    wait::until("the agent to know its peer", REPAIR, || {
        ensure!(hosts[0].status()?["peers"] == 1, "{}", hosts[0].status()?);
        Ok(())
    })?;
    assert_eq!(standing(&hosts[0])?, before);
    let repaired = hosts[0].log_lines(&["repaired changes"])?;
    ensure!(repaired.is_empty(), "{repaired:?}");
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

fn peers_shown(host: &Host, form: &str) -> Result<String> {
    let outcome = host.flanctl(&["peers", "-o", form])?;
    ensure!(outcome.code == Some(0), "{outcome:?}");
    Ok(outcome.stdout)
}

/// `flanctl peers` says what `wg show` says.
fn a_person_sees_each_peer(hosts: &[Host]) -> Result<()> {
    let shown: Value = serde_json::from_str(&peers_shown(&hosts[0], "json")?)?;
    let peer = &shown["peers"][0];
    assert_eq!(shown["path"], json!("kernel"));
    assert_eq!(peer["host"], json!("h2"));
    assert_eq!(peer["wireguard"]["publicKey"], json!(public_key(&hosts[1])?));
    assert_eq!(peer["wireguard"]["endpoint"], json!(format!("{}:51820", hosts[1].address())));
    let age = peer["wireguard"]["latestHandshakeSeconds"].as_u64();
    ensure!(age.is_some_and(|age| age < 180), "{shown}");
    ensure!(peer["wireguard"]["receivedBytes"].as_u64() > Some(1000), "{shown}");
    Ok(())
}

fn no_secret_is_shown(hosts: &[Host]) -> Result<()> {
    for host in hosts {
        let key = host.run("cat", &[WIREGUARD_KEY])?;
        let shown = [
            host.log_lines(&[""])?.join("\n"),
            host.status()?.to_string(),
            peers_shown(host, "wide")?,
            peers_shown(host, "json")?,
            host.flanctl(&["subnets", "ls", "-o", "json"])?.stdout,
        ]
        .concat();
        ensure!(shown.contains("latestHandshakeSeconds"), "{shown}");
        for secret in [key.trim(), PSK] {
            ensure!(!shown.contains(secret), "a secret is shown");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn peers_are_followed_by_their_key_wherever_they_are() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, ends) = hosts(lab, 2)?;
        a_key_is_rotated_under_traffic(&mut hosts)?;
        a_new_key_replaces_the_old_one(lab, &hosts[0])?;
        a_peer_that_roams_stays_where_it_is(lab, &hosts, &ends)
    })
}

/// Nothing but the packets until both have agreed on session keys again is lost.
fn a_key_is_rotated_under_traffic(hosts: &mut [Host]) -> Result<()> {
    let targets = [hosts[1].subnet_env()?.base_address(), hosts[0].subnet_env()?.base_address()];
    let mut pings = [hosts[0].ping(targets[0])?, hosts[1].ping(targets[1])?];
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    let old = public_key(&hosts[0])?;
    let rotated = hosts[0].flanctl(&["wireguard", "rotate-key", "--wireguard-key-file", WIREGUARD_KEY])?;
    ensure!(rotated.code == Some(0) && rotated.stdout.contains(&old), "{rotated:?}");
    let new = wait::until("the new key to be used", REACHED, || {
        let now = public_key(&hosts[0])?;
        ensure!(now != old && rotated.stdout.contains(&now), "{now}");
        Ok(now)
    })?;
    wait::until("the peer to know the new key alone", REACHED, || {
        let known = hosts[1].run("wg", &["show", DEVICE, "peers"])?;
        ensure!(known.trim() == new, "{known}");
        Ok(())
    })?;
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    for ping in pings {
        println!("a key is rotated, at 100 pings a second: {:?}", ping.stop()?);
    }
    Ok(())
}

/// A host of flannel made itself a key at its last boot, and another at this one.
fn a_new_key_replaces_the_old_one(lab: &Lab, host: &Host) -> Result<()> {
    let subnet = "subnets/10.5.200.0-24";
    let key =
        || -> Result<String> { Ok(host.run("sh", &["-c", "wg genkey | wg pubkey"])?.trim().to_owned()) };
    let known = |key: &str, other: &str| {
        wait::until("the peer's new key", REACHED, || {
            let allowed = host.run("wg", &["show", DEVICE, "allowed-ips"])?;
            ensure!(allowed.contains(&format!("{key}\t10.5.200.0/24")), "{allowed}");
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
    lab.store().put("subnets/10.5.201.0-24", &lease(&new))?;
    wait::until("both subnets of the peer", REACHED, || {
        let allowed = host.run("wg", &["show", DEVICE, "allowed-ips"])?;
        let of_peer = allowed.lines().find(|line| line.starts_with(&new)).unwrap_or_default();
        ensure!(of_peer.contains("10.5.200.0/24") && of_peer.contains("10.5.201.0/24"), "{allowed}");
        Ok(())
    })?;
    lab.store().delete(subnet)?;
    wait::until("one subnet of the peer to be gone", REACHED, || {
        let allowed = host.run("wg", &["show", DEVICE, "allowed-ips"])?;
        ensure!(allowed.contains(&format!("{new}\t10.5.201.0/24\n")), "{allowed}");
        Ok(())
    })
}

/// The second host sends from another port than its lease says, as from behind a NAT that changed its mind. The rules that
/// do this know no flows, so it happens at once.
fn a_peer_that_roams_stays_where_it_is(lab: &Lab, hosts: &[Host], ends: &[End]) -> Result<()> {
    let (host, peer) = (&hosts[0], &hosts[1]);
    for rule in [
        "add table ip router",
        "add chain ip router leaving { type filter hook postrouting priority 300; }",
        "add rule ip router leaving udp sport 51820 udp dport 51820 udp sport set 40000",
        "add chain ip router arriving { type filter hook prerouting priority -400; }",
        "add rule ip router arriving udp dport 40000 udp dport set 51820",
    ] {
        peer.run("nft", &[rule])?;
    }
    let key = public_key(peer)?;
    let roamed = format!("{key}\t{}:40000", peer.address());
    let is_there = || {
        let endpoints = host.run("wg", &["show", DEVICE, "endpoints"])?;
        ensure!(endpoints.contains(&roamed), "{endpoints}");
        Ok(())
    };
    wait::until("the peer to be seen at its new port", REACHED, || {
        wait_until_reached(&ends[1], &ends[0], REACHED)?;
        is_there()
    })?;
    wait::while_holds("a peer that roams is left where it is", Duration::from_secs(4), is_there)?;
    // A lease that says something new, but not of the address.
    let path = format!("subnets/{}", peer.subnet_env()?.key());
    let text = lab.store().value(&path)?.context("no lease")?;
    let mut lease: Value = serde_json::from_str(&text)?;
    lease["Rack"] = json!("7");
    lab.store().put(&path, &lease.to_string())?;
    wait::while_holds("and after its lease has changed", Duration::from_secs(4), is_there)?;
    wait_until_reached(&ends[0], &ends[1], REACHED)
}
