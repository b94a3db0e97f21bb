//! `flanctl check` before and after a host joins: each fault is made, found by its name, and gone when it is mended.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::clock::Clock;
use flan_integration::command::Outcome;
use flan_integration::docker::Bridge;
use flan_integration::flannel::{LEASE_SECONDS, lease_value};
use flan_integration::overlay::DEVICE;
use flan_integration::{Host, Lab, LabOptions, tools, wait};
use serde_json::Value;

use crate::obstacles::TOLD;
use crate::probes::{both_ways, close_firewall, open_firewall};
use crate::stage::{NETWORK, hosts_with_status, no_problem, problem, wait_until_all_know_each_other};

/// With the interface that fland is started on in the lab, unless `more` names another.
fn check(host: &Host, more: &[&str]) -> Result<Outcome> {
    let interface: &[&str] = if more.contains(&"--iface") { &[] } else { &["--iface", "eth0"] };
    host.flanctl(&[&["check"], interface, more].concat())
}

/// The text of each problem of this name that `flanctl check` finds.
fn found(host: &Host, name: &str, more: &[&str]) -> Result<Vec<String>> {
    let outcome = check(host, &[more, &["-o", "json"]].concat())?;
    let report: Value = serde_json::from_str(&outcome.stdout).with_context(|| format!("{outcome:?}"))?;
    let problems: Vec<&Value> = report["checks"]
        .as_array()
        .context("no list of checks")?
        .iter()
        .flat_map(|part| part["problems"].as_array().into_iter().flatten())
        .collect();
    let code = if problems.is_empty() { 0 } else { 9 };
    ensure!(outcome.code == Some(code), "{} problems, and {outcome:?}", problems.len());
    let named = problems.into_iter().filter(|problem| problem["name"] == name);
    Ok(named.map(|problem| problem["text"].as_str().unwrap_or_default().to_owned()).collect())
}

/// The problem is found, with these parts in its text.
fn is_found(host: &Host, name: &str, parts: &[&str], more: &[&str]) -> Result<()> {
    let texts = found(host, name, more)?;
    ensure!(texts.len() == 1, "of {name} there are {texts:?}");
    ensure!(parts.iter().all(|part| texts[0].contains(part)), "no {parts:?} in {:?}", texts[0]);
    Ok(())
}

/// The same in what it says to people.
pub(crate) fn is_found_in(said: &str, name: &str, part: &str) -> Result<()> {
    let mut lines = said.lines().skip_while(|line| !line.ends_with(name));
    ensure!(lines.nth(1).is_some_and(|text| text.contains(part)), "no {name} with {part:?} in {said}");
    Ok(())
}

fn is_not_found(host: &Host, name: &str, more: &[&str]) -> Result<()> {
    let texts = found(host, name, more)?;
    ensure!(texts.is_empty(), "{name} is found: {texts:?}");
    Ok(())
}

/// Nothing at all is found. What an agent has just seen mended may take a moment.
fn all_is_well(host: &Host) -> Result<()> {
    wait::until("nothing to be found", TOLD, || {
        let outcome = check(host, &[])?;
        ensure!(
            outcome.code == Some(0) && outcome.stdout.starts_with("nothing wrong found\n"),
            "{outcome:?}"
        );
        Ok(())
    })
}

#[test]
fn what_would_keep_a_host_from_joining_is_found_before_it_joins() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let host = lab.host("h1")?;
        // There is a store, and nothing in it.
        is_found(&host, "config", &["there is no network config", "flanctl config set"], &[])?;
        lab.store().put("config", "{}")?;
        is_found(&host, "config", &["cannot be used"], &[])?;
        lab.set_network(NETWORK)?;
        all_is_well(&host)?;
        let away = ["--etcd-endpoints", "http://192.168.64.99:2379"];
        is_found(&host, "store", &["cannot be used from here", "192.168.64.99"], &away)?;

        // The interface and its address.
        is_found(&host, "no-interface", &["called eth7", "eth0"], &["--iface", "eth7"])?;
        host.ip("address add 169.254.7.7/16 dev eth0")?;
        is_found(&host, "doubtful-address", &["169.254.7.7"], &["--iface", "169.254.7.7"])?;
        host.ip("address del 169.254.7.7/16 dev eth0")?;
        lab.plug_in(&host, "eth1", Ipv4Addr::new(192, 168, 64, 150))?;
        is_not_found(&host, "address-taken", &[])?; // although eth1 answers for eth0
        host.ip("link set eth0 down")?;
        is_found(&host, "no-interface", &["eth0 is down", "ip link set eth0 up"], &[])?;
        host.ip("link set eth0 up")?;
        lab.underlay().ip("link set h1 down")?;
        is_found(&host, "no-interface", &["eth0 has no carrier", "cable"], &[])?;
        lab.underlay().ip("link set h1 up")?;
        host.ip("link del eth1")?;
        let twin = lab.host("h2")?;
        twin.ip(&format!("address add {}/24 dev eth0", host.address()))?;
        is_found(&host, "address-taken", &["another machine at eth0", &host.address().to_string()], &[])?;
        twin.ip(&format!("address del {}/24 dev eth0", host.address()))?;
        let theirs = r#"{"PublicIP":"ADDRESS","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:0b:ad"},"NodeID":"another"}"#
            .replace("ADDRESS", &host.address().to_string());
        lab.store().put_leased("subnets/10.5.77.0-24", &theirs, LEASE_SECONDS)?;
        is_found(&host, "address-taken", &["the lease of 10.5.77.0/24", "node id another"], &[])?;
        lab.store().delete("subnets/10.5.77.0-24")?;

        // What this host has beside.
        host.ip("link add theirs type vxlan external dstport 8472")?;
        host.ip("link set theirs up")?;
        is_found(&host, "port-taken", &["UDP port 8472 is taken by VXLAN device theirs"], &[])?;
        host.ip("link del theirs")?;
        host.ip("link add lan1 type veth peer name lan2")?;
        host.ip("address add 10.5.7.1/24 dev lan1")?;
        is_found(&host, "subnet-overlap", &["10.5.7.0/24", "lan1"], &[])?;
        host.ip("link del lan1")?;
        host.run("nft", &["add table ip theirs; add chain ip theirs in { type filter hook input priority 0; policy accept; }"])?;
        host.run("nft", &["add rule ip theirs in udp dport 8472 drop"])?;
        is_found(&host, "packet-filter", &["theirs"], &[])?;
        host.run("nft", &["delete table ip theirs"])?;
        let settings = host.dir().join("run/daemon.json");
        fs::write(
            &settings,
            r#"{"bridge": "none", "default-address-pools": [{"base": "10.5.0.0/16", "size": 24}]}"#,
        )?;
        let with = ["--docker-settings", "/run/daemon.json"];
        is_found(&host, "docker-settings", &["bridge to none", "pool 10.5.0.0/16"], &with)?;
        fs::remove_file(&settings)?;
        let clock = Clock::new(&lab.dir().join("clock"))?;
        clock.set("-3600")?;
        let mut late = host.place().command("env");
        late.args(clock.environment()).arg(tools::flan_binary("flanctl")?);
        late.args(["--etcd-endpoints", host.etcd().0, "check", "--iface", "eth0"]);
        let said =
            String::from_utf8_lossy(&late.env("FLAND_ENV_FILE", "/dev/null").output()?.stdout).into_owned();
        is_found_in(&said, "clock-skew", "behind that of")?;
        all_is_well(&host)?;
        // Docker drops what is forwarded, until fland's rules are there.
        host.run("iptables", &["-P", "FORWARD", "DROP"])?;
        all_is_well(&host)?;
        // Both families inside, and one outside.
        lab.set_network(
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48",
                "Backend":{"Type":"wireguard","Mode":"ipv4","Path":"user"}}"#,
        )?;
        all_is_well(&host)?;
        // As in a container that was not given /dev/net/tun.
        lab.set_network(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Path":"user"}}"#)?;
        host.run("mount", &["-t", "tmpfs", "none", "/dev/net"])?;
        is_found(&host, "kernel-feature", &["makes no TUN devices", "the backend udp needs"], &[])?;
        host.run("umount", &["/dev/net"])?;
        all_is_well(&host)
    })
}

#[test]
fn a_path_that_is_narrower_than_its_ends_is_found_before_a_host_joins() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let (host, other) = (lab.host("h1")?, lab.host("h2")?);
        let value = lease_value(other.address(), "02:00:00:00:02:02");
        lab.store().put_leased("subnets/10.5.2.0-24", &value, LEASE_SECONDS)?;
        let well = check(&host, &[])?;
        ensure!(
            well.code == Some(0)
                && well.stdout.contains("answers came from 1 of 1 host, also to packets of 1500 bytes"),
            "{well:?}"
        );
        close_firewall(lab, &both_ways(host.address(), other.address(), "ip length > 1400"))?;
        is_found(&host, "peer-mtu", &["packets of 1500 bytes", "those of 1400 do"], &[])?;
        open_firewall(lab)?;
        close_firewall(lab, &both_ways(host.address(), other.address(), "ip protocol icmp"))?;
        let cut_off = check(&host, &[])?;
        ensure!(cut_off.code == Some(0) && cut_off.stdout.contains("none of 1 host answers"), "{cut_off:?}");
        open_firewall(lab)
    })
}

#[test]
fn what_breaks_a_host_that_has_joined_is_found_by_itself_or_by_its_agent() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts_with_status(lab, 2)?;
        wait_until_all_know_each_other(&hosts)?;
        let theirs = hosts[1].subnet_env()?.base();
        hosts[0].start_docker(Bridge::WholeSubnet)?;
        all_is_well(&hosts[0])?;
        let host = &hosts[0];

        // Settings of the kernel. The agent sees those of forwarding by itself.
        let set =
            |name: &str, value: &str| host.run("sysctl", &["-qw", &format!("{name}={value}")]).map(drop);
        set("net.ipv4.ip_forward", "0")?;
        is_found(host, "forwarding-off", &["net.ipv4.ip_forward is 0"], &[])?;
        problem(host, "forwarding-off", &["net.ipv4.ip_forward is 0", "sysctl -w"])?;
        set("net.ipv4.ip_forward", "1")?;
        no_problem(host, "forwarding-off")?;
        set("net.ipv4.conf.docker0.forwarding", "0")?;
        is_found(host, "forwarding-off", &["net.ipv4.conf.docker0.forwarding is 0"], &[])?;
        set("net.ipv4.conf.docker0.forwarding", "1")?;
        set("net.ipv4.conf.eth0.rp_filter", "1")?;
        host.ip("link add eth1 type veth peer name lan1")?;
        host.ip("link set lan1 up")?;
        host.ip("link set eth1 up")?;
        let around = format!("route add {}/32 dev eth1", hosts[1].address());
        host.ip(&around)?;
        is_found(host, "reverse-path", &["rp_filter is strict on eth0", "leave by eth1"], &[])?;
        host.ip("link del eth1")?;
        set("net.ipv4.conf.eth0.rp_filter", "0")?;

        // Somebody's policy routing.
        host.ip(&format!("rule add to {theirs} lookup 77"))?;
        host.ip("route add default dev eth0 table 77")?;
        is_found(host, "route-elsewhere", &["leave by eth0, and not by flan's device", "ip rule"], &[])?;
        host.ip(&format!("rule del to {theirs} lookup 77"))?;
        all_is_well(host)?;

        // What carries the packets, between the hosts.
        close_firewall(lab, &both_ways(hosts[0].address(), hosts[1].address(), "udp dport 8472"))?;
        problem(host, "peer-unreachable", &["VXLAN (UDP 8472)"])?;
        is_found(host, "peer-unreachable", &["VXLAN (UDP 8472)"], &[])?;
        open_firewall(lab)?;
        all_is_well(host)?;

        // Docker, and the file from which it has its subnet.
        host.ip("address flush dev docker0")?;
        host.ip("address add 172.17.0.1/16 dev docker0")?;
        is_found(host, "bridge-differs", &["docker0 has 172.17.0.1/16"], &[])?;
        host.ip("address flush dev docker0")?;
        host.ip(&format!("address add {} dev docker0", host.subnet_env()?.subnet))?;
        let file = hosts[0].subnet_file();
        let text = fs::read_to_string(&file)?;
        fs::write(&file, text.replace("FLANNEL_SUBNET=10.5.", "FLANNEL_SUBNET=10.6."))?;
        is_found(host, "subnet-file", &["the subnet file says 10.6.", "and fland holds 10.5."], &[])?;
        fs::remove_file(&file)?;
        is_found(host, "subnet-file", &["is not there", "--subnet-file"], &[])?;
        fs::write(&file, text)?;
        all_is_well(host)?;

        // Somebody starts the agent of before, and somebody kills this one.
        let flanneld = hosts[0].dir().join("flanneld");
        fs::copy("/bin/sleep", &flanneld)?;
        let mut other = hosts[0].place().command(&flanneld).arg("60").spawn()?;
        let seen = is_found(&hosts[0], "other-agent", &["(flanneld) runs beside fland"], &[]);
        other.kill()?;
        other.wait()?;
        seen?;
        hosts[0].kill_agent()?;
        is_found(&hosts[0], "agent-down", &["no fland answers", "systemctl start fland"], &[])?;
        ensure!(!hosts[0].ip(&format!("link show dev {DEVICE}"))?.is_empty());
        is_not_found(&hosts[0], "port-taken", &[])
    })
}

#[test]
fn a_bridge_between_machines_that_filters_their_packets_is_found() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut host = lab.host("h1")?;
        lab.set_network(NETWORK)?;
        let address = host.address();
        for words in [
            "link add br0 type bridge",
            "link set br0 up",
            "link set eth0 master br0",
            &format!("address del {address}/24 dev eth0"),
            &format!("address add {address}/24 dev br0"),
        ] {
            host.ip(words)?;
        }
        host.name_no_interface();
        host.start_agent_with(&["--iface", "br0"])?;
        let on_bridge = ["--iface", "br0"];
        host.run("sysctl", &["-qw", "net.bridge.bridge-nf-call-iptables=1"])?;
        is_found(&host, "bridge-filter", &["br0 is a bridge", "bridge-nf-call-iptables=0"], &on_bridge)?;
        host.run(
            "sysctl",
            &["-qw", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0"],
        )?;
        wait::until("nothing to be found", Duration::from_secs(20), || {
            is_not_found(&host, "bridge-filter", &on_bridge)
        })
    })
}
