//! The network config: waits for one that this agent can run, and begins with it.

use flan_agent_api::Code;
use flan_backends::bridge;
use flan_subnet_lease::{ConfigError, NetworkConfig};
use tokio::time::Instant;
use tracing::error;

use super::{CONFIG_WAIT, Network, NetworkEffect, Phase, backend};
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
        match read {
            // What was refused is tried again in its time.
            Ok(stored) if self.stored.as_ref() == Some(&stored) => Vec::new(),
            Ok(stored) => {
                self.failures = 0;
                let effects = self.consider(stored.as_deref(), host, now);
                self.stored = Some(stored);
                effects
            }
            // The watch has logged it, and the watch of the leases reports it later.
            Err(problem) if matches!(self.phase, Phase::Config) => self.waits_on(&problem, host, now),
            Err(_) => Vec::new(),
        }
    }

    /// Begins with the config in the store, or goes over to it.
    pub(super) fn consider(&mut self, stored: Option<&[u8]>, host: &mut Host, now: Instant) -> Vec<Effect> {
        self.config_due.clear();
        if !matches!(self.phase, Phase::Config | Phase::Host(_)) {
            return self.config_is(stored, host, now);
        }
        self.has_no_config = stored.is_none();
        match self.usable(stored) {
            Ok(config) => match self.begin(config, host, now) {
                Ok(effects) => effects,
                Err(problem) => self.tries_again(&problem, host, now),
            },
            Err(problem) => self.waits_on(&problem, host, now),
        }
    }

    /// Begins again after a while.
    pub(super) fn tries_again(&mut self, problem: &str, host: &mut Host, now: Instant) -> Vec<Effect> {
        self.consider_again(now);
        self.waits_on(problem, host, now)
    }

    pub(super) fn consider_again(&mut self, now: Instant) {
        self.failures += 1;
        self.config_due.at(now + retry_after(self.failures).min(CONFIG_WAIT));
    }

    fn waits_on(&mut self, problem: &str, host: &mut Host, now: Instant) -> Vec<Effect> {
        (self.phase, self.next) = (Phase::Config, None);
        // What others wait for may depend on this one.
        host.schedule(now);
        self.waits_for(&format!("{}: {problem}", self.config_place())).into_iter().collect()
    }

    /// Returns the config if this agent can run it, else the reason why not, which it reports.
    fn usable(&self, stored: Option<&[u8]>) -> Result<NetworkConfig, String> {
        let place = &self.settings.place;
        let (reason, text) = match stored.map(|json| usable(json, self.settings.name.is_some())) {
            Some(Ok(config)) => {
                self.status.report(Code::Config, None);
                return Ok(config);
            }
            Some(Err(reason)) => {
                (reason.to_string(), format!("the network config at {place} cannot be used: {reason}"))
            }
            None => {
                let flags = &self.settings.flags;
                let make = match &self.settings.name {
                    None => format!("write one with: flanctl{flags} config set FILE"),
                    Some(name) => {
                        format!("create the network with: flanctl{flags} network create {name} --subnet CIDR")
                    }
                };
                ("there is none".to_owned(), format!("there is no network config at {place}; {make}"))
            }
        };
        self.status.report(Code::Config, Some(text));
        Err(reason)
    }

    /// Starts to read the state of this host that the config requires.
    ///
    /// # Errors
    /// If another network has what this one needs.
    fn begin(&mut self, config: NetworkConfig, host: &mut Host, now: Instant) -> Result<Vec<Effect>, String> {
        let reading = self.prepare(&config, host, now);
        let reading = reading.inspect_err(|reason| error!(%reason, "cannot join the network"))?;
        self.status.report(Code::DoubtfulConfig, doubts(&config));
        let mut effects = vec![self.effect(NetworkEffect::ListLeases)];
        effects.extend(self.waits_for("the interfaces and routes of this host"));
        effects.extend(reading);
        self.phase = Phase::Host(Box::new(config));
        Ok(effects)
    }

    /// Starts to read the state of this host that the config requires.
    ///
    /// # Errors
    /// If another network has what this one needs.
    pub(super) fn prepare(
        &self,
        config: &NetworkConfig,
        host: &mut Host,
        now: Instant,
    ) -> Result<Vec<Effect>, String> {
        host.prepare(self.id, self.needs(config, host), now)
    }

    /// Returns what the config needs of this host.
    pub(super) fn needs(&self, config: &NetworkConfig, host: &Host) -> Needs {
        let mut ownership = flan_backends::ownership(config, host.nftables);
        ownership.links.extend(self.bridge());
        ownership.links.extend(self.settings.has_resolver.then(bridge::resolver_device));
        Needs {
            ownership,
            overlays: config.over_underlay().collect(),
            strict: backend::strict_source(config),
        }
    }
}

/// Returns the config if this agent can run it, for the default network or one beside it.
pub(super) fn usable(json: &[u8], is_beside: bool) -> Result<NetworkConfig, ConfigError> {
    let config = NetworkConfig::parse(json)?;
    if is_beside {
        config.supported_beside()?;
    }
    config.supported()?;
    Ok(config)
}

/// Joins all warnings about the config into one text.
pub(super) fn doubts(config: &NetworkConfig) -> Option<String> {
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
}
