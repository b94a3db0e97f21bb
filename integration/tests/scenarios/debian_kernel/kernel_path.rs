//! Hosts on udp whose kernel moves the packets itself, by FOU and IPIP.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use flan_integration::end::End;
use flan_integration::forgery::{self, Datagrams, Listener};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::{Host, Lab, LabOptions, wait};
use serde_json::{Value, json};

use crate::stage::{
    hosts_that_reach, killed_and_restarted_nothing_is_lost_or_changed, no_problem, problem,
    wait_until_reached,
};

const NETWORK: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"udp","Path":"kernel"}}"#;
/// Each host chooses its path.
pub(super) const NETWORK_OF_AUTO: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"udp"}}"#;

const DEVICE: &str = "flannel0";

/// Pings answered in each phase of a story.
const PHASE: usize = 100;

const REACHED: Duration = Duration::from_secs(15);

/// Of 4 MB.
const TRANSFER: Duration = Duration::from_secs(120);

/// What another program takes away is back within this time, with a second for a machine that does other things.
const REPAIR: Duration = Duration::from_secs(3);

fn hosts(lab: &Lab, count: usize) -> Result<(Vec<Host>, Vec<End>)> {
    hosts_that_reach(lab, NETWORK, &vec![&[][..]; count])
}

/// What a host's kernel has for this backend.
fn standing(host: &Host) -> Result<String> {
    let device = host.ip(&format!("-details -oneline link show {DEVICE}"))?;
    let routes = host.ip("-4 route show proto 102")?;
    let rules = host.run("nft", &["--stateless", "list", "table", "ip", "flan-peers"])?;
    Ok([device, host.ip("fou show")?, routes, rules].concat())
}

fn path_of(host: &Host) -> Result<Value> {
    Ok(host.status()?["path"].clone())
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn containers_talk_and_the_kernel_moves_the_packets() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, ends) = hosts_that_reach(lab, NETWORK_OF_AUTO, &[&[], &[]])?;
        for host in &hosts {
            assert_eq!(path_of(host)?, json!({"path": "kernel", "reason": "the kernel has FOU and IPIP"}));
            assert_eq!(host.log_lines(&["packets take this path"])?.len(), 1);
            let warnings = host.log_lines(&[" WARN "])?;
            ensure!(warnings.is_empty(), "{warnings:?}");
            let env = host.subnet_env()?;
            assert_eq!(env.mtu, 1472);
            let text = lab.store().value(&format!("subnets/{}", env.key()))?.context("no lease")?;
            let lease: Value = serde_json::from_str(&text)?;
            ensure!(lease.get("BackendType").is_none(), "flannel writes no BackendType: {text}");
        }
        no_peer_is_told(&hosts[0], &ends[0])?;
        the_outer_header_has_the_inner_ttl_and_congestion_bits(&hosts[1], &ends)?;
        too_large_is_told_or_cut(&hosts[0], &ends)
    })
}

fn no_peer_is_told(host: &Host, end: &End) -> Result<()> {
    for (place, words) in
        [(host.place(), "Network is unreachable"), (&end.place, "Destination Net Unreachable")]
    {
        let output = place.command("ping").args(["-n", "-c", "2", "-W", "1", "10.5.255.254"]).output()?;
        let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(told.contains(words), "of an address of no peer: {told}");
    }
    Ok(())
}

/// The kernel copies the inner TTL and ECN bits to the outside, and sets no DSCP. Inside, all stays as it is but for the
/// TTL, which every router lowers.
fn the_outer_header_has_the_inner_ttl_and_congestion_bits(receiver: &Host, ends: &[End]) -> Result<()> {
    for rule in [
        "add table ip seen",
        "add chain ip seen outer { type filter hook prerouting priority -500; }",
        "add chain ip seen inner { type filter hook forward priority 500; }",
        "add rule ip seen outer udp dport 8285 ip ttl 41 ip dscp 0 ip ecn ect0 counter",
        "add rule ip seen inner icmp type echo-request ip ttl 40 ip dscp 46 ip ecn ect0 counter",
    ] {
        receiver.run("nft", &[rule])?;
    }
    // Type of service 186: DSCP 46 and ECT(0).
    let target = ends[1].address.to_string();
    let args = ["-n", "-c", "5", "-i", "0.2", "-W", "1", "-t", "42", "-Q", "186", target.as_str()];
    ends[0].place.run("ping", args)?;
    let counted = receiver.run("nft", &["list", "table", "ip", "seen"])?;
    assert_eq!(counted.matches("packets 5 ").count(), 2, "{counted}");
    Ok(())
}

fn too_large_is_told_or_cut(host: &Host, ends: &[End]) -> Result<()> {
    let ping = |size: &str, how: &str| {
        let target = ends[1].address.to_string();
        let args = ["-n", "-c", "3", "-W", "1", "-s", size, "-M", how, target.as_str()];
        ends[0].place.command("ping").args(args).output()
    };
    let fits = ping("1444", "do")?;
    ensure!(fits.status.success(), "{}", String::from_utf8_lossy(&fits.stdout));
    host.ip("link set docker0 mtu 1500")?;
    ends[0].place.run("ip", ["link", "set", "eth0", "mtu", "1500"])?;
    let output = ping("1445", "do")?;
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        told.contains("mtu = 1472") || told.contains("mtu=1472"),
        "of a packet that is too large: {told}"
    );
    let cut = ping("3000", "dont")?;
    ensure!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stdout));
    Ok(())
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn packets_flow_without_the_agent_and_what_others_change_is_repaired() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, ends) = hosts(lab, 2)?;
        killed_and_restarted_nothing_is_lost_or_changed(&mut hosts, standing)?;
        whatever_another_program_changes_is_repaired(&hosts, &ends)?;
        a_new_address_is_used_for_sending_and_receiving(&hosts[0])?;
        wait_until_reached(&ends[0], &ends[1], REACHED)?;
        wait_until_reached(&ends[1], &ends[0], REACHED)
    })
}

fn whatever_another_program_changes_is_repaired(hosts: &[Host], ends: &[End]) -> Result<()> {
    let (host, peer) = (&hosts[0], hosts[1].address());
    // The index of a new device differs.
    let comparable = || -> Result<String> {
        Ok(standing(host)?.split_once(": ").map(|(_, rest)| rest.to_owned()).unwrap_or_default())
    };
    let before = comparable()?;
    let (local, subnet) = (host.address(), hosts[1].subnet_env()?.base());
    for damage in [
        format!("ip fou del port 8285 local {local}"),
        format!("ip link del {DEVICE}"),
        format!("ip link set {DEVICE} down"),
        format!("ip link set {DEVICE} mtu 1300"),
        format!(
            "ip link set {DEVICE} type ipip local {local} remote any pmtudisc ttl 9 encap fou encap-dport 8285"
        ),
        format!(
            "ip link set {DEVICE} type ipip local {local} remote any nopmtudisc encap fou encap-dport 99"
        ),
        format!("ip route del {subnet}"),
        "ip route del throw 10.5.0.0/16".to_owned(),
        format!("ip nexthop del id {}", u32::from(peer)),
        format!("nft delete element ip flan-peers peers {{ {peer} }}"),
        "nft flush chain ip flan-peers arriving".to_owned(),
        "nft flush chain ip flan-peers bare".to_owned(),
        "nft delete table ip flan-peers".to_owned(),
    ] {
        let started = Instant::now();
        host.run("sh", &["-c", &damage])?;
        wait::until(&format!("{damage}, to be repaired"), REPAIR, || {
            let now = comparable()?;
            ensure!(now == before, "{now}\ninstead of\n{before}");
            Ok(())
        })?;
        println!("{damage}: repaired after {:?}", started.elapsed());
    }
    wait_until_reached(&ends[0], &ends[1], REACHED)
}

fn a_new_address_is_used_for_sending_and_receiving(host: &Host) -> Result<()> {
    let (old, new) = (host.address(), "192.168.64.99");
    let change = format!("ip address del {old}/24 dev eth0 && ip address add {new}/24 dev eth0");
    host.run("sh", &["-c", &change])?;
    wait::until("the device and the port to have the new address", REACHED, || {
        let now = standing(host)?;
        let is_new = now.matches(&format!("local {new}")).count() == 2;
        ensure!(is_new && !now.contains(&old.to_string()), "{now}");
        Ok(())
    })
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn packets_come_in_datagrams_of_peers_and_from_their_subnets_or_not_at_all() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let network = NETWORK.replace("kernel\"", "kernel\",\"StrictSource\":true,\"FixedSourcePort\":true");
        let (hosts, ends) = hosts_that_reach(lab, &network, &[&[], &[]])?;
        every_datagram_is_sent_from_port(8285, &hosts[1], &ends)?;
        let stranger = lab.host("stranger")?;
        let listener = Listener::at(&ends[0].netns)?;
        let (source, target): (IpAddr, IpAddr) = (ends[1].address.into(), ends[0].address.into());
        let to = SocketAddr::new(hosts[0].address().into(), 8285);
        let carried = |from: &Host, source: IpAddr, text: &str| {
            forgery::send(from.netns(), None, to, forgery::packet(source, target, text)?)
        };
        let from_peer = |text: &str| carried(&hosts[1], source, text);
        listener.hears("from a peer", from_peer)?;
        listener.does_not_hear("from a stranger", |text| carried(&stranger, source, text), from_peer)?;
        // A raw IPIP packet, from a peer as well, while the datagrams of peers get through.
        for (from, text) in
            [(&hosts[1], "a peer's, without a datagram"), (&stranger, "a stranger's, without")]
        {
            let raw = |text: &str| {
                forgery::send_ipip(from.netns(), hosts[0].address(), &forgery::packet(source, target, text)?)
            };
            listener.does_not_hear(text, raw, from_peer)?;
        }
        let dropped = hosts[0].run("nft", &["list", "chain", "ip", "flan-peers", "bare"])?;
        ensure!(dropped.contains("counter packets 6 "), "of six raw packets: {dropped}");
        let foreign: IpAddr = "10.5.250.9".parse()?;
        listener.does_not_hear("a peer's forgery", |text| carried(&hosts[1], foreign, text), from_peer)
    })
}

fn every_datagram_is_sent_from_port(port: u16, receiver: &Host, ends: &[End]) -> Result<()> {
    for rule in [
        "add table ip ports".to_owned(),
        "add chain ip ports seen { type filter hook prerouting priority -500; }".to_owned(),
        format!("add rule ip ports seen udp dport 8285 udp sport {port} counter"),
        "add rule ip ports seen udp dport 8285 counter".to_owned(),
    ] {
        receiver.run("nft", &[&rule])?;
    }
    ends[0].place.run("ping", ["-n", "-c", "5", "-i", "0.2", "-W", "1", &ends[1].address.to_string()])?;
    let counted = receiver.run("nft", &["list", "table", "ip", "ports"])?;
    assert_eq!(counted.matches("packets 5 ").count(), 2, "{counted}");
    Ok(())
}

/// A host that changes its path is away for as long as one that only restarts, which is less than a second on a machine
/// that is not emulated.
#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn a_host_changes_from_one_path_to_the_other_and_back() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, ends) = hosts_that_reach(lab, NETWORK_OF_AUTO, &[&["--udp-path=user"], &[]])?;
        let target = hosts[0].subnet_env()?.base_address();
        let mut restarted_to = |path: &str| -> Result<usize> {
            let mut ping = hosts[1].ping(target)?;
            ping.wait_for_answers(PHASE)?;
            hosts[0].stop_agent()?;
            hosts[0].start_agent_with(&[&STATUS_FLAGS, &["--udp-path", path][..]].concat())?;
            ping.wait_for_answers(PHASE)?;
            let report = ping.stop()?;
            println!("to the {path} path, at 100 pings a second: {report:?}");
            assert_eq!(path_of(&hosts[0])?["path"], json!(path));
            wait_until_reached(&ends[1], &ends[0], REACHED)?;
            let warnings = hosts[0].log_lines(&[" WARN "])?;
            ensure!(warnings.is_empty(), "{warnings:?}");
            Ok(report.outage)
        };
        let control = restarted_to("user")?;
        for path in ["kernel", "user"] {
            let outage = restarted_to(path)?;
            ensure!(outage <= 2 * control + PHASE, "{outage} pings were lost, and {control} by a restart");
        }
        ensure!(hosts[0].ip("fou show")?.is_empty(), "the port is still the kernel's");
        Ok(())
    })
}

/// Each pair of a host on the kernel path, one on the user path and one without any offload carries large TCP transfers
/// both ways, with few retransmissions.
#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn hosts_on_both_paths_share_a_network() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let user: &[&str] = &["--udp-path", "user"];
        let plain: &[&str] = &["--udp-path=user", "--udp-without=tun-offload,gso,gro"];
        let (hosts, ends) = hosts_that_reach(lab, NETWORK_OF_AUTO, &[&[], user, plain])?;
        let paths = hosts.iter().map(path_of).collect::<Result<Vec<_>>>()?;
        let names: Vec<&Value> = paths.iter().map(|path| &path["path"]).collect();
        assert_eq!(names, ["kernel", "user", "user"]);
        assert_eq!(paths[1]["reason"], json!("--udp-path asks for it"));
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            let sent = transfer(&ends[from], &ends[to])?;
            println!("{} to {}: {sent}", hosts[from].name(), hosts[to].name());
        }
        Ok(())
    })
}

/// Sends 4 MB by TCP. Returns iperf3's summary.
fn transfer(from: &End, to: &End) -> Result<String> {
    let mut server = to.place.command("iperf3").args(["-s", "-1"]).stdout(Stdio::null()).spawn()?;
    let target = to.address.to_string();
    let sent = wait::until("iperf3 to answer", TRANSFER, || {
        from.place.run("timeout", ["60", "iperf3", "-J", "-n", "4M", "-c", target.as_str()])
    });
    let _ = server.kill();
    server.wait()?;
    let report: Value = serde_json::from_str(&sent?)?;
    let sum = &report["end"]["sum_sent"];
    let (bytes, again) = (sum["bytes"].as_u64(), sum["retransmits"].as_u64());
    ensure!(bytes >= Some(4_000_000), "{report}");
    Ok(format!(
        "{:.0} Mb/s, {again:?} retransmissions",
        sum["bits_per_second"].as_f64().unwrap_or_default() / 1e6
    ))
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn what_is_in_the_way_of_the_kernel_path_is_told() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK_OF_AUTO)?;
        let mut host = lab.host("h1")?;
        // A device that other overlays use takes IPIP packets: theirs stay theirs.
        host.ip("link set tunl0 up")?;
        host.start_agent_with(&STATUS_FLAGS)?;
        let path = path_of(&host)?;
        assert_eq!(path["path"], json!("user"));
        ensure!(path["reason"].to_string().contains("device tunl0 of another program"), "{path}");
        host.stop_agent()?;
        host.spawn_agent(&["--udp-path=kernel"])?;
        let ended = host.wait_for_agent_end(REACHED)?;
        assert_eq!(ended.code(), Some(2), "{:?}", host.log_lines(&[""])?);
        ensure!(!host.log_lines(&["--udp-path", "tunl0"])?.is_empty(), "no reason in the log");

        // What appears later moves no running host, and is told.
        host.ip("link set tunl0 down")?;
        host.start_agent_with(&STATUS_FLAGS)?;
        assert_eq!(path_of(&host)?["path"], json!("kernel"));
        host.ip("link set tunl0 up")?;
        problem(&host, "other-tunnel", &["tunl0", "--udp-path user"])?;
        assert_eq!(path_of(&host)?["path"], json!("kernel"));
        host.ip("link set tunl0 down")?;
        no_problem(&host, "other-tunnel")?;

        // A port of somebody else's is theirs, and is named.
        host.stop_agent()?;
        host.ip(&format!("fou del port 8285 local {}", host.address()))?;
        host.ip("fou add port 8285 ipproto 47")?;
        host.spawn_agent(&STATUS_FLAGS)?;
        wait::until("the agent to answer", REACHED, || host.status().map(drop))?;
        problem(&host, "port-taken", &["FOU port 8285 local any ipproto 47"])?;
        ensure!(host.ip("fou show")?.contains("ipproto 47"), "another program's port is gone");
        host.ip("fou del port 8285")?;
        host.wait_for_agent()?;
        no_problem(&host, "port-taken")
    })
}

/// A host of flannel reads each datagram as it arrives: none may hold a packet that is left to a network card.
#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn what_a_flannel_host_receives_is_complete() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, ends) = hosts(lab, 2)?;
        let flannel = lab.host("flannel")?;
        lab.store().put("subnets/10.5.200.0-24", &format!(r#"{{"PublicIP":"{}"}}"#, flannel.address()))?;
        wait::until("the host to know it", REACHED, || {
            ensure!(hosts[0].ip("route")?.contains("10.5.200.0/24"), "no route");
            Ok(())
        })?;
        let received = Datagrams::at(flannel.netns(), 8285)?;
        // A connection attempt, and a datagram of ordinary size.
        let _ = ends[0].place.run("timeout", ["1", "iperf3", "-c", "10.5.200.9"]);
        let _ = ends[0].place.run("timeout", ["1", "iperf3", "-u", "-l", "1000", "-c", "10.5.200.9"]);
        let packets = received.wait_for(2)?;
        for packet in packets {
            let sliced = etherparse::SlicedPacket::from_ip(&packet)?;
            let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else {
                anyhow::bail!("no IPv4: {packet:02x?}")
            };
            let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { continue };
            let wanted = tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())?;
            assert_eq!(tcp.checksum(), wanted, "of {packet:02x?}");
        }
        let features = hosts[0].run("ethtool", &["-k", DEVICE])?;
        ensure!(features.contains("tx-checksum-ip-generic: off"), "{features}");

        // Once it has left, the card does the work again.
        lab.flanctl(&["subnets", "release", "--yes", "10.5.200.0/24"])?
            .succeeded("flanctl subnets release")?;
        wait::until("the card to have the work back", REPAIR, || {
            let features = hosts[0].run("ethtool", &["-k", DEVICE])?;
            ensure!(features.contains("tx-checksum-ip-generic: on"), "{features}");
            Ok(())
        })?;
        wait_until_reached(&ends[0], &ends[1], REACHED)
    })
}
