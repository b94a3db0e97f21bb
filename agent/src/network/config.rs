//! The network config: waits for one that this agent can run, then follows its changes in the store.

use flan_agent_api::Code;
use flan_subnet_lease::{ConfigError, NetworkConfig};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{CONFIG_CHECK, CONFIG_WAIT, Network, NetworkEffect, Phase, backend};
use crate::agent::Effect;
use crate::host::{Host, Needs, retry_after};

impl Network {
    pub(super) fn config_place(&self) -> String {
        format!("the network config at {}", self.settings.place)
    }

    /// Handles the config from the store.
    pub(super) fn config_was_read(
        &mut self,
        read: Result<Option<Vec<u8>>, String>,
        host: &mut Host,
        now: Instant,
    ) -> Vec<Effect> {
        let ours = match &self.phase {
            Phase::Config => {
                self.has_no_config = matches!(read, Ok(None));
                return match self.usable(read).and_then(|config| self.begin(config, host, now)) {
                    Ok(effects) => effects,
                    Err(problem) => self.tries_again(&problem, host, now),
                };
            }
            Phase::Host(config) => config,
            Phase::Lease(means) => &means.config,
            Phase::Joined(joined) => joined.config(),
        };
        self.config_due.at(now + CONFIG_CHECK);
        // The lease watch reports a store that cannot be reached.
        if let Ok(stored) = read {
            let compared = still_ours(stored.as_deref(), ours);
            self.report_change(compared);
        }
        Vec::new()
    }

    /// Reads the config again, after a while.
    pub(super) fn tries_again(&mut self, problem: &str, host: &mut Host, now: Instant) -> Vec<Effect> {
        self.phase = Phase::Config;
        self.failures += 1;
        self.config_due.at(now + retry_after(self.failures).min(CONFIG_WAIT));
        // What others wait for may depend on this one.
        host.schedule(now);
        self.waits_for(&format!("{}: {problem}", self.config_place())).into_iter().collect()
    }

    /// Returns the config if this agent can run it, else the reason why not, which it logs.
    fn usable(&self, read: Result<Option<Vec<u8>>, String>) -> Result<NetworkConfig, String> {
        let place = &self.settings.place;
        match read {
            Ok(Some(json)) => usable(&json, self.settings.name.is_some()).map_err(|reason| {
                error!(%reason, "cannot use the network config at {place}");
                reason.to_string()
            }),
            Ok(None) => {
                let flags = &self.settings.flags;
                match &self.settings.name {
                    None => warn!(
                        "there is no network config at {place}; write one with: flanctl{flags} config set FILE"
                    ),
                    Some(name) => warn!(
                        "there is no network config at {place}; create the network with: flanctl{flags} network create \
                         {name} --subnet CIDR"
                    ),
                }
                Err("there is none".to_owned())
            }
            Err(reason) => {
                warn!(%reason, "cannot read the network config");
                Err(reason)
            }
        }
    }

    /// Starts to read the state of this host that the config requires.
    ///
    /// # Errors
    /// If another network has what this one needs.
    fn begin(&mut self, config: NetworkConfig, host: &mut Host, now: Instant) -> Result<Vec<Effect>, String> {
        let mut ownership = backend::ownership(&config, host.nftables);
        ownership.links.extend(self.bridge());
        let needs = Needs {
            ownership,
            overlays: config.over_underlay().collect(),
            strict: backend::strict_source(&config),
        };
        let reading = host.prepare(self.id, needs, now);
        let reading = reading.inspect_err(|reason| error!(%reason, "cannot join the network"))?;
        self.status.report(Code::DoubtfulConfig, doubts(&config));
        self.config_due.at(now + CONFIG_CHECK);
        let mut effects = vec![self.effect(NetworkEffect::ListLeases)];
        effects.extend(self.waits_for("the interfaces and routes of this host"));
        effects.extend(reading);
        self.phase = Phase::Host(Box::new(config));
        Ok(effects)
    }

    fn report_change(&mut self, compared: Result<NetworkConfig, &'static str>) {
        let problem = match compared {
            // The warnings may differ even if the meaning does not.
            Ok(now) => {
                self.status.report(Code::DoubtfulConfig, doubts(&now));
                None
            }
            Err(problem) => Some(problem),
        };
        if problem == self.config_problem {
            return;
        }
        match problem {
            Some(problem) => warn!("{problem}"),
            None => info!("the stored network config is again the one in use"),
        }
        self.config_problem = problem;
        self.status.update(|status| status.config_problem = problem.map(str::to_owned));
    }
}

/// Returns the stored config if it means the same as ours, else how it differs.
fn still_ours(stored: Option<&[u8]>, ours: &NetworkConfig) -> Result<NetworkConfig, &'static str> {
    let stored =
        stored.ok_or("the network config is gone from the store; this agent could not start again")?;
    NetworkConfig::parse(stored)
        .ok()
        .filter(|now| now.agrees_with(ours))
        .ok_or("the network config has changed; this agent runs with the old one until it is restarted")
}

/// Returns the config if this agent can run it, for the default network or one beside it.
fn usable(json: &[u8], is_beside: bool) -> Result<NetworkConfig, ConfigError> {
    let config = NetworkConfig::parse(json)?;
    if is_beside {
        config.supported_beside()?;
    }
    config.supported()?;
    Ok(config)
}

/// Joins all warnings about the config into one text.
fn doubts(config: &NetworkConfig) -> Option<String> {
    let texts: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    Some(texts.join(". Also, ")).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TACIT: &[u8] = br#"{"Network":"10.5.0.0/16","SubnetLenn":24}"#;

    #[test]
    fn a_config_that_this_agent_does_not_run_is_refused_as_flanctl_refuses_it() {
        let both = br#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48",
            "Backend":{"Type":"udp"}}"#;
        let judged = NetworkConfig::parse(both).unwrap().supported().unwrap_err();
        assert_eq!(usable(both, false).unwrap_err().to_string(), judged.to_string());
        assert_eq!(usable(TACIT, false).unwrap().backend.name(), "udp");
    }

    #[test]
    fn all_doubts_are_one_problem_and_none_is_none() {
        let doubts = doubts(&usable(TACIT, false).unwrap()).unwrap();
        assert!(doubts.starts_with("the network config names no Backend: flannel takes udp"), "{doubts}");
        assert!(doubts.contains(". Also, the network config has the field SubnetLenn"), "{doubts}");
        let plain = br#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
        assert_eq!(super::doubts(&usable(plain, false).unwrap()), None);
    }

    #[test]
    fn a_config_that_is_written_better_has_not_changed() {
        let ours = usable(TACIT, false).unwrap();
        let better = br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}"#;
        assert_eq!(still_ours(Some(better), &ours).unwrap().warnings, []);
        let other = br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
        assert!(still_ours(Some(other), &ours).unwrap_err().contains("has changed"));
        assert!(still_ours(Some(b"{"), &ours).unwrap_err().contains("has changed"));
        assert!(still_ours(None, &ours).unwrap_err().contains("is gone"));
    }
}
