//! `flanctl store check`: checks whether the store works, and whether these credentials permit all that the agent does.

mod report;

use std::time::Duration;

use flan_subnet_lease::{Endpoint, MemberStatus, Store, StoreConfig, StoreError, StoredConfig, Unanswered};
use futures::future::join_all;
use tokio::time::Instant;

use crate::args::ReportForm;
use crate::failure::{Failure, Kind};
use crate::output;
use crate::progress::told;
use report::CheckReport;

/// Time limit of one answer, the same as in agents.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// A slower store makes agents wait and warn.
pub(crate) const SLOW: Duration = Duration::from_secs(5);
/// Number of timed reads; fewer if they exceed [`READING`] in total.
const READS: usize = 5;
const READING: Duration = Duration::from_secs(1);
/// Lifetime of the trial etcd lease, in case it cannot be revoked.
const TRIAL: Duration = Duration::from_secs(60);

/// Asks every endpoint, then the store as a whole.
pub(crate) async fn check(config: StoreConfig, form: ReportForm) -> Result<(), Failure> {
    Store::new(config.clone())?; // refuses bad settings before asking
    let endpoints = config.shown_endpoints();
    let members = config.endpoints.iter().map(|endpoint| Member::ask(&config, endpoint));
    let members = told(|| format!("waiting for {endpoints}"), join_all(members)).await;
    let answering: Vec<Endpoint> =
        members.iter().filter(|member| member.serves()).map(|member| member.endpoint.clone()).collect();
    let needs = match answering.is_empty() {
        true => None,
        false => {
            let store = Store::new(StoreConfig { endpoints: answering, ..config.clone() })?;
            Some(told(|| format!("waiting for {}", store.endpoints()), Needs::ask(&store)).await)
        }
    };
    let refused = members.iter().any(|member| matches!(member.status, Err(StoreError::Unauthorised { .. })));
    let report = CheckReport::new(&config, &members, needs.as_ref());
    super::print(form, &report, || report.text())?;
    match report.failed() {
        0 => Ok(()),
        number => {
            let message =
                format!("{} failed: agents cannot rely on this store", output::count(number, "check"));
            // No endpoint answered.
            let kind = if needs.is_none() && !refused { Kind::Unreachable } else { Kind::Other };
            Err(Failure::new(kind, message))
        }
    }
}

/// The answers of one endpoint.
pub(crate) struct Member {
    pub(crate) endpoint: Endpoint,
    pub(crate) status: Result<MemberStatus, StoreError>,
    /// Median time of the reads; `None` if reading made no sense.
    pub(crate) read: Option<Result<Duration, StoreError>>,
    /// Time of its slowest answer.
    pub(crate) slowest: Duration,
}

impl Member {
    async fn ask(config: &StoreConfig, endpoint: &Endpoint) -> Self {
        let endpoint = endpoint.clone();
        let alone = StoreConfig { endpoints: vec![endpoint.clone()], ..config.clone() };
        let store = match Store::new(alone) {
            Ok(store) => store,
            Err(error) => return Self { endpoint, status: Err(error), read: None, slowest: Duration::ZERO },
        };
        let asked = Instant::now();
        let status = limited(&store, 1, store.status()).await;
        let told = Instant::now();
        let read = match status {
            Err(StoreError::Unreachable(_)) => None,
            Err(StoreError::Unauthorised { ref reason, .. }) if !reason.contains("permission denied") => None,
            _ => Some(limited(&store, 1, median_read(&store)).await),
        };
        let slowest = (told - asked).max(told.elapsed());
        Self { endpoint, status, read, slowest }
    }

    /// Returns whether it answers what agents ask, even with a refusal.
    pub(crate) fn serves(&self) -> bool {
        match &self.read {
            Some(Ok(_)) => true,
            Some(Err(error)) => matches!(error, StoreError::Unauthorised { .. } | StoreError::Refused { .. }),
            None => false,
        }
    }
}

/// The store's answers to everything that the agent does.
pub(crate) struct Needs {
    pub(crate) config: Result<Option<StoredConfig>, StoreError>,
    /// Number of leases.
    pub(crate) list: Result<u64, StoreError>,
    pub(crate) watch: Result<(), StoreError>,
    pub(crate) etcd_lease: Result<(), StoreError>,
    pub(crate) write: Result<(), StoreError>,
    /// Whether the store ignores our user.
    pub(crate) user_ignored: bool,
    /// Time for all answers.
    pub(crate) took: Duration,
}

impl Needs {
    async fn ask(store: &Store) -> Self {
        let (asked, leases) = (Instant::now(), store.leases());
        let (config, list, watch, etcd_lease, write) = futures::join!(
            limited(store, 1, store.config()),
            limited(store, 1, leases.count()),
            limited(store, 1, store.may_watch()),
            limited(store, 4, try_etcd_lease(store)),
            limited(store, 1, store.may_write()),
        );
        let user_ignored = *store.user_ignored().borrow();
        Self { config, list, watch, etcd_lease, write, user_ignored, took: asked.elapsed() }
    }
}

async fn median_read(store: &Store) -> Result<Duration, StoreError> {
    let mut times = Vec::new();
    let first = Instant::now();
    while times.is_empty() || (times.len() < READS && first.elapsed() < READING) {
        let start = Instant::now();
        store.config().await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Creates, renews and revokes an etcd lease, like the agent.
async fn try_etcd_lease(store: &Store) -> Result<(), StoreError> {
    let etcd_lease = store.grant(TRIAL).await?;
    let kept = store.keep_alive(etcd_lease).await;
    let timed = store.time_to_live(etcd_lease).await;
    store.revoke(etcd_lease).await?;
    kept.and(timed).map(|_| ())
}

async fn limited<T>(
    store: &Store,
    answers: u32,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let start = Instant::now();
    tokio::time::timeout(answers * ANSWER_LIMIT, answer).await.unwrap_or_else(|_| {
        let waited = start.elapsed().as_secs_f32();
        let reason = format!("no answer within {waited:.0} s");
        Err(StoreError::Unreachable(vec![Unanswered::silent(&store.endpoints(), reason)]))
    })
}
