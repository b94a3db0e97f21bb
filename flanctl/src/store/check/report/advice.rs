//! Short reasons and remedies for errors of the store.

use flan_subnet_lease::{Cause, StoreError, Unanswered};

/// Returns the reason without its origin.
pub(crate) fn brief(error: &StoreError) -> String {
    match error {
        StoreError::Unreachable(endpoints) => {
            let told = |unanswered: &Unanswered| format!("{}: {}", unanswered.endpoint, unanswered.reason);
            endpoints.iter().map(told).collect::<Vec<_>>().join("; ")
        }
        StoreError::Unauthorised { reason, .. } => format!("refuses these credentials: {reason}"),
        StoreError::NotOffered { reason, .. } | StoreError::Refused { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

/// Returns the remedy; `right` is what the user may lack.
pub(crate) fn remedy(error: &StoreError, right: &str) -> String {
    match error {
        StoreError::Unauthorised { reason, .. } if reason.contains("permission denied") => right.to_owned(),
        StoreError::Unauthorised { reason, .. } if reason.contains("user name is empty") => {
            "give --etcd-username and --etcd-password".to_owned()
        }
        StoreError::Unauthorised { .. } => "check --etcd-username and --etcd-password".to_owned(),
        StoreError::Refused { reason, .. } if reason.contains("space exceeded") => NO_SPACE.to_owned(),
        StoreError::Unreachable(endpoints) => match endpoints.first() {
            Some(Unanswered { remedy: Some(remedy), .. }) => remedy.clone(),
            Some(Unanswered { cause: Cause::NoConnection, .. }) => NOBODY_THERE.to_owned(),
            Some(Unanswered { cause: Cause::UnknownHost, .. }) => {
                "check the name in the URL, and how this host looks names up".to_owned()
            }
            _ => STORES_LOG.to_owned(),
        },
        _ => STORES_LOG.to_owned(),
    }
}

const STORES_LOG: &str = "see the log of the store";

/// Remedy if no sufficient right is known.
pub(crate) const ADMINISTRATOR: &str = "ask who administers the store";

/// Remedy for a member that is up and cannot answer for the cluster.
pub(crate) const MAJORITY: &str =
    "more than half of the members must run and reach each other: etcdctl endpoint status --cluster";

/// Remedy if nobody answers.
const NOBODY_THERE: &str = "check the URL, that the store runs there, and that no firewall is between";

/// Remedy for a full store. etcd refuses writes until the last step is done.
pub(crate) const NO_SPACE: &str = "free space on the disk of the store; of an etcd: etcdctl compact REVISION, then etcdctl defrag, then etcdctl alarm disarm, or raise its --quota-backend-bytes";
