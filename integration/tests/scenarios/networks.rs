//! Networks beside the default one.

use std::time::Duration;

use anyhow::{Result, ensure};
use flan_integration::end::End;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::{Bridge, Host, Lab, LabOptions, wait};
use serde_json::{Value, json};

use crate::stage::{
    NETWORK, bare_hosts, ends_of, talk_both_ways, wait_until_all_know_each_other, wait_until_reached,
};

const REACHED: Duration = Duration::from_secs(15);

/// Pings answered in each phase.
const PHASE: usize = 100;

const IN_BLUE: &[&str] = &["--networks=blue"];

/// As exit codes say it.
const REFUSED: i32 = 6;
const NOT_FOUND: i32 = 7;

fn start(host: &mut Host, flags: &[&str]) -> Result<()> {
    host.start_agent_with(&[&STATUS_FLAGS, flags].concat())
}

fn create(lab: &Lab, arguments: &[&str]) -> Result<()> {
    lab.flanctl(&[&["network", "create"], arguments].concat())?.succeeded("flanctl network create")
}

/// Waits until the network is ready on the host, with an end behind a bridge of its own.
fn end_in_blue(host: &Host) -> Result<End> {
    let env = wait::until("the subnet file of network blue", REACHED, || host.subnet_env_of("blue"))?;
    End::behind_another_bridge(host.netns(), "blue", &env)
}

#[test]
fn two_of_three_hosts_are_in_a_second_network_and_no_packet_passes_between_the_two() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        create(lab, &["blue", "--subnet", "10.7.0.0/16", "--label", "team=web"])?;
        let mut hosts = bare_hosts(lab, 3)?;
        for (host, flags) in hosts.iter_mut().zip([IN_BLUE, IN_BLUE, &[]]) {
            start(host, flags)?;
        }
        let ends = ends_of(&hosts)?;
        let blue = [end_in_blue(&hosts[0])?, end_in_blue(&hosts[1])?];
        wait_until_reached(&ends[0], &ends[2], REACHED)?;
        wait_until_reached(&blue[0], &blue[1], REACHED)?;
        wait_until_reached(&blue[1], &blue[0], REACHED)?;
        nothing_passes_between(&[&ends[0], &ends[1]], &[&blue[0], &blue[1]])?;
        each_host_says_where_it_is(&hosts)?;
        people_see_all_networks(lab)?;
        an_agent_is_killed_and_started_again(&mut hosts, &blue)?;
        nothing_passes_between(&[&ends[0], &ends[1]], &[&blue[0], &blue[1]])?;
        a_host_leaves_the_network(lab, &mut hosts[1])?;
        a_network_without_hosts_is_removed(lab, &mut hosts[0])
    })
}

/// Neither on one host nor from host to host.
fn nothing_passes_between(some: &[&End], others: &[&End]) -> Result<()> {
    let ways = some.iter().flat_map(|one| others.iter().flat_map(move |other| [(one, other), (other, one)]));
    for (from, to) in ways {
        let target = to.address.to_string();
        let reached = from.place.run("ping", ["-n", "-c", "1", "-W", "1", target.as_str()]);
        ensure!(reached.is_err(), "{} reaches {target} of another network", from.address);
    }
    Ok(())
}

fn each_host_says_where_it_is(hosts: &[Host]) -> Result<()> {
    let blue = &hosts[0].status()?["networks"][0];
    assert_eq!((&blue["name"], &blue["ready"], &blue["peers"]), (&json!("blue"), &json!(true), &json!(1)));
    assert_eq!(blue["subnets"], json!([hosts[0].subnet_env_of("blue")?.base().to_string()]));
    assert_eq!(hosts[0].status()?["peers"], json!(2));
    assert_eq!(hosts[2].status()?["networks"], json!([]));
    let lines = hosts[0].log_lines(&["network{name=blue}", "peer joined"])?;
    ensure!(lines.len() == 1, "{lines:?}");
    Ok(())
}

fn people_see_all_networks(lab: &Lab) -> Result<()> {
    let list: Value = serde_json::from_str(&lab.flanctl(&["network", "ls", "-o", "json"])?.stdout)?;
    let shown: Vec<Value> = ["name", "subnets", "vni", "hosts", "labels"]
        .map(|field| json!([list["items"][0][field], list["items"][1][field]]))
        .into();
    assert_eq!(
        shown,
        [
            json!(["(default)", "blue"]),
            json!([["10.5.0.0/16"], ["10.7.0.0/16"]]),
            json!([1, 2]),
            json!([3, 2]),
            json!([{}, {"team": "web"}]),
        ]
    );
    let inspected = lab.flanctl(&["network", "inspect", "blue"])?;
    ensure!(inspected.stdout.contains("team=web") && inspected.stdout.contains("h2"), "{inspected:?}");
    let missing = lab.flanctl(&["network", "inspect", "green"])?;
    ensure!(missing.code == Some(NOT_FOUND), "{missing:?}");
    let clash = lab.flanctl_with_input(
        &["--network", "blue", "config", "set", "-"],
        r#"{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan","VNI":1}}"#,
    )?;
    ensure!(clash.code == Some(REFUSED) && clash.stderr.contains("has the VNI 1"), "{clash:?}");
    let nothing = lab.flanctl(&["--network", "blue", "wait"])?;
    ensure!(nothing.code == Some(2) && nothing.stderr.contains("has no effect here"), "{nothing:?}");
    for (arguments, told) in [
        (["green", "--subnet", "10.7.4.0/22"].as_slice(), "10.7.4.0/22 overlaps 10.7.0.0/16 of network blue"),
        (&["green", "--subnet", "10.5.0.0/16"], "10.5.0.0/16 overlaps 10.5.0.0/16 of the default network"),
        (&["green", "--subnet", "10.8.0.0/16", "--vni", "2"], "network blue has the VNI 2; 3 is free"),
        (&["blue", "--subnet", "10.8.0.0/16"], "there is a network blue already"),
    ] {
        let refused = lab.flanctl(&[&["network", "create"], arguments].concat())?;
        ensure!(refused.code == Some(REFUSED) && refused.stderr.contains(told), "{refused:?}");
    }
    Ok(())
}

fn an_agent_is_killed_and_started_again(hosts: &mut [Host], blue: &[End; 2]) -> Result<()> {
    let mut ping = hosts[1].ping_from_end(&blue[1], blue[0].address)?;
    ping.wait_for_answers(PHASE)?;
    hosts[0].kill_agent()?;
    ping.wait_for_answers(PHASE)?;
    start(&mut hosts[0], IN_BLUE)?;
    wait::until("network blue to be ready again", REACHED, || {
        let status = hosts[0].status()?;
        ensure!(status["networks"][0]["peers"] == json!(1), "{status}");
        Ok(())
    })?;
    ping.wait_for_answers(PHASE)?;
    ping.stop()?.nothing_lost(PHASE)?;
    let repaired = hosts[0].log_lines(&["repaired changes"])?;
    ensure!(repaired.is_empty(), "{repaired:?}");
    Ok(())
}

/// What the network made on it goes, and nothing of the default network.
fn a_host_leaves_the_network(lab: &Lab, host: &mut Host) -> Result<()> {
    let device = "flannel.2";
    host.ip(&format!("link show {device}"))?;
    host.stop_agent()?;
    start(host, &[])?;
    wait::until("the device of network blue to go", REACHED, || {
        ensure!(host.ip(&format!("link show {device}")).is_err(), "it is there");
        Ok(())
    })?;
    host.ip("link show flannel.1")?;
    // As long as its device stood, the file said whose that was.
    host.stop_agent()?;
    start(host, &[])?;
    ensure!(host.subnet_env_of("blue").is_err(), "its subnet file is there");
    let tables = host.run("nft", &["list", "tables"])?;
    ensure!(!tables.contains("flan-networks"), "{tables}");
    let refused = lab.flanctl(&["network", "rm", "blue"])?;
    ensure!(
        refused.code == Some(REFUSED) && refused.stderr.contains("network blue has 1 lease: 192.168.64.11"),
        "{refused:?}"
    );
    Ok(())
}

/// `leave` takes a host out of all of its networks.
fn a_network_without_hosts_is_removed(lab: &Lab, host: &mut Host) -> Result<()> {
    host.stop_agent()?;
    host.flanctl(&["leave", "--yes"])?.succeeded("flanctl leave")?;
    for device in ["flannel.1", "flannel.2"] {
        ensure!(host.ip(&format!("link show {device}")).is_err(), "{device} is there");
    }
    ensure!(host.subnet_env_of("blue").is_err() && host.subnet_env().is_err(), "a subnet file is there");
    let list = lab.flanctl(&["--network", "blue", "subnets", "ls", "-o", "json"])?;
    let list: Value = serde_json::from_str(&list.stdout)?;
    assert_eq!(list["items"], json!([]));
    lab.flanctl(&["network", "rm", "blue"])?.succeeded("flanctl network rm")?;
    let missing = lab.flanctl(&["network", "rm", "blue"])?;
    ensure!(missing.code == Some(NOT_FOUND), "{missing:?}");
    Ok(())
}

/// Names that nobody has made a network for, and configs that cannot work beside others.
#[test]
fn a_network_that_cannot_be_joined_is_waited_for_and_stops_nothing_else() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let broken = [
            ("same", r#"{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan"}}"#, "the device flannel.1"),
            ("inside", r#"{"Network":"10.5.8.0/21","Backend":{"Type":"host-gw"}}"#, "overlaps 10.5.0.0/16"),
            (
                "udp",
                r#"{"Network":"10.8.0.0/16","Backend":{"Type":"udp"}}"#,
                "works in the default network only",
            ),
            ("junk", "{", "EOF"),
            (
                "both",
                r#"{"Network":"10.8.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:8::/48","Backend":{"Type":"vxlan","VNI":8}}"#,
                "no IPv6 address of eth0",
            ),
            (
                "strict",
                r#"{"Network":"10.8.0.0/16","Backend":{"Type":"vxlan","VNI":9,"StrictSource":true}}"#,
                "StrictSource must be the same",
            ),
            (
                "lan",
                r#"{"Network":"192.168.0.0/16","Backend":{"Type":"host-gw"}}"#,
                "of this host's underlay",
            ),
        ];
        for (name, config, _) in broken {
            lab.store().put(&format!("{name}/config"), config)?;
        }
        let mut hosts = bare_hosts(lab, 2)?;
        for host in &mut hosts {
            start(host, &["--networks=same,inside,udp,junk,both,strict,lan,none"])?;
        }
        wait_until_all_know_each_other(&hosts)?;
        wait::until("each network to say what is wrong", REACHED, || {
            let status = hosts[0].status()?;
            for (number, told) in broken.iter().map(|(.., told)| *told).chain(["there is none"]).enumerate() {
                let waits = status["networks"][number]["waitingFor"].to_string();
                ensure!(waits.contains(told), "{waits} and not {told}");
            }
            Ok(())
        })?;
        create(lab, &["none", "--subnet", "10.9.0.0/16"])?;
        wait::until("a network that was made later", Duration::from_secs(30), || {
            hosts[0].subnet_env_of("none")
        })?;
        Ok(())
    })
}

/// Without a driver for Docker: its own bridge, with what the subnet file says.
#[test]
fn containers_of_a_network_of_docker_are_in_a_second_network() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        create(lab, &["blue", "--subnet", "10.7.0.0/16"])?;
        let mut hosts = bare_hosts(lab, 2)?;
        on_all(&mut hosts, |host| {
            start(host, IN_BLUE)?;
            host.start_docker(Bridge::WholeSubnet)?;
            let env = wait::until("the subnet file of network blue", REACHED, || host.subnet_env_of("blue"))?;
            host.docker_network("blue", &env.base(), env.mtu)
        })?;
        wait_until_all_know_each_other(&hosts)?;
        let blue = [
            hosts[0].run_container("blue1", &["--network", "blue"])?,
            hosts[1].run_container("blue2", &["--network", "blue"])?,
        ];
        let default = [hosts[0].run_container("web1", &[])?, hosts[1].run_container("web2", &[])?];
        talk_both_ways(&blue[0], &blue[1])?;
        talk_both_ways(&default[0], &default[1])?;
        // Docker drops what nobody lets pass, so the rules of both networks must stand all the time.
        let target = blue[1].address()?;
        let mut pings =
            [hosts[0].ping_from(&blue[0], target)?, hosts[0].ping_from(&default[0], default[1].address()?)?];
        hosts[0].kill_agent()?;
        pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
        start(&mut hosts[0], IN_BLUE)?;
        pings.iter_mut().try_for_each(|ping| ping.wait_for_answers(PHASE))?;
        for ping in pings {
            ping.stop()?.nothing_lost(PHASE)?;
        }
        for (one, other) in [(&blue[0], &default[1]), (&default[0], &blue[1])] {
            ensure!(one.fetch_name(other.address()?).is_err(), "{} reaches {}", one.name(), other.name());
        }
        Ok(())
    })
}

#[test]
fn a_host_joins_and_leaves_without_a_restart_and_remembers_it() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        create(lab, &["blue", "--subnet", "10.7.0.0/16"])?;
        let mut hosts = bare_hosts(lab, 2)?;
        on_all(&mut hosts, |host| start(host, &[]))?;
        let default = ends_of(&hosts)?;
        wait_until_reached(&default[0], &default[1], REACHED)?;
        let mut ping = hosts[0].ping_from_end(&default[0], default[1].address)?;
        let missing = hosts[0].flanctl(&["network", "join", "green"])?;
        ensure!(missing.code == Some(NOT_FOUND), "{missing:?}");
        for host in &hosts {
            host.flanctl(&["network", "join", "blue"])?.succeeded("flanctl network join")?;
        }
        let blue = [end_in_blue(&hosts[0])?, end_in_blue(&hosts[1])?];
        wait_until_reached(&blue[0], &blue[1], REACHED)?;
        let subnet = hosts[0].subnet_env_of("blue")?.base();

        hosts[0].kill_agent()?;
        start(&mut hosts[0], &[])?;
        wait_until_reached(&blue[0], &blue[1], REACHED)?;
        assert_eq!(hosts[0].subnet_env_of("blue")?.base(), subnet);

        for host in &hosts {
            host.flanctl(&["network", "leave", "blue"])?.succeeded("flanctl network leave")?;
        }
        wait::until("nothing of network blue to be left", REACHED, || {
            lab.flanctl(&["network", "rm", "blue"])?.succeeded("flanctl network rm")?;
            Ok(())
        })?;
        for host in &hosts {
            wait::until("the device to be gone", REACHED, || {
                let links = host.ip("-o link show")?;
                ensure!(!links.contains("flannel.2"), "{links}");
                Ok(())
            })?;
            let again = host.flanctl(&["network", "leave", "blue"])?;
            ensure!(
                again.code == Some(REFUSED) && again.stderr.contains("is not in network blue"),
                "{again:?}"
            );
        }
        ping.wait_for_answers(PHASE)?;
        ping.stop()?.nothing_lost(PHASE)
    })
}
