//! `flanctl config`: the network config, which all hosts share.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use flan_subnet_lease::{
    Admission, BackendConfig, Caution, LeaseSet, NetworkConfig, QuarantineReason, Store, StoredConfig,
    Subnets, WatchEvent,
};
use tokio::time::Instant;

use crate::failure::{Failure, Kind};
use crate::output;

/// Prints the config.
pub(crate) async fn get(store: &Store) -> Result<(), Failure> {
    let stored = stored(store).await?;
    output::print(&String::from_utf8_lossy(&stored.json))
}

/// Checks a config and writes it, unless that would strand leases.
pub(crate) async fn set(store: &Store, file: &Path, force: bool) -> Result<(), Failure> {
    let json = read(file)?;
    let config = check(&json)?;
    crate::host_networks::warn_of_collisions(&config).await;
    let seen = store.config().await?;
    if seen.as_ref().is_some_and(|seen| seen.json == json) {
        return output::print(&format!("{}/config already says so", store.prefix()));
    }
    let before = seen.as_ref().and_then(|seen| NetworkConfig::parse(&seen.json).ok());
    let stranded = stranded(store, before, &config).await?;
    if !stranded.is_empty() && !force {
        return Err(Failure::new(
            Kind::Refused,
            format!(
                "this config strands {} that hosts hold: {}; their containers would lose the other hosts. \
                 Nothing was written; --force writes it all the same",
                output::count(stranded.len(), "lease"),
                stranded.join(", "),
            ),
        ));
    }
    if !store.put_config(&json, seen.as_ref()).await? {
        let message = "somebody else wrote the network config at the same moment; nothing was written, look and try again";
        return Err(Failure::new(Kind::Refused, message));
    }
    output::print(&format!("wrote {}/config: {}", store.prefix(), describe(&config)))?;
    match seen {
        Some(_) => output::print("agents that run keep the old config until they are restarted"),
        None => Ok(()),
    }
}

/// Checks a config.
pub(crate) fn validate(file: &Path) -> Result<(), Failure> {
    let config = check(&read(file)?)?;
    output::print(&format!("valid: {}", describe(&config)))
}

/// The config as the store holds it.
pub(crate) async fn stored(store: &Store) -> Result<StoredConfig, Failure> {
    store.config().await?.ok_or_else(|| {
        let place = format!("{}/config in etcd at {}", store.prefix(), store.endpoints());
        Failure::new(
            Kind::NoConfig,
            format!("there is no network config at {place}; write one with: flanctl config set FILE"),
        )
    })
}

/// The config as the store holds it, read.
pub(crate) async fn parsed(store: &Store) -> Result<NetworkConfig, Failure> {
    NetworkConfig::parse(&stored(store).await?.json).map_err(|error| {
        Failure::new(Kind::Other, format!("the network config in the store cannot be used: {error}"))
    })
}

/// Leases that are good now and that hosts would lose under `after`, each with the reason.
async fn stranded(
    store: &Store,
    before: Option<NetworkConfig>,
    after: &NetworkConfig,
) -> Result<Vec<String>, Failure> {
    let judge = |config: &NetworkConfig| Admission { config: config.clone(), own: None };
    let mut leases = LeaseSet::new(judge(before.as_ref().unwrap_or(after)), Caution::default());
    leases.apply(WatchEvent::Listed(store.list().await?), Instant::now());
    let good: Vec<Subnets> = match &before {
        Some(_) => leases.peers().chain(leases.unclaimed()).map(|lease| lease.subnets).collect(),
        // Without a config that can be read, nothing is known of what was good: whatever can be read counts.
        None => leases.readable().map(|lease| lease.subnets).collect(),
    };
    leases.set_admission(judge(after));
    let bad: HashMap<Subnets, &QuarantineReason> =
        leases.quarantined().filter_map(|bad| Some((bad.lease?.subnets, bad.reason))).collect();
    let reason = |subnets: &Subnets| match bad.get(subnets) {
        Some(reason) => Some(format!("{subnets} ({reason})")),
        None if !after.admits(subnets) => Some(format!("{subnets} (not one of its subnets)")),
        None => None,
    };
    Ok(good.iter().filter_map(reason).collect())
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    if file == Path::new("-") {
        let mut json = Vec::new();
        std::io::stdin()
            .read_to_end(&mut json)
            .map_err(|error| Failure::new(Kind::Usage, format!("cannot read standard input: {error}")))?;
        return Ok(json);
    }
    std::fs::read(file)
        .map_err(|error| Failure::new(Kind::Usage, format!("cannot read {}: {error}", file.display())))
}

fn check(json: &[u8]) -> Result<NetworkConfig, Failure> {
    let config = NetworkConfig::parse(json).map_err(|error| Failure::new(Kind::Usage, error))?;
    for field in &config.unknown_fields {
        eprintln!("flanctl: warning: nobody knows the field {field}; it is ignored");
    }
    match &config.backend {
        BackendConfig::Vxlan(vxlan) if vxlan.direct_routing => {
            eprintln!(
                "flanctl: warning: fland does not support Backend.DirectRouting yet; every packet is encapsulated"
            );
        }
        BackendConfig::Vxlan(_) | BackendConfig::Udp(_) => {}
        other => eprintln!(
            "flanctl: warning: fland does not run backend {} yet; vxlan and udp it does",
            other.name()
        ),
    }
    Ok(config)
}

/// A config in one line.
pub(crate) fn describe(config: &NetworkConfig) -> String {
    let pools = config.pools.values().map(|pool| {
        format!(
            "{} subnets of length /{} from {} to {} in {}",
            pool.capacity(),
            pool.subnet_len(),
            pool.min(),
            pool.max(),
            pool.network()
        )
    });
    format!("{}, backend {}", pools.collect::<Vec<_>>().join(", "), config.backend.name())
}
