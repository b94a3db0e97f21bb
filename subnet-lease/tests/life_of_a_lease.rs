//! The life of leases against a store that speaks etcd's protocol, in this process.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use flan_embedded_store::{Running, Settings};
use flan_subnet_lease::{
    Admission, Caution, Claim, Credentials, Family, Holding, HostNetwork, Keeper, KeyChange, Lease,
    LeaseAttributes, LeaseSet, NetworkConfig, OverlapPolicy, OwnLease, PerFamily, Reservation, Store,
    StoreConfig, StoreError, Subnets, Terms, WatchEvent, Watcher,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(10);
/// Longer than any test.
const TTL: Duration = Duration::from_secs(60);

/// An empty store with the config of a network of three hosts.
struct Site {
    running: Running,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let running = flan_embedded_store::start(Settings {
            data_dir: dir.path().join("store"),
            listen: vec!["http://127.0.0.1:0".parse().expect("a URL")],
            tls: None,
            insecure: false,
            retention: Duration::from_secs(3600),
        })
        .await
        .expect("a store");
        let site = Self { running, _dir: dir };
        assert!(site.store().put_config(CONFIG, None).await.expect("an answer"));
        site
    }

    fn store(&self) -> Store {
        Store::new(StoreConfig {
            endpoints: vec![self.running.client_urls()[0].parse().expect("a URL")],
            prefix: "/coreos.com/network".to_owned(),
            credentials: Credentials::default(),
        })
        .expect("settings that work")
    }
}

const CONFIG: &[u8] =
    br#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0","Backend":{"Type":"vxlan"}}"#;
/// The same with room for a fourth.
const LARGER: &[u8] =
    br#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0","Backend":{"Type":"vxlan"}}"#;

fn claim(host: u8, ttl: Duration) -> Claim {
    let mut attributes = LeaseAttributes::default();
    attributes.public_ips.set(Family::V4, IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)));
    Claim {
        config: NetworkConfig::parse(CONFIG).expect("a config"),
        attributes,
        previous: None,
        addresses: BTreeSet::new(),
        networks: watch::channel(Vec::new()).1,
        overlap: OverlapPolicy::Refuse,
        ttl,
        renew_margin: None,
    }
}

/// Terms that do not change.
fn fixed(claim: &Claim) -> watch::Receiver<Terms> {
    watch::channel(claim.terms()).1
}

async fn acquire(site: &Site, host: u8, ttl: Duration) -> Keeper {
    let mut terms = fixed(&claim(host, ttl));
    let acquired = Box::pin(Keeper::acquire(site.store(), claim(host, ttl), &mut terms, None, |_| {}));
    tokio::time::timeout(LIMIT, acquired).await.expect("in time").0
}

/// Keeps a lease as an agent does, which reports to the keeper what the watch shows of its key.
fn keep(site: &Site, keeper: Keeper, claim: Claim) -> watch::Receiver<Holding> {
    let (holding, seen) = watch::channel(keeper.holding());
    let held = seen.clone();
    let (sender, mut events) = mpsc::channel(8);
    tokio::spawn(Watcher::new(site.store().leases()).run(sender));
    tokio::spawn(async move {
        let terms = fixed(&claim);
        let (own_key, seen_key) = watch::channel(None);
        let mut leases = LeaseSet::new(Admission { config: claim.config, own: None }, Caution::default());
        let tells = async {
            while let Some(event) = events.recv().await {
                leases.set_own(Some(own(held.borrow().lease.subnets)));
                leases.apply(event, Instant::now());
                if let Some(seen) = leases.take_own_key() {
                    own_key.send_replace(seen);
                }
            }
        };
        tokio::join!(keeper.hold(seen_key, terms, &holding), tells);
    });
    seen
}

fn own(subnets: Subnets) -> OwnLease {
    let (addresses, identities) = (BTreeSet::new(), PerFamily::default());
    OwnLease { subnets, addresses, identities, node_id: None }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_start_at_once_get_a_subnet_each_and_find_it_again() {
    let site = Site::new().await;
    let (one, two, three) =
        tokio::join!(acquire(&site, 1, TTL), acquire(&site, 2, TTL), acquire(&site, 3, TTL));
    let mut held: Vec<String> =
        [&one, &two, &three].iter().map(|keeper| keeper.held().subnets.to_string()).collect();
    let again = acquire(&site, 2, TTL).await;
    assert_eq!(again.held(), two.held(), "the same lease, and nothing was written");
    held.sort();
    assert_eq!(held, ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_finds_none_free_waits_and_takes_one_of_a_larger_network() {
    let site = Site::new().await;
    for host in 1..=3 {
        acquire(&site, host, TTL).await;
    }
    let claim = claim(4, TTL);
    let (terms, mut seen) = watch::channel(claim.terms());
    let (said, mut told) = mpsc::unbounded_channel();
    let waits = |reason: &str| drop(said.send(reason.to_owned()));
    let full = Box::pin(Keeper::acquire(site.store(), claim, &mut seen, None, waits));
    let larger = async {
        assert!(told.recv().await.unwrap().contains("10.5.0.0/16"));
        terms.send_modify(|terms| terms.config = NetworkConfig::parse(LARGER).expect("a config"));
    };
    let (fourth, ()) = within(async { tokio::join!(full, larger) }).await;
    assert_eq!(fourth.0.held().subnets.to_string(), "10.5.4.0/24");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_what_happens_after_its_list() {
    let site = Site::new().await;
    acquire(&site, 1, TTL).await;
    let (sender, mut events) = mpsc::channel(8);
    tokio::spawn(Watcher::new(site.store().leases()).run(sender));
    let Some(WatchEvent::Listed(listing)) = within(events.recv()).await else { panic!("a list comes first") };
    assert_eq!(listing.items.len(), 1);

    let two = acquire(&site, 2, TTL).await;
    let key = two.held().subnets.key();
    let Some(WatchEvent::Changed(changes)) = within(events.recv()).await else { panic!("a lease was taken") };
    assert!(
        matches!(&changes[..], [KeyChange::Put(Ok(lease))] if lease.subnets == two.held().subnets),
        "{changes:?}"
    );

    let store = site.store();
    assert!(!store.leases().delete(&key, two.held().mod_revision - 1).await.unwrap(), "it was written since");
    assert!(store.leases().delete(&key, two.held().mod_revision).await.unwrap());
    let Some(WatchEvent::Changed(changes)) = within(events.recv()).await else { panic!("it was deleted") };
    assert_eq!(changes, [KeyChange::Delete { key }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_written_only_over_what_its_writer_has_seen() {
    let site = Site::new().await;
    let held = acquire(&site, 1, TTL).await.held().clone();
    let (leases, key) = (site.store().leases(), held.subnets.key());
    let theirs = leases.put(&key, b"theirs", held.etcd_lease, held.mod_revision).await.unwrap().unwrap();
    for unseen in [0, held.mod_revision, theirs + 1] {
        assert_eq!(leases.put(&key, b"ours", held.etcd_lease, unseen).await.unwrap(), None);
        assert!(!leases.delete(&key, unseen).await.unwrap());
    }
    assert_eq!(leases.get(&key).await.unwrap().unwrap().value, b"theirs");
    assert!(leases.put(&key, b"ours", held.etcd_lease, theirs).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_takes_back_what_was_deleted_and_keeps_it_beyond_its_time() {
    let site = Site::new().await;
    let keeper = acquire(&site, 1, Duration::from_secs(2)).await;
    let held = keeper.held().clone();
    let (holding, mut seen) = watch::channel(keeper.holding());
    let terms = fixed(&claim(1, TTL));
    let (own_key, seen_key) = watch::channel(Some(held.mod_revision));
    tokio::spawn(async move { keeper.hold(seen_key, terms, &holding).await });

    let store = site.store();
    assert!(store.leases().delete(&held.subnets.key(), held.mod_revision).await.unwrap());
    own_key.send_replace(None);
    within(seen.changed()).await.unwrap();
    let taken_back = seen.borrow_and_update().lease.clone();
    assert_eq!(taken_back.subnets, held.subnets);
    assert!(taken_back.mod_revision > held.mod_revision);

    tokio::time::sleep(Duration::from_secs(4)).await;
    let entry = store.leases().get(&held.subnets.key()).await.unwrap();
    assert_eq!(entry.unwrap().etcd_lease, taken_back.etcd_lease, "it was kept alive for twice its time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_keeps_ends_with_its_key() {
    let site = Site::new().await;
    let held = acquire(&site, 1, Duration::from_secs(2)).await.held().clone();
    let store = site.store();
    let etcd_lease = held.etcd_lease.unwrap();
    assert!(store.time_to_live(etcd_lease).await.unwrap().0 <= Duration::from_secs(2));
    let gone = async {
        while store.leases().get(&held.subnets.key()).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within(gone).await;
    assert!(matches!(store.keep_alive(etcd_lease).await, Err(StoreError::LeaseGone(_))));
}

/// Returns the address of the other machine with our node id.
fn twin(holding: &Holding) -> Option<String> {
    holding.twin.as_ref().map(|sighting| sighting.twin.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_takes_another_subnet_while_the_first_host_lives_and_both_hear_of_it() {
    let site = Site::new().await;
    let store = site.store();
    let cloned = |host: u8, previous| {
        let mut claim = Claim { previous, ..claim(host, TTL) };
        claim.attributes.node.id = Some("same".into());
        claim
    };
    let acquire = |claim: Claim| {
        let (store, mut terms) = (store.clone(), fixed(&claim));
        Box::pin(async move { Keeper::acquire(store, claim, &mut terms, None, |_| {}).await.0 })
    };
    let first = acquire(cloned(1, None)).await;
    let held = first.held().clone();
    let before = store.leases().get(&held.subnets.key()).await.unwrap().unwrap();
    let mut seen = keep(&site, first, cloned(1, None));

    // Several at once, from one image.
    let clone = |host: u8| acquire(cloned(host, Some(held.subnets)));
    let (second, third) = within(async { tokio::join!(clone(2), clone(3)) }).await;
    let mut all =
        [held.subnets, second.held().subnets, third.held().subnets].map(|subnets| subnets.to_string());
    all.sort();
    assert_eq!(all, ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"]);
    for keeper in [&second, &third] {
        assert!(
            twin(&keeper.holding()).is_some_and(|twin| twin.starts_with("192.0.2.")),
            "{:?}",
            keeper.holding()
        );
    }
    let heard = within(seen.wait_for(|holding| holding.twin.is_some())).await.unwrap().clone();
    assert!(["192.0.2.2", "192.0.2.3"].contains(&twin(&heard).unwrap().as_str()), "{heard:?}");
    assert_eq!(heard.lease.subnets, held.subnets);
    let unclaimed = async {
        loop {
            let after = store.leases().get(&held.subnets.key()).await.unwrap().unwrap();
            if after.value == before.value {
                break after;
            }
            tokio::task::yield_now().await;
        }
    };
    let after = within(unclaimed).await;
    assert_eq!((after.etcd_lease, after.create_revision), (before.etcd_lease, before.create_revision));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_networks_cover_all_that_is_free_waits_and_goes_on_when_one_goes() {
    let site = Site::new().await;
    let network = |network: &str| HostNetwork {
        network: network.parse().unwrap(),
        place: "on eth1".to_owned(),
        gateway: None,
    };
    let (networks, known) = watch::channel(vec![network("10.5.0.0/17")]);
    let (said, mut told) = mpsc::unbounded_channel();
    let claim = Claim { networks: known, ..claim(1, TTL) };
    let store = site.store();
    let acquired = tokio::spawn(async move {
        let mut terms = fixed(&claim);
        Keeper::acquire(store, claim, &mut terms, None, |reason| drop(said.send(reason.to_owned()))).await.0
    });
    let reason = within(told.recv()).await.unwrap();
    assert!(reason.contains("10.5.0.0/17 on eth1") && reason.contains("--subnet-overlap warn"), "{reason}");
    networks.send_replace(vec![network("10.5.1.0/24"), network("10.5.3.128/25")]);
    let keeper = within(acquired).await.unwrap();
    assert_eq!(keeper.held().subnets.to_string(), "10.5.2.0/24");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_is_remembered_and_moves_its_host_only_where_it_replaces_what_is_held() {
    let site = Site::new().await;
    let store = site.store();
    let keeper = acquire(&site, 1, TTL).await;
    let held = keeper.held().clone();
    let mut seen = keep(&site, keeper, claim(1, TTL));
    let free = ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"].map(|subnet| subnet.parse::<Subnets>().unwrap());
    let reserved = free.into_iter().find(|subnets| *subnets != held.subnets).unwrap();
    let reservation = Reservation { subnets: reserved, public_ips: claim(1, TTL).attributes.public_ips };

    let value = reservation.to_json();
    assert!(store.reserve(&reservation, &value, 0, &[]).await.unwrap().is_some());
    assert_eq!(store.reservation(&reserved).await.unwrap(), Some(reservation.clone()));
    assert_eq!(store.reservations().await.unwrap(), std::slice::from_ref(&reservation));
    // Its key disappears and returns: no reason to move, unless both happen at once.
    let present = store.leases().get(&held.subnets.key()).await.unwrap().unwrap();
    assert_eq!(present.mod_revision, held.mod_revision);
    let entry = store.leases().get(&reserved.key()).await.unwrap().unwrap();
    let present = Lease::from_entry(&present).unwrap();
    assert!(store.reserve(&reservation, &value, entry.mod_revision, &[&present]).await.unwrap().is_some());
    let moved = within(seen.wait_for(|holding| holding.lease.subnets == reserved)).await.unwrap().clone();
    assert_eq!(moved.lease.etcd_lease, None, "it is a reservation still");
    assert_eq!(store.leases().get(&held.subnets.key()).await.unwrap(), None);

    assert!(store.release(&reserved, moved.lease.mod_revision).await.unwrap());
    assert_eq!(store.reservation(&reserved).await.unwrap(), None);
    let back = within(seen.wait_for(|holding| holding.lease.etcd_lease.is_some())).await.unwrap().clone();
    assert_eq!(back.lease.subnets, reserved, "what is deleted without a reservation is taken back");
}
