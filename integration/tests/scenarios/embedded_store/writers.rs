//! Clients that write as fast as they are answered, and remember what was acknowledged.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, ConnectOptions, GetOptions};
use flan_integration::inside::Inside;
use flan_integration::{Lab, wait};

/// How long the acknowledgements may take that a story waits for, with a start of the store before.
const WRITES_LIMIT: Duration = Duration::from_secs(30);

/// How long one answer may take. A store that was killed answers never.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Until a client that was refused tries again.
const PAUSE: Duration = Duration::from_millis(2);

/// Writing clients on the underlay.
pub(super) struct Writers {
    inside: Inside,
    endpoints: Vec<String>,
    count: usize,
    account: Arc<Account>,
}

/// What all of them know.
#[derive(Default)]
struct Account {
    acknowledged: Mutex<Vec<Written>>,
    count: AtomicUsize,
    /// The newest revision that any of them was told.
    newest: AtomicI64,
    gone_back: Mutex<Vec<String>>,
    ended: AtomicBool,
    running: AtomicUsize,
}

/// A write that the store has acknowledged. No key is written twice.
struct Written {
    key: String,
    value: String,
    revision: i64,
}

impl Writers {
    /// Starts so many.
    pub(super) fn start(lab: &Lab, count: usize) -> Result<Writers> {
        let inside = Inside::of(lab.underlay())?;
        let endpoints: Vec<String> = lab.store().endpoints().split(',').map(str::to_owned).collect();
        let account = Arc::new(Account::default());
        account.running.store(count, Ordering::SeqCst);
        for number in 0..count {
            let (account, endpoints) = (Arc::clone(&account), endpoints.clone());
            inside.spawn(async move {
                write(number, &endpoints, &account).await;
                account.running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        Ok(Writers { inside, endpoints, count, account })
    }

    /// Waits until so many more writes are acknowledged.
    pub(super) fn wait_for_more(&self, count: usize) -> Result<()> {
        let acknowledged = &self.account.count;
        let wanted = acknowledged.load(Ordering::SeqCst) + count;
        wait::until(&format!("{count} writes more"), WRITES_LIMIT, || {
            let now = acknowledged.load(Ordering::SeqCst);
            ensure!(now >= wanted, "{now} of {wanted}");
            Ok(())
        })
    }

    /// Ends them, looks for every write that was acknowledged, and returns how many there are.
    pub(super) fn stop_and_find_all(self) -> Result<usize> {
        self.account.ended.store(true, Ordering::SeqCst);
        wait::until("the writers to end", WRITES_LIMIT, || {
            let running = self.account.running.load(Ordering::SeqCst);
            ensure!(running == 0, "{running} go on");
            Ok(())
        })?;
        let gone_back = self.account.gone_back.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(gone_back.is_empty(), "revisions went back: {gone_back:#?}");

        let mut held = Vec::new();
        for number in 0..self.count {
            held.extend(held_of(&self.inside, &self.endpoints, number)?);
        }
        let held: std::collections::HashMap<_, _> = held.into_iter().collect();
        let acknowledged = self.account.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|write| held.get(&write.key) != Some(&(write.value.clone(), write.revision)))
            .map(|write| format!("{} of revision {}: {:?}", write.key, write.revision, held.get(&write.key)))
            .collect();
        let (lost_count, count) = (lost.len(), acknowledged.len());
        ensure!(lost.is_empty(), "{lost_count} of {count} acknowledged writes are lost: {lost:#?}");
        Ok(count)
    }
}

async fn connect(endpoints: &[String]) -> Result<Client> {
    let options = ConnectOptions::new().with_timeout(ANSWER_LIMIT).with_connect_timeout(ANSWER_LIMIT);
    Client::connect(endpoints, Some(options)).await.context("cannot connect to the store")
}

async fn write(number: usize, endpoints: &[String], account: &Account) {
    let Ok(mut client) = connect(endpoints).await else { return };
    // Another key each time, also after a failure: what was not acknowledged may have been written or not.
    for attempt in 0.. {
        if account.ended.load(Ordering::SeqCst) {
            return;
        }
        let (key, value) = (format!("{}{attempt:08}", prefix_of(number)), format!("{number} {attempt}"));
        let newest = account.newest.load(Ordering::SeqCst);
        let answer = client.put(key.clone(), value.clone(), None).await;
        let Some(revision) = answer.ok().and_then(|answer| Some(answer.header()?.revision())) else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        if revision <= newest {
            let told = format!("{key} was written at {revision} after something at {newest}");
            account.gone_back.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        }
        account.newest.fetch_max(revision, Ordering::SeqCst);
        let mut acknowledged = account.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        acknowledged.push(Written { key, value, revision });
        account.count.store(acknowledged.len(), Ordering::SeqCst);
    }
}

/// What the store holds of a writer: key, value, revision.
fn held_of(inside: &Inside, endpoints: &[String], number: usize) -> Result<Vec<(String, (String, i64))>> {
    let endpoints = endpoints.to_vec();
    inside.run(WRITES_LIMIT, async move {
        let mut client = connect(&endpoints).await?;
        let held = client.get(prefix_of(number), Some(GetOptions::new().with_prefix())).await?;
        held.kvs()
            .iter()
            .map(|kv| Ok((kv.key_str()?.to_owned(), (kv.value_str()?.to_owned(), kv.mod_revision()))))
            .collect()
    })
}

fn prefix_of(number: usize) -> String {
    format!("/writers/{number}/")
}
