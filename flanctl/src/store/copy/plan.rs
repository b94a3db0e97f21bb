//! Plans a copy by comparing both stores.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use flan_subnet_lease::{Entry, LeaseAttributes, Snapshot};

use crate::output;

/// The writes of a copy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The network config; `None` if the source has none.
    pub(crate) config: Option<Config>,
    /// All leases: those that share an etcd lease together, each reservation alone.
    pub(crate) groups: Vec<Group>,
    /// Keys that cannot be copied, each with the reason.
    pub(crate) skipped: Vec<(String, &'static str)>,
    /// Keys that only the target has.
    pub(crate) left_alone: Vec<String>,
}

/// The network config to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) json: Vec<u8>,
    /// Whether the target already has the same.
    pub(crate) stands: bool,
}

/// Keys that share an etcd lease.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// `None` for a reservation.
    pub(crate) etcd_lease: Option<EtcdLease>,
    pub(crate) keys: Vec<Key>,
}

/// An etcd lease of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EtcdLease {
    pub(crate) id: i64,
    /// Whether one of the same keys has it in the target, so it was copied before.
    pub(crate) stands: bool,
}

/// One lease to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    /// Revision of the last write in the target; 0 if the key is new there.
    pub(crate) seen: i64,
    /// Whether the target already has the same value and etcd lease.
    pub(crate) stands: bool,
}

/// The target is in use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Occupied {
    config: bool,
    leases: Vec<String>,
}

/// Compares two stores. Without `force`, refuses a target that is not empty.
pub(crate) fn plan(source: Snapshot, target: &Snapshot, force: bool) -> Result<Plan, Occupied> {
    let there = || target.leases.readable();
    if !force && (target.config.is_some() || there().next().is_some()) {
        let leases = there().map(|entry| entry.key.clone()).collect();
        return Err(Occupied { config: target.config.is_some(), leases });
    }
    let standing: HashMap<&str, &Entry> = there().map(|entry| (entry.key.as_str(), entry)).collect();
    let copied: HashSet<&str> = source.leases.readable().map(|entry| entry.key.as_str()).collect();
    let only_there = there().filter(|entry| !copied.contains(entry.key.as_str()));
    let left_alone = only_there.map(|entry| entry.key.clone()).collect();
    let config = source.config.map(|config| {
        let stands = target.config.as_ref().is_some_and(|there| there.json == config.json);
        Config { json: config.json, stands }
    });
    let mut plan = Plan { config, left_alone, ..Plan::default() };
    let mut shared: BTreeMap<i64, Group> = BTreeMap::new();
    for entry in source.leases.items.into_iter().flatten().map(Arc::unwrap_or_clone) {
        if entry.key.contains(char::REPLACEMENT_CHARACTER) {
            plan.skipped.push((entry.key, "its key is not text, or too long"));
            continue;
        }
        if entry.value.len() > LeaseAttributes::MOST_BYTES {
            plan.skipped.push((entry.key, "it is too large for a lease"));
            continue;
        }
        let there = standing.get(entry.key.as_str());
        let same_lease = there.is_some_and(|there| there.etcd_lease == entry.etcd_lease);
        let key = Key {
            seen: there.map_or(0, |there| there.mod_revision),
            stands: same_lease && there.is_some_and(|there| there.value == entry.value),
            key: entry.key,
            value: entry.value,
        };
        let Some(id) = entry.etcd_lease else {
            plan.groups.push(Group { etcd_lease: None, keys: vec![key] });
            continue;
        };
        let group = shared.entry(id).or_insert_with(|| Group { etcd_lease: None, keys: Vec::new() });
        let stands = same_lease || group.etcd_lease.is_some_and(|lease| lease.stands);
        group.etcd_lease = Some(EtcdLease { id, stands });
        group.keys.push(key);
    }
    plan.groups.extend(shared.into_values());
    Ok(plan)
}

impl Plan {
    /// Returns the number of leases to copy.
    pub(crate) fn leases(&self) -> usize {
        self.groups.iter().map(|group| group.keys.len()).sum()
    }
}

impl Occupied {
    /// Describes what the target holds.
    pub(crate) fn describe(&self) -> String {
        let config = self.config.then(|| "a network config".to_owned());
        let leases = (!self.leases.is_empty()).then(|| {
            format!("{} ({})", output::count(self.leases.len(), "lease"), output::some(&self.leases))
        });
        config.into_iter().chain(leases).collect::<Vec<_>>().join(" and ")
    }
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::{Listing, StoredConfig};

    use super::*;

    fn entry(key: &str, value: &str, etcd_lease: Option<i64>, mod_revision: i64) -> Entry {
        let (key, value) = (key.to_owned(), value.as_bytes().to_vec());
        Entry { key, value, create_revision: mod_revision, mod_revision, etcd_lease }
    }

    fn store(config: Option<&str>, entries: Vec<Entry>) -> Snapshot {
        Snapshot {
            config: config.map(|json| StoredConfig {
                json: json.as_bytes().to_vec(),
                create_revision: 2,
                mod_revision: 2,
            }),
            leases: Listing::of(entries, 9, 1),
        }
    }

    fn empty() -> Snapshot {
        store(None, vec![])
    }

    /// Returns the plan as lines.
    fn told(plan: &Plan) -> Vec<String> {
        let config = plan.config.iter().map(|config| format!("config{}", stands(config.stands)));
        let groups = plan.groups.iter().map(|group| {
            let lease = group
                .etcd_lease
                .map_or("for ever".to_owned(), |lease| format!("lease {}{}", lease.id, stands(lease.stands)));
            let keys =
                group.keys.iter().map(|key| format!(" {}@{}{}", key.key, key.seen, stands(key.stands)));
            format!("{lease}:{}", keys.collect::<String>())
        });
        let skipped = plan.skipped.iter().map(|(key, reason)| format!("skip {key}: {reason}"));
        let left_alone = plan.left_alone.iter().map(|key| format!("leave {key}"));
        config.chain(groups).chain(skipped).chain(left_alone).collect()
    }

    fn stands(stands: bool) -> &'static str {
        if stands { " (stands)" } else { "" }
    }

    #[test]
    fn keys_behind_one_etcd_lease_stay_together_and_reservations_stay_without() {
        let source = store(
            Some("{}"),
            vec![
                entry("10.5.1.0-24", "a", Some(7), 3),
                entry("10.5.2.0-24", "b", None, 4),
                entry("10.5.3.0-24", "c", Some(8), 5),
                entry("10.5.4.0-24", "d", Some(7), 6),
            ],
        );
        assert_eq!(
            told(&plan(source, &empty(), false).unwrap()),
            [
                "config",
                "for ever: 10.5.2.0-24@0",
                "lease 7: 10.5.1.0-24@0 10.5.4.0-24@0",
                "lease 8: 10.5.3.0-24@0",
            ]
        );
    }

    #[test]
    fn a_target_that_holds_anything_is_refused_by_what_it_holds() {
        let source = || store(Some("{}"), vec![entry("10.5.1.0-24", "a", None, 3)]);
        let refusal =
            |target: &Snapshot| plan(source(), target, false).err().map(|occupied| occupied.describe());
        assert_eq!(refusal(&empty()), None);
        assert_eq!(refusal(&store(Some("{}"), vec![])).as_deref(), Some("a network config"));
        let leases: Vec<Entry> =
            (1..=12).map(|number| entry(&format!("10.5.{number}.0-24"), "", None, 3)).collect();
        assert_eq!(
            refusal(&store(Some("{}"), leases)).as_deref(),
            Some(
                "a network config and 12 leases (10.5.1.0-24, 10.5.2.0-24, 10.5.3.0-24, 10.5.4.0-24, \
                 10.5.5.0-24 and 7 more)"
            )
        );
    }

    #[test]
    fn by_force_what_both_have_is_compared_with_what_was_seen_and_the_rest_is_left() {
        let source = store(
            Some("{}"),
            vec![entry("10.5.1.0-24", "a", Some(7), 3), entry("10.5.2.0-24", "b", None, 4)],
        );
        let target = store(
            Some("{ }"),
            vec![entry("10.5.1.0-24", "other", Some(9), 20), entry("10.5.9.0-24", "x", None, 21)],
        );
        assert_eq!(
            told(&plan(source, &target, true).unwrap()),
            ["config", "for ever: 10.5.2.0-24@0", "lease 7: 10.5.1.0-24@20", "leave 10.5.9.0-24"]
        );
    }

    #[test]
    fn what_was_copied_before_stands() {
        let source = store(
            Some("{}"),
            vec![
                entry("10.5.1.0-24", "a", Some(7), 3),
                entry("10.5.2.0-24", "b", None, 4),
                entry("10.5.3.0-24", "new", Some(7), 5),
            ],
        );
        let target = store(
            Some("{}"),
            vec![
                entry("10.5.1.0-24", "a", Some(7), 20),
                entry("10.5.2.0-24", "b", None, 21),
                entry("10.5.3.0-24", "old", Some(9), 22),
            ],
        );
        assert_eq!(
            told(&plan(source, &target, true).unwrap()),
            [
                "config (stands)",
                "for ever: 10.5.2.0-24@21 (stands)",
                "lease 7 (stands): 10.5.1.0-24@20 (stands) 10.5.3.0-24@22",
            ]
        );
    }

    #[test]
    fn a_lease_that_became_a_reservation_is_written_again() {
        let source = store(None, vec![entry("10.5.1.0-24", "a", None, 3)]);
        let target = store(None, vec![entry("10.5.1.0-24", "a", Some(7), 20)]);
        assert_eq!(told(&plan(source, &target, true).unwrap()), ["for ever: 10.5.1.0-24@20"]);
    }

    #[test]
    fn a_key_that_is_not_text_is_skipped() {
        let source = store(None, vec![entry("10.5.\u{fffd}", "a", None, 3)]);
        assert_eq!(
            told(&plan(source, &empty(), false).unwrap()),
            ["skip 10.5.\u{fffd}: its key is not text, or too long"]
        );
    }

    #[test]
    fn a_value_that_is_no_lease_for_its_size_is_skipped_as_it_is_not_here_whole() {
        let value = "x".repeat(LeaseAttributes::MOST_BYTES + 1);
        let source =
            store(None, vec![entry("10.5.1.0-24", &value, None, 3), entry("10.5.2.0-24", "b", None, 4)]);
        assert_eq!(
            told(&plan(source, &empty(), false).unwrap()),
            ["for ever: 10.5.2.0-24@0", "skip 10.5.1.0-24: it is too large for a lease"]
        );
    }
}
