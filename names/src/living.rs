//! Which hosts are alive, as the store tells it. Pure.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use flan_subnet_lease::{KeyChange, LivingHost, WatchEvent};
use tokio::time::Instant;

/// How long a host that a list lacks is believed to be alive: after the store was away, hosts tell again within seconds.
const GRACE: Duration = Duration::from_secs(20);

/// The hosts that are alive, each with the time until which it is believed without being in the store.
#[derive(Debug, Default)]
pub(crate) struct Living(HashMap<String, Option<Instant>>);

impl Living {
    /// Applies what the store tells. Returns whether another host is alive now, or one less.
    pub(crate) fn apply(&mut self, event: WatchEvent<LivingHost>, now: Instant) -> bool {
        let before = self.0.len();
        match event {
            WatchEvent::Listed(listing) => {
                for until in self.0.values_mut() {
                    until.get_or_insert(now + GRACE);
                }
                let listed = listing.readable().map(|host| (host.key.clone(), None));
                self.0.extend(listed);
                self.0.len() != before
            }
            WatchEvent::Changed(changes) => changes.into_iter().fold(false, |changed, change| match change {
                KeyChange::Put(Ok(host)) => self.0.insert(host.key.clone(), None).is_none() || changed,
                KeyChange::Put(Err(_)) => changed,
                KeyChange::Delete { key } => self.0.remove(&key).is_some() || changed,
            }),
            WatchEvent::Interrupted { .. } => false,
        }
    }

    /// Gives up hosts that have not told again. Returns whether there were any.
    pub(crate) fn time_passed(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|_, until| until.is_none_or(|until| until > now));
        self.0.len() != before
    }

    /// Returns all that are alive.
    pub(crate) fn keys(&self) -> HashSet<String> {
        self.0.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::{Entry, Listing};

    use super::*;

    fn listed(hosts: &[&str]) -> WatchEvent<LivingHost> {
        let entry = |key: &&str| Entry {
            key: (*key).to_owned(),
            value: Vec::new(),
            create_revision: 1,
            mod_revision: 1,
            etcd_lease: Some(1),
        };
        WatchEvent::Listed(Listing::of(hosts.iter().map(entry).collect(), 1, 1))
    }

    #[test]
    fn a_host_that_ends_is_gone_at_once_and_one_that_a_list_lacks_after_a_while() {
        let (mut living, now) = (Living::default(), Instant::now());
        assert!(living.apply(listed(&["h1", "h2", "h3"]), now));
        let ended = WatchEvent::Changed(vec![KeyChange::Delete { key: "h1".to_owned() }]);
        assert!(living.apply(ended, now));
        assert!(!living.apply(WatchEvent::Interrupted { reason: "away".to_owned() }, now));
        assert!(!living.apply(listed(&["h3"]), now));
        assert!(!living.time_passed(now + GRACE / 2));
        assert_eq!(living.keys(), ["h2".to_owned(), "h3".to_owned()].into());
        // Another list does not lengthen its time.
        assert!(!living.apply(listed(&["h3"]), now + GRACE / 2));
        assert!(living.time_passed(now + GRACE));
        assert_eq!(living.keys(), ["h3".to_owned()].into());
    }
}
