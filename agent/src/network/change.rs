//! Goes over to a changed config while the network runs: with the same lease, and without a restart.

use flan_agent_api::Code;
use flan_subnet_lease::{BackendConfig, NetworkConfig};
use tokio::time::Instant;
use tracing::{info, warn};

use super::config::{doubts, usable};
use super::{Network, Phase};
use crate::agent::Effect;
use crate::host::Host;

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
        let Some(ours) = self.config() else { return Vec::new() };
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
                let effects = self.keep_config(host, now);
                self.report_change(Some(problem));
                effects
            }
            Ok(config) if config.agrees_with(ours) => {
                // The warnings may differ even if the meaning does not.
                self.status.report(Code::DoubtfulConfig, doubts(&config));
                let effects = self.keep_config(host, now);
                self.report_change(None);
                effects
            }
            Ok(config) => match self.prepare(&config, host, now) {
                Ok(effects) => {
                    self.next = Some(Box::new(config));
                    effects
                }
                Err(reason) => {
                    let effects = self.keep_config(host, now);
                    self.cannot_change(&reason);
                    effects
                }
            },
        }
    }

    /// Gives up an earlier change that is being prepared.
    fn keep_config(&mut self, host: &mut Host, now: Instant) -> Vec<Effect> {
        if self.next.take().is_none() {
            return Vec::new();
        }
        let ours = self.config().cloned();
        // Nothing has changed, so nothing can be in its way.
        ours.and_then(|ours| self.prepare(&ours, host, now).ok()).unwrap_or_default()
    }

    /// Goes over to a changed config, once the state of this host that it requires is known.
    pub(crate) fn change_over(&mut self, host: &mut Host, now: Instant) -> Vec<Effect> {
        if self.next.is_none() {
            return Vec::new();
        }
        let Some((external, _)) = host.known() else { return Vec::new() };
        let (external, Some(next)) = (external.clone(), self.next.take()) else { return Vec::new() };
        let _marked = self.span.clone().entered();
        let key = self.read_key_for(&next, now).map_err(|reason| reason.to_string());
        let chosen = key.and_then(|()| {
            self.choose_for(&next, &external, host, &host.reconciler.devices())
                .map_err(|reason| reason.to_string())
        });
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(reason) => {
                self.cannot_change(&reason);
                self.next = Some(next);
                return self.keep_config(host, now);
            }
        };
        info!(backend = next.backend.name(), "going over to the changed network config");
        if !matches!(next.backend, BackendConfig::Wireguard(_)) {
            self.key_due.clear();
            self.status.report(Code::WireguardKey, None);
        }
        self.report_choice(&next, &chosen, host);
        self.status.report(Code::DoubtfulConfig, doubts(&next));
        match &mut self.phase {
            Phase::Config | Phase::Host(_) => {}
            Phase::Lease(means) => means.change_to(*next, chosen, host),
            Phase::Joined(joined) => joined.change_to(*next, chosen, host, now),
        }
        self.report_change(None);
        Vec::new()
    }

    fn cannot_change(&mut self, reason: &str) {
        self.report_change(Some(format!(
            "the network config has changed, and this agent cannot go over to it, so it keeps the one before: {reason}"
        )));
    }

    /// Reports how the stored config differs from the one in use.
    fn report_change(&mut self, problem: Option<String>) {
        if problem == self.config_problem {
            return;
        }
        match &problem {
            Some(problem) => warn!("{problem}"),
            None => info!("the stored network config is the one in use"),
        }
        self.config_problem.clone_from(&problem);
        self.status.update(|status| status.config_problem = problem);
    }
}
