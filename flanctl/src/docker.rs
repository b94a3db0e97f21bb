//! `flanctl wait`: the agent's subnet file, and dockerd's options made from it.

use std::path::Path;
use std::time::Duration;

use flan_agent::subnet_env::SubnetEnv;
use tokio::time::Instant;

use crate::failure::{Failure, Kind};

/// How often the file is looked for.
const LOOK: Duration = Duration::from_millis(200);
/// When the first line of progress is due.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits until the file is there and can be used, then writes dockerd's options.
pub(crate) async fn wait(file: &Path, limit: Duration, docker_opts: Option<&Path>) -> Result<(), Failure> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let reason = match SubnetEnv::load(file) {
            Ok(Some(env)) => return finish(&env, docker_opts),
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

fn finish(env: &SubnetEnv, docker_opts: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = docker_opts else { return Ok(()) };
    std::fs::write(path, options(env))
        .map_err(|error| Failure::new(Kind::Other, format!("cannot write {}: {error}", path.display())))
}

/// What flannel's mk-docker-opts.sh writes: dockerd must not masquerade where the agent does.
fn options(env: &SubnetEnv) -> String {
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
    text + &format!("DOCKER_OPTS=\" {}\"\n", all.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerds_options_are_those_of_flannels_script() {
        let env = SubnetEnv::parse(
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        );
        assert_eq!(
            options(&env.unwrap()),
            "DOCKER_OPT_BIP=\"--bip=10.5.52.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
             DOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --bip=10.5.52.1/24 --ip-masq=false --mtu=1450\"\n"
        );
    }
}
