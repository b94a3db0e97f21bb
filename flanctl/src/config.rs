//! `flanctl config`: the network config, which all hosts share.

mod draft;

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use flan_backends::{HostNetworks, collisions};
use flan_subnet_lease::{
    Admission, Caution, LeaseSet, NetworkConfig, NetworkName, QuarantineReason, Store, StoredConfig, Subnets,
    WatchEvent, check_beside,
};
use tokio::time::Instant;

use self::draft::{DEFAULT_BACKEND, Draft, backend_field, has_no_backend, unusable};
use crate::failure::{Failure, Kind};
use crate::network::known;
use crate::output;

pub(crate) async fn get(store: &Store, network: Option<&NetworkName>) -> Result<(), Failure> {
    let stored = match network {
        Some(name) => known::find(store, name).await?,
        None => stored(store).await?,
    };
    output::print_verbatim(&String::from_utf8_lossy(&stored.json))
}

/// Checks a config and writes it, with its backend. Refuses to strand leases, or to change the backend unasked.
pub(crate) async fn set(
    whole: &Store,
    network: Option<&NetworkName>,
    file: &Path,
    backend: Option<&str>,
    force: bool,
) -> Result<(), Failure> {
    let draft = Draft::new(&read(file)?, backend)?;
    check(&draft.config)?;
    let store = &network.map_or_else(|| whole.clone(), |name| whole.network(name));
    if let Some(name) = network {
        known::find(store, name).await?;
        draft.config.supported_beside().map_err(unusable)?;
    }
    let (_, known) = whole.known().await.map_err(crate::network::refused)?;
    known.unusable.iter().for_each(|(name, error)| known::warn_of(name.as_ref(), error));
    let mut others = known.all;
    others.retain(|(name, _)| name.as_ref() != network);
    check_beside(&draft.config, &others).map_err(|clash| Failure::new(Kind::Refused, clash))?;
    warn_of_collisions(&draft.config).await;
    let seen = store.config().await?;
    if seen.as_ref().is_some_and(|seen| seen.json == draft.json) {
        return output::print(&format!("{}/config already says so", store.prefix()));
    }
    let before = seen.as_ref().and_then(|seen| NetworkConfig::parse(&seen.json).ok());
    if let Some(before) = &before {
        draft.check_against(before)?;
    }
    let stranded = stranded(store, before, &draft.config).await?;
    if !stranded.is_empty() && !force {
        return Err(Failure::new(
            Kind::Refused,
            format!(
                "this config strands {} that hosts hold: {}; their containers would lose the other hosts. \
                 Nothing was written; --force writes it all the same",
                output::count(stranded.len(), "lease"),
                output::some(&stranded),
            ),
        ));
    }
    if !store.put_config(&draft.json, seen.as_ref()).await? {
        let message = "somebody else wrote the network config at the same moment; nothing was written, look and try again";
        return Err(Failure::new(Kind::Refused, message));
    }
    for change in &draft.changes {
        output::print(change)?;
    }
    output::print(&format!("wrote {}/config: {}", store.prefix(), describe(&draft.config)))?;
    match seen {
        Some(_) => output::print(
            "running agents go over to it now; a host that cannot says so in its log and status",
        ),
        None => Ok(()),
    }
}

pub(crate) fn validate(file: &Path) -> Result<(), Failure> {
    let config = NetworkConfig::parse(&read(file)?).map_err(unusable)?;
    check(&config)?;
    output::print(&format!("valid: {}", describe(&config)))?;
    if has_no_backend(&config) {
        let field = backend_field(DEFAULT_BACKEND);
        output::print(&format!("flanctl config set adds {field} to it, or another one with --backend"))?;
    }
    Ok(())
}

/// Returns the config as stored.
pub(crate) async fn stored(store: &Store) -> Result<StoredConfig, Failure> {
    store.config().await?.ok_or_else(|| {
        let place = format!("{}/config in the store at {}", store.prefix(), store.endpoints());
        Failure::new(
            Kind::NoConfig,
            format!("there is no network config at {place}; write one with: flanctl config set FILE"),
        )
    })
}

/// Returns the stored config, parsed.
pub(crate) async fn parsed(store: &Store) -> Result<NetworkConfig, Failure> {
    NetworkConfig::parse(&stored(store).await?.json).map_err(|error| {
        Failure::new(Kind::Other, format!("the network config in the store cannot be used: {error}"))
    })
}

/// Returns the leases that are good now and that hosts would lose under `after`, each with the reason.
async fn stranded(
    store: &Store,
    before: Option<NetworkConfig>,
    after: &NetworkConfig,
) -> Result<Vec<String>, Failure> {
    let listing = store.leases().list().await?;
    let judged = |config: &NetworkConfig| {
        let mut leases = LeaseSet::new(Admission { config: config.clone(), own: None }, Caution::default());
        leases.apply(WatchEvent::Listed(listing.clone()), Instant::now());
        leases
    };
    let leases = judged(after);
    let good: Vec<Subnets> = match &before {
        Some(before) => {
            let leases = judged(before);
            leases.peers().chain(leases.unclaimed()).map(|lease| lease.subnets).collect()
        }
        // Without a readable config, any readable lease may have been good.
        None => leases.readable().map(|lease| lease.subnets).collect(),
    };
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

/// Prints warnings about a config, and refuses what fland does not run.
fn check(config: &NetworkConfig) -> Result<(), Failure> {
    for warning in &config.warnings {
        eprintln!("flanctl: warning: {warning}");
    }
    config.supported().map_err(unusable)
}

/// Warns of networks of this host that the config's network overlaps. If they cannot be read, there is no warning,
/// because the config may be written on any host.
async fn warn_of_collisions(config: &NetworkConfig) {
    let Ok(networks) = HostNetworks::read().await else { return };
    for text in collisions(config, &networks) {
        eprintln!("flanctl: warning: {text}");
    }
}

/// Returns a config in one line.
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
