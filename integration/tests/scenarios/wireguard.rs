//! Hosts on wireguard, whoever encrypts. Where the kernel has none, as on many machines that run these stories, `fland`
//! does it by itself. `debian_kernel/wireguard.rs` tells of a kernel that can.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flan_integration::end::End;
use flan_integration::host::{STATUS_FLAGS, WIREGUARD_KEY, contains, on_all};
use flan_integration::lab::ROUTER;
use flan_integration::process::{Lifetime, Process};
use flan_integration::store::{PREFIX, StoreClient};
use flan_integration::{Host, Lab, LabOptions, wait};
use serde_json::{Value, json};

use crate::stage::{
    all_reach_all, bare_hosts, ends_of, hosts_that_reach, no_problem, problem, wait_until_reached,
};

pub(crate) const PSK: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";

/// Pings answered in each phase of a story.
const PHASE: usize = 100;

pub(crate) const REACHED: Duration = Duration::from_secs(15);

/// What another program takes away is back within this time.
const REPAIR: Duration = Duration::from_secs(3);

pub(crate) const NO_FLAGS: &[&str] = &[];

/// The network config with this path.
pub(crate) fn network(path: &str) -> String {
    format!(
        r#"{{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{{"Type":"wireguard","PSK":"{PSK}","Path":"{path}"}}}}"#
    )
}

/// The public key of a host. Debian's wg reads the file that fland wrote.
pub(crate) fn public_key(host: &Host) -> Result<String> {
    let piped = format!("wg pubkey < {WIREGUARD_KEY}");
    Ok(host.run("sh", &["-c", &piped])?.trim().to_owned())
}

#[test]
fn hosts_whose_kernel_cannot_encrypt_do_it_by_themselves() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        // With all that an agent can log.
        let (mut hosts, ends) = hosts_that_reach(lab, &network("user"), &[&["-v=5"], NO_FLAGS, NO_FLAGS])?;
        for host in &hosts {
            let reason = "Backend.Path in the network config asks for it";
            assert_eq!(host.status()?["path"], json!({"path": "user", "reason": reason}));
            let warnings = host.log_lines(&[" WARN "])?;
            ensure!(warnings.is_empty(), "{warnings:?}");
        }
        ensure!(!hosts[0].log_lines(&[" DEBUG "])?.is_empty(), "-v=5 adds nothing");
        each_lease_has_the_key(lab, &hosts)?;
        nothing_passes_in_clear(&mut hosts[0], &ends)?;
        large_transfers_arrive(&ends, 40)?;
        nobody_behind_an_address_is_told(&hosts[0], &ends[0])?;
        a_person_sees_each_peer(&hosts, "user")?;
        no_secret_is_shown(&hosts)
    })
}

#[test]
fn a_key_file_that_is_gone_or_holds_no_key_is_named_and_the_key_in_use_stays_in_use() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, ends) = hosts_that_reach(lab, &network("user"), &[NO_FLAGS; 2])?;
        let aside = format!("{WIREGUARD_KEY}.aside");
        hosts[0].run("mv", &[WIREGUARD_KEY, &aside])?;
        problem(&hosts[0], "wireguard-key", &[WIREGUARD_KEY, "the key in use stays in use"])?;
        hosts[0].run("sh", &["-c", &format!("echo none > {WIREGUARD_KEY}; chmod 600 {WIREGUARD_KEY}")])?;
        problem(&hosts[0], "wireguard-key", &["the key in use stays in use"])?;
        wait_until_reached(&ends[1], &ends[0], REACHED)?;
        hosts[0].run("mv", &[&aside, WIREGUARD_KEY])?;
        no_problem(&hosts[0], "wireguard-key")
    })
}

/// As flannel writes it.
pub(crate) fn each_lease_has_the_key(lab: &Lab, hosts: &[Host]) -> Result<()> {
    for host in hosts {
        let env = host.subnet_env()?;
        assert_eq!(env.mtu, 1420);
        let text = lab.store().value(&format!("subnets/{}", env.key()))?.context("no lease")?;
        let key = public_key(host)?;
        let data = format!(r#""BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}}"#);
        ensure!(text.contains(&data), "{text}");
        let mode = host.run("stat", &["-c", "%a", WIREGUARD_KEY])?;
        assert_eq!(mode.trim(), "600");
    }
    Ok(())
}

pub(crate) fn nothing_passes_in_clear(host: &mut Host, ends: &[End]) -> Result<()> {
    let tap = host.wiretap()?;
    // The text is the pattern of the pings.
    let text = "flan in clear!!!";
    let pattern: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let target = ends[1].address.to_string();
    let args =
        ["-n", "-c", "5", "-i", "0.2", "-W", "1", "-s", "200", "-p", pattern.as_str(), target.as_str()];
    ends[0].place.run("ping", args)?;
    let bytes = tap.stop()?;
    ensure!(bytes.len() > 5 * 250, "only {} bytes passed", bytes.len());
    ensure!(!contains(&bytes, text.as_bytes()), "the text of a ping passed in clear");
    ensure!(!contains(&bytes, &ends[1].address.octets()), "an inner address passed in clear");
    Ok(())
}

/// By TCP, both ways.
pub(crate) fn large_transfers_arrive(ends: &[End], megabytes: u64) -> Result<()> {
    let bytes = format!("{megabytes}M");
    for (from, to) in [(0, 1), (1, 0)] {
        let mut server = ends[to]
            .place
            .command("iperf3")
            .args(["-s", "-1"])
            .stdout(std::process::Stdio::null())
            .spawn()?;
        let target = ends[to].address.to_string();
        // It says in its report, and not by its exit code, that nobody answers yet.
        let sent = wait::until("iperf3 to answer", REACHED, || {
            let arguments = ["20", "iperf3", "-J", "-n", bytes.as_str(), "-c", target.as_str()];
            let report: Value = serde_json::from_str(&ends[from].place.run("timeout", arguments)?)?;
            ensure!(report["error"].is_null(), "{report}");
            Ok(report)
        });
        let _ = server.kill();
        server.wait()?;
        let report = sent?;
        let sum = &report["end"]["sum_sent"];
        ensure!(sum["bytes"].as_u64() >= Some(megabytes * 1_000_000), "{report}");
        println!("{from} to {to}: {} b/s, {} retransmissions", sum["bits_per_second"], sum["retransmits"]);
    }
    Ok(())
}

fn nobody_behind_an_address_is_told(host: &Host, end: &End) -> Result<()> {
    for place in [host.place(), &end.place] {
        let output = place.command("ping").args(["-n", "-c", "2", "-W", "1", "10.5.255.254"]).output()?;
        let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(
            told.contains("Unreachable") || told.contains("unreachable"),
            "of an address of no peer: {told}"
        );
    }
    Ok(())
}

fn peers_shown(host: &Host, form: &str) -> Result<String> {
    let outcome = host.flanctl(&["peers", "-o", form])?;
    ensure!(outcome.code == Some(0), "{outcome:?}");
    Ok(outcome.stdout)
}

/// `flanctl peers` says what `wg show` says.
pub(crate) fn a_person_sees_each_peer(hosts: &[Host], path: &str) -> Result<()> {
    let shown: Value = serde_json::from_str(&peers_shown(&hosts[0], "json")?)?;
    assert_eq!(shown["path"], json!(path));
    let peers = shown["peers"].as_array().context("no list")?;
    let peer = peers.iter().find(|peer| peer["host"] == json!("h2")).context("no h2")?;
    assert_eq!(peer["wireguard"]["publicKey"], json!(public_key(&hosts[1])?));
    assert_eq!(peer["wireguard"]["endpoint"], json!(format!("{}:51820", hosts[1].address())));
    let age = peer["wireguard"]["latestHandshakeSeconds"].as_u64();
    ensure!(age.is_some_and(|age| age < 180), "{shown}");
    ensure!(peer["wireguard"]["receivedBytes"].as_u64() > Some(100), "{shown}");
    Ok(())
}

pub(crate) fn no_secret_is_shown(hosts: &[Host]) -> Result<()> {
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

/// Packets stop with the agent, and go on with the next, by the same key.
#[test]
fn an_agent_that_encrypts_is_away_until_it_is_started_again() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, ends) = hosts_that_reach(lab, &network("user"), &[NO_FLAGS; 2])?;
        let before = [public_key(&hosts[0])?, public_key(&hosts[1])?];
        let targets = [hosts[1].subnet_env()?.base_address(), hosts[0].subnet_env()?.base_address()];
        let mut pings = [hosts[0].ping(targets[0])?, hosts[1].ping(targets[1])?];
        pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
        hosts[0].kill_agent()?;
        hosts[0].start_agent_with(&STATUS_FLAGS)?;
        pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
        for ping in pings {
            println!("killed and restarted, at 100 pings a second: {:?}", ping.stop()?);
        }
        assert_eq!([public_key(&hosts[0])?, public_key(&hosts[1])?], before);
        what_another_program_takes_away_is_back(&hosts[0], &ends)?;
        a_key_is_rotated_under_traffic(&mut hosts)
    })
}

fn what_another_program_takes_away_is_back(host: &Host, ends: &[End]) -> Result<()> {
    for damage in [
        "ip link del flannel-wg",
        "ip link set flannel-wg down",
        "ip route del 10.5.0.0/16",
        "ip address flush dev flannel-wg",
    ] {
        let started = Instant::now();
        host.run("sh", &["-c", damage])?;
        wait::until(&format!("{damage}, to be repaired"), REPAIR, || {
            host.ip("route get 10.5.198.1").and_then(|route| {
                ensure!(route.contains("dev flannel-wg"), "{route}");
                ensure!(host.ip("address show dev flannel-wg")?.contains("/32"), "no address");
                Ok(())
            })
        })?;
        println!("{damage}: repaired after {:?}", started.elapsed());
        wait_until_reached(&ends[0], &ends[1], REACHED)?;
        wait_until_reached(&ends[1], &ends[0], REACHED)?;
    }
    Ok(())
}

/// Nothing but the packets until both have agreed on session keys again is lost.
pub(crate) fn a_key_is_rotated_under_traffic(hosts: &mut [Host]) -> Result<()> {
    let targets = [hosts[1].subnet_env()?.base_address(), hosts[0].subnet_env()?.base_address()];
    let mut pings = [hosts[0].ping(targets[0])?, hosts[1].ping(targets[1])?];
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    let old = public_key(&hosts[0])?;
    let rotated = hosts[0].flanctl(&["wireguard", "rotate-key", "--wireguard-key-file", WIREGUARD_KEY])?;
    let new = public_key(&hosts[0])?;
    let tells = rotated.stdout.contains(&old) && rotated.stdout.contains(&new);
    ensure!(rotated.code == Some(0) && tells && old != new, "{rotated:?}");
    wait::until("the peer to know the new key alone", REACHED, || {
        let known = peers_shown(&hosts[1], "json")?;
        ensure!(known.contains(&new) && !known.contains(&old), "{known}");
        Ok(())
    })?;
    pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
    for ping in pings {
        println!("a key is rotated, at 100 pings a second: {:?}", ping.stop()?);
    }
    Ok(())
}

/// Packets of a program that nobody here wrote, set up from what the store says.
#[test]
fn wireguard_go_set_up_from_the_leases_is_a_peer() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, ends) = hosts_that_reach(lab, &network("user"), &[NO_FLAGS; 1])?;
        let other = lab.host("other")?;
        let mut command = other.command("wireguard-go");
        command.args(["-f", "wg0"]);
        let log = lab.dir().join("wireguard-go.log");
        let _program = Process::spawn("wireguard-go", &command, &log, Lifetime::Bound)?;
        wait::until("wireguard-go to make its device", REACHED, || other.ip("link show wg0").map(drop))?;
        a_peer_by_hand(lab, &hosts[0], &other, "wg0")?;
        let target: std::net::Ipv4Addr = "10.5.200.1".parse()?;
        wait::until("it to answer", REACHED, || hosts[0].ping_once(target))?;
        ends[0].place.run("ping", ["-n", "-c", "3", "-W", "1", "10.5.200.1"])?;
        other.ping_once(ends[0].address)
    })
}

/// Makes the device `link` of a host without an agent a peer of `host`, by the store alone.
pub(crate) fn a_peer_by_hand(lab: &Lab, host: &Host, other: &Host, link: &str) -> Result<()> {
    let env = host.subnet_env()?;
    let text = lab.store().value(&format!("subnets/{}", env.key()))?.context("no lease")?;
    let lease: Value = serde_json::from_str(&text)?;
    let (ip, key) = (lease["PublicIP"].as_str(), lease["BackendData"]["PublicKey"].as_str());
    let (ip, key, port) = (ip.context("ip")?, key.context("key")?, &lease["BackendData"]["Port"]);
    for step in [
        "umask 077; wg genkey > /run/key".to_owned(),
        format!("umask 077; echo {PSK} > /run/psk"),
        format!(
            "wg set {link} private-key /run/key listen-port 51820 peer {key} preshared-key /run/psk endpoint {ip}:{port} \
             allowed-ips {}",
            env.base()
        ),
        format!(
            "ip address add 10.5.200.1/24 dev {link}; ip link set {link} mtu 1420 up; ip route add 10.5.0.0/16 dev {link}"
        ),
    ] {
        other.run("sh", &["-c", &step])?;
    }
    let own = other.run("sh", &["-c", "wg pubkey < /run/key"])?;
    let value = format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{}"}}}}"#,
        other.address(),
        own.trim()
    );
    lab.store().put("subnets/10.5.200.0-24", &value)
}

/// The second host sends from another port than its lease says, as from behind a NAT that changed its mind. The rules that
/// do this know no flows, so it happens at once.
pub(crate) fn a_peer_that_roams_stays_where_it_is(lab: &Lab, hosts: &[Host], ends: &[End]) -> Result<()> {
    let peer = &hosts[1];
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
    let is_there = || {
        let shown: Value = serde_json::from_str(&peers_shown(&hosts[0], "json")?)?;
        let peers = shown["peers"].as_array().context("no list")?;
        let found =
            peers.iter().find(|peer| peer["wireguard"]["publicKey"] == json!(key)).context("no peer")?;
        ensure!(found["wireguard"]["endpoint"] == json!(format!("{}:40000", peer.address())), "{found}");
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

#[test]
fn peers_behind_one_address_are_told_apart_by_their_keys() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, ends) = hosts_that_reach(lab, &network("user"), &[NO_FLAGS; 2])?;
        a_peer_that_roams_stays_where_it_is(lab, &hosts, &ends)
    })
}

/// The router has one address, two hosts and a port for each, and forgets where packets of a flow went when it is idle.
#[test]
fn two_hosts_behind_one_nat_are_reached_from_outside_and_reach_each_other() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(&network("user"))?;
        let mut hosts = vec![lab.host("h1")?, lab.host_behind_router("h2")?, lab.host_behind_router("h3")?];
        let ports = [50002, 50003];
        translate(lab, &hosts[1..], ports)?;
        hosts[0].spawn_agent(&STATUS_FLAGS)?;
        for (host, port) in hosts[1..].iter_mut().zip(ports) {
            let (ip, port) = (format!("--public-ip={ROUTER}"), format!("--public-port={port}"));
            host.spawn_agent(&[&STATUS_FLAGS, [ip.as_str(), &port].as_slice()].concat())?;
        }
        on_all(&mut hosts, Host::wait_for_agent)?;
        let ends = ends_of(&hosts)?;
        all_reach_all(&ends)?;
        for (host, port) in hosts[1..].iter().zip(ports) {
            let text = lab.store().value(&format!("subnets/{}", host.subnet_env()?.key()))?;
            let text = text.context("no lease")?;
            ensure!(text.contains(&format!(r#""PublicIP":"{ROUTER}""#)), "{text}");
            ensure!(text.contains(&format!(r#""Port":{port}"#)), "{text}");
        }
        Ok(())
    })
}

/// The router sends what comes to a port of its own to the host of that port, and all that its hosts send from itself.
fn translate(lab: &Lab, hosts: &[Host], ports: [u16; 2]) -> Result<()> {
    let router = lab.underlay().place();
    let run = |rule: &str| router.run("nft", [rule]).map(drop);
    run("add table ip nat")?;
    run("add chain ip nat arriving { type nat hook prerouting priority dstnat; }")?;
    run("add chain ip nat leaving { type nat hook postrouting priority srcnat; }")?;
    for (host, port) in hosts.iter().zip(ports) {
        let to = format!("{}:51820", host.address());
        run(&format!("add rule ip nat arriving ip daddr {ROUTER} udp dport {port} dnat to {to}"))?;
        run(&format!("add rule ip nat leaving ip saddr {} udp sport 51820 masquerade", host.address()))?;
    }
    Ok(())
}

/// So many leases of hosts that do not exist.
pub(crate) fn put_leases_of_nobody(lab: &Lab, count: u16) -> Result<()> {
    let store = StoreClient::connect(lab.underlay(), &lab.store().endpoints(), REACHED)?;
    store.put_all((0..count).map(|number| {
        let [high, low] = number.to_be_bytes();
        let key = STANDARD.encode([[high, low].as_slice(), &[7; 30]].concat());
        let value = format!(
            r#"{{"PublicIP":"192.168.{}.{low}","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{key}"}}}}"#,
            100 + high,
        );
        (format!("{PREFIX}/subnets/10.{}.{low}.0-24", 100 + high), value)
    }))
}

/// Of a thousand leases, one is that of a host.
#[test]
fn among_a_thousand_peers_the_one_that_lives_is_reached() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, ends) = hosts_that_reach(
            lab,
            r#"{"Network":"10.0.0.0/8","SubnetMin":"10.200.0.0","Backend":{"Type":"wireguard","Path":"user"}}"#,
            &[NO_FLAGS; 2],
        )?;
        put_leases_of_nobody(lab, 1000)?;
        wait::until("all peers to be known", REACHED, || {
            let peers = &hosts[0].status()?["peers"];
            ensure!(*peers == json!(1001), "{peers} peers");
            Ok(())
        })?;
        let shown: Value = serde_json::from_str(&peers_shown(&hosts[0], "json")?)?;
        assert_eq!(shown["peers"].as_array().map(Vec::len), Some(1001));
        wait_until_reached(&ends[0], &ends[1], REACHED)?;
        large_transfers_arrive(&ends, 10)
    })
}

/// The lease names no address of the family that the underlay need not have.
#[test]
fn a_network_of_ipv4_is_carried_over_ipv6() -> Result<()> {
    Lab::run(LabOptions { ipv6: true, ..LabOptions::default() }, |lab| {
        let (hosts, _ends) = hosts_that_reach(lab, &network("user\",\"Mode\":\"ipv6"), &[NO_FLAGS; 2])?;
        for host in &hosts {
            let text =
                lab.store().value(&format!("subnets/{}", host.subnet_env()?.key()))?.context("no lease")?;
            let addresses = format!(r#""PublicIP":"0.0.0.0","PublicIPv6":"{}""#, host.address6()?);
            ensure!(text.contains(&addresses), "{text}");
        }
        let shown = peers_shown(&hosts[0], "json")?;
        ensure!(shown.contains(&format!("[{}]:51820", hosts[1].address6()?)), "{shown}");
        Ok(())
    })
}

/// Both families over their own devices, and both by one device over IPv6.
#[test]
fn both_families_are_encrypted_over_either_family() -> Result<()> {
    for (mode, devices) in [("separate", 2), ("ipv6", 1)] {
        Lab::run(LabOptions { ipv6: true, ..LabOptions::default() }, |lab| {
            lab.set_network(&format!(
                r#"{{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","EnableIPv6":true,"IPv6Network":"fd00:5::/48",
                    "Backend":{{"Type":"wireguard","Mode":"{mode}","Path":"user"}}}}"#
            ))?;
            let mut hosts = bare_hosts(lab, 2)?;
            on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
            for (from, to) in [(0, 1), (1, 0)] {
                let values = hosts[to].subnet_values()?;
                let text = lab.store().value(&format!("subnets/{}", values.key()))?.context("no lease")?;
                let lease: Value = serde_json::from_str(&text)?;
                let ports = [&lease["BackendData"]["Port"], &lease["BackendV6Data"]["Port"]];
                assert_eq!(ports, [&json!(51820), &json!(51819 + devices)]);
                let targets: [std::net::IpAddr; 2] = [values.base()?.into(), values.base6()?.into()];
                for target in targets {
                    wait::until(&format!("{target} to answer"), REACHED, || hosts[from].ping_once(target))?;
                }
                let links = hosts[from].ip("-oneline link show")?;
                assert_eq!(links.matches(": flannel-wg").count(), devices, "{links}");
            }
            if mode == "ipv6" {
                let shown = peers_shown(&hosts[0], "json")?;
                ensure!(shown.contains(&format!("[{}]:51820", hosts[1].address6()?)), "{shown}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_host_on_wireguard_leaves_nothing_but_its_key_and_hands_that_over() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, _ends) = hosts_that_reach(lab, &network("user"), &[NO_FLAGS; 2])?;
        let key = public_key(&hosts[0])?;
        hosts[0].stop_agent()?;
        let left = hosts[0].flanctl(&["leave", "--yes"])?;
        ensure!(left.code == Some(0), "{left:?}");
        let links = hosts[0].ip("-oneline link show")?;
        ensure!(!links.contains("flannel-wg"), "{links}");
        ensure!(hosts[0].ip("route show proto 102")?.is_empty(), "routes stay");
        // It comes back as who it was.
        hosts[0].start_agent_with(&STATUS_FLAGS)?;
        assert_eq!(public_key(&hosts[0])?, key);
        // flanneld would find the key where it looks for it.
        hosts[0].stop_agent()?;
        let handed = hosts[0].flanctl(&["hand-over", "--wireguard-key-file", WIREGUARD_KEY])?;
        ensure!(handed.code == Some(0), "{handed:?}");
        assert_eq!(hosts[0].run("sh", &["-c", "wg pubkey < /run/flannel/wgkey"])?.trim(), key);
        Ok(())
    })
}
