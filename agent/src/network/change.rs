//! Goes over to a changed config while the network runs: with the same lease, and without a restart.

use flan_agent_api::Code;
use flan_subnet_lease::NetworkConfig;
use tokio::time::Instant;
use tracing::info;

use super::backend::Chosen;
use super::config::{doubts, usable};
use super::{Network, Phase};
use crate::agent::Effect;
use crate::host::Host;
use flan_host::interface::External;

const GONE: &str = "the network config is gone from the store; this agent could not start again";

impl Network {
    /// Returns the config in use.
    fn config(&self) -> Option<&NetworkConfig> {
        match &self.phase {
            Phase::Config => None,
            Phase::Host(config) => Some(config),
            Phase::Lease(means) => Some(&means.config),
            Phase::Joined(joined) => Some(joined.config()),
        }
    }

    /// Compares the stored config with the one in use, and prepares to go over to one that means something else.
    pub(super) fn config_is(&mut self, stored: Option<&[u8]>, host: &mut Host, now: Instant) -> Vec<Effect> {
        let Some(ours) = self.config().cloned() else { return Vec::new() };
        let found = stored.ok_or_else(|| GONE.to_owned()).and_then(|json| {
            usable(json, self.settings.name.is_some()).map_err(|reason| {
                format!("the network config has changed to one that this agent cannot run, so it keeps the one before: {reason}")
            })
        });
        let found = found.and_then(|config| match self.subnets().filter(|own| !config.admits(own)) {
            Some(own) => Err(format!(
                "the network config has changed, and this host's subnet {own} is not in it, so this agent keeps the one \
                 before until it is restarted"
            )),
            None => Ok(config),
        });
        match found {
            Err(problem) => {
                self.keep_config(host);
                self.report_change(Some(problem));
                Vec::new()
            }
            Ok(config) if config.agrees_with(&ours) => {
                // The warnings may differ even if the meaning does not.
                self.status.report(Code::DoubtfulConfig, doubts(&config));
                self.keep_config(host);
                self.report_change(None);
                Vec::new()
            }
            Ok(config) => {
                let known = host.external.external.clone();
                let of_families = |external: &External| {
                    config
                        .over_underlay()
                        .all(|(family, _)| external.underlay.addresses.get(family).is_some())
                };
                // What is not known yet is chosen later.
                let chosen = match known.filter(of_families) {
                    Some(external) => self.choose_next(&config, &external, host).map(drop),
                    None => Ok(()),
                };
                match chosen.and_then(|()| self.prepare(&config, host, now)) {
                    Ok(effects) => {
                        self.next = Some(Box::new(config));
                        effects
                    }
                    Err(reason) => self.cannot_change(&reason, host, now),
                }
            }
        }
    }

    /// Gives up an earlier change that is being prepared.
    fn keep_config(&mut self, host: &mut Host) {
        if self.next.take().is_some()
            && let Some(ours) = self.config()
        {
            let needs = self.needs(ours, host);
            host.needs_are(self.id, needs);
        }
    }

    /// Goes over to a changed config, once the state of this host that it requires is known.
    pub(crate) fn change_over(&mut self, host: &mut Host, now: Instant) -> Vec<Effect> {
        let Some(next) = &self.next else { return Vec::new() };
        let Some((external, _)) = host.known() else { return Vec::new() };
        let (next, external) = (next.clone(), external.clone());
        let _marked = self.span.clone().entered();
        let chosen = match self.subnets().filter(|own| !next.admits(own)) {
            Some(own) => Err(format!("this host's subnet {own} is not in it")),
            None => self.choose_next(&next, &external, host),
        };
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(reason) => return self.cannot_change(&reason, host, now),
        };
        self.next = None;
        info!(backend = next.backend.name(), "going over to the changed network config");
        self.has_chosen(&next, &chosen, host, now);
        self.status.report(Code::DoubtfulConfig, doubts(&next));
        match &mut self.phase {
            Phase::Config | Phase::Host(_) => {}
            Phase::Lease(means) => means.change_to(*next, chosen, host),
            Phase::Joined(joined) => joined.change_to(*next, chosen, host, now),
        }
        self.report_change(None);
        Vec::new()
    }

    fn choose_next(
        &mut self,
        config: &NetworkConfig,
        external: &External,
        host: &Host,
    ) -> Result<Chosen, String> {
        let key = self.wireguard_key.clone();
        let read = self.read_key_for(config).map_err(|reason| reason.to_string());
        let chosen = read.and_then(|()| {
            let chosen = self.choose_for(config, external, host, &host.reconciler.devices());
            chosen.map_err(|reason| reason.to_string())
        });
        if chosen.is_err() {
            // Another key is noticed by the difference from the one in use.
            self.wireguard_key = key;
        }
        chosen
    }

    /// Tells why this host keeps its config, and tries again: what is in the way may go.
    fn cannot_change(&mut self, reason: &str, host: &mut Host, now: Instant) -> Vec<Effect> {
        self.keep_config(host);
        self.consider_again(now);
        self.report_change(Some(format!(
            "the network config has changed, and this agent cannot go over to it, so it keeps the one before: {reason}"
        )));
        Vec::new()
    }

    /// Reports how the stored config differs from the one in use.
    fn report_change(&mut self, problem: Option<String>) {
        self.status.report(Code::Config, problem);
    }
}
