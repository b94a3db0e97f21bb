//! `flanctl config`: the network config, which all hosts share.

use std::io::Read;
use std::path::Path;

use flan_subnet_lease::{Lease, NetworkConfig, Store, StoredConfig};

use crate::failure::{Failure, Kind};

/// Prints the config.
pub(crate) async fn get(store: &Store) -> Result<(), Failure> {
    let stored = stored(store).await?;
    println!("{}", String::from_utf8_lossy(&stored.json).trim_end());
    Ok(())
}

/// Checks a config and writes it, unless that would strand leases.
pub(crate) async fn set(store: &Store, file: &Path, force: bool) -> Result<(), Failure> {
    let json = read(file)?;
    let config = check(&json)?;
    let seen = store.config().await?;
    let stranded = stranded(store, &config).await?;
    if !stranded.is_empty() && !force {
        return Err(Failure::new(
            Kind::Refused,
            format!(
                "this config strands {} that hosts hold: {}; their containers would lose the other hosts. \
                 Nothing was written; --force writes it all the same",
                count(stranded.len(), "lease"),
                stranded.join(", "),
            ),
        ));
    }
    if seen.as_ref().is_some_and(|seen| seen.json == json) {
        println!("{}/config already says so", store.prefix());
        return Ok(());
    }
    if !store.put_config(&json, seen.as_ref()).await? {
        let message = "somebody else wrote the network config at the same moment; nothing was written, look and try again";
        return Err(Failure::new(Kind::Refused, message));
    }
    println!("wrote {}/config: {}", store.prefix(), describe(&config));
    if seen.is_some() {
        println!("agents that run keep the old config until they are restarted");
    }
    Ok(())
}

/// Checks a config.
pub(crate) fn validate(file: &Path) -> Result<(), Failure> {
    let config = check(&read(file)?)?;
    println!("valid: {}", describe(&config));
    Ok(())
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

/// Leases that can be read and that `config` would not admit.
async fn stranded(store: &Store, config: &NetworkConfig) -> Result<Vec<String>, Failure> {
    let listing = store.list().await?;
    let leases = listing.entries.iter().filter_map(|entry| Lease::from_entry(entry).ok());
    Ok(leases.filter(|lease| !config.admits(&lease.subnets)).map(|lease| lease.subnets.to_string()).collect())
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
    Ok(config)
}

fn describe(config: &NetworkConfig) -> String {
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

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
