//! `flanctl wait`: waits for the agent's subnet file, and converts it to dockerd's options.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use flan_agent_api::SubnetEnv;
use flan_backends::bridge;
use tokio::time::Instant;

use crate::failure::{Failure, Kind};

/// Interval between checks of the file.
const LOOK: Duration = Duration::from_millis(200);
/// Delay before the first line of progress.
const PATIENCE: Duration = Duration::from_secs(2);

/// Time limit for `dockerd --help`.
const HELP_LIMIT: Duration = Duration::from_secs(10);

/// Waits until the file exists and is usable.
pub(crate) async fn wait(file: &Path, limit: Duration) -> Result<SubnetEnv, Failure> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let reason = match SubnetEnv::load(file) {
            Ok(Some(env)) => return Ok(env),
            Ok(None) => "it is not there".to_owned(),
            Err(reason) => reason.to_string(),
        };
        if start.elapsed() >= limit {
            let message = format!(
                "gave up after {} on {}: {reason}; is fland running? See: journalctl -u fland",
                humantime::format_duration(limit),
                file.display(),
            );
            return Err(Failure::new(Kind::TimedOut, message));
        }
        if !told && start.elapsed() >= PATIENCE {
            told = true;
            eprintln!("flanctl: waiting for fland to write {}", file.display());
        }
        tokio::time::sleep(LOOK.min(limit.saturating_sub(start.elapsed()))).await;
    }
}

/// Writes dockerd's options for the subnet.
pub(crate) async fn write_options(
    env: &SubnetEnv,
    file: &Path,
    key: &str,
    with_names: bool,
) -> Result<(), Failure> {
    let servers = if with_names { name_servers(&resolv_conf()) } else { Vec::new() };
    std::fs::write(file, options(env, needs_direct_routing().await, &servers, key))
        .map_err(|error| Failure::new(Kind::Other, format!("cannot write {}: {error}", file.display())))
}

/// Most DNS servers that a container asks.
const MOST_SERVERS: usize = 3;

/// Returns the DNS servers of containers: fland at its own address, then those of this host that containers can reach.
fn name_servers(resolv_conf: &str) -> Vec<IpAddr> {
    let ours = IpAddr::V4(bridge::RESOLVER);
    let lines = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    let behind = lines.filter(|server| !server.is_loopback() && *server != ours);
    std::iter::once(ours).chain(behind).take(MOST_SERVERS).collect()
}

/// Returns what says which DNS servers this host asks. Where that is a server on this host alone, systemd-resolved knows
/// the others.
fn resolv_conf() -> String {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let own = read("/etc/resolv.conf");
    match name_servers(&own).len() {
        1 => read("/run/systemd/resolve/resolv.conf"),
        _ => own,
    }
}

/// Docker 28 and newer drop packets from other hosts to containers, unless this option, new in 28.2, is set.
async fn needs_direct_routing() -> bool {
    let help = tokio::process::Command::new("dockerd").arg("--help").kill_on_drop(true).output();
    match tokio::time::timeout(HELP_LIMIT, help).await {
        Ok(Ok(help)) => String::from_utf8_lossy(&help.stdout).contains("--allow-direct-routing"),
        _ => false,
    }
}

/// Returns flannel's options (mk-docker-opts.sh) and direct routing. dockerd must not masquerade if the agent does.
fn options(env: &SubnetEnv, direct_routing: bool, servers: &[IpAddr], key: &str) -> String {
    let mut all = Vec::new();
    let mut text = String::new();
    let mut add = |name: &str, option: String| {
        text += &format!("DOCKER_OPT_{name}=\"{option}\"\n");
        all.push(option);
    };
    if let Some(bridge) = env.bridges.v4 {
        add("BIP", format!("--bip={bridge}"));
    }
    add("IPMASQ", format!("--ip-masq={}", !env.ip_masq));
    add("MTU", format!("--mtu={}", env.mtu));
    if direct_routing {
        add("DIRECT_ROUTING", "--allow-direct-routing".to_owned());
    }
    if !servers.is_empty() {
        let all: Vec<String> = servers.iter().map(|server| format!("--dns={server}")).collect();
        add("DNS", all.join(" "));
    }
    text + &format!("{key}=\" {}\"\n", all.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerds_options_are_those_of_flannels_script() {
        let env = SubnetEnv::parse(
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        );
        let env = env.unwrap();
        let with_direct_routing = options(&env, true, &[], "ALL");
        assert!(
            with_direct_routing
                .ends_with("ALL=\" --bip=10.5.52.1/24 --ip-masq=false --mtu=1450 --allow-direct-routing\"\n")
        );
        assert_eq!(
            options(&env, false, &[], "DOCKER_OPTS"),
            "DOCKER_OPT_BIP=\"--bip=10.5.52.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
             DOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --bip=10.5.52.1/24 --ip-masq=false --mtu=1450\"\n"
        );
        let here = "# as systemd has it\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver 192.0.2.54\nnameserver 192.0.2.55\n";
        let with_names = options(&env, false, &name_servers(here), "ALL");
        let dns = "--dns=169.254.53.53 --dns=192.0.2.53 --dns=192.0.2.54";
        assert!(with_names.contains(&format!("DOCKER_OPT_DNS=\"{dns}\"\n")), "{with_names}");
        assert!(with_names.ends_with(&format!("--mtu=1450 {dns}\"\n")), "{with_names}");
    }
}
