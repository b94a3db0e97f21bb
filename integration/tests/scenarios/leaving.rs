//! Hosts that leave: to flanneld, by `flanctl hand-over`, or for good, by `flanctl leave`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::command::Outcome;
use flan_integration::end::End;
use flan_integration::holdings::Holdings;
use flan_integration::host::on_all;
use flan_integration::overlay::DEVICE;
use flan_integration::subnet_env::SubnetEnv;
use flan_integration::traffic::Ping;
use flan_integration::{Host, Lab, LabOptions, flannel, wait};
use serde_json::Value;

use crate::stage::{NETWORK, NETWORK_OF_UDP, bare_hosts, ends_of, wait_until_reached};

const NETWORK_OF_HOST_GW: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"host-gw"}}"#;

const NETWORK_OF_BOTH_FAMILIES: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","EnableIPv6":true,
    "IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

const UNUSABLE: i32 = 2;
const UNREACHABLE: i32 = 3;
const REFUSED: i32 = 6;

const LIMIT: Duration = Duration::from_secs(15);

/// Answers that each ping gets in each phase.
const PHASE: usize = 100;

/// Two hosts with agents that masquerade, on which nothing is forwarded that no rule accepts, and a container on each
/// that reaches the other.
fn two_hosts(lab: &Lab, network: &str) -> Result<(Vec<Host>, Vec<SubnetEnv>, Vec<End>)> {
    lab.set_network(network)?;
    let mut hosts = bare_hosts(lab, 2)?;
    on_all(&mut hosts, |host| {
        for program in ["iptables", "ip6tables"] {
            host.run(program, &["-w", "-P", "FORWARD", "DROP"])?;
        }
        host.start_agent()
    })?;
    let ends = ends_of(&hosts)?;
    for (from, to) in [(0, 1), (1, 0)] {
        wait_until_reached(&ends[from], &ends[to], LIMIT)?;
    }
    let envs = hosts.iter().map(Host::subnet_env).collect::<Result<_>>()?;
    Ok((hosts, envs, ends))
}

/// From container to container both ways, and from the first host itself.
fn pings(hosts: &mut [Host], envs: &[SubnetEnv], ends: &[End]) -> Result<[Ping; 3]> {
    Ok([
        hosts[0].ping(envs[1].subnet.ip())?,
        hosts[0].ping_from_end(&ends[0], ends[1].address)?,
        hosts[1].ping_from_end(&ends[1], ends[0].address)?,
    ])
}

fn hand_over(host: &Host, flags: &[&str]) -> Result<Outcome> {
    host.flanctl(&[&["hand-over"], flags].concat())
}

fn ended_with(code: i32, outcome: &Outcome) -> Result<()> {
    ensure!(outcome.code == Some(code), "wanted exit code {code}: {outcome:?}");
    Ok(())
}

/// The rules of one table of iptables.
fn iptables(host: &Host, table: &str) -> Result<String> {
    host.run("iptables", &["-w", "-t", table, "-S"])
}

fn ensure_no_rules_of_ours(host: &Host) -> Result<()> {
    let tables = host.run("nft", &["list", "tables"])?;
    ensure!(!tables.lines().any(|line| line == "table inet flan"), "{tables}");
    let rules = iptables(host, "filter")?;
    ensure!(!rules.contains("FLAN-"), "{rules}");
    Ok(())
}

/// An error unless flannel's rules are in place of ours: those that flanneld fills its own chain with, and those that
/// outlast the moment in which it does.
fn has_flannels_rules(host: &Host, env: &SubnetEnv) -> Result<()> {
    ensure_no_rules_of_ours(host)?;
    let before = iptables(host, "nat")?;
    let network = env.network;
    let accept =
        |way| format!(r#"-A FORWARD {way} {network} -m comment --comment "flanneld forward" -j ACCEPT"#);
    let forward = iptables(host, "filter")?;
    let rules: Vec<&str> = forward.lines().filter(|line| line.starts_with("-A")).collect();
    assert_eq!(rules, [accept("-s"), accept("-d")]);
    // As at flanneld's start, its chains are empty for a moment.
    flannel::add_rules(host, env)?;
    assert_eq!(iptables(host, "nat")?, before, "not what flanneld makes");
    Ok(())
}

fn of_kind<'a>(holdings: &'a Holdings, kind: &str) -> Vec<&'a str> {
    holdings.lines(&[]).into_iter().filter(|line| line.starts_with(kind)).collect()
}

/// The routes of one family that no kernel made, as a person sees them.
fn routes(host: &Host, family: &str) -> Result<Vec<String>> {
    let text = host.ip(&format!("{family} route show"))?;
    let lines = text.lines().filter(|line| !line.contains("proto kernel") && !line.starts_with("default"));
    Ok(lines.map(|line| line.trim().to_owned()).collect())
}

#[test]
fn a_vxlan_host_is_handed_over_to_flannel_and_taken_back_without_losing_a_packet() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, envs, ends) = two_hosts(lab, NETWORK)?;
        let flannels = lab.host("flannel")?;
        let before = Holdings::of(hosts[0].netns())?;
        let (mac, file) = (hosts[0].vtep_mac()?, hosts[0].subnet_env()?);
        let keys = lab.store().subnet_keys()?;

        let mut pings = pings(&mut hosts, &envs, &ends)?;
        hosts[0].stop_agent()?;
        let dry = hand_over(&hosts[0], &["--dry-run"])?;
        ended_with(0, &dry)?;
        ensure!(dry.stdout.contains("would    replace route"), "{dry:?}");
        Holdings::of(hosts[0].netns())?.ensure_as(&before).context("after a dry run")?;
        let done = hand_over(&hosts[0], &["-o", "json"])?;
        ended_with(0, &done)?;
        let report: Value = serde_json::from_str(&done.stdout)?;
        assert_eq!(report["kind"], "HandOver");
        ensure!(report["steps"].as_array().is_some_and(|steps| steps.len() >= 4), "{report}");
        for ping in &mut pings {
            ping.wait_for_answers(PHASE)?;
        }

        // What a flanneld with the same subnet and peer would have made.
        flannel::set_up_kernel(&flannels, &envs[0])?;
        flannel::add_peer(&flannels, &envs[1], &hosts[1].vtep_mac()?, hosts[1].address())?;
        let (ours, theirs) = (Holdings::of(hosts[0].netns())?, Holdings::of(flannels.netns())?);
        for kind in ["route ", "nexthop ", "neighbour ", "fdb ", "address "] {
            assert_eq!(of_kind(&ours, kind), of_kind(&theirs, kind));
        }
        assert_eq!(routes(&hosts[0], "-4")?, routes(&flannels, "-4")?);
        has_flannels_rules(&hosts[0], &envs[0])?;
        ensure!(hosts[0].ip("nexthop show")?.is_empty());
        assert_eq!((hosts[0].vtep_mac()?, hosts[0].subnet_env()?), (mac, file));
        assert_eq!(lab.store().subnet_keys()?, keys);
        let again = hand_over(&hosts[0], &[])?;
        ended_with(0, &again)?;
        ensure!(again.stdout.contains("nothing to do"), "{again:?}");
        hosts[0].start_agent()?;
        wait::until("everything to be ours again", LIMIT, || {
            Holdings::of(hosts[0].netns())?.ensure_as(&before)
        })?;
        for mut ping in pings {
            ping.wait_for_answers(PHASE)?;
            ping.stop()?.nothing_lost(2 * PHASE)?;
        }
        Ok(())
    })
}

#[test]
fn a_host_on_host_gw_is_handed_over_to_flannel_and_taken_back_without_losing_a_packet() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, envs, ends) = two_hosts(lab, NETWORK_OF_HOST_GW)?;
        let before = Holdings::of(hosts[0].netns())?;
        // flanneld compares and deletes routes by their gateway, so ours are fit for it from the start.
        ensure!(hosts[0].ip("nexthop show")?.is_empty());
        let mut pings = pings(&mut hosts, &envs, &ends)?;
        hosts[0].stop_agent()?;
        ended_with(0, &hand_over(&hosts[0], &[])?)?;
        for ping in &mut pings {
            ping.wait_for_answers(PHASE)?;
        }
        let route = format!("{} via {} dev eth0", envs[1].base(), hosts[1].address());
        assert_eq!(routes(&hosts[0], "-4")?, [route]);
        has_flannels_rules(&hosts[0], &envs[0])?;

        hosts[0].start_agent()?;
        wait::until("everything to be ours again", LIMIT, || {
            Holdings::of(hosts[0].netns())?.ensure_as(&before)
        })?;
        for mut ping in pings {
            ping.wait_for_answers(PHASE)?;
            ping.stop()?.nothing_lost(2 * PHASE)?;
        }
        Ok(())
    })
}

#[test]
fn both_families_are_handed_over_without_losing_a_packet() -> Result<()> {
    Lab::run(LabOptions { ipv6: true, ..LabOptions::default() }, |lab| {
        let (mut hosts, envs, ends) = two_hosts(lab, NETWORK_OF_BOTH_FAMILIES)?;
        let base6 = hosts[1].subnet_values()?.base6()?;
        wait::until("IPv6 to pass", LIMIT, || hosts[0].ping_once(base6))?;
        let mut pings = Vec::from(pings(&mut hosts, &envs, &ends)?);
        let log = lab.dir().join("ping6.txt");
        pings.push(Ping::start("of IPv6", &hosts[0].netns().place(), base6, &log)?);
        hosts[0].stop_agent()?;
        ended_with(0, &hand_over(&hosts[0], &[])?)?;
        for mut ping in pings {
            ping.wait_for_answers(PHASE)?;
            ping.stop()?.nothing_lost(PHASE)?;
        }
        let subnet6 = hosts[1].subnet_values()?.subnet6.context("no IPv6 subnet")?;
        let route = format!(
            "{base6}/{} via {base6} dev flannel-v6.1 metric 1024 onlink pref medium",
            subnet6.prefix()
        );
        let routes = routes(&hosts[0], "-6")?;
        ensure!(routes.contains(&route), "{route} is not among {routes:?}");
        let rules = hosts[0].run("ip6tables", &["-w", "-S"])?;
        let accept = r#"-A FORWARD -s fd00:5::/48 -m comment --comment "flanneld forward" -j ACCEPT"#;
        ensure!(rules.contains(accept) && !rules.contains("FLAN-"), "{rules}");
        ensure_no_rules_of_ours(&hosts[0])
    })
}

#[test]
fn handing_over_a_host_on_udp_frees_the_device_that_flanneld_makes() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, envs, ends) = two_hosts(lab, NETWORK_OF_UDP)?;
        hosts[0].stop_agent()?;
        let done = hand_over(&hosts[0], &[])?;
        ended_with(0, &done)?;
        ensure!(done.stdout.contains("no packet reaches another host before it runs"), "{done:?}");
        ensure!(hosts[0].ip("link show dev flannel0").is_err(), "the TUN device is there");
        assert_eq!(routes(&hosts[0], "-4")?, [""; 0]);
        ensure_no_rules_of_ours(&hosts[0])?;
        assert_eq!(hosts[0].subnet_env()?, envs[0]);

        hosts[0].start_agent()?;
        assert_eq!(hosts[0].subnet_env()?, envs[0], "another subnet");
        wait_until_reached(&ends[0], &ends[1], LIMIT)
    })
}

/// All that a host has where fland makes something, and what others have made there.
fn everything(host: &Host) -> Result<String> {
    wait::until("the kernel to have checked its addresses", LIMIT, || {
        let tentative = host.ip("-6 address show tentative")?;
        ensure!(tentative.is_empty(), "{tentative}");
        Ok(())
    })?;
    let mut text = String::new();
    for words in [
        "-details link show",
        "address show",
        "rule show",
        "-4 route show table all",
        "-6 route show table all",
        "nexthop show",
        "neighbour show nud permanent",
    ] {
        text += &format!("# ip {words}\n{}", host.ip(words)?);
    }
    for program in ["iptables", "ip6tables"] {
        for table in ["filter", "nat"] {
            text += &format!("# {program} {table}\n{}", host.run(program, &["-w", "-t", table, "-S"])?);
        }
    }
    text += &host.run("bridge", &["fdb", "show"])?;
    text += &host.run("nft", &["list", "ruleset"])?;
    text += &host.run("sh", &["-c", "ls -lAR /run/flannel 2>&1 || true"])?;
    Ok(text)
}

fn ensure_same_lines(before: &str, after: &str) -> Result<()> {
    let only_in = |one: &str, other: &str| -> Vec<String> {
        one.lines().filter(|line| !other.lines().any(|same| same == *line)).map(str::to_owned).collect()
    };
    let (gone, new) = (only_in(before, after), only_in(after, before));
    ensure!(before == after, "gone: {gone:#?}\nnew: {new:#?}");
    Ok(())
}

/// What others have made, with names and numbers near to ours.
fn make_what_others_make(host: &Host) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        host.run(program, &["-w", "-P", "FORWARD", "DROP"])?;
        host.run(program, &["-w", "-t", "nat", "-P", "POSTROUTING", "ACCEPT"])?;
    }
    for words in [
        "link add flannel.7 type vxlan id 7 dev eth0 local 192.168.64.1 dstport 4789 nolearning",
        "address add 10.9.1.0/32 dev flannel.7",
        "link set flannel.7 up",
        "route add 10.9.2.0/24 via 10.9.2.0 dev flannel.7 onlink",
        "route add 10.77.0.0/16 via 192.168.64.1 dev eth0 proto static",
        "nexthop add id 77 via 192.168.64.1 dev eth0 proto static",
    ] {
        host.ip(words)?;
    }
    Ok(())
}

#[test]
fn a_host_that_leaves_is_as_it_was_before_it_joined() -> Result<()> {
    let backends = [("vxlan", NETWORK), ("host-gw", NETWORK_OF_HOST_GW), ("udp", NETWORK_OF_UDP)];
    Lab::run(LabOptions::default(), |lab| {
        for (name, network) in backends {
            let prefix = format!("/flan/{name}");
            lab.set_network_at(&prefix, network)?;
            let mut host = lab.host_at(&prefix, &format!("{name}1"))?;
            let mut peer = lab.host_at(&prefix, &format!("{name}2"))?;
            make_what_others_make(&host)?;
            let before = everything(&host)?;
            peer.start_agent()?;
            host.start_agent_with(&["--ip-masq", "--ip-blackhole-route"])?;
            let opts = "/run/flannel/docker_opts.env";
            ended_with(0, &host.flanctl(&["wait", "--docker-opts", opts])?)?;
            let (us, them) = (host.subnet_env()?, peer.subnet_env()?);
            wait::until("a way to the peer", LIMIT, || {
                let way = host.ip(&format!("route get {}", them.base_address()))?;
                ensure!(way.contains("flannel") || way.contains(&peer.address().to_string()), "{way}");
                Ok(())
            })?;

            let running = host.flanctl(&["leave", "--yes"])?;
            ended_with(REFUSED, &running)?;
            ensure!(running.stderr.contains("systemctl disable --now fland"), "{running:?}");
            ended_with(REFUSED, &hand_over(&host, &[])?)?;
            host.stop_agent()?;
            let joined = Holdings::of(host.netns())?;
            ended_with(UNUSABLE, &host.flanctl(&["leave"])?)?;
            let dry = host.flanctl(&["leave", "--dry-run"])?;
            ended_with(0, &dry)?;
            ensure!(dry.stdout.contains(&us.base()), "{dry:?}");
            Holdings::of(host.netns())?.ensure_as(&joined).context("after a dry run")?;

            let left = host.flanctl(&["leave", "--yes"])?;
            ended_with(0, &left)?;
            ensure!(left.stdout.contains("left     flannel.7"), "{left:?}");
            ensure!(left.stdout.contains(&format!("than {}", us.subnet)), "Docker is not named: {left:?}");
            ensure_same_lines(&before, &everything(&host)?).with_context(|| format!("on {name}"))?;
            let mut keys = host_keys(&host)?;
            keys.retain(|key| key.contains(&us.key()));
            ensure!(keys.is_empty(), "the lease is there: {keys:?}");
            ensure!(host_keys(&peer)?.iter().any(|key| key.contains(&them.key())), "the peer's lease went");
            let again = host.flanctl(&["leave", "--yes"])?;
            ended_with(0, &again)?;
            ensure!(again.stdout.contains("nothing to do"), "{again:?}");
        }
        Ok(())
    })
}

/// The keys of all leases, as this host sees them.
fn host_keys(host: &Host) -> Result<Vec<String>> {
    let list = host.flanctl(&["subnets", "ls", "-o", "json"])?;
    ended_with(0, &list)?;
    let list: Value = serde_json::from_str(&list.stdout)?;
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items.filter_map(|item| item["key"].as_str()).map(str::to_owned).collect())
}

#[test]
fn a_host_that_cannot_reach_the_store_leaves_as_far_as_it_can_and_ends_it_later() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        host.start_agent()?;
        let key = host.subnet_env()?.key();
        host.stop_agent()?;
        lab.store_mut().kill_member(0)?;
        let cut_off = host.flanctl(&["leave", "--yes"])?;
        ended_with(UNREACHABLE, &cut_off)?;
        ensure!(cut_off.stdout.contains("failed   delete this host's lease"), "{cut_off:?}");
        ensure!(host.ip(&format!("link show dev {DEVICE}")).is_err(), "{DEVICE} is there");
        ensure_no_rules_of_ours(&host)?;
        ensure!(host.subnet_file().exists(), "what the lease is found by is gone");

        lab.store_mut().start_member(0)?;
        wait::until("the store to have the lease still", LIMIT, || {
            lab.store().value(&format!("subnets/{key}"))?.context("it has not")
        })?;
        let kept = host.flanctl(&["leave", "--keep-lease", "--dry-run"])?;
        ensure!(!kept.stdout.contains("lease"), "{kept:?}");
        ended_with(0, &host.flanctl(&["leave", "--yes"])?)?;
        ensure!(!host.subnet_file().exists(), "subnet.env is there");
        ensure!(lab.store().value(&format!("subnets/{key}"))?.is_none(), "the lease is there");
        Ok(())
    })
}
