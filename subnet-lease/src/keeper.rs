//! The life of our own lease: acquire, hold, lose, take back.
//!
//! Only the keeper writes our key, and each write compares what it last saw. Whatever seems to happen to the key,
//! the keeper reads it again before it acts, so a late or doubled notice does no harm.

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
    /// A keepalive is sent at the latest this long before the end.
    pub renew_margin: Duration,
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
    /// without end, and says why while it must wait.
    pub async fn acquire(store: Store, claim: Claim) -> Self {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            match take(&store, &claim).await {
                Ok(held) => return Self { store, claim, held },
                Err(KeeperError::LostRace(subnets)) => {
                    debug!(%subnets, "another host was faster; choosing again");
                    tokio::time::sleep(backoff.next().min(RACE_WAIT)).await;
                }
                Err(reason) => {
                    let wait = backoff.next();
                    warn!(%reason, retry_in = ?wait, "cannot take a lease yet");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// The lease as we hold it now.
    pub fn held(&self) -> &HeldLease {
        &self.held
    }

    /// Keeps the lease until nobody listens to `held` any more. `suspicion` makes the keeper look at its key at once.
    /// Every change of the lease, also a new subnet after a loss, goes to `held`.
    pub async fn hold(mut self, suspicion: &Notify, held: &watch::Sender<HeldLease>) {
        let interval = keepalive_interval(self.claim.ttl, self.claim.renew_margin);
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut due = Instant::now() + interval;
        let mut last_success = Instant::now();
        let mut suspect = false;
        loop {
            let outcome = tokio::select! {
                () = held.closed() => return,
                () = suspicion.notified() => {
                    suspect = true;
                    self.look().await
                }
                () = tokio::time::sleep_until(due) => match suspect {
                    true => self.look().await,
                    false => self.keep_alive().await,
                },
            };
            held.send_if_modified(|seen| std::mem::replace(seen, self.held.clone()) != self.held);
            due = match outcome {
                // A look does not keep the lease alive: what was due stays due.
                Ok(()) if suspect => {
                    suspect = false;
                    backoff.reset();
                    last_success + interval
                }
                Ok(()) => {
                    backoff.reset();
                    last_success = Instant::now();
                    last_success + interval
                }
                Err(reason) => {
                    let wait = backoff.next();
                    let left = self.claim.ttl.saturating_sub(last_success.elapsed());
                    warn!(%reason, retry_in = ?wait, expires_in_seconds = left.as_secs(), "cannot renew the lease");
                    Instant::now() + wait
                }
            };
        }
    }

    /// Sets the etcd lease back to its full time; when it has expired, takes the subnet back.
    async fn keep_alive(&mut self) -> Result<(), KeeperError> {
        let Some(etcd_lease) = self.held.etcd_lease else { return self.look().await };
        match self.store.keep_alive(etcd_lease).await {
            Ok(()) => {
                debug!(subnets = %self.held.subnets, "kept the lease alive");
                Ok(())
            }
            Err(StoreError::LeaseGone(_)) => self.look().await,
            Err(error) => Err(error.into()),
        }
    }

    /// Reads our key and puts right what is wrong with it.
    async fn look(&mut self) -> Result<(), KeeperError> {
        let subnets = self.held.subnets;
        let found = self.store.get(&subnets.key()).await?;
        match judge(&self.held, &self.claim, found.as_ref()) {
            Finding::Unchanged => Ok(()),
            Finding::Touched { etcd_lease, mod_revision } => {
                info!(%subnets, reservation = etcd_lease.is_none(), "our lease was written by somebody else, and still says the same");
                self.held = HeldLease { subnets, etcd_lease, mod_revision };
                Ok(())
            }
            Finding::Altered(entry) => {
                warn!(%subnets, value = %String::from_utf8_lossy(&entry.value), "our lease was altered; writing it again");
                self.held = adopt(&self.store, &self.claim, subnets, &entry).await?;
                Ok(())
            }
            Finding::Gone => {
                warn!(%subnets, "our lease is gone from the store; taking it back");
                self.take_back().await
            }
            Finding::Foreign(holder) => {
                error!(%subnets, %holder, "our lease was lost to another host");
                self.take_back().await
            }
        }
    }

    /// Takes our subnet again or, where somebody else has it by now, another one.
    async fn take_back(&mut self) -> Result<(), KeeperError> {
        let lost = self.held.subnets;
        let claim = Claim { previous: Some(lost), ..self.claim.clone() };
        self.held = take(&self.store, &claim).await?;
        if self.held.subnets != lost {
            error!(%lost, now = %self.held.subnets, "this host has another subnet now; containers keep the lost one until Docker is restarted");
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
async fn take(store: &Store, claim: &Claim) -> Result<HeldLease, KeeperError> {
    let listing = store.list().await?;
    let leases: Vec<Lease> =
        listing.entries.iter().filter_map(|entry| Lease::from_entry(entry).ok()).collect();
    warn_of_doubles(&leases, claim);
    if let Some(own) = choose_own(&leases, claim) {
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
    let etcd_lease = Some(store.grant(claim.ttl).await?);
    let value = claim.attributes.to_json();
    match store.put(&subnets.key(), &value, etcd_lease, 0).await? {
        Some(mod_revision) => {
            info!(%subnets, "leased");
            Ok(HeldLease { subnets, etcd_lease, mod_revision })
        }
        None => Err(KeeperError::LostRace(subnets)),
    }
}

/// Makes an entry that is ours say what we want, with as few writes as that takes: none after a mere restart.
async fn adopt(
    store: &Store,
    claim: &Claim,
    subnets: Subnets,
    entry: &Entry,
) -> Result<HeldLease, KeeperError> {
    let (etcd_lease, fresh) = match entry.etcd_lease {
        None => (None, false),
        Some(lease) => match store.time_to_live(lease).await {
            Ok((_, granted)) if granted == claim.ttl => match store.keep_alive(lease).await {
                Ok(()) => (Some(lease), false),
                Err(StoreError::LeaseGone(_)) => (Some(store.grant(claim.ttl).await?), true),
                Err(error) => return Err(error.into()),
            },
            Ok(_) | Err(StoreError::LeaseGone(_)) => (Some(store.grant(claim.ttl).await?), true),
            Err(error) => return Err(error.into()),
        },
    };
    let same =
        LeaseAttributes::from_json(&entry.value).is_ok_and(|attributes| attributes == claim.attributes);
    if same && !fresh {
        info!(%subnets, reservation = etcd_lease.is_none(), "holding our lease again");
        return Ok(HeldLease { subnets, etcd_lease, mod_revision: entry.mod_revision });
    }
    match store.put(&subnets.key(), &claim.attributes.to_json(), etcd_lease, entry.mod_revision).await? {
        Some(mod_revision) => {
            info!(%subnets, reservation = etcd_lease.is_none(), "took over our lease");
            Ok(HeldLease { subnets, etcd_lease, mod_revision })
        }
        None => Err(KeeperError::LostRace(subnets)),
    }
}

/// The lease that is ours already: the previous subnet if there are several, else the oldest.
fn choose_own<'a>(leases: &'a [Lease], claim: &Claim) -> Option<&'a Lease> {
    let ours = |lease: &&Lease| {
        claim.config.admits(&lease.subnets)
            && lease.attributes.is_held_by(&claim.attributes.public_ips, &claim.attributes.node)
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
        Ok(attributes) if attributes == claim.attributes => {
            Finding::Touched { etcd_lease: entry.etcd_lease, mod_revision: entry.mod_revision }
        }
        Ok(attributes) if !attributes.is_held_by(&claim.attributes.public_ips, &claim.attributes.node) => {
            Finding::Foreign(describe(&attributes.public_ips, &attributes.node))
        }
        _ => Finding::Altered(entry.clone()),
    }
}

/// Keepalives go out three times in the life of a lease, and not later than `margin` before its end.
fn keepalive_interval(ttl: Duration, margin: Duration) -> Duration {
    (ttl / 3).min(ttl.saturating_sub(margin)).max(Duration::from_secs(1))
}

/// Two machines with one address cannot both be reached.
fn warn_of_doubles(leases: &[Lease], claim: &Claim) {
    let (ips, node) = (&claim.attributes.public_ips, &claim.attributes.node);
    for lease in leases {
        let attributes = &lease.attributes;
        if attributes.is_held_by(ips, &NodeIdentity::default()) && !attributes.is_held_by(ips, node) {
            warn!(
                subnets = %lease.subnets, holder = %describe(&attributes.public_ips, &attributes.node),
                "another machine holds a lease with our public address; peers can reach only one of us, unless that one is no more",
            );
        }
    }
}

/// Who holds how many subnets, the greediest first.
fn holders(listing: &Listing, leases: &[Lease]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for lease in leases {
        *counts.entry(describe(&lease.attributes.public_ips, &lease.attributes.node)).or_default() += 1;
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

fn describe(public_ips: &PerFamily<IpAddr>, node: &NodeIdentity) -> String {
    let ips = public_ips.values().map(ToString::to_string).collect::<Vec<_>>().join(",");
    match &node.host {
        Some(host) => format!("{ips} ({host})"),
        None => ips,
    }
}

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
            renew_margin: Duration::from_secs(3_600),
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
        lease.attributes.node.id = node.map(str::to_owned);
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
        assert_eq!(choose_own(&leases, &claim()).unwrap().subnets.to_string(), "10.5.4.0/24");
    }

    #[test]
    fn of_several_own_leases_the_previous_subnet_wins_then_the_oldest() {
        let leases =
            [lease("10.5.3.0-24", "192.168.64.11", None, 5), lease("10.5.4.0-24", "192.168.64.11", None, 3)];
        assert_eq!(choose_own(&leases, &claim()).unwrap().subnets.to_string(), "10.5.4.0/24");
        let claim = Claim { previous: Some("10.5.3.0/24".parse().unwrap()), ..claim() };
        assert_eq!(choose_own(&leases, &claim).unwrap().subnets.to_string(), "10.5.3.0/24");
    }

    #[test]
    fn an_own_lease_that_the_config_no_longer_admits_is_left() {
        assert_eq!(choose_own(&[lease("10.6.3.0-24", "192.168.64.11", None, 5)], &claim()), None);
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
    fn keepalives_go_out_thrice_in_a_life_and_before_the_margin() {
        let hours = |h: u64| Duration::from_secs(h * 3600);
        assert_eq!(keepalive_interval(hours(24), hours(1)), hours(8));
        assert_eq!(keepalive_interval(hours(24), hours(20)), hours(4));
        assert_eq!(keepalive_interval(Duration::from_secs(2), hours(1)), Duration::from_secs(1));
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
