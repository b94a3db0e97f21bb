//! The bench's own connection to etcd: one, and kept.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etcd_client::{WatchOptions, WatchStream};
use flan_integration::Lab;
use flan_integration::store::{PREFIX, StoreClient};

use crate::peers::Peer;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The leases of a lab's store.
pub(crate) struct Leases(StoreClient);

/// When a write was sent, and how long etcd took to acknowledge it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    pub(crate) sent: Instant,
    pub(crate) acknowledged: Duration,
}

impl Leases {
    /// Connects.
    pub(crate) fn connect(lab: &Lab) -> Result<Leases> {
        let client = StoreClient::connect(lab.underlay(), &lab.store().endpoints(), LIMIT)?;
        client.run(|mut client| async move { Ok(client.get("/", None).await.map(drop)?) })?;
        Ok(Leases(client))
    }

    /// Writes these keys with their values, without etcd leases.
    pub(crate) fn load(&self, leases: impl Iterator<Item = (String, String)>) -> Result<()> {
        self.0.put_all(leases)
    }

    /// Milliseconds from each of so many writes to its event on a watch that does nothing else: what etcd and the way
    /// to it take of the time until a route.
    pub(crate) fn bare_watch(&self, writes: u32) -> Result<Vec<f64>> {
        self.0.run_within(LIMIT * 10, |mut client| async move {
            let watched = WatchOptions::new().with_prefix();
            let mut events = client.watch(format!("{PREFIX}/subnets/"), Some(watched)).await?;
            let mut milliseconds = Vec::new();
            // The first answer says that the watch stands.
            next(&mut events).await?;
            for number in 0..writes {
                let peer = Peer::visitor(number);
                let sent = Instant::now();
                let put = client.put(peer.key(), peer.value(), None);
                let told = async { next(&mut events).await.map(|()| sent.elapsed()) };
                let (put, told) = tokio::join!(put, told);
                put?;
                milliseconds.push(1000.0 * told?.as_secs_f64());
                client.delete(peer.key(), None).await?;
                next(&mut events).await?;
            }
            Ok(milliseconds)
        })
    }

    /// Writes one key.
    pub(crate) fn put(&self, key: String, value: String) -> Result<Written> {
        self.0.run(|mut client| async move {
            let sent = Instant::now();
            client.put(key, value, None).await?;
            Ok(Written { sent, acknowledged: sent.elapsed() })
        })
    }

    /// Removes one key.
    pub(crate) fn delete(&self, key: String) -> Result<Written> {
        self.0.run(|mut client| async move {
            let sent = Instant::now();
            client.delete(key, None).await?;
            Ok(Written { sent, acknowledged: sent.elapsed() })
        })
    }
}

async fn next(events: &mut WatchStream) -> Result<()> {
    events.message().await?.context("the watch has ended").map(drop)
}
