//! The connection to the store, and how requests are made.
//!
//! Every request has a time limit, and is tried once on each endpoint before it fails. Repeatable requests are retried
//! once when a connection breaks. The last endpoint gets more time, and so does every endpoint while the store is slow.
//! A failed connection is dialled again, with the certificate files read again. Writes are transactions that compare
//! what the caller saw.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Identity, TlsOptions, Txn, TxnOp,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::error::Elapsed;
use tracing::warn;

use super::error::{Cause, StoreError, Unanswered};
use super::failure::{Failure, failure};
use super::figures::StoreFigures;
use super::limits::{CONNECT_LIMIT, KEEP_ALIVE, LONGEST_LIMIT, REQUEST_LIMIT};
use crate::endpoint::Endpoint;
use crate::store_config::StoreConfig;

/// A handle to the store. Clones share one connection.
#[derive(Clone)]
pub struct Store {
    pub(super) config: Arc<StoreConfig>,
    /// The prefix of all keys.
    pub(super) prefix: Arc<str>,
    connection: Arc<Mutex<Connection>>,
    /// Changes to make all connections be given up.
    pub(super) given_up: Arc<watch::Sender<()>>,
    /// Whether the store ignored our user at the last login.
    pub(super) user_ignored: Arc<watch::Sender<bool>>,
    figures: StoreFigures,
}

impl Store {
    /// Checks the settings. Dials nothing before the first request.
    ///
    /// # Errors
    /// [`StoreError::Setting`] for endpoints or credentials that cannot work, [`StoreError::CredentialFile`] for a
    /// certificate or key that cannot. Logs what may keep the store from accepting them.
    pub fn new(config: StoreConfig) -> Result<Self, StoreError> {
        for doubt in config.check(SystemTime::now())? {
            warn!("{doubt}");
        }
        let next = rand::random_range(0..config.endpoints.len());
        Ok(Self {
            prefix: config.prefix.as_str().into(),
            config: Arc::new(config),
            connection: Arc::new(Mutex::new(Connection { next, client: None, patience: REQUEST_LIMIT })),
            given_up: Arc::new(watch::Sender::new(())),
            user_ignored: Arc::new(watch::Sender::new(false)),
            figures: StoreFigures::default(),
        })
    }

    /// Returns the prefix of all keys.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns what was counted, together with all clones.
    pub fn figures(&self) -> &StoreFigures {
        &self.figures
    }

    /// Returns all endpoints, for messages.
    pub fn endpoints(&self) -> String {
        self.config.shown_endpoints()
    }

    /// Gives up all connections after this host lost their source address: nothing would answer on them. Retries
    /// requests in progress, and ends watches.
    pub fn reconnect(&self) {
        self.lock().client = None;
        self.given_up.send_replace(());
    }

    /// Carries out all operations in one revision, which it returns, if their conditions hold.
    pub(super) async fn commit(
        &self,
        provided: Vec<Compare>,
        operations: Vec<TxnOp>,
    ) -> Result<Option<i64>, StoreError> {
        let transaction = Txn::new().when(provided).and_then(operations);
        let response = self
            .attempt(false, |mut client: Client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            })
            .await?;
        Ok(response.header().filter(|_| response.succeeded()).map(etcd_client::ResponseHeader::revision))
    }

    /// Runs a repeatable request on one endpoint after another until one answers.
    pub(super) async fn call<T, R>(&self, request: impl Fn(Client) -> R) -> Result<T, StoreError>
    where
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.attempt(true, request).await
    }

    /// Runs a request as [`Store::call`] does. With a second chance it is repeated once when a connection breaks: that
    /// says nothing about the endpoint, and the next connection may hold. A rejected token is replaced once: since we
    /// got it, authentication may have been enabled, or a user changed.
    pub(super) async fn attempt<T, R>(
        &self,
        has_second_chance: bool,
        request: impl Fn(Client) -> R,
    ) -> Result<T, StoreError>
    where
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let began = Instant::now();
        // Large, and many tasks wait for long between two requests: only a request in progress takes the room.
        let outcome = Box::pin(self.try_endpoints(has_second_chance, request)).await;
        self.figures.count(began.elapsed(), outcome.is_ok());
        outcome
    }

    async fn try_endpoints<T, R>(
        &self,
        mut has_second_chance: bool,
        request: impl Fn(Client) -> R,
    ) -> Result<T, StoreError>
    where
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut unanswered = Vec::new();
        let mut may_renew = self.config.credentials.user.is_some();
        while unanswered.len() < self.config.endpoints.len() {
            let mut given_up = self.given_up.subscribe();
            let (index, client) = self.client();
            let was_open = client.is_some();
            let endpoint = &self.config.endpoints[index];
            let attempt = async {
                let client = match client {
                    Some(client) => client,
                    None => self.dial(index).await?,
                };
                request(client).await.map_err(|error| self.failure(endpoint, &error))
            };
            let is_last = unanswered.len() + 1 == self.config.endpoints.len();
            let limit = if is_last { LONGEST_LIMIT } else { self.patience() };
            let start = Instant::now();
            let outcome = tokio::select! {
                outcome = within(limit, endpoint, attempt) => outcome,
                _ = given_up.changed() => continue,
            };
            match outcome {
                Ok(Ok(answer)) => {
                    self.lock().patience = patience_after(start.elapsed());
                    return Ok(answer);
                }
                Ok(Err(Failure::Answered(error))) => return Err(error),
                Ok(Err(Failure::Token(error))) => {
                    // A new connection requests a new token. If this was one, another would not help.
                    self.drop_client(index);
                    if was_open && std::mem::take(&mut may_renew) {
                        continue;
                    }
                    return Err(error);
                }
                Ok(Err(Failure::Unanswered(why))) if why.cause == Cause::Ended && has_second_chance => {
                    has_second_chance = false;
                }
                Ok(Err(Failure::Unanswered(why))) => {
                    unanswered.push(why.explained(&self.config.credentials).await);
                }
                Err(_) => {
                    let reason = format!("no answer within {} s", limit.as_secs());
                    unanswered.push(Unanswered::silent(endpoint, reason));
                }
            }
            self.drop_client(index);
        }
        Err(StoreError::Unreachable(unanswered))
    }

    /// Returns how long to wait for the store, given its last answer.
    pub(crate) fn patience(&self) -> Duration {
        self.lock().patience
    }

    fn client(&self) -> (usize, Option<Client>) {
        let connection = self.lock();
        (connection.next, connection.client.clone())
    }

    /// Drops the connection to one endpoint, and moves on to the next.
    fn drop_client(&self, index: usize) {
        let mut connection = self.lock();
        if connection.next == index {
            connection.next = (index + 1) % self.config.endpoints.len();
            connection.client = None;
        }
    }

    async fn dial(&self, index: usize) -> Result<Client, Failure> {
        let endpoint = &self.config.endpoints[index];
        let options = self.config.options(endpoint).map_err(Failure::Answered)?;
        let mut client = Client::connect([&**endpoint], Some(options))
            .await
            .map_err(|error| self.failure(endpoint, &error))?;
        self.log_in(&mut client).await.map_err(|error| self.failure(endpoint, &error))?;
        let mut connection = self.lock();
        if connection.next == index {
            connection.client = Some(client.clone());
        }
        Ok(client)
    }

    fn failure(&self, endpoint: &str, error: &etcd_client::Error) -> Failure {
        failure(endpoint, error, &self.config.credentials)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Compares the last write of a key with `seen`; 0 means that the key does not exist.
pub(super) fn unchanged(key: &str, seen: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, seen)
}

/// Waits for an answer, and logs if that takes long.
async fn within<T>(limit: Duration, endpoint: &str, answer: impl Future<Output = T>) -> Result<T, Elapsed> {
    let deadline = Instant::now() + limit;
    let mut answer = std::pin::pin!(answer);
    if limit > REQUEST_LIMIT {
        if let Ok(answer) = tokio::time::timeout(REQUEST_LIMIT, &mut answer).await {
            return Ok(answer);
        }
        let (waited, limit) = (REQUEST_LIMIT.as_secs(), limit.as_secs());
        warn!(endpoint, "the store is slow: no answer within {waited} s; waiting for up to {limit} s");
    }
    tokio::time::timeout_at(deadline, answer).await
}

/// Returns how long to wait after an answer that took this long.
fn patience_after(answer: Duration) -> Duration {
    (2 * answer).clamp(REQUEST_LIMIT, LONGEST_LIMIT)
}

struct Connection {
    next: usize,
    client: Option<Client>,
    /// How long to wait for an answer before asking another endpoint.
    patience: Duration,
}

impl StoreConfig {
    fn options(&self, endpoint: &Endpoint) -> Result<ConnectOptions, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_LIMIT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if endpoint.is_tls() {
            let now = SystemTime::now();
            let mut tls = match self.credentials.authorities(now)? {
                Some(authorities) => TlsOptions::new().ca_certificate(Certificate::from_pem(authorities.pem)),
                None => TlsOptions::new().with_native_roots(),
            };
            if let Some(identity) = self.credentials.identity(now)? {
                tls = tls.identity(Identity::from_pem(identity.certificate, identity.key));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store_config::Credentials;

    #[test]
    fn a_slow_store_is_given_twice_the_time_that_it_took_and_a_fast_one_no_more() {
        let patience = |millis| patience_after(Duration::from_millis(millis)).as_secs();
        assert_eq!([2, 2_500, 10_000, 29_000].map(patience), [5, 5, 20, 30]);
    }

    #[tokio::test]
    async fn a_store_that_is_not_there_is_named_with_the_reason() {
        // Port 9 of loopback: nobody runs the discard service any more.
        let store = Store::new(StoreConfig {
            endpoints: vec!["http://127.0.0.1:9".parse().unwrap()],
            prefix: "/coreos.com/network".to_owned(),
            credentials: Credentials::default(),
        })
        .unwrap();
        let error = store.config().await.unwrap_err().to_string();
        assert!(error.starts_with("cannot reach the store at http://127.0.0.1:9: "), "{error}");
        assert!(error.contains("refused"), "{error}");
    }
}
