//! The store: whether it answers, what it says about this network, and what its clock says.

use std::time::Duration;

use flan_agent_api::{Code, SubnetEnv};
use flan_subnet_lease::{
    Admission, Caution, ClockSkew, Lease, LeaseSet, Listing, NetworkConfig, Store, StoreConfig, StoreError,
    StoredConfig, WatchEvent, clock_skew,
};
use futures::future::join_all;
use tokio::time::{Instant, timeout};

use super::report::Report;
use super::this_host::ThisHost;
use crate::access;
use crate::output;

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
    host: &ThisHost,
    report: &mut Report,
) -> Option<Stored> {
    let endpoints = config.shown_endpoints();
    let asked = match access::open(config.clone()) {
        Ok(store) => match timeout(LIMIT, ask(&store)).await {
            Ok(Ok((config, listing))) => Some((store, config, listing)),
            Ok(Err(error)) => not_usable(&format!("{error}{comment}"), report),
            Err(_) => {
                let reason = format!("{endpoints} did not answer within {} s{comment}", LIMIT.as_secs());
                not_usable(&reason, report)
            }
        },
        Err(failure) => not_usable(&failure.to_string(), report),
    };
    let (store, json, listing) = asked?;
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
    let mut leases = LeaseSet::new(Admission { config: network.clone(), own: None }, Caution::default());
    leases.apply(WatchEvent::Listed(listing), Instant::now());
    let (backend, count) = (network.backend.name(), output::count(leases.len(), "lease"));
    report.fine(STORE, format!("{endpoints}: {} with {backend}, {count}", overlays.join(" ")));
    look_at_own_lease(&leases, host, report);
    Some(Stored { config: network, leases })
}

async fn ask(store: &Store) -> Result<(Option<StoredConfig>, Listing<Lease>), StoreError> {
    Ok((store.config().await?, store.leases().list().await?))
}

fn not_usable<T>(reason: &str, report: &mut Report) -> Option<T> {
    let text = format!("the store cannot be used from here: {reason}");
    report.judge(STORE, Code::Store, Some(text), "");
    None
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

/// Compares the subnet file with the leases.
fn look_at_own_lease(leases: &LeaseSet, host: &ThisHost, report: &mut Report) {
    let Some(subnets) = host.env.as_ref().and_then(SubnetEnv::subnets) else { return };
    let says = format!("the subnet file says {subnets}");
    let then = "restart fland, and then Docker";
    let wrong = match (host.subnets(), leases.readable().find(|lease| lease.subnets == subnets)) {
        (Some(own), _) if own != subnets => Some(format!("{says}, and fland holds {own}; {then}")),
        (_, None) => {
            Some(format!("{says}, and the store has no such lease, so other hosts send nothing here; {then}"))
        }
        (_, Some(lease))
            if host.running.is_none() && lease.attributes.node.id.is_some() && !host.has_node_id(lease) =>
        {
            Some(format!("{says}, which is leased by {}; {then}", lease.attributes.holder_and_node()))
        }
        _ => None,
    };
    report.judge("subnet file", Code::SubnetFile, wrong, format!("{subnets}, as its lease"));
}
