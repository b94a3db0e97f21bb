//! Packets of the overlay that somebody sends who is no peer, and packets that a peer should not send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::end::End;
use flan_integration::forgery::{self, Listener};
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::netns::Netns;
use flan_integration::overlay::mac_of;
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::stage::{NETWORK, NETWORK_OF_UDP, bare_hosts, wait_until_all_know_each_other};

/// What another program takes away is back within this time, with a second for a machine that does other things.
const REPAIR: Duration = Duration::from_secs(2);

/// A container of h1 that listens, h2 and h3 that are its peers, and somebody who is none, on the same link.
struct Stage {
    hosts: Vec<Host>,
    stranger: Host,
    end: End,
    listener: Listener,
}

impl Stage {
    fn set(lab: &Lab, network: &str) -> Result<Stage> {
        Stage::set_with(lab, network, &[])
    }

    fn set_with(lab: &Lab, network: &str, flags: &[&str]) -> Result<Stage> {
        lab.set_network(network)?;
        let mut hosts = bare_hosts(lab, 3)?;
        let flags = [&STATUS_FLAGS[..], flags].concat();
        on_all(&mut hosts, |host| host.start_agent_with(&flags))?;
        let end = End::behind_bridge(hosts[0].netns(), &hosts[0].subnet_env()?)?;
        let listener = Listener::at(&end.netns)?;
        Ok(Stage { stranger: lab.host("stranger")?, hosts, end, listener })
    }

    /// A VXLAN datagram to h1 that carries a packet.
    fn vxlan(&self, from: &Host, source: IpAddr, destination: IpAddr, text: &str) -> Result<()> {
        let h1 = &self.hosts[0];
        let (device, outer): (_, IpAddr) = match source {
            IpAddr::V4(_) => ("flannel.1", h1.address().into()),
            IpAddr::V6(_) => ("flannel-v6.1", h1.address6()?.into()),
        };
        let mac = mac(&mac_of(h1.netns(), device)?)?;
        let datagram = forgery::vxlan(1, mac, source, destination, text)?;
        forgery::send(from.netns(), None, SocketAddr::new(outer, 8472), datagram)
    }

    /// A datagram of the udp backend to h1 that carries a packet.
    fn udp(&self, from: &Host, source: IpAddr, destination: IpAddr, text: &str) -> Result<()> {
        let to = SocketAddr::new(self.hosts[0].address().into(), 8285);
        forgery::send(from.netns(), None, to, forgery::packet(source, destination, text)?)
    }

    fn target(&self) -> IpAddr {
        self.end.address.into()
    }
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().with_context(|| format!("{text} is no MAC"))
}

/// An address of a container of this host.
fn container_of(host: &Host) -> Result<IpAddr> {
    Ok(Ipv4Addr::from(u32::from(host.subnet_env()?.base_address()) + 9).into())
}

#[test]
fn a_vxlan_datagram_is_let_in_from_a_peer_and_from_nobody_else() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut stage = Stage::set(lab, NETWORK)?;
        let (from_h2, target) = (container_of(&stage.hosts[1])?, stage.target());
        {
            let Stage { hosts, stranger, listener, .. } = &stage;
            let from = |host: &Host, text: &str| stage.vxlan(host, from_h2, target, text);
            listener.hears("from a peer", |text| from(&hosts[1], text))?;
            listener.does_not_hear(
                "from a stranger",
                |text| from(stranger, text),
                |text| from(&hosts[1], text),
            )?;
        }

        // The agent is not needed for that, and a host that left is a stranger like any other.
        stage.hosts[0].kill_agent()?;
        let from = |stage: &Stage, host: &Host, text: &str| stage.vxlan(host, from_h2, target, text);
        stage.listener.does_not_hear(
            "from a stranger while the agent is dead",
            |text| from(&stage, &stage.stranger, text),
            |text| from(&stage, &stage.hosts[1], text),
        )?;
        stage.hosts[0].start_agent_with(&STATUS_FLAGS)?;
        let subnet = stage.hosts[2].subnet_env()?.base();
        stage.hosts[2].kill_agent()?;
        lab.flanctl(&["subnets", "release", "--yes", &subnet])?.succeeded("flanctl subnets release")?;
        wait::until("h1 to forget h3", REPAIR, || {
            ensure!(
                !senders(&stage.hosts[0])?.contains(&stage.hosts[2].address().to_string()),
                "it is let in"
            );
            Ok(())
        })?;
        stage.listener.does_not_hear(
            "from one that was a peer",
            |text| from(&stage, &stage.hosts[2], text),
            |text| from(&stage, &stage.hosts[1], text),
        )
    })
}

#[test]
fn without_the_check_anybodys_datagram_is_let_in() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut stage = Stage::set_with(lab, NETWORK, &["--source-check=false"])?;
        let (from_h2, target) = (container_of(&stage.hosts[1])?, stage.target());
        stage
            .listener
            .hears("from a stranger", |text| stage.vxlan(&stage.stranger, from_h2, target, text))?;
        ensure!(senders(&stage.hosts[0])?.is_empty(), "somebody is checked");

        // Nothing else has to be done to have it from now on.
        stage.hosts[0].stop_agent()?;
        stage.hosts[0].start_agent_with(&STATUS_FLAGS)?;
        let from = |host: &Host, text: &str| stage.vxlan(host, from_h2, target, text);
        stage.listener.does_not_hear(
            "from a stranger now",
            |text| from(&stage.stranger, text),
            |text| from(&stage.hosts[1], text),
        )
    })
}

/// Masquerading brings connection tracking, which puts pieces together before any rule of ours sees them.
#[test]
fn a_forged_datagram_in_pieces_over_ipv6_is_let_in_neither_with_masquerading_nor_without() -> Result<()> {
    let network =
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    let strict = network.replace("vxlan\"", "vxlan\",\"StrictSource\":true");
    for (network, flags) in [
        (network, &["--ip-masq"]),
        (network, &["--ip-masq=false"]),
        (strict.as_str(), &["--ip-masq"]),
        (strict.as_str(), &["--ip-masq=false"]),
    ] {
        Lab::run(LabOptions { ipv6: true, ..LabOptions::default() }, |lab| {
            lab.set_network(network)?;
            let mut hosts = bare_hosts(lab, 2)?;
            on_all(&mut hosts, |host| host.start_agent_with(flags))?;
            let stranger = lab.host("stranger")?;
            let listener = Listener::at(hosts[0].netns())?;
            let base = |host: &Host| -> Result<IpAddr> {
                Ok(host.subnet_values()?.subnet6.context("no IPv6 subnet")?.network().into())
            };
            // To the device's own address: no container is needed.
            let (from_h2, target) = (base(&hosts[1])?, base(&hosts[0])?);
            let mac = mac(&mac_of(hosts[0].netns(), "flannel-v6.1")?)?;
            let to = SocketAddrV6::new(hosts[0].address6()?, 8472, 0, 0);
            let whole = |text: &str| {
                let datagram = forgery::vxlan(1, mac, from_h2, target, text)?;
                forgery::send(hosts[1].netns(), None, to.into(), datagram)
            };
            let pieces = |host: &Host, source: IpAddr, text: &str| {
                let datagram = forgery::vxlan(1, mac, source, target, text)?;
                forgery::send_in_pieces(host.netns(), host.address6()?, to, &datagram)
            };
            listener.hears("a whole one", whole)?;
            listener.does_not_hear("a stranger's", |text| pieces(&stranger, from_h2, text), whole)?;
            let foreign: IpAddr = "fd00:5:0:dead::9".parse()?;
            if network.contains("StrictSource") {
                listener.does_not_hear("a peer's forgery", |text| pieces(&hosts[1], foreign, text), whole)
            } else {
                listener.hears("a peer's", |text| pieces(&hosts[1], from_h2, text))
            }
        })?;
    }
    Ok(())
}

#[test]
fn with_strict_source_a_vxlan_peer_sends_from_its_own_subnet_and_to_ours() -> Result<()> {
    Lab::run(LabOptions { ipv6: true, ..LabOptions::default() }, |lab| {
        let stage = Stage::set(
            lab,
            r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","EnableIPv6":true,"IPv6Network":"fd00:5::/48",
                "Backend":{"Type":"vxlan","StrictSource":true}}"#,
        )?;
        let Stage { hosts, stranger, listener, end, .. } = &stage;
        let subnet6 = hosts[0].subnet_values()?.subnet6.context("no IPv6 subnet")?;
        let target6 = Ipv6Addr::from(u128::from(subnet6.ip()) + 1);
        hosts[0].ip(&format!("address add {}/{} dev docker0 nodad", subnet6.ip(), subnet6.prefix()))?;
        end.place.run("ip", ["address", "add", &format!("{target6}/64"), "dev", "eth0", "nodad"])?;
        let in6 = |host: &Host| -> Result<IpAddr> {
            let subnet = host.subnet_values()?.subnet6.context("no IPv6 subnet")?;
            Ok(Ipv6Addr::from(u128::from(subnet.ip()) + 9).into())
        };
        let outside: [IpAddr; 2] = ["203.0.113.7".parse()?, "2001:db8::7".parse()?];
        let of = |host: &Host| Ok::<_, anyhow::Error>([container_of(host)?, in6(host)?]);
        let (of_h2, of_h3, target) = (of(&hosts[1])?, of(&hosts[2])?, [stage.target(), target6.into()]);
        for family in 0..2 {
            let send =
                |host: &Host, source: IpAddr, text: &str| stage.vxlan(host, source, target[family], text);
            let good = |text: &str| send(&hosts[1], of_h2[family], text);
            let text = |what: &str| format!("{what} of family {family}");
            listener.hears(&text("a packet"), good)?;
            listener.does_not_hear(
                &text("a strangers packet"),
                |text| send(stranger, of_h2[family], text),
                good,
            )?;
            listener.does_not_hear(
                &text("another peers"),
                |text| send(&hosts[1], of_h3[family], text),
                good,
            )?;
            listener.does_not_hear(
                &text("a foreign"),
                |text| send(&hosts[1], outside[family], text),
                good,
            )?;
        }
        // For another host, which h1 would send on to.
        let bystander = Listener::at(stranger.netns())?;
        let to_stranger = |text: &str| stage.vxlan(&hosts[1], of_h2[0], stranger.address().into(), text);
        listener.hears("the end", |text| {
            to_stranger("to a stranger")?;
            stage.vxlan(&hosts[1], of_h2[0], target[0], text)
        })?;
        bystander.does_not_hear("to a stranger", to_stranger, |text| {
            forgery::send_plain(hosts[0].netns(), hosts[0].address().into(), stranger.address().into(), text)
        })?;
        // What peers send really goes its way.
        hosts[1].ping_once(end.address)
    })
}

#[test]
fn the_udp_backend_takes_packets_of_peers_and_with_strict_source_their_own_to_us() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let stage = Stage::set(lab, NETWORK_OF_UDP)?;
        let Stage { hosts, stranger, listener, .. } = &stage;
        let (of_h2, of_h3, target) = (container_of(&hosts[1])?, container_of(&hosts[2])?, stage.target());
        let good = |text: &str| stage.udp(&hosts[1], of_h2, target, text);
        listener.hears("from a peer", good)?;
        listener.does_not_hear("from a stranger", |text| stage.udp(stranger, of_h2, target, text), good)?;
        listener.hears("from a peer for another", |text| stage.udp(&hosts[1], of_h3, target, text))?;
        Ok(())
    })?;
    Lab::run(LabOptions::default(), |lab| {
        let network = NETWORK_OF_UDP.replace(r#""udp""#, r#""udp","StrictSource":true"#);
        let stage = Stage::set(lab, &network)?;
        let Stage { hosts, stranger, listener, .. } = &stage;
        let (of_h2, of_h3, target) = (container_of(&hosts[1])?, container_of(&hosts[2])?, stage.target());
        let good = |text: &str| stage.udp(&hosts[1], of_h2, target, text);
        listener.does_not_hear("another peers", |text| stage.udp(&hosts[1], of_h3, target, text), good)?;
        let bystander = Listener::at(stranger.netns())?;
        let to_stranger = |text: &str| stage.udp(&hosts[1], of_h2, stranger.address().into(), text);
        to_stranger("to a stranger")?;
        listener.hears("the end", good)?;
        bystander.does_not_hear("to a stranger", to_stranger, |text| {
            forgery::send_plain(hosts[0].netns(), hosts[0].address().into(), stranger.address().into(), text)
        })
    })
}

#[test]
fn with_strict_source_host_gw_takes_packets_of_peers_subnets_alone() -> Result<()> {
    let network = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"host-gw"}}"#;
    let strict = network.replace("gw\"", "gw\",\"StrictSource\":true");
    for (network, is_let_in) in [(network, true), (strict.as_str(), false)] {
        Lab::run(LabOptions::default(), |lab| {
            let stage = Stage::set(lab, network)?;
            let Stage { hosts, stranger, listener, .. } = &stage;
            // A subnet that nobody holds, and one that a peer holds, on somebody who is none.
            let (unleased, of_h2): (IpAddr, _) = ("10.5.150.9".parse()?, container_of(&hosts[1])?);
            for (netns, address) in [(stranger.netns(), unleased), (hosts[1].netns(), of_h2)] {
                netns.ip(&format!("address add {address}/32 dev lo"))?;
                netns.ip(&format!(
                    "route replace {} via {}",
                    hosts[0].subnet_env()?.base(),
                    hosts[0].address()
                ))?;
            }
            let good = |text: &str| forgery::send_plain(hosts[1].netns(), of_h2, stage.target(), text);
            let bad = |text: &str| forgery::send_plain(stranger.netns(), unleased, stage.target(), text);
            listener.hears("from a peer", good)?;
            if is_let_in {
                listener.hears("from a subnet that nobody holds", bad)
            } else {
                listener.does_not_hear("from a subnet that nobody holds", bad, good)
            }
        })?;
    }
    Ok(())
}

#[test]
fn senders_and_rules_that_another_program_takes_away_are_back_within_a_second() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let stage = Stage::set(lab, NETWORK)?;
        wait_until_all_know_each_other(&stage.hosts)?;
        let h1 = &stage.hosts[0];
        // In which order a set is listed is not said.
        let words = || -> Result<Vec<String>> {
            let table = table(h1.netns())?;
            let mut words: Vec<String> = table.split([' ', ',', '\n']).map(str::to_owned).collect();
            words.sort();
            Ok(words)
        };
        let before = words()?;
        for damage in [
            "flush set ip flan-peers peers",
            "flush chain ip flan-peers arriving",
            "add rule ip flan-peers arriving udp dport 8472 drop",
            "add element ip flan-peers peers { 192.168.64.99 }",
            "delete table ip flan-peers",
            "flush ruleset",
            // A table of somebody else's under our name.
            "delete table ip flan-peers; add table ip flan-peers; add set ip flan-peers peers { type ipv6_addr; }",
            "delete table ip flan-peers; add table ip flan-peers; add chain ip flan-peers arriving { type filter hook \
             output priority 0; }",
        ] {
            h1.run("nft", &[damage])?;
            wait::until(&format!("everything to be as before {damage:?}"), REPAIR, || {
                let now = words()?;
                ensure!(now == before, "the table has {now:?}");
                Ok(())
            })?;
        }
        let repairs = h1.status()?["repairs"].clone();
        ensure!(repairs["sender"].as_u64() >= Some(3), "repairs of senders are not counted: {repairs}");
        let (from_h2, target) = (container_of(&stage.hosts[1])?, stage.target());
        let from = |host: &Host, text: &str| stage.vxlan(host, from_h2, target, text);
        stage.listener.does_not_hear(
            "from a stranger",
            |text| from(&stage.stranger, text),
            |text| from(&stage.hosts[1], text),
        )
    })
}

/// The table that holds peers and checks of IPv4, as `nft` lists it; empty if there is none.
fn table(netns: &Netns) -> Result<String> {
    let all = netns.place().run("nft", ["-s", "list", "ruleset"])?;
    let Some(start) = all.find("table ip flan-peers {") else { return Ok(String::new()) };
    let end = all[start..].find("\n}").context("an unfinished table")?;
    Ok(all[start..start + end].to_owned())
}

/// Who is let in, in that table.
fn senders(host: &Host) -> Result<String> {
    let table = table(host.netns())?;
    Ok(table.lines().filter(|line| line.contains("elements")).collect())
}
