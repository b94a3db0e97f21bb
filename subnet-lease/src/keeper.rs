//! The life of our own lease: acquire, hold, lose, take back.
//!
//! Only the keeper writes our key, and each write compares what it last saw. Whatever seems to happen to the key,
//! the keeper reads it again before it acts, so a late or doubled notice does no harm.

mod rounds;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::allocate::{Exhausted, allocate};
use crate::backoff::Backoff;
use crate::config::NetworkConfig;
use crate::key::Subnets;
use crate::lease::{Lease, LeaseAttributes, NodeIdentity};
use crate::store::{Entry, Listing, Store, StoreError};
use rounds::{Looked, Rounds, Task, keepalive_interval};

/// What this host wants to hold.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The network.
    pub config: NetworkConfig,
    /// What peers need to know of us.
    pub attributes: LeaseAttributes,
    /// What we held before, as subnet.env says; taken again if nobody else has it.
    pub previous: Option<Subnets>,
    /// How long the lease outlives us, in whole seconds.
    pub ttl: Duration,
    /// A keepalive is sent at the latest this long before the end; shorter than `ttl`. It is sent after a third of
    /// `ttl` anyway.
    pub renew_margin: Option<Duration>,
}

/// The lease as we hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    /// Our subnets.
    pub subnets: Subnets,
    /// The etcd lease behind the key; `None` for a reservation, which needs no keepalive.
    pub etcd_lease: Option<i64>,
    /// Store revision of the last write of the key.
    pub mod_revision: i64,
}

/// The lease as we hold it, and what is wrong with that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The lease.
    pub lease: HeldLease,
    /// Why it could not be renewed or taken back, while that lasts.
    pub problem: Option<String>,
}

/// Why a lease could not be taken at this moment.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No subnet is free.
    #[error("{exhausted}; held by: {holders}")]
    Exhausted {
        /// The network.
        #[source]
        exhausted: Exhausted,
        /// Who holds how many.
        holders: String,
    },
    /// Another host was faster.
    #[error("another host took {0} at the same moment")]
    LostRace(Subnets),
}

/// Holds our lease.
pub struct Keeper {
    store: Store,
    claim: Claim,
    held: HeldLease,
}

impl Keeper {
    /// Takes a lease: the one with our public address, else the previous subnet, else a random free one. Tries
    /// without end, and tells `waits` why while it must wait.
    pub async fn acquire(store: Store, claim: Claim, waits: impl Fn(&str)) -> Self {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            match take(&store, &claim, true).await {
                Ok(held) => return Self { store, claim, held },
                Err(KeeperError::LostRace(subnets)) => {
                    debug!(%subnets, "another host was faster; choosing again");
                    tokio::time::sleep(backoff.next().min(RACE_WAIT)).await;
                }
                Err(reason) => {
                    let wait = backoff.next();
                    warn!(%reason, retry_in = ?wait, "cannot take a lease yet");
                    waits(&reason.to_string());
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// The lease as we hold it now.
    pub fn held(&self) -> &HeldLease {
        &self.held
    }

    /// Keeps the lease until nobody listens to `holding` any more. `suspicion` makes the keeper look at its key at
    /// once. Every change of the lease, also a new subnet after a loss, and every problem goes to `holding`.
    pub async fn hold(mut self, suspicion: &Notify, holding: &watch::Sender<Holding>) {
        let mut rounds =
            Rounds::new(keepalive_interval(self.claim.ttl, self.claim.renew_margin), Instant::now());
        loop {
            let task = tokio::select! {
                () = holding.closed() => return,
                () = suspicion.notified() => {
                    rounds.suspect(Instant::now());
                    continue;
                }
                () = tokio::time::sleep_until(rounds.due()) => rounds.task(),
            };
            let outcome = match task {
                Task::Look => self.look().await,
                Task::KeepAlive => self.keep_alive().await,
            };
            let wait = rounds.done(task, outcome.as_ref().ok(), Instant::now());
            let problem = outcome.err().map(|reason| {
                let left = self.claim.ttl.saturating_sub(rounds.since_success(Instant::now()));
                warn!(%reason, retry_in = ?wait, expires_in_seconds = left.as_secs(), "cannot renew the lease");
                reason.to_string()
            });
            let now = Holding { lease: self.held.clone(), problem };
            holding.send_if_modified(|seen| std::mem::replace(seen, now.clone()) != now);
        }
    }

    /// Sets the etcd lease back to its full time; when it has expired, takes the subnet back.
    async fn keep_alive(&mut self) -> Result<Looked, KeeperError> {
        let Some(etcd_lease) = self.held.etcd_lease else { return self.look().await };
        match self.store.keep_alive(etcd_lease).await {
            Ok(()) => {
                debug!(subnets = %self.held.subnets, "kept the lease alive");
                Ok(Looked::Fine)
            }
            Err(StoreError::LeaseGone(_)) => self.look().await,
            Err(error) => Err(error.into()),
        }
    }

    /// Reads our key and puts right what is wrong with it.
    async fn look(&mut self) -> Result<Looked, KeeperError> {
        let subnets = self.held.subnets;
        let found = self.store.get(&subnets.key()).await?;
        match judge(&self.held, &self.claim, found.as_ref()) {
            Finding::Unchanged => return Ok(Looked::Fine),
            Finding::Touched { etcd_lease, mod_revision } => {
                let reservation = etcd_lease.is_none();
                info!(%subnets, reservation, "somebody else wrote our lease, and it still says the same");
                self.held = HeldLease { subnets, etcd_lease, mod_revision };
                return Ok(Looked::Fine);
            }
            Finding::Altered(entry) => {
                let value = String::from_utf8_lossy(&entry.value);
                warn!(%subnets, %value, "somebody altered our lease; writing it again");
                // A write without an etcd lease makes a reservation only where it leaves our words as they are.
                let entry = Entry { etcd_lease: entry.etcd_lease.or(self.held.etcd_lease), ..entry };
                self.held = adopt(&self.store, &self.claim, subnets, &entry).await?;
            }
            Finding::Gone => {
                warn!(%subnets, "our lease is gone from the store; taking it back");
                self.take_back().await?;
            }
            Finding::Foreign(holder) => {
                error!(%subnets, %holder, "our lease was lost to another host; if that is a clone of this machine, give each its own --node-id");
                self.take_back().await?;
            }
        }
        Ok(Looked::Mended)
    }

    /// Takes our subnet again or, where somebody else has it by now, another one.
    async fn take_back(&mut self) -> Result<(), KeeperError> {
        let lost = self.held.subnets;
        let claim = Claim { previous: Some(lost), ..self.claim.clone() };
        self.held = take(&self.store, &claim, false).await?;
        if self.held.subnets != lost {
            error!(
                %lost, now = %self.held.subnets,
                "this host has another subnet now; containers keep the lost one until Docker is restarted",
            );
        }
        Ok(())
    }
}

/// The first and the longest wait after a failure, before jitter.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Many hosts that start at once collide often, and each collision leaves one fewer.
const RACE_WAIT: Duration = Duration::from_millis(300);

/// One attempt: look at all leases, then adopt ours or create one.
async fn take(store: &Store, claim: &Claim, starting: bool) -> Result<HeldLease, KeeperError> {
    let listing = store.list().await?;
    let leases: Vec<Lease> =
        listing.entries.iter().filter_map(|entry| Lease::from_entry(entry).ok()).collect();
    warn_of_doubles(&leases, claim);
    if let Some(own) = choose_own(&leases, claim, starting) {
        let entry = listing.entries.iter().find(|entry| entry.key == own.subnets.key());
        if let Some(entry) = entry {
            return adopt(store, claim, own.subnets, entry).await;
        }
    }
    // Unreadable values block their subnet as well: the key alone says what is taken.
    let taken: Vec<Subnets> =
        listing.entries.iter().filter_map(|entry| Subnets::from_key(&entry.key).ok()).collect();
    let subnets = allocate(&claim.config, &taken, claim.previous.as_ref(), &mut rand::rng())
        .map_err(|exhausted| KeeperError::Exhausted { exhausted, holders: holders(&listing, &leases) })?;
    let held = put_with_new_lease(store, claim, subnets, &claim.attributes, 0).await?;
    info!(%subnets, "leased");
    Ok(held)
}

/// Makes an entry that is ours say what we want, with as few writes as that takes: none after a mere restart.
async fn adopt(
    store: &Store,
    claim: &Claim,
    subnets: Subnets,
    entry: &Entry,
) -> Result<HeldLease, KeeperError> {
    let found = LeaseAttributes::from_json(&entry.value).unwrap_or_default();
    // What others have added to our lease stays.
    let wanted = LeaseAttributes { other: found.other.clone(), ..claim.attributes.clone() };
    let seen = entry.mod_revision;
    let Some(usable) = usable_lease(store, claim, entry).await? else {
        let held = put_with_new_lease(store, claim, subnets, &wanted, seen).await?;
        info!(%subnets, "took over our lease");
        return Ok(held);
    };
    let etcd_lease = usable.etcd_lease;
    let reservation = etcd_lease.is_none();
    if found == wanted {
        info!(%subnets, reservation, "holding our lease again");
        return Ok(HeldLease { subnets, etcd_lease, mod_revision: seen });
    }
    let written = store.put(&subnets.key(), &wanted.to_json(), etcd_lease, seen).await?;
    let mod_revision = written.ok_or(KeeperError::LostRace(subnets))?;
    info!(%subnets, reservation, "took over our lease");
    Ok(HeldLease { subnets, etcd_lease, mod_revision })
}

/// An entry's etcd lease that can stay behind our key.
struct UsableLease {
    /// `None` for a reservation.
    etcd_lease: Option<i64>,
}

/// The etcd lease of the entry, kept alive, if it lasts as long as ours shall; a reservation stays one.
async fn usable_lease(
    store: &Store,
    claim: &Claim,
    entry: &Entry,
) -> Result<Option<UsableLease>, KeeperError> {
    let Some(lease) = entry.etcd_lease else { return Ok(Some(UsableLease { etcd_lease: None })) };
    let kept = match store.time_to_live(lease).await {
        Ok((_, granted)) if granted == claim.ttl => store.keep_alive(lease).await,
        Ok(_) => return Ok(None),
        Err(error) => Err(error),
    };
    match kept {
        Ok(()) => Ok(Some(UsableLease { etcd_lease: Some(lease) })),
        Err(StoreError::LeaseGone(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes our key with an etcd lease of its own, and leaves no such lease behind when that fails.
async fn put_with_new_lease(
    store: &Store,
    claim: &Claim,
    subnets: Subnets,
    attributes: &LeaseAttributes,
    seen: i64,
) -> Result<HeldLease, KeeperError> {
    let etcd_lease = store.grant(claim.ttl).await?;
    let outcome = match store.put(&subnets.key(), &attributes.to_json(), Some(etcd_lease), seen).await {
        Ok(Some(mod_revision)) => {
            return Ok(HeldLease { subnets, etcd_lease: Some(etcd_lease), mod_revision });
        }
        Ok(None) => KeeperError::LostRace(subnets),
        Err(error) => error.into(),
    };
    if let Err(reason) = store.revoke(etcd_lease).await {
        debug!(%reason, "an unused etcd lease stays until it expires");
    }
    Err(outcome)
}

/// The lease that is ours already: the previous subnet if it is among them, else the oldest. After a change of our
/// address, the previous subnet is still ours if the lease bears our node id; that is believed at the start alone, as
/// two clones of one machine would take it from each other for ever.
fn choose_own<'a>(leases: &'a [Lease], claim: &Claim, starting: bool) -> Option<&'a Lease> {
    let (ips, node) = (&claim.attributes.public_ips, &claim.attributes.node);
    let ours = |lease: &&Lease| {
        let previous = Some(lease.subnets) == claim.previous;
        let moved = starting && previous && node.id.is_some() && lease.attributes.node.id == node.id;
        claim.config.admits(&lease.subnets) && (moved || lease.attributes.is_held_by(ips, node))
    };
    leases
        .iter()
        .filter(ours)
        .min_by_key(|lease| (Some(lease.subnets) != claim.previous, lease.create_revision))
}

/// What has become of our key.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Unchanged,
    /// Written by somebody, to the same effect.
    Touched {
        etcd_lease: Option<i64>,
        mod_revision: i64,
    },
    /// Still ours, but it says something else.
    Altered(Entry),
    Gone,
    /// Another host's, described.
    Foreign(String),
}

fn judge(held: &HeldLease, claim: &Claim, found: Option<&Entry>) -> Finding {
    let Some(entry) = found else { return Finding::Gone };
    if entry.mod_revision == held.mod_revision {
        return Finding::Unchanged;
    }
    match LeaseAttributes::from_json(&entry.value) {
        Ok(attributes) if LeaseAttributes { other: None, ..attributes.clone() } == claim.attributes => {
            Finding::Touched { etcd_lease: entry.etcd_lease, mod_revision: entry.mod_revision }
        }
        Ok(attributes) if !attributes.is_held_by(&claim.attributes.public_ips, &claim.attributes.node) => {
            Finding::Foreign(attributes.holder())
        }
        _ => Finding::Altered(entry.clone()),
    }
}

/// Two machines with one address cannot both be reached.
fn warn_of_doubles(leases: &[Lease], claim: &Claim) {
    let (ips, node) = (&claim.attributes.public_ips, &claim.attributes.node);
    for lease in leases {
        let attributes = &lease.attributes;
        if attributes.is_held_by(ips, &NodeIdentity::default()) && !attributes.is_held_by(ips, node) {
            warn!(
                subnets = %lease.subnets, holder = %attributes.holder(),
                "another machine holds a lease with our public address; peers can reach only one of us, unless that one is no more",
            );
        }
    }
}

/// Who holds how many subnets, the greediest first.
fn holders(listing: &Listing, leases: &[Lease]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for lease in leases {
        *counts.entry(lease.attributes.holder()).or_default() += 1;
    }
    let unreadable = listing.entries.len() - leases.len();
    if unreadable > 0 {
        counts.insert("unreadable leases".to_owned(), unreadable);
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rest = counts.len().saturating_sub(SHOWN);
    let mut shown: Vec<String> =
        counts.iter().take(SHOWN).map(|(who, count)| format!("{who}: {count}")).collect();
    if rest > 0 {
        shown.push(format!("{rest} more"));
    }
    shown.join(", ")
}

/// How many holders an error message names.
const SHOWN: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        let json = br#"{"PublicIP":"192.168.64.11","PublicIPv6":null,"BackendType":"vxlan","NodeID":"a"}"#;
        Claim {
            config: NetworkConfig::parse(br#"{"Network": "10.5.0.0/16"}"#).unwrap(),
            attributes: LeaseAttributes::from_json(json).unwrap(),
            previous: None,
            ttl: Duration::from_secs(86_400),
            renew_margin: None,
        }
    }

    fn entry(key: &str, json: &str, mod_revision: i64) -> Entry {
        Entry {
            key: key.to_owned(),
            value: json.as_bytes().to_vec(),
            create_revision: mod_revision,
            mod_revision,
            etcd_lease: Some(7),
        }
    }

    fn lease(key: &str, ip: &str, node: Option<&str>, revision: i64) -> Lease {
        let mut lease =
            Lease::from_entry(&entry(key, &format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#), revision))
                .unwrap();
        lease.attributes.node.id = node.map(Into::into);
        lease
    }

    fn held() -> HeldLease {
        HeldLease { subnets: "10.5.3.0/24".parse().unwrap(), etcd_lease: Some(7), mod_revision: 10 }
    }

    #[test]
    fn the_lease_with_our_address_is_ours_unless_another_node_signed_it() {
        let leases = [
            lease("10.5.2.0-24", "192.168.64.12", None, 1),
            lease("10.5.3.0-24", "192.168.64.11", Some("b"), 2),
            lease("10.5.4.0-24", "192.168.64.11", None, 3),
        ];
        assert_eq!(choose_own(&leases, &claim(), true).unwrap().subnets.to_string(), "10.5.4.0/24");
    }

    #[test]
    fn of_several_own_leases_the_previous_subnet_wins_then_the_oldest() {
        let leases =
            [lease("10.5.3.0-24", "192.168.64.11", None, 5), lease("10.5.4.0-24", "192.168.64.11", None, 3)];
        assert_eq!(choose_own(&leases, &claim(), true).unwrap().subnets.to_string(), "10.5.4.0/24");
        let claim = Claim { previous: Some("10.5.3.0/24".parse().unwrap()), ..claim() };
        assert_eq!(choose_own(&leases, &claim, true).unwrap().subnets.to_string(), "10.5.3.0/24");
    }

    #[test]
    fn after_a_change_of_address_the_previous_subnet_is_ours_by_its_node_id() {
        let leases = [
            lease("10.5.3.0-24", "192.168.64.99", Some("a"), 5),
            lease("10.5.4.0-24", "192.168.64.98", Some("a"), 3),
        ];
        assert_eq!(choose_own(&leases, &claim(), true), None);
        let claim = Claim { previous: Some("10.5.3.0/24".parse().unwrap()), ..claim() };
        assert_eq!(choose_own(&leases, &claim, true).unwrap().subnets.to_string(), "10.5.3.0/24");
        let stranger = [lease("10.5.3.0-24", "192.168.64.99", Some("b"), 5)];
        assert_eq!(choose_own(&stranger, &claim, true), None);
    }

    #[test]
    fn an_own_lease_that_the_config_no_longer_admits_is_left() {
        assert_eq!(choose_own(&[lease("10.6.3.0-24", "192.168.64.11", None, 5)], &claim(), true), None);
    }

    #[test]
    fn what_became_of_our_key_is_told_apart() {
        let claim = claim();
        let value = String::from_utf8(claim.attributes.to_json()).unwrap();
        let find = |entry: Option<Entry>| judge(&held(), &claim, entry.as_ref());
        assert_eq!(find(None), Finding::Gone);
        assert_eq!(find(Some(entry("10.5.3.0-24", &value, 10))), Finding::Unchanged);
        let reserved = Entry { etcd_lease: None, ..entry("10.5.3.0-24", &value, 11) };
        assert_eq!(find(Some(reserved)), Finding::Touched { etcd_lease: None, mod_revision: 11 });
        let foreign = entry("10.5.3.0-24", r#"{"PublicIP":"192.168.64.12","HostName":"h2"}"#, 11);
        assert_eq!(find(Some(foreign)), Finding::Foreign("192.168.64.12 (h2)".to_owned()));
        let altered = entry("10.5.3.0-24", r#"{"PublicIP":"192.168.64.11","BackendType":"udp"}"#, 11);
        assert_eq!(find(Some(altered.clone())), Finding::Altered(altered));
        let broken = entry("10.5.3.0-24", "{", 11);
        assert_eq!(find(Some(broken.clone())), Finding::Altered(broken));
    }

    #[test]
    fn an_exhausted_network_names_who_holds_how_many() {
        let leases = [
            lease("10.5.2.0-24", "192.168.64.12", None, 1),
            lease("10.5.3.0-24", "192.168.64.13", None, 2),
            lease("10.5.4.0-24", "192.168.64.13", None, 3),
        ];
        let listing = Listing { entries: vec![entry("x", "{", 1); 4], revision: 9, cluster_id: 1 };
        assert_eq!(holders(&listing, &leases), "192.168.64.13: 2, 192.168.64.12: 1, unreadable leases: 1");
    }
}
