//! The life of our own lease: acquire, hold, lose, take back.
//!
//! Only the keeper writes our key, and each write compares what it last saw. Whatever seems to happen to the key,
//! the keeper reads it again before it acts, so a late or doubled notice does no harm.

mod rounds;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::allocate::{Exhausted, allocate};
use crate::backoff::Backoff;
use crate::config::NetworkConfig;
use crate::family::PerFamily;
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
    published: Published,
}

impl Keeper {
    /// Takes a lease: the one with our public address, else the previous subnet, else a random free one. Tries
    /// without end, and tells `waits` why while it must wait.
    ///
    /// `listing` is a list of the leases that is there already, if there is one; should it turn out to be out of date,
    /// another is made. The one that decided comes back, without what was written by this: [`LeaseWatch::behind`] goes
    /// on from there.
    ///
    /// [`LeaseWatch::behind`]: crate::LeaseWatch::behind
    pub async fn acquire(
        store: Store,
        claim: Claim,
        mut listing: Option<Listing>,
        waits: impl Fn(&str),
    ) -> (Self, Listing) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            match take(&store, &claim, listing.take(), true).await {
                Ok((held, listing)) => {
                    let published = Published::new(&claim.attributes);
                    return (Self { store, claim, held, published }, listing);
                }
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
    /// once. Other `attributes` than those claimed are written at once, with the subnet and the etcd lease as they are.
    /// Every change of the lease, also a new subnet after a loss, and every problem goes to `holding`.
    pub async fn hold(
        mut self,
        suspicion: &Notify,
        mut attributes: watch::Receiver<LeaseAttributes>,
        holding: &watch::Sender<Holding>,
    ) {
        let mut rounds =
            Rounds::new(keepalive_interval(self.claim.ttl, self.claim.renew_margin), Instant::now());
        attributes.mark_changed(); // they may have changed since the claim was made
        loop {
            let task = tokio::select! {
                () = holding.closed() => return,
                () = changed(&mut attributes) => {
                    let wanted = attributes.borrow_and_update().clone();
                    if self.claims(wanted) {
                        rounds.publish(Instant::now());
                    }
                    continue;
                }
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

    /// What peers need to know of us from now on. Answers whether that is anything new.
    fn claims(&mut self, wanted: LeaseAttributes) -> bool {
        if wanted == self.claim.attributes {
            return false;
        }
        self.claim.attributes = wanted;
        self.published.wants(&self.claim.attributes);
        true
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
        let looked = self.find_and_mend().await?;
        self.published = Published::new(&self.claim.attributes);
        Ok(looked)
    }

    async fn find_and_mend(&mut self) -> Result<Looked, KeeperError> {
        let subnets = self.held.subnets;
        let found = self.store.get(&subnets.key()).await?;
        match judge(&self.held, &self.claim, &self.published, found) {
            Finding::Unchanged => return Ok(Looked::Fine),
            Finding::Touched { etcd_lease, mod_revision } => {
                let reservation = etcd_lease.is_none();
                info!(%subnets, reservation, "somebody else wrote our lease, and it still says the same");
                self.held = HeldLease { subnets, etcd_lease, mod_revision };
                return Ok(Looked::Fine);
            }
            Finding::Outdated(entry) => {
                info!(%subnets, holder = %self.claim.attributes.holder(), "our lease is to say something else; writing it");
                self.held = adopt(&self.store, &self.claim, subnets, &entry).await?;
                return Ok(Looked::Published);
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
        (self.held, _) = take(&self.store, &claim, None, false).await?;
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
async fn take(
    store: &Store,
    claim: &Claim,
    listing: Option<Listing>,
    starting: bool,
) -> Result<(HeldLease, Listing), KeeperError> {
    let listing = match listing {
        Some(listing) => listing,
        None => store.list().await?,
    };
    if let Some((own, entry)) = choose_own(&listing, claim, starting) {
        let held = adopt(store, claim, own.subnets, entry).await?;
        return Ok((held, listing));
    }
    // Unreadable values block their subnet as well: the key alone says what is taken.
    let taken: Vec<Subnets> =
        listing.entries.iter().filter_map(|entry| Subnets::from_key(&entry.key).ok()).collect();
    let subnets = allocate(&claim.config, &taken, claim.previous.as_ref(), &mut rand::rng())
        .map_err(|exhausted| KeeperError::Exhausted { exhausted, holders: holders(&listing) })?;
    let held = put_with_new_lease(store, claim, subnets, &claim.attributes, 0).await?;
    // That the key was free says all of a network with one family. With two, another host may have taken one of our
    // subnets beside another one, under another key, in the same moment.
    if claim.config.networks().count() > 1 && is_late(&held, &store.list().await?) {
        store.delete(&subnets.key(), held.mod_revision).await?;
        if let Some(etcd_lease) = held.etcd_lease {
            store.revoke(etcd_lease).await?;
        }
        return Err(KeeperError::LostRace(subnets));
    }
    info!(%subnets, "leased");
    Ok((held, listing))
}

/// Whether another host took a part of what we have just taken before us, as a list from after that says. Of two, the
/// later one sees the earlier.
fn is_late(held: &HeldLease, listing: &Listing) -> bool {
    listing.entries.iter().any(|entry| {
        entry.create_revision < held.mod_revision
            && Subnets::from_key(&entry.key).is_ok_and(|other| other.overlaps(&held.subnets))
    })
}

/// The next change; never, when nobody can make one any more.
async fn changed(attributes: &mut watch::Receiver<LeaseAttributes>) {
    if attributes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
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
fn choose_own<'a>(listing: &'a Listing, claim: &Claim, starting: bool) -> Option<(Lease, &'a Entry)> {
    let (ips, node) = (&claim.attributes.public_ips, &claim.attributes.node);
    let ours = |lease: &Lease| {
        let previous = Some(lease.subnets) == claim.previous;
        let moved = starting && previous && node.id.is_some() && lease.attributes.node.id == node.id;
        claim.config.admits(&lease.subnets) && (moved || lease.attributes.is_held_by(ips, node))
    };
    let mut own = Vec::new();
    for entry in &listing.entries {
        let Ok(lease) = Lease::from_entry(entry) else { continue };
        warn_of_double(&lease, claim);
        if ours(&lease) {
            own.push((lease, entry));
        }
    }
    own.into_iter().min_by_key(|(lease, _)| (Some(lease.subnets) != claim.previous, lease.create_revision))
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
    /// As we left it, while we want to say something else by now.
    Outdated(Entry),
    /// Still ours, but it says something else.
    Altered(Entry),
    Gone,
    /// Another host's, described.
    Foreign(String),
}

/// What our key may say by our own doing: what we claim now and, until that was seen to stand in the store, what we
/// claimed before.
struct Published {
    addresses: Vec<PerFamily<IpAddr>>,
    /// Whether what we claim now was never seen in the store.
    outdated: bool,
}

impl Published {
    fn new(now: &LeaseAttributes) -> Self {
        Self { addresses: vec![now.public_ips], outdated: false }
    }

    fn wants(&mut self, next: &LeaseAttributes) {
        self.outdated = true;
        if !self.addresses.contains(&next.public_ips) {
            self.addresses.push(next.public_ips);
        }
    }

    fn is_ours(&self, attributes: &LeaseAttributes, node: &NodeIdentity) -> bool {
        self.addresses.iter().any(|ips| attributes.is_held_by(ips, node))
    }
}

fn judge(held: &HeldLease, claim: &Claim, published: &Published, found: Option<Entry>) -> Finding {
    let Some(entry) = found else { return Finding::Gone };
    if entry.mod_revision == held.mod_revision {
        return if published.outdated { Finding::Outdated(entry) } else { Finding::Unchanged };
    }
    match LeaseAttributes::from_json(&entry.value) {
        Ok(attributes) if LeaseAttributes { other: None, ..attributes.clone() } == claim.attributes => {
            Finding::Touched { etcd_lease: entry.etcd_lease, mod_revision: entry.mod_revision }
        }
        Ok(attributes) if !published.is_ours(&attributes, &claim.attributes.node) => {
            Finding::Foreign(attributes.holder())
        }
        _ => Finding::Altered(entry),
    }
}

/// Two machines with one address cannot both be reached.
fn warn_of_double(lease: &Lease, claim: &Claim) {
    let (ips, node) = (&claim.attributes.public_ips, &claim.attributes.node);
    let attributes = &lease.attributes;
    if attributes.is_held_by(ips, &NodeIdentity::default()) && !attributes.is_held_by(ips, node) {
        warn!(
            subnets = %lease.subnets, holder = %attributes.holder(),
            "another machine holds a lease with our public address; peers can reach only one of us, unless that one is no more",
        );
    }
}

/// Who holds how many subnets, the greediest first.
fn holders(listing: &Listing) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut unreadable = 0;
    for entry in &listing.entries {
        match Lease::from_entry(entry) {
            Ok(lease) => *counts.entry(lease.attributes.holder()).or_default() += 1,
            Err(_) => unreadable += 1,
        }
    }
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
            config: NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)
                .unwrap(),
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

    fn lease(key: &str, ip: &str, node: Option<&str>, revision: i64) -> Entry {
        let node = node.map(|id| format!(r#","NodeID":"{id}""#)).unwrap_or_default();
        entry(key, &format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null{node}}}"#), revision)
    }

    /// The subnets of the lease that is ours.
    fn chosen(entries: &[Entry], claim: &Claim) -> Option<String> {
        let listing = Listing { entries: entries.to_vec(), revision: 9, cluster_id: 1 };
        choose_own(&listing, claim, true).map(|(own, entry)| {
            assert_eq!(own.subnets.key(), entry.key);
            own.subnets.to_string()
        })
    }

    fn held() -> HeldLease {
        HeldLease { subnets: "10.5.3.0/24".parse().unwrap(), etcd_lease: Some(7), mod_revision: 10 }
    }

    #[test]
    fn of_two_that_take_one_subnet_under_different_keys_the_later_is_late() {
        let held = |key: &str, mod_revision| HeldLease {
            subnets: Subnets::from_key(key).unwrap(),
            etcd_lease: Some(7),
            mod_revision,
        };
        let keys = [("10.5.90.0-24&fd00:5:0:1::-64", 5), ("10.5.90.0-24&fd00:5:0:2::-64", 6)];
        let entry = |(key, revision): (&str, i64)| Entry {
            key: key.to_owned(),
            value: b"{}".to_vec(),
            create_revision: revision,
            mod_revision: revision,
            etcd_lease: Some(7),
        };
        let listing = Listing { entries: keys.map(entry).into(), revision: 6, cluster_id: 1 };
        assert_eq!(keys.map(|(key, revision)| is_late(&held(key, revision), &listing)), [false, true]);
    }

    #[test]
    fn the_lease_with_our_address_is_ours_unless_another_node_signed_it() {
        let leases = [
            lease("10.5.2.0-24", "192.168.64.12", None, 1),
            lease("10.5.3.0-24", "192.168.64.11", Some("b"), 2),
            lease("10.5.4.0-24", "192.168.64.11", None, 3),
        ];
        assert_eq!(chosen(&leases, &claim()).as_deref(), Some("10.5.4.0/24"));
    }

    #[test]
    fn of_several_own_leases_the_previous_subnet_wins_then_the_oldest() {
        let leases =
            [lease("10.5.3.0-24", "192.168.64.11", None, 5), lease("10.5.4.0-24", "192.168.64.11", None, 3)];
        assert_eq!(chosen(&leases, &claim()).as_deref(), Some("10.5.4.0/24"));
        let claim = Claim { previous: Some("10.5.3.0/24".parse().unwrap()), ..claim() };
        assert_eq!(chosen(&leases, &claim).as_deref(), Some("10.5.3.0/24"));
    }

    #[test]
    fn after_a_change_of_address_the_previous_subnet_is_ours_by_its_node_id() {
        let leases = [
            lease("10.5.3.0-24", "192.168.64.99", Some("a"), 5),
            lease("10.5.4.0-24", "192.168.64.98", Some("a"), 3),
        ];
        assert_eq!(chosen(&leases, &claim()), None);
        let claim = Claim { previous: Some("10.5.3.0/24".parse().unwrap()), ..claim() };
        assert_eq!(chosen(&leases, &claim).as_deref(), Some("10.5.3.0/24"));
        let stranger = [lease("10.5.3.0-24", "192.168.64.99", Some("b"), 5)];
        assert_eq!(chosen(&stranger, &claim), None);
    }

    #[test]
    fn an_own_lease_that_the_config_no_longer_admits_is_left() {
        assert_eq!(chosen(&[lease("10.6.3.0-24", "192.168.64.11", None, 5)], &claim()), None);
    }

    #[test]
    fn what_became_of_our_key_is_told_apart() {
        let claim = claim();
        let value = String::from_utf8(claim.attributes.to_json()).unwrap();
        let published = Published::new(&claim.attributes);
        let find = |entry: Option<Entry>| judge(&held(), &claim, &published, entry);
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
    fn a_key_that_still_says_what_we_said_before_is_ours() {
        let before = claim();
        let mut after = claim();
        after.attributes.public_ips.v4 = Some("192.168.64.77".parse().unwrap());
        let mut published = Published::new(&before.attributes);
        published.wants(&after.attributes);
        let value = |claim: &Claim| String::from_utf8(claim.attributes.to_json()).unwrap();
        let find = |value: &str, revision| {
            judge(&held(), &after, &published, Some(entry("10.5.3.0-24", value, revision)))
        };
        assert!(matches!(find(&value(&before), 10), Finding::Outdated(_)));
        assert!(matches!(find(&value(&before), 11), Finding::Altered(_)));
        // The write may have happened although no answer came.
        assert_eq!(find(&value(&after), 11), Finding::Touched { etcd_lease: Some(7), mod_revision: 11 });
        assert!(matches!(find(&value(&before).replace("\"a\"", "\"b\""), 11), Finding::Foreign(_)));
        let standing = Published::new(&after.attributes);
        let old = entry("10.5.3.0-24", &value(&before), 11);
        assert!(matches!(judge(&held(), &after, &standing, Some(old)), Finding::Foreign(_)));
    }

    #[test]
    fn an_exhausted_network_names_who_holds_how_many() {
        let entries = vec![
            lease("10.5.2.0-24", "192.168.64.12", None, 1),
            lease("10.5.3.0-24", "192.168.64.13", None, 2),
            lease("10.5.4.0-24", "192.168.64.13", None, 3),
            entry("x", "{", 4),
        ];
        assert_eq!(
            holders(&Listing { entries, revision: 9, cluster_id: 1 }),
            "192.168.64.13: 2, 192.168.64.12: 1, unreadable leases: 1"
        );
    }
}
