//! A client of a store, from inside a lab.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use etcd_client::{Client, Txn, TxnOp};

use crate::inside::Inside;
use crate::netns::Netns;
use crate::wait;

/// Puts of one transaction; etcd takes 128.
const BATCH: usize = 100;

/// A connection that is kept.
pub struct StoreClient {
    inside: Inside,
    client: Client,
    limit: Duration,
}

impl StoreClient {
    /// Connects from a namespace to the members at these client URLs, separated by commas. Whatever is done with it may
    /// take as long as `limit`.
    pub fn connect(netns: &Netns, endpoints: &str, limit: Duration) -> Result<StoreClient> {
        let inside = Inside::of(netns)?;
        let urls: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
        let client = inside.run(limit, async move { Ok(Client::connect(urls, None).await?) });
        let client = client.with_context(|| format!("cannot connect to {endpoints}"))?;
        Ok(StoreClient { inside, client, limit })
    }

    /// Does something with it.
    pub fn run<T: Send + 'static, W>(&self, work: impl FnOnce(Client) -> W) -> Result<T>
    where
        W: Future<Output = Result<T>> + Send + 'static,
    {
        self.run_within(self.limit, work)
    }

    /// As [`StoreClient::run`], with another limit.
    pub fn run_within<T: Send + 'static, W>(
        &self,
        limit: Duration,
        work: impl FnOnce(Client) -> W,
    ) -> Result<T>
    where
        W: Future<Output = Result<T>> + Send + 'static,
    {
        self.inside.run(limit, work(self.client.clone()))
    }

    /// Writes all of these keys with their values, without leases of etcd.
    pub fn put_all(&self, values: impl Iterator<Item = (String, String)>) -> Result<()> {
        let values: Vec<_> = values.collect();
        for batch in values.chunks(BATCH) {
            wait::ensure_not_interrupted()?;
            let puts: Vec<_> = batch.iter().map(|(key, value)| TxnOp::put(&**key, &**value, None)).collect();
            let written = self
                .run(|mut client| async move { Ok(client.txn(Txn::new().and_then(puts)).await.map(drop)?) });
            written.context("cannot write many keys")?;
        }
        Ok(())
    }
}
