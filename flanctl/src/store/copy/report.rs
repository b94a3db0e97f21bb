//! The result of a copy, for people and for programs.

use std::time::Duration;

use flan_agent_api::API_VERSION;
use flan_subnet_lease::{Store, shown};
use serde::Serialize;

use crate::output::{count, place, some};

/// Skipped leases that are listed for people.
const SHOWN_SKIPPED: usize = 50;

/// The result of a copy.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` if the source has none.
    pub(crate) config: Option<Fate>,
    pub(crate) items: Vec<Item>,
    /// Keys that only the target has.
    pub(crate) left_alone: Vec<String>,
}

/// The report of a copy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CopyReport {
    api_version: &'static str,
    kind: &'static str,
    /// Whether nothing was written, so that these are the expected outcomes.
    dry_run: bool,
    /// URLs of the source.
    from: String,
    /// URLs of the target.
    to: String,
    /// Prefix of all keys, in both stores.
    prefix: String,
    /// Revision at which the source was read.
    revision: i64,
    /// Outcome for the network config; null if there is none.
    config: Option<Fate>,
    /// The leases, sorted by subnet.
    items: Vec<Item>,
    /// Leases that only the target has. They stay.
    left_alone: Vec<String>,
}

/// Outcome for one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Item {
    /// The last part of the key in the store.
    key: String,
    pub(crate) outcome: Fate,
    /// Why it was skipped.
    reason: Option<&'static str>,
    /// Whether the lease never ends; null if it was not copied.
    reservation: Option<bool>,
    /// Seconds until the copy ends unless its holder renews it; null for a reservation.
    expires_in_seconds: Option<u64>,
}

/// Outcome for one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Fate {
    /// Written as a new key.
    Copied,
    /// Written over another value, or the same one with another etcd lease.
    Overwritten,
    /// Already there. Its etcd lease was renewed.
    Unchanged,
    /// Not written, for the given reason.
    Skipped,
    /// Not written, because another client wrote it meanwhile.
    ChangedMeanwhile,
}

impl Item {
    /// Creates the outcome for a lease that cannot be copied.
    pub(crate) fn skipped(key: String, reason: &'static str) -> Self {
        Self {
            key,
            outcome: Fate::Skipped,
            reason: Some(reason),
            reservation: None,
            expires_in_seconds: None,
        }
    }

    /// Creates the outcome for a lease that was or would be copied; `left` is its time, `None` for a reservation.
    pub(crate) fn written(key: &str, outcome: Fate, left: Option<Duration>) -> Self {
        Self {
            key: key.to_owned(),
            outcome,
            reason: None,
            reservation: Some(left.is_none()),
            expires_in_seconds: left.map(|left| left.as_secs()),
        }
    }
}

impl CopyReport {
    /// Creates the report of a copy between two stores.
    pub(crate) fn new(from: &Store, to: &Store, revision: i64, dry_run: bool, outcome: Outcome) -> Self {
        let Outcome { config, mut items, left_alone } = outcome;
        items.sort_by_cached_key(|item| place(&item.key));
        Self {
            api_version: API_VERSION,
            kind: "StoreCopy",
            dry_run,
            from: from.endpoints(),
            to: to.endpoints(),
            prefix: from.prefix().to_owned(),
            revision,
            config,
            items,
            left_alone,
        }
    }

    /// Returns the number of keys that another client wrote meanwhile.
    pub(crate) fn changed_meanwhile(&self) -> usize {
        self.named(Fate::ChangedMeanwhile).len()
    }

    /// Formats the report for people.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![self.first_line()];
        let would =
            |verb: &str, did: &str| if self.dry_run { format!("would {verb}") } else { did.to_owned() };
        let mut tell = |verb: &str, keys: &[&str], what: &str| {
            if !keys.is_empty() {
                lines.push(format!("{verb} {}{what}: {}", keys.len(), some(keys)));
            }
        };
        tell(&would("overwrite", "overwrote"), &self.named(Fate::Overwritten), "");
        tell("found", &self.named(Fate::Unchanged), " there already");
        let left_alone: Vec<&str> = self.left_alone.iter().map(String::as_str).collect();
        tell(&would("leave", "left"), &left_alone, &format!(" that only {} has", self.to));
        tell("did not write", &self.named(Fate::ChangedMeanwhile), " that somebody else wrote meanwhile");
        let verb = would("skip", "skipped");
        let skipped = || self.items.iter().filter(|item| item.outcome == Fate::Skipped);
        for item in skipped().take(SHOWN_SKIPPED) {
            lines.push(format!("{verb} {}: {}", shown(&item.key), item.reason.unwrap_or("unknown reason")));
        }
        if let Some(more) = skipped().count().checked_sub(SHOWN_SKIPPED).filter(|more| *more > 0) {
            lines.push(format!("{verb} {more} more"));
        }
        lines.join("\n")
    }

    fn first_line(&self) -> String {
        let written = |fate: Fate| matches!(fate, Fate::Copied | Fate::Overwritten);
        let config = self.config.filter(|fate| written(*fate)).map(|_| "the network config".to_owned());
        let leases: Vec<&Item> = self.items.iter().filter(|item| written(item.outcome)).collect();
        let reservations = leases.iter().filter(|item| item.reservation == Some(true)).count();
        let leases = match (leases.len(), reservations) {
            (0, _) => None,
            (number, 0) => Some(count(number, "lease")),
            (number, some) => Some(format!("{} ({})", count(number, "lease"), count(some, "reservation"))),
        };
        let what: Vec<String> = config.into_iter().chain(leases).collect();
        let what = if what.is_empty() { "nothing".to_owned() } else { what.join(" and ") };
        let verb = if self.dry_run { "would copy" } else { "copied" };
        let Self { from, to, revision, .. } = self;
        format!("{verb} {what} from {from} to {to}, as of revision {revision}")
    }

    /// Returns the keys with this outcome, including the config.
    fn named(&self, fate: Fate) -> Vec<&str> {
        let config = self.config.filter(|config| *config == fate).map(|_| "config");
        let leases = self.items.iter().filter(|item| item.outcome == fate).map(|item| item.key.as_str());
        config.into_iter().chain(leases).collect()
    }
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::{Credentials, StoreConfig};

    use super::*;

    const DAY: Option<Duration> = Some(Duration::from_secs(86_400));

    fn store(endpoint: &str) -> Store {
        let (endpoints, prefix) = (vec![endpoint.parse().unwrap()], "/coreos.com/network".to_owned());
        Store::new(StoreConfig { endpoints, prefix, credentials: Credentials::default() }).unwrap()
    }

    fn report(dry_run: bool, config: Option<Fate>, items: Vec<Item>, left_alone: &[&str]) -> CopyReport {
        let left_alone = left_alone.iter().map(|key| (*key).to_owned()).collect();
        let outcome = Outcome { config, items, left_alone };
        CopyReport::new(&store("http://a:2379"), &store("http://b:2379"), 17, dry_run, outcome)
    }

    #[test]
    fn a_copy_is_told_in_one_line_where_there_is_no_more_to_it() {
        let items = vec![
            Item::written("10.5.10.0-24", Fate::Copied, DAY),
            Item::written("10.5.9.0-24", Fate::Copied, None),
        ];
        let told = report(false, Some(Fate::Copied), items.clone(), &[]).text();
        assert_eq!(
            told,
            "copied the network config and 2 leases (1 reservation) from http://a:2379 to http://b:2379, as of \
             revision 17"
        );
        let told = report(true, None, items[..1].to_vec(), &[]).text();
        assert_eq!(told, "would copy 1 lease from http://a:2379 to http://b:2379, as of revision 17");
    }

    #[test]
    fn whatever_was_not_simply_copied_has_a_line() {
        let items = vec![
            Item::written("10.5.1.0-24", Fate::Overwritten, DAY),
            Item::written("10.5.2.0-24", Fate::Unchanged, None),
            Item::written("10.5.3.0-24", Fate::ChangedMeanwhile, DAY),
            Item::skipped("10.5.4.0-24".to_owned(), "its lease in the store has expired"),
        ];
        let report = report(false, Some(Fate::Unchanged), items, &["10.5.9.0-24"]);
        assert_eq!(
            report.text(),
            "copied 1 lease from http://a:2379 to http://b:2379, as of revision 17\n\
             overwrote 1: 10.5.1.0-24\n\
             found 2 there already: config, 10.5.2.0-24\n\
             left 1 that only http://b:2379 has: 10.5.9.0-24\n\
             did not write 1 that somebody else wrote meanwhile: 10.5.3.0-24\n\
             skipped 10.5.4.0-24: its lease in the store has expired"
        );
        assert_eq!(report.changed_meanwhile(), 1);
    }

    #[test]
    fn programs_read_every_lease_with_what_became_of_it() {
        let items = vec![
            Item::written("10.5.10.0-24", Fate::Copied, DAY),
            Item::written("10.5.9.0-24", Fate::ChangedMeanwhile, None),
        ];
        let json = serde_json::to_value(report(false, Some(Fate::Copied), items, &[])).unwrap();
        assert_eq!((&json["kind"], &json["config"]), (&"StoreCopy".into(), &"copied".into()));
        assert_eq!(
            json["items"],
            serde_json::json!([
                {"key": "10.5.9.0-24", "outcome": "changedMeanwhile", "reason": null, "reservation": true,
                 "expiresInSeconds": null},
                {"key": "10.5.10.0-24", "outcome": "copied", "reason": null, "reservation": false,
                 "expiresInSeconds": 86_400},
            ])
        );
    }
}
