//! A host whose interfaces, addresses and default routes change, under a running agent and before a start.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::lab::ROUTER;
use flan_integration::overlay::DEVICE;
use flan_integration::traffic::Ping;
use flan_integration::{Host, Lab, LabOptions, command, tools, wait};
use serde_json::{Value, json};

use crate::stage::{
    NETWORK, NETWORK_OF_UDP, bare_hosts, hosts_with_status, text_of, wait_until_all_know_each_other,
};

/// As a DHCP server would give it out next.
const NEW: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 177);

/// How soon everybody must know.
const LIMIT: Duration = Duration::from_secs(5);

/// How long an agent waits for its interface to come back.
const GRACE: Duration = Duration::from_secs(30);

/// Pings answered in each phase of a story.
const PHASE: usize = 50;

/// Two hosts with agents that know each other; that of the first finds its interface by the default route, which has
/// metric 100.
fn one_by_default_route_and_one_peer(lab: &Lab) -> Result<[Host; 2]> {
    lab.set_network(NETWORK)?;
    let mut hosts = [lab.host("h1")?, lab.host("h2")?];
    hosts[0].name_no_interface();
    hosts[0].ip("route del default")?;
    hosts[0].ip(&format!("route add default via {ROUTER} dev eth0 metric 100"))?;
    for host in &mut hosts {
        host.start_agent_with(&STATUS_FLAGS)?;
    }
    wait_until_all_know_each_other(&hosts)?;
    Ok(hosts)
}

/// Waits until the status tells of another interface that a start would choose, and returns what it says.
fn wait_for_other_interface(host: &Host) -> Result<String> {
    wait::until("the problem other-interface", LIMIT, || {
        let status = host.status()?;
        text_of(&status, "other-interface").with_context(|| format!("there is none: {}", status["problems"]))
    })
}

fn wait_until_no_problem(host: &Host) -> Result<()> {
    wait::until("no problem", LIMIT, || {
        let status = host.status()?;
        ensure!(status["problems"] == json!([]), "{status}");
        Ok(())
    })
}

/// What peers and containers depend on: the lease, the VXLAN device with its number and all that it is made with.
fn what_others_depend_on(lab: &Lab, host: &Host) -> Result<[String; 2]> {
    let lease = lab.store().value(&format!("subnets/{}", host.subnet_env()?.key()))?;
    Ok([lease.context("the lease is gone")?, host.ip(&format!("-details link show dev {DEVICE}"))?])
}

/// More answers to a ping that goes on; some may be lost before them.
fn goes_on(ping: &mut Ping) -> Result<()> {
    ping.wait_for_answers(PHASE)
}

#[test]
fn a_host_whose_address_changes_keeps_its_subnet_and_its_peers_follow() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts_with_status(lab, 3)?;
        let (env, mac) = (hosts[0].subnet_env()?, hosts[0].vtep_mac()?);
        let (old, pid) = (hosts[0].address(), hosts[0].agent_pid());
        let key = format!("subnets/{}", env.key());
        let mut ping = hosts[1].ping(env.base_address())?;

        // With the address go the routes that hang on it.
        hosts[0].run(
            "sh",
            &[
                "-c",
                &format!(
                    "ip address del {old}/24 dev eth0 && ip address add {NEW}/24 dev eth0 \
                     && ip route add default via {ROUTER}"
                ),
            ],
        )?;
        let changed = Instant::now();

        wait::until("the lease to show the new address", LIMIT, || {
            let text = lab.store().value(&key)?.context("the lease is gone")?;
            let lease: Value = serde_json::from_str(&text)?;
            ensure!(lease["PublicIP"] == json!(NEW.to_string()), "{text}");
            Ok(())
        })?;
        for peer in &hosts[1..] {
            wait::until(
                &format!("{} to follow", peer.name()),
                LIMIT.saturating_sub(changed.elapsed()),
                || {
                    let to = peer.overlay()?.fdb.get(&mac).cloned();
                    ensure!(to == Some(NEW.to_string()), "it sends to {to:?}");
                    Ok(())
                },
            )?;
        }
        ping.wait_for_answers(50)?;
        println!("a peer's ping meanwhile: {:?}", ping.stop()?);
        let target = hosts[1].subnet_env()?.base_address();
        hosts[0].ping_once(target)?;

        assert_eq!(hosts[0].subnet_env()?, env, "subnet.env");
        assert_eq!(hosts[0].vtep_mac()?, mac, "the MAC of the device");
        assert_eq!(hosts[0].agent_pid(), pid, "the agent's process");
        let keys = lab.store().subnet_keys()?;
        ensure!(keys.len() == hosts.len(), "other leases than before: {keys:?}");
        hosts[0].ensure_agent_runs()
    })
}

#[test]
fn a_default_route_that_a_vpn_adds_moves_no_running_host_and_is_told() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = one_by_default_route_and_one_peer(lab)?;
        let before = what_others_depend_on(lab, &hosts[0])?;
        let mut ping = hosts[1].ping(hosts[0].subnet_env()?.base_address())?;

        for words in [
            "link add tun7 type veth peer name tun7-far",
            "link set tun7-far up",
            "address add 10.99.0.2/24 dev tun7",
            "link set tun7 up",
            "route add default via 10.99.0.1 dev tun7 metric 50",
        ] {
            hosts[0].ip(words)?;
        }
        let text = wait_for_other_interface(&hosts[0])?;
        ensure!(text.contains("tun7 (10.99.0.2)") && text.contains("restart fland to move"), "{text}");
        wait::while_holds("the host stays where it is", LIMIT, || {
            let now = what_others_depend_on(lab, &hosts[0])?;
            ensure!(now == before, "{now:?}");
            Ok(())
        })?;
        hosts[0].ip("link del tun7")?;
        wait_until_no_problem(&hosts[0])?;
        // One that goes for a while changes nothing either.
        hosts[0].ip("route del default")?;
        goes_on(&mut ping)?;
        hosts[0].ip(&format!("route add default via {ROUTER}"))?;
        goes_on(&mut ping)?;

        ping.stop()?.nothing_lost(2 * PHASE)?;
        let now = what_others_depend_on(lab, &hosts[0])?;
        ensure!(now == before, "{now:?}");
        hosts[0].ensure_agent_runs()
    })
}

#[test]
fn an_interface_that_is_renamed_is_followed_and_nothing_is_made_anew() -> Result<()> {
    const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"host-gw"}}"#;
    for network in [NETWORK, HOST_GW, NETWORK_OF_UDP] {
        Lab::run(LabOptions::default(), |lab| {
            lab.set_network(network)?;
            let mut hosts = bare_hosts(lab, 2)?;
            for host in &mut hosts {
                host.start_agent_with(&STATUS_FLAGS)?;
            }
            let subnet = hosts[1].subnet_env()?.base();
            let key = format!("subnets/{}", hosts[0].subnet_env()?.key());
            let devices = || hosts[0].ip("-brief link show type vxlan");
            let (lease, devices_before) = (lab.store().value(&key)?, devices()?);

            hosts[0].ip("link set eth0 down")?;
            hosts[0].ip("link set eth0 name lan0")?;
            hosts[0].ip("link set lan0 up")?;
            hosts[0].ip(&format!("route add default via {ROUTER}"))?;
            let text = wait_for_other_interface(&hosts[0])?;
            ensure!(
                text.contains("fland keeps lan0") && text.contains("no interface is called eth0"),
                "{text}"
            );
            if network == HOST_GW {
                wait::until("the route to the peer", LIMIT, || {
                    let route = hosts[0].ip(&format!("route show {subnet}"))?;
                    ensure!(route.contains("dev lan0"), "it is {route:?}");
                    Ok(())
                })?;
            }
            assert_eq!(devices()?, devices_before, "the device");
            assert_eq!(lab.store().value(&key)?, lease, "the lease");
            let status = hosts[0].status()?;
            ensure!(status["ready"] == true && text_of(&status, "kernel").is_none(), "{status}");
            // A route by an interface that is down is rightly refused for that moment.
            let refused = (network != HOST_GW).then_some("refused an operation");
            for trouble in ["created the device again"].into_iter().chain(refused) {
                let lines = hosts[0].log_lines(&[trouble])?;
                ensure!(lines.is_empty(), "{lines:?}");
            }
            hosts[0].ensure_agent_runs()
        })
        .with_context(|| network.to_owned())?;
    }
    Ok(())
}

#[test]
fn an_interface_that_is_made_anew_is_used_again_and_one_that_stays_away_is_replaced() -> Result<()> {
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 211);
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = one_by_default_route_and_one_peer(lab)?;
        let env = hosts[0].subnet_env()?;
        let (address, key) = (hosts[0].address(), format!("subnets/{}", env.key()));
        let lease = lab.store().value(&key)?;
        let mut ping = hosts[1].ping(env.base_address())?;

        hosts[0].ip("link del eth0")?;
        wait::until("the agent to say so", LIMIT, || {
            let problem = text_of(&hosts[0].status()?, "kernel").unwrap_or_default();
            ensure!(problem.contains("eth0 is gone"), "{problem}");
            Ok(())
        })?;
        lab.plug_in(&hosts[0], "eth0", address)?;
        goes_on(&mut ping)?;
        wait_until_no_problem(&hosts[0])?;
        assert_eq!(lab.store().value(&key)?, lease, "the lease");

        lab.plug_in(&hosts[0], "eth1", OTHER)?;
        hosts[0].ip(&format!("route add default via {ROUTER} dev eth1 metric 200"))?;
        hosts[0].ip("link del eth0")?;
        let gone = Instant::now();
        wait::until("the lease to show the other interface's address", GRACE + 2 * LIMIT, || {
            let text = lab.store().value(&key)?.context("the lease is gone")?;
            let lease: Value = serde_json::from_str(&text)?;
            ensure!(lease["PublicIP"] == json!(OTHER.to_string()), "{text}");
            Ok(())
        })?;
        let waited = gone.elapsed();
        ensure!(waited > GRACE.saturating_sub(Duration::from_secs(1)), "moved after {waited:?}");
        goes_on(&mut ping)?;
        let device = hosts[0].ip(&format!("-details link show dev {DEVICE}"))?;
        ensure!(device.contains(&format!("local {OTHER} dev eth1")), "{device}");
        assert_eq!(hosts[0].subnet_env()?, env);
        wait_until_no_problem(&hosts[0])?;
        hosts[0].ensure_agent_runs()
    })
}

#[test]
fn a_host_sends_by_the_interface_that_holds_its_public_ip() -> Result<()> {
    const PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 212);
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK_OF_UDP)?;
        let mut hosts = [lab.host("h1")?, lab.host("h2")?];
        hosts[0].name_no_interface();
        lab.plug_in(&hosts[0], "eth1", PUBLIC)?;
        hosts[0].start_agent_with(&["--public-ip", &PUBLIC.to_string()])?;
        hosts[1].start_agent()?;
        let lines = hosts[0].log_lines(&["external interface", "interface=eth1", &PUBLIC.to_string()])?;
        ensure!(!lines.is_empty(), "another interface was taken");
        for (from, to) in [(0, 1), (1, 0)] {
            let target = hosts[to].subnet_env()?.base_address();
            wait::until("an answer", LIMIT, || hosts[from].ping_once(target))?;
        }
        Ok(())
    })
}

#[test]
fn an_address_and_a_default_route_on_our_own_device_mislead_no_start() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = one_by_default_route_and_one_peer(lab)?;
        let before = what_others_depend_on(lab, &hosts[0])?;
        hosts[0].stop_agent()?;
        // As dhcpcd leaves them.
        hosts[0].ip(&format!("address add 192.168.64.77/24 dev {DEVICE}"))?;
        hosts[0].ip(&format!("route add default via {ROUTER} dev {DEVICE} metric 3"))?;
        hosts[0].start_agent_with(&STATUS_FLAGS)?;
        let now = what_others_depend_on(lab, &hosts[0])?;
        ensure!(now == before, "{now:?}");
        Ok(())
    })
}

#[test]
fn an_agent_that_may_not_change_the_network_is_refused_before_it_takes_a_lease() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let host = lab.host("h1")?;
        let (endpoints, _) = host.etcd();
        let unprivileged = host.place().then(["setpriv", "--bounding-set", "-net_admin"]);
        let mut fland = unprivileged.command(tools::flan_binary("fland")?);
        fland.args(["--etcd-endpoints", endpoints]);
        let outcome = command::run(&fland)?;
        ensure!(outcome.code == Some(2), "{outcome:?}");
        ensure!(
            outcome.stderr.contains("CAP_NET_ADMIN") && outcome.stderr.contains("sudo fland"),
            "{outcome:?}"
        );
        let keys = lab.store().subnet_keys()?;
        ensure!(keys.is_empty(), "it took {keys:?}");
        Ok(())
    })
}
