//! Hosts whose packets pass through the agent: flannel's udp backend.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::docker::Container;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::{Bridge, Host, Lab, LabOptions, wait};
use serde_json::{Value, json};

use crate::stage::{NETWORK_OF_UDP, bare_hosts, talk_both_ways, text_of, two_docker_hosts_of};

/// Each packet is read, sent, received and written alone.
const PLAIN: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0",
    "Backend":{"Type":"udp","TunOffload":false,"GSO":false,"GRO":false}}"#;

const DEVICE: &str = "flannel0";

/// Pings answered in each phase of a story.
const PHASE: usize = 100;

/// Datagrams that leave at once for a peer that reads as flanneld does, at most.
const BURST: u64 = 16;

/// Requests that may go unanswered while the agent is away, of 100 a second.
const MOST_LOST: usize = 100;

/// What the kernel of a host has for this backend.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    index: u32,
    address: String,
    routes: Vec<String>,
}

impl Standing {
    fn of(host: &Host) -> Result<Standing> {
        let link = json_of(host, &format!("-json address show dev {DEVICE}"))?;
        ensure!(link[0]["mtu"] == json!(1472), "the MTU of {DEVICE} is {}", link[0]["mtu"]);
        let index = link[0]["ifindex"].as_u64().context("no index")?.try_into()?;
        let v4 =
            link[0]["addr_info"].as_array().into_iter().flatten().find(|entry| entry["family"] == "inet");
        let address = v4.map(|entry| format!("{}/{}", entry["local"], entry["prefixlen"]).replace('"', ""));
        let routes = json_of(host, &format!("-json -4 route show dev {DEVICE}"))?;
        let routes = routes.as_array().into_iter().flatten().filter_map(|route| route["dst"].as_str());
        Ok(Standing {
            index,
            address: address.with_context(|| format!("{DEVICE} has no address"))?,
            routes: routes.map(str::to_owned).collect(),
        })
    }
}

fn json_of(host: &Host, words: &str) -> Result<Value> {
    let text = host.ip(words)?;
    serde_json::from_str(&text).with_context(|| format!("cannot parse what ip {words} printed: {text:?}"))
}

/// Two Docker hosts on udp and a container on each, that reach each other.
fn two_containers(lab: &Lab, network: &str) -> Result<([Host; 2], [Container; 2])> {
    let hosts = two_docker_hosts_of(lab, network, Bridge::WholeSubnet)?;
    let webs = [hosts[0].run_container("web1", &[])?, hosts[1].run_container("web2", &[])?];
    for (from, to) in [(0, 1), (1, 0)] {
        let target = webs[to].address()?;
        wait::until("containers to reach each other", Duration::from_secs(15), || webs[from].ping(target))?;
    }
    Ok((hosts, webs))
}

/// Small and large packets, in both directions.
fn exchange(webs: &[Container; 2]) -> Result<()> {
    talk_both_ways(&webs[0], &webs[1])?;
    for (from, to) in [(0, 1), (1, 0)] {
        let written = webs[to].write_body(4)?;
        let fetched = webs[from].fetch_body(webs[to].address()?)?;
        ensure!(
            fetched == written,
            "{} fetched another body than that of {}",
            webs[from].name(),
            webs[to].name()
        );
    }
    Ok(())
}

/// One ping from the host itself.
fn ping_once(host: &Host, target: Ipv4Addr) -> Result<()> {
    host.run("ping", &["-n", "-c", "1", "-W", "1", &target.to_string()]).map(drop)
}

#[test]
fn hosts_of_a_config_without_backend_are_on_udp_and_say_so() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        // flanctl would add a backend.
        lab.store().put("config", r#"{"Network":"10.5.0.0/16"}"#)?;
        let mut hosts = bare_hosts(lab, 2)?;
        on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
        for (from, to) in [(0, 1), (1, 0)] {
            let target = hosts[to].subnet_env()?.base_address();
            wait::until("hosts to reach each other", Duration::from_secs(15), || {
                ping_once(&hosts[from], target)
            })?;
        }
        for host in &hosts {
            Standing::of(host)?;
            let status = host.status()?;
            assert_eq!(status["backend"], json!("udp"));
            let text = text_of(&status, "doubtful-config").unwrap_or_default();
            ensure!(text.contains("names no Backend: flannel takes udp"), "the status says {status}");
        }
        Ok(())
    })
}

#[test]
fn containers_on_udp_talk_and_the_lease_is_flannels() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, webs) = two_containers(lab, NETWORK_OF_UDP)?;
        exchange(&webs)?;

        for host in &hosts {
            let env = host.subnet_env()?;
            assert_eq!(env.mtu, 1472);
            let standing = Standing::of(host)?;
            assert_eq!(standing.address, format!("{}/32", env.base_address()));
            assert_eq!(standing.routes, [env.network.to_string()]);

            let text = lab.store().value(&format!("subnets/{}", env.key()))?.context("no lease")?;
            let lease: Value = serde_json::from_str(&text)?;
            assert_eq!(lease["PublicIP"], json!(host.address().to_string()));
            assert_eq!(lease.get("PublicIPv6"), Some(&Value::Null));
            for absent in ["BackendType", "BackendData", "BackendV6Data"] {
                ensure!(lease.get(absent).is_none(), "flannel writes no {absent}: {text}");
            }
        }
        Ok(())
    })
}

#[test]
fn containers_on_udp_talk_without_any_offload() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, webs) = two_containers(lab, PLAIN)?;
        for host in &hosts {
            let log = fs::read_to_string(host.agent_log())?;
            ensure!(log.contains("tun=plain gso=false gro=false"), "{} is not plain: {log}", host.name());
        }
        exchange(&webs)
    })
}

#[test]
fn senders_learn_why_a_packet_goes_no_further() -> Result<()> {
    senders_learn_why(NETWORK_OF_UDP)
}

#[test]
fn senders_learn_why_a_packet_goes_no_further_without_offloads_too() -> Result<()> {
    senders_learn_why(PLAIN)
}

fn senders_learn_why(network: &str) -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(network)?;
        let mut hosts = bare_hosts(lab, 2)?;
        on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
        let (host, peer) = (&hosts[0], hosts[1].subnet_env()?.base_address());
        wait::until("a ping to the other host's device", Duration::from_secs(5), || ping_once(host, peer))?;
        let told = |args: &[&str]| -> Result<String> {
            let output = host.command("ping").args(["-n", "-c", "2", "-W", "1"]).args(args).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let nobody = told(&["10.5.255.254"])?;
        ensure!(nobody.contains("Destination Net Unreachable"), "of an address of no peer: {nobody}");
        let short_lived = told(&["-t", "1", &peer.to_string()])?;
        ensure!(
            short_lived.contains("Time to live exceeded"),
            "of a packet that may go one hop: {short_lived}"
        );
        let datapath = &host.status()?["datapath"];
        for counter in ["droppedNoPeer", "droppedTtl", "icmpSent"] {
            ensure!(datapath[counter].as_u64() >= Some(1), "{counter} in {datapath}");
        }
        Ok(())
    })
}

#[test]
fn an_agent_on_udp_killed_and_restarted_loses_only_the_packets_of_that_moment() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, webs) = two_containers(lab, NETWORK_OF_UDP)?;
        let (before, env) = (Standing::of(&hosts[0])?, hosts[0].subnet_env()?);
        let mut monitor = hosts[0].monitor()?;
        let bridge2 = hosts[1].subnet_env()?.subnet.ip();
        let mut pings = [
            hosts[0].ping(bridge2)?,
            hosts[0].ping_from(&webs[0], webs[1].address()?)?,
            hosts[1].ping_from(&webs[1], webs[0].address()?)?,
        ];
        for ping in &mut pings {
            ping.wait_for_answers(PHASE)?;
        }

        let started = Instant::now();
        hosts[0].kill_agent()?;
        ensure!(Standing::of(&hosts[0])? == before, "without the agent: {:?}", Standing::of(&hosts[0])?);
        hosts[0].start_agent()?;
        let away = started.elapsed();
        for ping in &mut pings {
            ping.wait_for_answers(PHASE)?;
        }

        for ping in pings {
            let report = ping.stop()?;
            println!("ready again after {away:?}: {report:?}");
            ensure!(report.outage < MOST_LOST, "lost more than the packets of that moment: {report:?}");
        }
        assert_eq!(Standing::of(&hosts[0])?, before);
        assert_eq!(hosts[0].subnet_env()?, env);
        let mut deletions = monitor.deletions(DEVICE)?;
        // The kernel's own, of packets that met the device without a reader.
        deletions.retain(|line| !(line.contains("[NEIGH]") && line.contains("NOARP")));
        ensure!(deletions.is_empty(), "deleted on the way: {deletions:#?}");
        exchange(&webs)
    })
}

#[test]
fn a_device_of_udp_that_was_deleted_is_back_and_carries_packets() -> Result<()> {
    a_deleted_device_is_back(NETWORK_OF_UDP)
}

#[test]
fn a_device_of_udp_that_was_deleted_is_back_without_offloads_too() -> Result<()> {
    a_deleted_device_is_back(PLAIN)
}

fn a_deleted_device_is_back(network: &str) -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, webs) = two_containers(lab, network)?;
        let before = Standing::of(&hosts[0])?;
        let target = hosts[1].subnet_env()?.subnet.ip();
        let ping = hosts[0].ping_from(&webs[0], webs[1].address()?)?;

        hosts[0].ip(&format!("link del {DEVICE}"))?;
        let started = Instant::now();
        wait::until("the device and the traffic to be back", Duration::from_secs(5), || {
            ping_once(&hosts[0], target)
        })?;
        let after = Standing::of(&hosts[0])?;
        println!("answered again after {:?}: {before:?}, then {after:?}", started.elapsed());
        ensure!(after.index != before.index, "the device was not deleted");
        assert_eq!((after.address, after.routes), (before.address, before.routes));

        exchange(&webs)?;
        println!("a container's ping meanwhile: {:?}", ping.stop()?);
        hosts[0].ensure_agent_runs()
    })
}

#[test]
fn a_device_of_udp_that_another_program_creates_again_carries_packets() -> Result<()> {
    for network in [NETWORK_OF_UDP, PLAIN] {
        Lab::run(LabOptions::default(), |lab| {
            let (mut hosts, webs) = two_containers(lab, network)?;
            // Faster than the agent, which then has nothing to create.
            let again = format!("ip link del {DEVICE} && ip tuntap add dev {DEVICE} mode tun multi_queue");
            hosts[0].run("sh", &["-c", &again])?;
            let target = hosts[1].subnet_env()?.subnet.ip();
            wait::until("the traffic to be back", Duration::from_secs(10), || ping_once(&hosts[0], target))?;
            exchange(&webs)?;
            hosts[0].ensure_agent_runs()
        })?;
    }
    Ok(())
}

#[test]
fn the_route_that_goes_unsaid_with_the_last_address_of_the_device_is_back_with_it() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, webs) = two_containers(lab, NETWORK_OF_UDP)?;
        let before = Standing::of(&hosts[0])?;
        hosts[0].ip(&format!("addr flush dev {DEVICE}"))?;
        wait::until("the address and the route to be back", Duration::from_secs(3), || {
            let now = Standing::of(&hosts[0])?;
            ensure!(
                (&now.address, &now.routes) == (&before.address, &before.routes),
                "{now:?}, before {before:?}"
            );
            Ok(())
        })?;
        exchange(&webs)?;
        hosts[0].ensure_agent_runs()
    })
}

#[test]
fn a_path_that_carries_less_than_the_interface_gets_large_packets_as_fragments() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (hosts, webs) = two_containers(lab, NETWORK_OF_UDP)?;
        for host in &hosts {
            let address = host.address();
            host.ip(&format!("route change 192.168.64.0/24 dev eth0 src {address} mtu 1300"))?;
        }
        exchange(&webs)
    })
}

#[test]
fn packets_leave_in_short_bursts_for_a_peer_without_a_node_id() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK_OF_UDP)?;
        let mut hosts = [lab.host("ours")?, lab.host("theirs")?];
        hosts[0].start_agent_with(&STATUS_FLAGS)?;
        // What tells it from a flanneld is not in its lease.
        hosts[1].start_agent_with(&["--ip-masq", "--node-id", ""])?;
        on_all(&mut hosts, |host| host.start_docker(Bridge::WholeSubnet))?;
        let webs = [hosts[0].run_container("web1", &[])?, hosts[1].run_container("web2", &[])?];
        let target = webs[1].address()?;
        wait::until("containers to reach each other", Duration::from_secs(15), || webs[0].ping(target))?;

        let written = webs[0].write_body(64)?;
        ensure!(webs[1].fetch_body(webs[0].address()?)? == written, "another body came");

        let datapath = &hosts[0].status()?["datapath"];
        let count = |name: &str| datapath[name].as_u64().with_context(|| format!("no {name}: {datapath}"));
        let (packets, sends) = (count("sentPackets")?, count("sentBatches")?);
        println!("{packets} packets in {sends} sends: {datapath}");
        ensure!(packets > 40_000, "the body of 64 MiB did not pass this way: {datapath}");
        ensure!(packets <= BURST * sends, "more than {BURST} packets a send: {datapath}");
        Ok(())
    })
}
