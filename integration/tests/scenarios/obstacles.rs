//! What others on a host do to our packets: it is named with what cures it, and told to be over when it is.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::inside::Inside;
use flan_integration::overlay::DEVICE;
use flan_integration::subnet_env::SubnetEnv;
use flan_integration::{Bridge, Host, Lab, LabOptions, wait};

use crate::stage::{NETWORK, NETWORK_OF_UDP, ends_of, hosts_with_status, text_of, wait_until_reached};

/// A problem is told within two glances of 3 s and what they cost, or with rules of whose changes the kernel does not
/// tell, within 15 s more. On a machine that does other things it may take twice as long.
pub(crate) const TOLD: Duration = Duration::from_secs(24);
const TOLD_OF_LEGACY: Duration = Duration::from_secs(45);

/// The text of the problem with this code, if the status has it.
pub(crate) fn problem(host: &Host, code: &str) -> Result<Option<String>> {
    Ok(text_of(&host.status()?, code))
}

/// Waits until the status has a problem with this code that names all of `parts`.
pub(crate) fn wait_for_problem(host: &Host, code: &str, parts: &[&str], limit: Duration) -> Result<String> {
    wait::until(&format!("a problem {code} that names {parts:?}"), limit, || {
        let text = problem(host, code)?.context("there is no such problem")?;
        ensure!(parts.iter().all(|part| text.contains(part)), "it is {text:?}");
        Ok(text)
    })
}

pub(crate) fn wait_until_solved(host: &Host, code: &str, limit: Duration) -> Result<()> {
    wait::until(&format!("{code} to be solved"), limit, || {
        let problem = problem(host, code)?;
        ensure!(problem.is_none(), "it is {problem:?}");
        Ok(())
    })?;
    ensure!(!host.log_lines(&["solved", code])?.is_empty(), "the log does not tell that {code} is solved");
    Ok(())
}

/// Runs the commands that a problem names as its cure, one for each chain.
fn cure(host: &Host, text: &str) -> Result<()> {
    let cures: Vec<&str> =
        text.split("; ").filter_map(|part| part.strip_prefix("to let it pass: ")).collect();
    ensure!(!cures.is_empty(), "no cure in {text:?}");
    cures.into_iter().try_for_each(|cure| host.run("sh", &["-c", cure]).map(drop))
}

/// `rules` on the first of two hosts keep their containers apart, are told with all of `parts`, and are cured by what
/// is told.
fn rules_are_told_and_cured(rules: &str, parts: &[&str], limit: Duration) -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = hosts_with_status(lab, 2)?;
        let ends = ends_of(&hosts)?;
        wait_until_reached(&ends[0], &ends[1], Duration::from_secs(5))?;
        ensure!(problem(&hosts[0], "packet-filter")?.is_none());

        hosts[0].run("sh", &["-c", rules])?;
        let text = wait_for_problem(&hosts[0], "packet-filter", parts, limit)?;
        let target = ends[1].address.to_string();
        ensure!(
            ends[0].place.run("ping", ["-n", "-c", "1", "-W", "1", &target]).is_err(),
            "{target} answers, so these rules do no harm"
        );
        cure(&hosts[0], &text)?;
        wait_until_solved(&hosts[0], "packet-filter", limit)?;
        wait_until_reached(&ends[0], &ends[1], Duration::from_secs(5))?;
        wait_until_reached(&ends[1], &ends[0], Duration::from_secs(5))?;
        ensure!(problem(&hosts[1], "packet-filter")?.is_none(), "the other host has no such rules");
        let told = hosts[0].log_lines(&["WARN", "packet-filter"])?;
        ensure!(told.len() == 1, "told {} times: {told:#?}", told.len());
        Ok(())
    })
}

#[test]
fn nftables_chains_that_reject_are_named_until_the_line_that_is_named_cures_them() -> Result<()> {
    // As firewalld has it, and an input chain of a kind that many have.
    let rules = "nft -f - <<'END'
table inet mine {
    chain forwarding {
        type filter hook forward priority 10; policy accept;
        ct state established,related accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
    chain arriving {
        type filter hook input priority 10; policy drop;
        ct state established,related accept
        iifname lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport 22 accept
    }
}
END";
    let parts = [
        "nftables chain inet mine forwarding (priority 10) rejects what this host forwards between containers in 10.5.0.0/16",
        "nftables chain inet mine arriving (priority 10) drops what other hosts send to UDP port 8472",
    ];
    rules_are_told_and_cured(rules, &parts, TOLD)
}

#[test]
fn a_policy_of_legacy_iptables_is_named_until_the_line_that_is_named_cures_it() -> Result<()> {
    let rules = "iptables-legacy -P FORWARD DROP";
    rules_are_told_and_cured(rules, &["chain FORWARD of iptables-legacy drops"], TOLD_OF_LEGACY)
}

#[test]
fn a_vxlan_device_in_external_mode_on_the_port_of_vxlan_is_named_in_one_line_until_it_goes() -> Result<()> {
    a_vxlan_device_on_the_port_is_named_until_it_goes(NETWORK, 8472, DEVICE)
}

#[test]
fn a_vxlan_device_in_external_mode_on_the_port_of_udp_is_named_in_one_line_until_it_goes() -> Result<()> {
    a_vxlan_device_on_the_port_is_named_until_it_goes(NETWORK_OF_UDP, 8285, "flannel0")
}

fn a_vxlan_device_on_the_port_is_named_until_it_goes(network: &str, port: u16, device: &str) -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(network)?;
        let mut host = lab.host("h1")?;
        host.ip(&format!("link add theirs type vxlan external dstport {port}"))?;
        host.ip("link set theirs up")?;
        host.spawn_agent(&STATUS_FLAGS)?;
        let named = &format!("UDP port {port} is taken by VXLAN device theirs in external mode");
        wait_for_problem(&host, "port-taken", &[named, "ip link del theirs"], TOLD)?;
        let health = text_of(&host.status()?, "kernel").unwrap_or_default();
        ensure!(health.contains(named), "{health}");

        host.ip("link del theirs")?;
        host.wait_for_agent()?;
        host.ip(&format!("link show dev {device} up"))?;
        wait_until_solved(&host, "port-taken", TOLD)?;
        let told = host.log_lines(&["WARN"])?;
        ensure!(told.len() == 1 && told[0].contains(named), "more than one warning: {told:#?}");
        Ok(())
    })
}

#[test]
fn a_process_on_the_port_of_udp_is_named_in_one_line_until_it_lets_go() -> Result<()> {
    a_process_on_the_port_is_named_until_it_lets_go(NETWORK_OF_UDP, 8285)
}

#[test]
fn a_process_on_the_port_of_vxlan_is_named_in_one_line_until_it_lets_go() -> Result<()> {
    a_process_on_the_port_is_named_until_it_lets_go(NETWORK, 8472)
}

fn a_process_on_the_port_is_named_until_it_lets_go(network: &str, port: u16) -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(network)?;
        let mut host = lab.host("h1")?;
        let address = (host.address(), port);
        let bind = async move { UdpSocket::bind(address).context("the port of the backend") };
        let socket = Inside::of(host.netns())?.run(Duration::from_secs(5), bind)?;
        host.spawn_agent(&STATUS_FLAGS)?;
        let named = format!("UDP port {port} is taken by process {} (", std::process::id());
        wait_for_problem(&host, "port-taken", &[&named, "stop it"], TOLD)?;

        drop(socket);
        host.wait_for_agent()?;
        wait_until_solved(&host, "port-taken", TOLD)?;
        let told = host.log_lines(&["WARN"])?;
        ensure!(told.len() == 1 && told[0].contains(&named), "more than one warning: {told:#?}");
        Ok(())
    })
}

#[test]
fn a_docker_that_is_not_as_subnet_env_says_is_told_until_it_is_restarted() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        // As Docker starts by itself, before the agent.
        let own = SubnetEnv {
            network: "172.17.0.0/16".parse()?,
            subnet: "172.17.0.1/16".parse()?,
            mtu: 1500,
            ip_masq: false,
        };
        host.start_docker_on(&own, Bridge::WholeSubnet)?;
        host.start_agent_with(&STATUS_FLAGS)?;
        let env = host.subnet_env()?;
        let elsewhere =
            format!("docker0 has 172.17.0.1/16, which is not in this host's subnet {}", env.base());
        wait_for_problem(&host, "bridge-differs", &[&elsewhere, "systemctl restart docker"], TOLD)?;

        // With the subnet and nothing else of what subnet.env says.
        host.stop_docker()?;
        host.start_docker_on(&SubnetEnv { subnet: env.subnet, ..own }, Bridge::WholeSubnet)?;
        let web = host.run_container("web", &[])?;
        let both = [
            "containers at docker0 have an MTU of 1500, and subnet.env says 1450",
            "Docker masquerades what containers at docker0 send to other hosts",
        ];
        let text = wait_for_problem(&host, "bridge-differs", &both, TOLD)?;
        ensure!(!text.contains("which is not in"), "{text}");

        drop(web);
        host.stop_docker()?;
        host.start_docker(Bridge::LowerHalf)?;
        wait_until_solved(&host, "bridge-differs", TOLD)?;
        host.run_container("again", &[])?;
        wait::while_holds("all is as it should be", Duration::from_secs(7), || {
            let problems = host.status()?["problems"].clone();
            ensure!(problems.as_array().is_some_and(Vec::is_empty), "{problems}");
            Ok(())
        })
    })
}
