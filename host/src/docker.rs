//! Docker's own settings: what its file and its options say, against the subnet of this host.

use flan_agent_api::SubnetEnv;
use flan_subnet_lease::{Family, overlap};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

/// Docker's settings file, unless another one is named.
pub const SETTINGS_FILE: &str = "/etc/docker/daemon.json";

/// The options that Docker's unit gets from `flanctl wait`.
pub const OURS: [&str; 4] = ["bip", "ip-masq", "mtu", "allow-direct-routing"];

/// What is known of Docker on this host.
#[derive(Debug, Default)]
pub struct Docker {
    /// Its version, if it answers.
    pub version: Option<String>,
    /// The text of its settings file, if there is one.
    pub settings: Option<String>,
    /// That file, for messages.
    pub settings_file: String,
    /// The options of the process that runs, if one does.
    pub options: Vec<String>,
    /// The options that its unit gives it. dockerd does not start if the file has one of them as well.
    pub given: Vec<&'static str>,
    /// Whether containers are to be at docker0 at all: not where they are in networks of flan's driver alone.
    pub uses_docker0: bool,
    /// The bridges in this host's subnet, whatever their names.
    pub bridges: Vec<String>,
}

impl Docker {
    /// Describes what does not fit. `env` are the settings that it should have, if this host has a subnet; `overlays` the
    /// networks of flan.
    pub fn misfits(&self, env: Option<&SubnetEnv>, overlays: &[IpNetwork]) -> Option<String> {
        let mut wrong: Vec<String> = self.version.as_deref().and_then(too_closed).into_iter().collect();
        let file = &self.settings_file;
        let text = self.settings.as_deref().map(|text| text.trim_start_matches('\u{feff}').trim());
        match text.filter(|text| !text.is_empty()).map(serde_json::from_str::<Map<String, Value>>) {
            Some(Err(reason)) => {
                wrong.push(format!(
                    "{file} cannot be read, so Docker does not start with it: {reason}; mend it"
                ));
            }
            Some(Ok(settings)) => wrong.extend(self.misfits_of(&settings, env, overlays)),
            None => {}
        }
        let bridge = option(&self.options, "--bridge").or_else(|| option(&self.options, "-b"));
        if let Some(bridge) = bridge.filter(|bridge| !self.is_ours(bridge)) {
            wrong.push(no_docker0("dockerd runs with --bridge", &bridge));
        }
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }

    fn is_ours(&self, bridge: &str) -> bool {
        let may_be_none = bridge == "none" && !self.uses_docker0;
        may_be_none
            || bridge.is_empty()
            || bridge == "docker0"
            || self.bridges.iter().any(|ours| ours == bridge)
    }

    fn misfits_of(
        &self,
        settings: &Map<String, Value>,
        env: Option<&SubnetEnv>,
        overlays: &[IpNetwork],
    ) -> Vec<String> {
        let (mut wrong, file) = (Vec::new(), &self.settings_file);
        let twice: Vec<&str> =
            self.given.iter().copied().filter(|name| settings.contains_key(*name)).collect();
        if !twice.is_empty() {
            wrong.push(format!(
                "{file} sets {}, which Docker's unit also gets from subnet.env, so dockerd does not start; remove \
                 it from the file",
                twice.join(", ")
            ));
        } else if let Some(env) = env {
            wrong.extend(other_values(file, settings, env));
        }
        let text = |name: &str| settings.get(name).and_then(Value::as_str);
        if let Some(bridge) = text("bridge").filter(|bridge| !self.is_ours(bridge)) {
            wrong.push(no_docker0(&format!("{file} sets bridge to"), bridge));
        }
        if let (Some(range), Some(own)) = (text("fixed-cidr"), env.and_then(|env| env.bridges.v4))
            && !range
                .parse::<IpNetwork>()
                .is_ok_and(|range| own.contains(range.network()) && range.prefix() >= own.prefix())
        {
            wrong.push(format!(
                "{file} sets fixed-cidr to {range}, which is not in this host's subnet {}/{}, so containers get \
                 addresses that other hosts do not reach; remove it",
                own.network(),
                own.prefix()
            ));
        }
        let pools = settings.get("default-address-pools").and_then(Value::as_array).into_iter().flatten();
        let bases = pools.filter_map(|pool| pool.get("base")?.as_str()?.parse::<IpNetwork>().ok());
        for base in bases {
            if let Some(overlay) = overlays.iter().find(|overlay| overlap(overlay, &base)) {
                wrong.push(format!(
                    "{file} has the address pool {base}, which overlaps the network {overlay}: Docker's own networks \
                     would hide other hosts; choose another pool"
                ));
            }
        }
        wrong
    }
}

/// Describes settings of the file that differ from what the subnet file says.
fn other_values(file: &str, settings: &Map<String, Value>, env: &SubnetEnv) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut differs = |name: &str, value: String, wanted: String, so: &str| {
        wrong.push(format!(
            "{file} sets {name} to {value}, and subnet.env says {wanted}, so {so}; remove it from the file and give \
             dockerd what subnet.env says"
        ));
    };
    if let (Some(bip), Some(own)) = (settings.get("bip").and_then(Value::as_str), env.bridges.get(Family::V4))
        && !bip.parse::<IpNetwork>().is_ok_and(|bip| own.contains(bip.ip()) && bip.prefix() >= own.prefix())
    {
        differs("bip", bip.to_owned(), own.to_string(), "other hosts do not reach the containers");
    }
    if let Some(mtu) = settings.get("mtu").and_then(Value::as_u64).filter(|mtu| *mtu > env.mtu.into()) {
        differs("mtu", mtu.to_string(), env.mtu.to_string(), "large packets to other hosts are lost");
    }
    wrong
}

/// Docker 28 drops packets from other hosts to containers. Its option against that came with 28.2.
fn too_closed(version: &str) -> Option<String> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    let (major, minor) = (parts.next()??, parts.next()??);
    (major == 28 && minor < 2).then(|| {
        format!(
            "Docker {version} drops packets from other hosts to containers, and has no option against it; upgrade to 28.2 or \
             later"
        )
    })
}

fn no_docker0(said: &str, bridge: &str) -> String {
    format!(
        "{said} {bridge}, so that containers are not at docker0, whose subnet other hosts know; remove that"
    )
}

/// The value of an option of a command line, as `--name=value`, `--name value`, `-n value` or `-nvalue`.
fn option(arguments: &[String], name: &str) -> Option<String> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix(name) {
            Some("") => return arguments.next().cloned(),
            Some(rest) if rest.starts_with('=') => return Some(rest[1..].to_owned()),
            Some(rest) if !name.starts_with("--") => return Some(rest.to_owned()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(docker: &Docker) -> Option<String> {
        let env =
            SubnetEnv::parse("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\n");
        docker.misfits(Some(&env.unwrap()), &["10.5.0.0/16".parse().unwrap()])
    }

    fn docker(settings: &str) -> Docker {
        let bridges = vec!["br-apps".to_owned()];
        Docker {
            settings: Some(settings.to_owned()),
            settings_file: "daemon.json".into(),
            uses_docker0: true,
            bridges,
            ..Docker::default()
        }
    }

    fn with(settings: &str) -> Option<String> {
        told(&docker(settings))
    }

    #[test]
    fn settings_that_fit_are_not_told_of() {
        assert_eq!(told(&Docker::default()), None);
        assert_eq!(with(r#"{"bip": "10.5.52.1/24", "mtu": 1450, "log-driver": "journald"}"#), None);
        assert_eq!(with("\u{feff} \n"), None, "Docker takes it for none");
        assert_eq!(with(r#"{"bridge": "br-apps", "bip": "10.5.52.1/25"}"#), None, "within the subnet");
        assert_eq!(with(r#"{"mtu": 1400, "fixed-cidr": "10.5.52.128/25"}"#), None);
        assert_eq!(with(r#"{"default-address-pools": [{"base": "172.30.0.0/16", "size": 24}]}"#), None);
    }

    #[test]
    fn each_setting_that_does_not_fit_is_named_with_its_value() {
        for (settings, part) in [
            (r#"{"bip": "172.17.0.1/16"}"#, "sets bip to 172.17.0.1/16, and subnet.env says 10.5.52.1/24"),
            (r#"{"mtu": 1500}"#, "sets mtu to 1500, and subnet.env says 1450"),
            (r#"{"bridge": "none"}"#, "sets bridge to none"),
            (
                r#"{"fixed-cidr": "10.6.0.0/24"}"#,
                "fixed-cidr to 10.6.0.0/24, which is not in this host's subnet 10.5.52.0/24",
            ),
            (
                r#"{"default-address-pools": [{"base": "10.0.0.0/8"}]}"#,
                "pool 10.0.0.0/8, which overlaps the network 10.5.0.0/16",
            ),
            ("{bip: 1}", "does not start with it"),
        ] {
            let text = with(settings).unwrap_or_default();
            assert!(text.contains(part), "{settings}: {text}");
        }
    }

    #[test]
    fn what_the_unit_sets_as_well_keeps_docker_from_starting() {
        let given = OURS.to_vec();
        let text = told(&Docker { given, ..docker(r#"{"bip": "10.5.52.1/24"}"#) }).unwrap();
        assert!(
            text.contains("daemon.json sets bip, which Docker's unit also gets from subnet.env"),
            "{text}"
        );
    }

    #[test]
    fn a_docker_that_cannot_be_opened_to_other_hosts_is_told_of() {
        let version =
            |version: &str| told(&Docker { version: Some(version.to_owned()), ..Docker::default() });
        assert!(version("28.1.1").unwrap().contains("upgrade to 28.2"));
        for fit in ["28.2.0", "27.5.1", "20.10.24+dfsg1", "29.0.0", "dev"] {
            assert_eq!(version(fit), None);
        }
    }

    #[test]
    fn another_bridge_on_the_command_line_is_told_of() {
        let run = |arguments: &[&str]| {
            told(&Docker {
                uses_docker0: true,
                options: arguments.iter().map(|one| (*one).to_owned()).collect(),
                ..Docker::default()
            })
        };
        assert!(run(&["dockerd", "--bridge", "none"]).unwrap().contains("runs with --bridge none"));
        assert!(run(&["dockerd", "--bridge=br0", "-H", "fd://"]).is_some());
        assert!(run(&["dockerd", "-b", "none"]).is_some() && run(&["dockerd", "-bnone"]).is_some());
        assert_eq!(run(&["dockerd", "--bridge=docker0", "--bip=10.5.52.1/24"]), None);
    }
}
