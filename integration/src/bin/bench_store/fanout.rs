//! Many who watch, and one who writes; and the memory that they and many leases take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etcd_client::{Client, PutOptions, WatchOptions, WatchStream};
use tokio::sync::Notify;

use crate::load::{VALUE, spread};
use crate::measure::{Measure, Values};
use crate::server::Server;

/// Who watch, each on a stream of its own.
const WATCHERS: u32 = 500;
/// Writes that all of them hear of.
const WRITES: u32 = 200;
/// Leases, each with a key.
const LEASES: u32 = 10_000;
const TTL: i64 = 86_400;

/// How long it takes until all have heard of a write; then how much memory everything takes, with many leases.
pub(crate) async fn run(server: &Server, clients: &[Client], values: &mut Values) -> Result<()> {
    let deliveries = Arc::new(Deliveries::default());
    let mut tasks = Vec::new();
    for client in clients.iter().cycle().take(WATCHERS as usize) {
        let mut client = client.clone();
        let stream = client.watch("fan/", Some(WatchOptions::new().with_prefix())).await?;
        tasks.push(tokio::spawn(listen(stream, deliveries.clone())));
    }
    let mut writer = server.client().await?;
    let mut times = Vec::new();
    let started = Instant::now();
    for number in 1..=WRITES {
        let sent = Instant::now();
        writer.put(format!("fan/{}", number % 16), VALUE, None).await?;
        deliveries.wait_for(number * WATCHERS).await?;
        times.push(sent.elapsed().as_secs_f64());
    }
    let elapsed = started.elapsed().as_secs_f64();
    values.note(Measure::FanOut, f64::from(WRITES * WATCHERS) / elapsed);
    let p99 = flan_integration::statistics::percentile(&times, 99).context("nothing was written")?;
    values.note(Measure::FanOutTime, p99 * 1e3);
    lease(clients).await?;
    // What was needed for a moment has a moment to be given back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    values.note(Measure::Memory, server.memory()?);
    for task in tasks {
        task.abort();
    }
    Ok(())
}

#[derive(Default)]
struct Deliveries {
    events: AtomicU32,
    more: Notify,
}

impl Deliveries {
    async fn wait_for(&self, events: u32) -> Result<()> {
        let all = async {
            loop {
                let more = self.more.notified();
                if self.events.load(Ordering::SeqCst) >= events {
                    return;
                }
                more.await;
            }
        };
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, all).await.with_context(|| {
            format!("after {limit:?}, {} events were heard of {events}", self.events.load(Ordering::SeqCst))
        })
    }
}

async fn listen(mut stream: WatchStream, deliveries: Arc<Deliveries>) {
    while let Ok(Some(response)) = stream.message().await {
        let events = u32::try_from(response.events().len()).unwrap_or(0);
        if deliveries.events.fetch_add(events, Ordering::SeqCst) % WATCHERS + events >= WATCHERS {
            deliveries.more.notify_waiters();
        }
    }
}

async fn lease(clients: &[Client]) -> Result<()> {
    spread(clients, LEASES, async |client: &mut Client, key| {
        let lease = client.lease_grant(TTL, None).await?.id();
        client.put(format!("leased/{key}"), VALUE, Some(PutOptions::new().with_lease(lease))).await?;
        Ok(())
    })
    .await
}
