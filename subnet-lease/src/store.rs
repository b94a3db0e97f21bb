//! The store: the one file that speaks to etcd.
//!
//! Every request has a time limit and is tried once on each endpoint before it fails. A connection that failed is
//! dialled anew, with the certificate files read again. Writes are transactions that compare what the caller saw.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, GetResponse, Identity,
    KeyValue, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions, WatchStream,
};

use tokio::sync::watch;

use crate::store_config::{StoreConfig, read};
use crate::watch::Change;

/// A handle on the store. Clones share one connection.
#[derive(Clone)]
pub struct Store {
    config: Arc<StoreConfig>,
    connection: Arc<Mutex<Connection>>,
    /// Changes when all connections are to be given up.
    given_up: Arc<watch::Sender<()>>,
}

/// One key below `<prefix>/subnets/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last part of the key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Store revision at which the key was created.
    pub create_revision: i64,
    /// Store revision of the last write.
    pub mod_revision: i64,
    /// The etcd lease that keeps the key alive.
    pub etcd_lease: Option<i64>,
}

/// All keys below `<prefix>/subnets/` at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The entries, in the order of their keys.
    pub entries: Vec<Entry>,
    /// Store revision of the list.
    pub revision: i64,
    /// Which etcd cluster answered.
    pub cluster_id: u64,
}

/// The network config as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredConfig {
    /// The JSON.
    pub json: Vec<u8>,
    /// Store revision of the last write.
    pub mod_revision: i64,
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No endpoint answered.
    #[error("cannot reach etcd: {0}")]
    Unreachable(
        /// What each endpoint said.
        String,
    ),
    /// The store does not let us.
    #[error("etcd at {endpoint} refuses these credentials: {reason}")]
    Unauthorised {
        /// The endpoint that answered.
        endpoint: String,
        /// Its words.
        reason: String,
    },
    /// A certificate or key file cannot be used.
    #[error("cannot read {}: {source}", path.display())]
    CredentialFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A setting cannot work.
    #[error("{0}")]
    Setting(String),
    /// The etcd lease has expired or was revoked.
    #[error("etcd lease {0:x} no longer exists")]
    LeaseGone(i64),
    /// The store answered with an error.
    #[error("etcd at {endpoint}: {reason}")]
    Refused {
        /// The endpoint that answered.
        endpoint: String,
        /// Its words.
        reason: String,
    },
}

/// Why a watch ended that we gave up.
const GIVEN_UP: &str = "this host's own address has changed";
/// How long one request may take on one endpoint.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection may take to open.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A connection without a sign of life is asked for one after this, and given up when none comes in the same time.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Keys in the first page of a list: about 300 KB, far below the decoding limit of 4 MB.
const FIRST_PAGE: i64 = 1000;
/// Bytes of keys and values that the later pages are to have, by the size of those in the page before. Each page makes
/// etcd count all keys behind it, so there should be few.
const PAGE_BYTES: usize = 1 << 20;
/// No page has more keys, however small they are.
const MOST_IN_PAGE: i64 = 20_000;

impl Store {
    /// Checks the settings. Nothing is dialled before the first request.
    ///
    /// # Errors
    /// [`StoreError::Setting`] for endpoints or credentials that cannot work.
    pub fn new(config: StoreConfig) -> Result<Self, StoreError> {
        config.check()?;
        let next = rand::random_range(0..config.endpoints.len());
        Ok(Self {
            config: Arc::new(config),
            connection: Arc::new(Mutex::new(Connection { next, client: None })),
            given_up: Arc::new(watch::Sender::new(())),
        })
    }

    /// What all keys begin with.
    pub fn prefix(&self) -> &str {
        &self.config.prefix
    }

    /// All endpoints, for messages.
    pub fn endpoints(&self) -> String {
        self.config.endpoints.join(",")
    }

    /// Gives up all connections, as they come from an address that this host no longer has: nothing would answer on
    /// them. What is under way is asked again, and a watch ends.
    pub fn reconnect(&self) {
        self.lock().client = None;
        self.given_up.send_replace(());
    }

    /// The network config; `None` when nobody has written one.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn config(&self) -> Result<Option<StoredConfig>, StoreError> {
        let key = self.config_key();
        let response = self
            .call(|mut client: Client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await?;
        Ok(response
            .kvs()
            .first()
            .map(|kv| StoredConfig { json: kv.value().to_vec(), mod_revision: kv.mod_revision() }))
    }

    /// Writes the network config if it still is what the caller saw. Answers whether it was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn put_config(&self, json: &[u8], seen: Option<&StoredConfig>) -> Result<bool, StoreError> {
        let key = self.config_key();
        let put = TxnOp::put(key.as_str(), json, None);
        self.commit(&key, seen.map_or(0, |seen| seen.mod_revision), put)
            .await
            .map(|revision| revision.is_some())
    }

    /// Every lease, at one revision, read page by page.
    ///
    /// # Errors
    /// Any [`StoreError`], among them a compaction between two pages.
    pub async fn list(&self) -> Result<Listing, StoreError> {
        let prefix = self.subnets_prefix();
        let mut listing = Listing::default();
        let mut page = Page { from: prefix.clone().into_bytes(), limit: FIRST_PAGE, revision: 0 };
        let mut response = self.page(&mut page).await?;
        if let Some(header) = response.header() {
            (listing.revision, listing.cluster_id) = (header.revision(), header.cluster_id());
        }
        page.revision = listing.revision;
        loop {
            let more = response.more();
            let found = response.take_kvs();
            let Some(last) = found.last().filter(|_| more) else {
                listing.entries.extend(found.into_iter().filter_map(|kv| entry(&prefix, kv)));
                return Ok(listing);
            };
            page.from = [last.key(), &[0]].concat();
            let bytes: usize = found.iter().map(|kv| kv.key().len() + kv.value().len()).sum();
            let fitting = PAGE_BYTES.saturating_mul(found.len()) / bytes.max(1);
            page.limit = i64::try_from(fitting).unwrap_or(i64::MAX).clamp(1, MOST_IN_PAGE);
            // The store gathers the next page while this one is taken apart.
            let (next, ()) = tokio::join!(biased; self.page(&mut page), async {
                listing.entries.extend(found.into_iter().filter_map(|kv| entry(&prefix, kv)));
            });
            response = next?;
        }
    }

    /// One lease; `None` when there is no such key.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let path = self.subnet_key(key);
        let mut response = self
            .call(|mut client: Client| {
                let path = path.clone();
                async move { client.get(path, None).await }
            })
            .await?;
        Ok(response.take_kvs().into_iter().next().and_then(|kv| entry(&self.subnets_prefix(), kv)))
    }

    /// Writes one lease if its last write still is the one at `seen`; 0 stands for "there is no such key".
    /// Answers the revision of the write, or `None` when another came first.
    ///
    /// # Errors
    /// Any [`StoreError`]. After [`StoreError::Unreachable`] the write may have happened all the same.
    pub async fn put(
        &self,
        key: &str,
        value: &[u8],
        etcd_lease: Option<i64>,
        seen: i64,
    ) -> Result<Option<i64>, StoreError> {
        let path = self.subnet_key(key);
        let options = etcd_lease.map(|lease| PutOptions::new().with_lease(lease));
        let put = TxnOp::put(path.as_str(), value, options);
        self.commit(&path, seen, put).await
    }

    /// Deletes one lease if its last write still is the one at `seen`. Answers whether it was.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn delete(&self, key: &str, seen: i64) -> Result<bool, StoreError> {
        let path = self.subnet_key(key);
        self.commit(&path, seen, TxnOp::delete(path.as_str(), None)).await.map(|revision| revision.is_some())
    }

    /// Makes an etcd lease that lasts `ttl`, in whole seconds.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn grant(&self, ttl: Duration) -> Result<i64, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let response =
            self.call(|mut client: Client| async move { client.lease_grant(seconds, None).await }).await?;
        Ok(response.id())
    }

    /// Ends an etcd lease, and deletes what it kept alive.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn revoke(&self, etcd_lease: i64) -> Result<(), StoreError> {
        self.call(|mut client: Client| async move { client.lease_revoke(etcd_lease).await.map(|_| ()) }).await
    }

    /// Sets an etcd lease back to its full time.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`] when it has expired, or any other.
    pub async fn keep_alive(&self, etcd_lease: i64) -> Result<(), StoreError> {
        let result = self
            .call(|mut client: Client| async move { client.lease_keep_alive(etcd_lease).await.map(|_| ()) })
            .await;
        match result {
            Err(StoreError::Refused { reason, .. }) if reason.contains("lease not found") => {
                Err(StoreError::LeaseGone(etcd_lease))
            }
            other => other,
        }
    }

    /// How long an etcd lease still lasts, and how long it lasted when it was granted.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`] when it has expired, or any other.
    pub async fn time_to_live(&self, etcd_lease: i64) -> Result<(Duration, Duration), StoreError> {
        let response = self
            .call(|mut client: Client| async move { client.lease_time_to_live(etcd_lease, None).await })
            .await?;
        match (u64::try_from(response.ttl()), u64::try_from(response.granted_ttl())) {
            (Ok(left), Ok(granted)) => Ok((Duration::from_secs(left), Duration::from_secs(granted))),
            _ => Err(StoreError::LeaseGone(etcd_lease)),
        }
    }

    /// Opens a watch on all leases, from `revision` on.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub(crate) async fn watch(&self, revision: i64) -> Result<Watch, StoreError> {
        let given_up = self.given_up.subscribe();
        let prefix = self.subnets_prefix();
        let stream = self
            .call(|mut client: Client| {
                let options = WatchOptions::new().with_prefix().with_start_revision(revision);
                let prefix = prefix.clone();
                async move { client.watch(prefix, Some(options)).await }
            })
            .await?;
        Ok(Watch { stream, prefix, given_up })
    }

    fn config_key(&self) -> String {
        format!("{}/config", self.config.prefix)
    }

    fn subnets_prefix(&self) -> String {
        format!("{}/subnets/", self.config.prefix)
    }

    fn subnet_key(&self, key: &str) -> String {
        format!("{}{key}", self.subnets_prefix())
    }

    /// One page of the list, of fewer keys where they are too large.
    async fn page(&self, page: &mut Page) -> Result<GetResponse, StoreError> {
        let end = prefix_end(&self.subnets_prefix());
        loop {
            let response = self
                .call(|mut client: Client| {
                    let options = GetOptions::new()
                        .with_range(end.clone())
                        .with_limit(page.limit)
                        .with_revision(page.revision);
                    let from = page.from.clone();
                    async move { client.get(from, Some(options)).await }
                })
                .await;
            match response {
                // Values that no agent wrote may be as large as etcd allows, 1.5 MB; one of them always fits.
                Err(StoreError::Refused { reason, .. })
                    if page.limit > 1 && reason.contains("message length too large") =>
                {
                    page.limit = (page.limit / 8).max(1);
                }
                response => return response,
            }
        }
    }

    async fn commit(&self, key: &str, seen: i64, operation: TxnOp) -> Result<Option<i64>, StoreError> {
        let transaction =
            Txn::new().when([Compare::mod_revision(key, CompareOp::Equal, seen)]).and_then([operation]);
        let response = self
            .call(|mut client: Client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            })
            .await?;
        Ok(response.header().filter(|_| response.succeeded()).map(etcd_client::ResponseHeader::revision))
    }

    /// Runs one request, on one endpoint after the other until one answers.
    async fn call<T, R>(&self, request: impl Fn(Client) -> R) -> Result<T, StoreError>
    where
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut reasons = Vec::new();
        while reasons.len() < self.config.endpoints.len() {
            let mut given_up = self.given_up.subscribe();
            let (index, client) = self.client();
            let endpoint = &self.config.endpoints[index];
            let attempt = async {
                let client = match client {
                    Some(client) => client,
                    None => self.dial(index).await?,
                };
                request(client).await.map_err(|error| failure(endpoint, &error))
            };
            let outcome = tokio::select! {
                outcome = tokio::time::timeout(REQUEST_LIMIT, attempt) => outcome,
                _ = given_up.changed() => continue,
            };
            match outcome {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failure::Answered(error))) => {
                    // A new connection asks for a new token, should ours have expired.
                    if matches!(error, StoreError::Unauthorised { .. }) {
                        self.drop_client(index);
                    }
                    return Err(error);
                }
                Ok(Err(Failure::Unanswered(why))) => {
                    reasons.push(format!("{endpoint}: {why}{}", self.config.hint(endpoint, &why)));
                }
                Err(_) => reasons.push(format!("{endpoint}: no answer within {} s", REQUEST_LIMIT.as_secs())),
            }
            self.drop_client(index);
        }
        Err(StoreError::Unreachable(reasons.join("; ")))
    }

    fn client(&self) -> (usize, Option<Client>) {
        let connection = self.lock();
        (connection.next, connection.client.clone())
    }

    /// Gives up the connection to one endpoint, and turns to the next.
    fn drop_client(&self, index: usize) {
        let mut connection = self.lock();
        if connection.next == index {
            *connection = Connection { next: (index + 1) % self.config.endpoints.len(), client: None };
        }
    }

    async fn dial(&self, index: usize) -> Result<Client, Failure> {
        let endpoint = &self.config.endpoints[index];
        let options = self.config.options(endpoint).map_err(Failure::Answered)?;
        let client =
            Client::connect([endpoint], Some(options)).await.map_err(|error| failure(endpoint, &error))?;
        let mut connection = self.lock();
        if connection.next == index {
            connection.client = Some(client.clone());
        }
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A watch on all leases.
pub(crate) struct Watch {
    stream: WatchStream,
    prefix: String,
    given_up: watch::Receiver<()>,
}

/// What a watch said.
pub(crate) enum WatchMessage {
    /// Leases changed; empty when the store only gave a sign of life.
    Changes(Vec<Change>),
    /// The watch is over, with the reason.
    Ended(String),
}

impl Watch {
    /// The next message. Cancel-safe.
    pub(crate) async fn message(&mut self) -> WatchMessage {
        let message = tokio::select! {
            message = self.stream.message() => message,
            _ = self.given_up.changed() => return WatchMessage::Ended(GIVEN_UP.to_owned()),
        };
        match message {
            Ok(Some(response)) if response.canceled() => {
                let compacted = response.compact_revision();
                WatchMessage::Ended(match response.cancel_reason() {
                    _ if compacted > 0 => format!("the history before revision {compacted} was compacted"),
                    "" => "the store cancelled the watch".to_owned(),
                    reason => reason.to_owned(),
                })
            }
            Ok(Some(response)) => {
                let change = |event: &etcd_client::Event| {
                    let entry = entry(&self.prefix, event.kv()?.clone())?;
                    Some(match event.event_type() {
                        EventType::Put => Change::Put(entry),
                        EventType::Delete => Change::Delete { key: entry.key },
                    })
                };
                WatchMessage::Changes(response.events().iter().filter_map(change).collect())
            }
            Ok(None) => WatchMessage::Ended("the store closed the watch".to_owned()),
            Err(error) => WatchMessage::Ended(plain(&error)),
        }
    }

    /// Asks for a sign of life.
    pub(crate) async fn probe(&mut self) {
        // A failure shows as the end of the stream.
        let _ = self.stream.request_progress().await;
    }
}

/// Which keys to ask for.
struct Page {
    from: Vec<u8>,
    limit: i64,
    /// 0 for the present.
    revision: i64,
}

struct Connection {
    /// Index of the endpoint in use.
    next: usize,
    client: Option<Client>,
}

/// Why a request failed on one endpoint.
enum Failure {
    /// Another endpoint may answer.
    Unanswered(String),
    /// This is the answer, and any other endpoint's would be the same.
    Answered(StoreError),
}

impl StoreConfig {
    /// What may be behind a connection that the other side just ends.
    fn hint(&self, endpoint: &str, reason: &str) -> &'static str {
        if !["connection closed", "broken pipe", "connection reset"].iter().any(|end| reason.contains(end)) {
            ""
        } else if endpoint.starts_with("http://") {
            " (does it speak TLS? then give https://)"
        } else if self.credentials.cert_file.is_none() {
            " (does it demand a client certificate? then give --etcd-certfile and --etcd-keyfile)"
        } else {
            ""
        }
    }

    fn options(&self, endpoint: &str) -> Result<ConnectOptions, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_LIMIT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((name, password)) = &self.credentials.user {
            options = options.with_user(name, password);
        }
        if endpoint.starts_with("https://") {
            let mut tls = match &self.credentials.ca_file {
                Some(path) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(path)?)),
                None => TlsOptions::new().with_native_roots(),
            };
            if let (Some(cert), Some(key)) = (&self.credentials.cert_file, &self.credentials.key_file) {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }
}

fn entry(prefix: &str, kv: KeyValue) -> Option<Entry> {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let etcd_lease = Some(kv.lease()).filter(|lease| *lease != 0);
    let (key, value) = kv.into_key_value();
    let key = String::from_utf8_lossy(key.strip_prefix(prefix.as_bytes())?).into_owned();
    Some(Entry { key, value, create_revision, mod_revision, etcd_lease })
}

/// The first key after all keys with the prefix, which ends with `/`.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Sorts an error of the client: did the store answer, and did it refuse who we are?
fn failure(endpoint: &str, error: &etcd_client::Error) -> Failure {
    let (endpoint, reason) = (endpoint.to_owned(), plain(error));
    let etcd_client::Error::GRpcStatus(status) = error else {
        return match error {
            etcd_client::Error::LeaseKeepAliveError(_) => {
                Failure::Answered(StoreError::Refused { endpoint, reason })
            }
            _ => Failure::Unanswered(reason),
        };
    };
    // The codes of gRPC: 3 invalid argument, 7 permission denied, 9 failed precondition, 16 unauthenticated;
    // 1 cancelled, 2 unknown, 4 deadline exceeded, 13 internal (a connection that ended), 14 unavailable.
    let about_us = ["user name is empty", "authentication", "auth store is old"];
    match status.code() as i32 {
        7 | 16 => Failure::Answered(StoreError::Unauthorised { endpoint, reason }),
        3 | 9 if about_us.iter().any(|words| reason.contains(words)) => {
            Failure::Answered(StoreError::Unauthorised { endpoint, reason })
        }
        1 | 2 | 4 | 13 | 14 => Failure::Unanswered(reason),
        _ => Failure::Answered(StoreError::Refused { endpoint, reason }),
    }
}

/// The innermost reason of an error, without the library's wrapping.
fn plain(error: &etcd_client::Error) -> String {
    let mut source: Option<&dyn std::error::Error> = match error {
        etcd_client::Error::GRpcStatus(status) => std::error::Error::source(status),
        etcd_client::Error::TransportError(error) => Some(error),
        _ => None,
    };
    let mut text = match error {
        etcd_client::Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    match text.as_str() {
        "deadline has elapsed" => format!("no connection within {} s", CONNECT_LIMIT.as_secs()),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store_config::Credentials;

    #[tokio::test]
    async fn a_store_that_is_not_there_is_named_with_the_reason() {
        // Port 9 of loopback: nobody listens on discard any more.
        let store = Store::new(StoreConfig {
            endpoints: vec!["http://127.0.0.1:9".to_owned()],
            prefix: "/coreos.com/network".to_owned(),
            credentials: Credentials::default(),
        })
        .unwrap();
        let error = store.config().await.unwrap_err().to_string();
        assert!(error.starts_with("cannot reach etcd: http://127.0.0.1:9: "), "{error}");
        assert!(error.contains("refused"), "{error}");
    }
}
