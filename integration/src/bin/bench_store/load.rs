//! Many clients that each send a request, wait for the answer and send the next, for some seconds.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp};

use crate::measure::{Measure, Values};

/// Keys of the range of many, with values of the size of a lease.
pub(crate) const MANY: u32 = 10_000;
/// A lease as flannel writes it.
pub(crate) const VALUE: &str = r#"{"PublicIP":"192.0.2.17","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"6a:0c:5e:1f:33:02"}}"#;
/// Seconds for which a lease of the load lasts.
const TTL: i64 = 600;

/// What each client asks, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Put,
    Txn,
    RangeOfOne,
    RangeOfMany,
    KeepAlive,
}

impl Request {
    pub(crate) const ALL: [Request; 5] =
        [Request::Put, Request::Txn, Request::RangeOfOne, Request::RangeOfMany, Request::KeepAlive];

    pub(crate) fn rate(self) -> Measure {
        match self {
            Request::Put => Measure::Put,
            Request::Txn => Measure::Txn,
            Request::RangeOfOne => Measure::RangeOfOne,
            Request::RangeOfMany => Measure::RangeOfMany,
            Request::KeepAlive => Measure::KeepAlive,
        }
    }

    fn latency(self) -> Measure {
        match self {
            Request::Put => Measure::PutTime,
            Request::Txn => Measure::TxnTime,
            Request::RangeOfOne => Measure::RangeOfOneTime,
            Request::RangeOfMany => Measure::RangeOfManyTime,
            Request::KeepAlive => Measure::KeepAliveTime,
        }
    }
}

/// Writes what the ranges ask for.
pub(crate) async fn fill(clients: &[Client]) -> Result<()> {
    spread(clients, MANY, async |client: &mut Client, key| {
        client.put(key_of(key), VALUE, None).await?;
        Ok(())
    })
    .await
}

/// Does something for each of so many keys, all clients at a time and each for its share of the keys.
pub(crate) async fn spread(
    clients: &[Client],
    keys: u32,
    work: impl AsyncFn(&mut Client, u32) -> Result<()>,
) -> Result<()> {
    let work = &work;
    let shares = (0..).zip(clients.iter().cloned()).map(|(number, mut client)| async move {
        for key in (number..keys).step_by(clients.len()) {
            work(&mut client, key).await?;
        }
        Ok(())
    });
    futures::future::try_join_all(shares).await.map(drop)
}

/// Sends one kind of request by all clients for some seconds; notes how many were answered in a second, and how long the
/// slowest hundredth took at least.
pub(crate) async fn run(
    request: Request,
    clients: &[Client],
    seconds: u32,
    values: &mut Values,
) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(seconds.into());
    let started = Instant::now();
    let mut tasks = Vec::new();
    for (number, client) in (0..).zip(clients.iter().cloned()) {
        tasks.push(tokio::spawn(one(request, client, number, until)));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.context("a client of the bench has panicked")??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    values.note(request.rate(), times.len() as f64 / elapsed);
    let p99 = flan_integration::statistics::percentile(&times, 99).context("nothing was answered")?;
    values.note(request.latency(), p99 * 1e3);
    Ok(())
}

async fn one(request: Request, mut client: Client, number: u32, until: Instant) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    let mut seen = 0;
    let own = format!("own/{number}");
    let mut kept = None;
    if request == Request::KeepAlive {
        let lease = client.lease_grant(TTL, None).await?.id();
        kept = Some(client.lease_keep_alive(lease).await?);
    }
    if request == Request::Txn {
        seen = client
            .put(own.as_str(), VALUE, None)
            .await?
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision);
    }
    for turn in 0.. {
        let sent = Instant::now();
        if sent >= until {
            break;
        }
        match request {
            Request::Put => drop(client.put(own.as_str(), VALUE, None).await?),
            Request::Txn => {
                let txn = Txn::new()
                    .when([Compare::mod_revision(own.as_str(), CompareOp::Equal, seen)])
                    .and_then([TxnOp::put(own.as_str(), VALUE, None)]);
                let answer = client.txn(txn).await?;
                anyhow::ensure!(answer.succeeded(), "a comparison with what was written does not hold");
                seen = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            Request::RangeOfOne => {
                let key = key_of((number * 199 + turn * 31) % MANY);
                let found = client.get(key, None).await?;
                anyhow::ensure!(found.kvs().len() == 1, "a key is not there");
            }
            Request::RangeOfMany => {
                let found = client.get("many/", Some(GetOptions::new().with_prefix())).await?;
                anyhow::ensure!(found.kvs().len() == MANY as usize, "{} keys", found.kvs().len());
            }
            Request::KeepAlive => {
                if let Some((keeper, answers)) = &mut kept {
                    keeper.keep_alive().await?;
                    let answer = answers.message().await?.context("the stream has ended")?;
                    anyhow::ensure!(answer.ttl() == TTL, "the lease lasts {} s", answer.ttl());
                }
            }
        }
        times.push(sent.elapsed().as_secs_f64());
    }
    Ok(times)
}

fn key_of(number: u32) -> String {
    format!("many/{number:05}")
}
