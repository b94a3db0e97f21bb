//! Asks whether the holder of a lease with our node id is alive before taking its subnet.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::{info, warn};

use super::claim::{Claim, KeeperError};
use crate::entry::Entry;
use crate::key::Subnets;
use crate::lease::{Lease, LeaseAttributes};
#[cfg(test)]
use crate::store::REQUEST_LIMIT;
use crate::store::Store;
use crate::twin::Twin;
use crate::watch::{SILENCE, WAITS};

/// How long a holder has to object, unless the store is slow.
#[cfg(test)]
pub(super) const CLAIM_WAIT: Duration = claim_wait(REQUEST_LIMIT);
/// How often to look at the claim meanwhile.
const LOOK: Duration = Duration::from_millis(500);

/// What we know, at the start of a host, about a holder with its node id.
#[derive(Debug, Default)]
pub(super) struct Contest {
    /// The lease whose holder is alive: it is not asked again.
    lost: Option<(Subnets, Twin)>,
}

/// Returns how long a holder has to object to a claim: 30 s, or more at a store whose answers take long
/// ([`Store::patience`]).
///
/// A holder that is alive and sees the store objects within milliseconds. One whose connection broke silently sees the
/// claim after this at the latest: its watch is silent, the sign of life fails, and the next list takes time.
const fn claim_wait(patience: Duration) -> Duration {
    SILENCE.saturating_add(patience).saturating_add(WAITS.1).saturating_add(patience)
}

impl Contest {
    /// Returns whether the lease may still become ours.
    pub(super) fn is_open(&self, subnets: &Subnets) -> bool {
        self.lost.as_ref().is_none_or(|(lost, _)| lost != subnets)
    }

    /// Creates the state after the holder of these subnets has answered.
    #[cfg(test)]
    pub(super) fn lost(subnets: Subnets) -> Self {
        Self { lost: Some((subnets, Twin::default())) }
    }

    pub(super) fn twin(self) -> Option<Twin> {
        self.lost.map(|(_, twin)| twin)
    }

    /// Claims the lease, and waits for an objection. Returns the lease to take over, or `None` if everything must be
    /// read again: the holder is alive, or the lease is gone or has another holder.
    ///
    /// # Errors
    /// If the store fails; then nothing is known about the holder.
    pub(super) async fn run(
        &mut self,
        store: &Store,
        claim: &Claim,
        lease: &Lease,
        waits: &impl Fn(&str),
    ) -> Result<Option<Lease>, KeeperError> {
        let (subnets, holder) = (lease.subnets, lease.attributes.holder());
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let words = lease.attributes.claimed_by(&claim.attributes, at);
        let key = subnets.key();
        let leases = store.leases();
        let written = leases.put(&key, &words.to_json(), lease.etcd_lease, lease.mod_revision).await?;
        let mod_revision = written.ok_or(KeeperError::LostRace(subnets))?;
        let claimed = Instant::now();
        let wait = claim_wait(store.patience());
        info!(
            %subnets, %holder, ?wait,
            "the lease of our previous subnet has our node id, but another address; taking it over if its holder does not object",
        );
        waits(&format!(
            "an objection from {holder}, which holds {subnets} with our node id; {} s at most",
            wait.as_secs()
        ));
        let mut trial = Trial { words, mod_revision, until: claimed + wait };
        loop {
            tokio::time::sleep(LOOK).await;
            let found = leases.get(&key).await?;
            // A store that becomes slow is slow for the holder, too.
            trial.until = trial.until.max(claimed + claim_wait(store.patience()));
            match trial.judge(found, Instant::now()) {
                Verdict::Wait => {}
                Verdict::Silent(entry) => {
                    info!(%subnets, %holder, "nobody objected: this host had that address before, and keeps its subnet");
                    return Ok(Some(Lease::of(subnets, trial.words, &entry)));
                }
                Verdict::Over => return Ok(None),
                Verdict::Lives(twin) => {
                    warn!(
                        %subnets, %twin,
                        "another machine with our node id is alive and keeps this subnet: one is a clone of the other. \
                         Taking another subnet; {REMEDY}, on one of the two",
                    );
                    self.lost = Some((subnets, twin));
                    return Ok(None);
                }
            }
        }
    }
}

/// How to make two machines distinct again.
const REMEDY: &str = "set --node-id (FLAND_NODE_ID), or create a new /etc/machine-id, and restart fland";

/// A claim in the store. It knows neither the store nor the clock.
#[derive(Debug)]
struct Trial {
    /// The value with our claim.
    words: LeaseAttributes,
    /// The last write with that value.
    mod_revision: i64,
    /// The end of the time to object.
    until: Instant,
}

/// What to do with the lease.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is too early to decide.
    Wait,
    /// The holder does not answer.
    Silent(Entry),
    /// The holder is alive and has restored its value, or another machine with our node id claims the lease as well.
    Lives(Twin),
    /// It is gone, or no longer a lease with our node id.
    Over,
}

impl Trial {
    fn judge(&mut self, found: Option<Entry>, now: Instant) -> Verdict {
        let Some(entry) = found else { return Verdict::Over };
        if entry.mod_revision != self.mod_revision {
            let Ok(said) = LeaseAttributes::from_json(&entry.value) else { return Verdict::Over };
            if said != self.words {
                let same_node = said.node.id == self.words.node.id;
                let twin = said.claimant().unwrap_or_else(|| Twin::of(&said));
                return if same_node { Verdict::Lives(twin) } else { Verdict::Over };
            }
            // Another program wrote an equivalent value, for instance to make a reservation of it.
            self.mod_revision = entry.mod_revision;
        }
        if now < self.until { Verdict::Wait } else { Verdict::Silent(entry) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    const HOLDER: &str = r#"{"PublicIP":"192.168.64.11","PublicIPv6":null,"HostName":"h1","NodeID":"a"}"#;

    fn words(json: &str) -> LeaseAttributes {
        LeaseAttributes::from_json(json.as_bytes()).unwrap()
    }

    fn claimant(last: u8) -> LeaseAttributes {
        words(&format!(r#"{{"PublicIP":"192.168.64.{last}","HostName":"h{last}","NodeID":"a"}}"#))
    }

    fn entry(words: &LeaseAttributes, mod_revision: i64) -> Entry {
        samples::entry("10.5.3.0-24", &String::from_utf8(words.to_json()).unwrap(), mod_revision)
    }

    fn trial(now: Instant) -> Trial {
        Trial { words: words(HOLDER).claimed_by(&claimant(12), 1), mod_revision: 5, until: now + CLAIM_WAIT }
    }

    #[test]
    fn a_claim_that_still_stands_after_the_wait_is_granted_and_not_before() {
        let now = Instant::now();
        let mut trial = trial(now);
        let claimed = entry(&trial.words, 5);
        let just_before = now + CLAIM_WAIT - Duration::from_millis(1);
        assert_eq!(trial.judge(Some(claimed.clone()), just_before), Verdict::Wait);
        assert_eq!(trial.judge(Some(claimed.clone()), now + CLAIM_WAIT), Verdict::Silent(claimed));
    }

    #[test]
    fn a_holder_has_longer_where_the_store_is_slow() {
        assert_eq!(
            [5, 20, 30].map(|patience| claim_wait(Duration::from_secs(patience)).as_secs()),
            [30, 60, 80]
        );
        assert_eq!(CLAIM_WAIT.as_secs(), 30);
    }

    #[test]
    fn a_holder_that_writes_its_own_words_again_lives() {
        let now = Instant::now();
        let Verdict::Lives(twin) = trial(now).judge(Some(entry(&words(HOLDER), 6)), now) else {
            panic!("the holder has objected")
        };
        assert_eq!(twin.to_string(), "192.168.64.11 (h1)");
        // Also after the holder moved meanwhile, and at the last moment.
        let moved = words(&HOLDER.replace(".11", ".19"));
        let verdict = trial(now).judge(Some(entry(&moved, 6)), now + 2 * CLAIM_WAIT);
        assert!(matches!(verdict, Verdict::Lives(_)));
    }

    #[test]
    fn of_two_that_claim_at_once_the_earlier_gives_way() {
        let now = Instant::now();
        let rival = words(HOLDER).claimed_by(&claimant(13), 1);
        let Verdict::Lives(twin) = trial(now).judge(Some(entry(&rival, 6)), now) else {
            panic!("another machine has our node id")
        };
        assert_eq!(twin.to_string(), "192.168.64.13 (h13)");
        let mut later = Trial { words: rival.clone(), mod_revision: 6, until: now };
        assert_eq!(later.judge(Some(entry(&rival, 6)), now), Verdict::Silent(entry(&rival, 6)));
    }

    #[test]
    fn a_claim_that_somebody_writes_again_still_stands() {
        let now = Instant::now();
        let mut trial = trial(now);
        let reserved = Entry { etcd_lease: None, ..entry(&trial.words, 6) };
        assert_eq!(trial.judge(Some(reserved.clone()), now), Verdict::Wait);
        assert_eq!(trial.judge(Some(reserved.clone()), now + CLAIM_WAIT), Verdict::Silent(reserved));
    }

    #[test]
    fn a_lease_that_ends_or_goes_to_another_host_is_nobodys_twin() {
        let now = Instant::now();
        assert_eq!(trial(now).judge(None, now), Verdict::Over);
        let stranger = words(r#"{"PublicIP":"192.168.64.20","NodeID":"b"}"#);
        assert_eq!(trial(now).judge(Some(entry(&stranger, 9)), now), Verdict::Over);
    }
}
