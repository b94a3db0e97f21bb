//! The store: whether it answers, what it says about this network, and what its clock says.

use std::time::Duration;

use flan_agent_api::{Code, NodeId, SubnetEnv, SubnetEnvError};
use flan_subnet_lease::{
    Admission, Caution, ClockSkew, LeaseSet, NetworkConfig, Snapshot, Store, StoreConfig, Subnets,
    WatchEvent, clock_skew,
};
use futures::future::join_all;
use tokio::time::{Instant, timeout};

use super::report::Report;
use crate::access;

const STORE: &str = "store";
const CLOCK: &str = "clock";
/// How long the store may take.
const LIMIT: Duration = Duration::from_secs(15);
/// Certificates and logs suffer from a larger difference of the clocks.
const MOST_SKEW: Duration = Duration::from_secs(30);

/// The network in the store.
pub(super) struct Stored {
    pub(super) config: NetworkConfig,
    pub(super) leases: LeaseSet,
}

/// Reads it; `None` if that says nothing about the network.
pub(super) async fn look(
    config: &StoreConfig,
    comment: &str,
    node_id: &NodeId,
    env: &Result<Option<SubnetEnv>, SubnetEnvError>,
    report: &mut Report,
) -> Option<Stored> {
    let endpoints = config.shown_endpoints();
    let snapshot = match access::open(config.clone()) {
        Ok(store) => match timeout(LIMIT, store.snapshot()).await {
            Ok(Ok(snapshot)) => Some((store, snapshot)),
            Ok(Err(error)) => not_usable(&format!("{error}{comment}"), report),
            Err(_) => not_usable(
                &format!("{endpoints} did not answer within {} s{comment}", LIMIT.as_secs()),
                report,
            ),
        },
        Err(failure) => not_usable(&failure.to_string(), report),
    };
    let (store, Snapshot { config: json, leases }) = snapshot?;
    look_at_clocks(config, report).await;
    let place = format!("{}/config", store.prefix());
    let Some(json) = json else {
        let text = format!(
            "there is no network config at {place} in {endpoints}; write one: flanctl config set FILE"
        );
        report.judge(STORE, Code::Config, Some(text), "");
        return None;
    };
    let network = match NetworkConfig::parse(&json.json) {
        Ok(network) => network,
        Err(reason) => {
            let text = format!(
                "the network config at {place} cannot be used: {reason}; mend it: flanctl config set FILE"
            );
            report.judge(STORE, Code::Config, Some(text), "");
            return None;
        }
    };
    let overlays: Vec<String> = network.networks().map(|(_, network)| network.to_string()).collect();
    let stored =
        Stored { leases: judged(&store, &network).await.unwrap_or_else(|| empty(&network)), config: network };
    report.fine(
        STORE,
        format!(
            "{endpoints}: {} with {}, {} leases",
            overlays.join(" "),
            stored.config.backend.name(),
            leases.items.len()
        ),
    );
    if let Some(subnets) = env.as_ref().ok().and_then(|env| env.as_ref()?.subnets()) {
        look_at_own_lease(subnets, &stored.leases, node_id, report);
    }
    Some(stored)
}

fn not_usable<T>(reason: &str, report: &mut Report) -> Option<T> {
    let text = format!("the store cannot be used from here: {reason}");
    report.judge(STORE, Code::Store, Some(text), "");
    None
}

async fn judged(store: &Store, network: &NetworkConfig) -> Option<LeaseSet> {
    let listing = timeout(LIMIT, store.leases().list()).await.ok()?.ok()?;
    let mut leases = empty(network);
    leases.apply(WatchEvent::Listed(listing), Instant::now());
    Some(leases)
}

fn empty(network: &NetworkConfig) -> LeaseSet {
    LeaseSet::new(Admission { config: network.clone(), own: None }, Caution::default())
}

async fn look_at_clocks(config: &StoreConfig, report: &mut Report) {
    let skews = config.endpoints.iter().map(|endpoint| clock_skew(endpoint, &config.credentials));
    let skews: Vec<_> = join_all(skews).await;
    let told = config.endpoints.iter().zip(skews).filter_map(|(endpoint, skew)| Some((endpoint, skew?)));
    let worst = told.max_by_key(|(_, skew)| skew.by);
    let Some((endpoint, ClockSkew { by, is_ahead })) = worst else {
        return report.fine(CLOCK, "the store does not say what its clock is");
    };
    let seconds = humantime::format_duration(Duration::from_secs(by.as_secs()));
    let direction = if is_ahead { "ahead of" } else { "behind" };
    let wrong = (by > MOST_SKEW).then(|| {
        format!(
            "the clock of this host is {seconds} {direction} that of {endpoint}; certificates may seem to be out of date, and \
             logs do not fit together: run a time service, such as chrony, on both"
        )
    });
    let fine = if by.as_secs() == 0 {
        "that of the store".to_owned()
    } else {
        format!("{seconds} {direction} the store's")
    };
    report.judge(CLOCK, Code::ClockSkew, wrong, fine);
}

/// Compares the subnet file with the lease of that subnet.
fn look_at_own_lease(subnets: Subnets, leases: &LeaseSet, node_id: &NodeId, report: &mut Report) {
    let lease = leases.readable().find(|lease| lease.subnets == subnets);
    let ours = node_id.id();
    let wrong = match lease {
        None => Some(format!(
            "the subnet file says {subnets}, and the store has no such lease, so other hosts send nothing here; restart fland, \
             and then Docker"
        )),
        Some(lease) => match (&lease.attributes.node.id, &ours) {
            (Some(its), Some(ours)) if its != ours => Some(format!(
                "the subnet file says {subnets}, which is leased by {}; restart fland, and then Docker",
                lease.attributes.holder_and_node()
            )),
            _ => None,
        },
    };
    report.judge("subnet file", Code::SubnetFile, wrong, format!("{subnets}, as its lease"));
}
