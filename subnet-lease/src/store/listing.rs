//! All leases at one revision, read page by page.

use etcd_client::{Client, GetOptions, GetResponse, KeyValue};

use super::{Store, StoreError, StoredConfig};

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

/// All that the store holds of a network, at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The network config; `None` when nobody has written one.
    pub config: Option<StoredConfig>,
    /// Every lease.
    pub leases: Listing,
}

/// Keys in the first page of a list: about 300 KB, far below the decoding limit of 4 MB.
const FIRST_PAGE: i64 = 1000;
/// Bytes of keys and values that the later pages are to have, by the size of those in the page before. Each page makes
/// etcd count all keys behind it, so there should be few.
const PAGE_BYTES: usize = 1 << 20;
/// No page has more keys, however small they are.
const MOST_IN_PAGE: i64 = 20_000;

impl Store {
    /// The network config and every lease, at one revision.
    ///
    /// # Errors
    /// Any [`StoreError`], among them a compaction between two requests.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let leases = self.list().await?;
        let config = self.config_at(leases.revision).await?;
        Ok(Snapshot { config, leases })
    }

    /// How many leases there are.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn count(&self) -> Result<u64, StoreError> {
        let prefix = self.subnets_prefix();
        let response = self
            .call(|mut client: Client| {
                let options = GetOptions::new().with_range(prefix_end(&prefix)).with_count_only();
                let from = prefix.clone();
                async move { client.get(from, Some(options)).await }
            })
            .await?;
        Ok(u64::try_from(response.count()).unwrap_or_default())
    }

    /// Every lease, at one revision, read page by page.
    ///
    /// # Errors
    /// Any [`StoreError`], among them a compaction between two pages.
    pub async fn list(&self) -> Result<Listing, StoreError> {
        self.list_below(&self.subnets_prefix()).await
    }

    /// Every key below a prefix, which ends with `/`, at one revision, read page by page.
    pub(super) async fn list_below(&self, prefix: &str) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        let (from, end) = (prefix.as_bytes().to_vec(), prefix_end(prefix));
        let mut page = Page { from, end, limit: FIRST_PAGE, revision: 0 };
        let mut response = self.page(&mut page).await?;
        if let Some(header) = response.header() {
            (listing.revision, listing.cluster_id) = (header.revision(), header.cluster_id());
        }
        page.revision = listing.revision;
        loop {
            let more = response.more();
            let found = response.take_kvs();
            let Some(last) = found.last().filter(|_| more) else {
                listing.entries.extend(found.into_iter().filter_map(|kv| entry(prefix, kv)));
                return Ok(listing);
            };
            page.from = [last.key(), &[0]].concat();
            let bytes: usize = found.iter().map(|kv| kv.key().len() + kv.value().len()).sum();
            let fitting = PAGE_BYTES.saturating_mul(found.len()) / bytes.max(1);
            page.limit = i64::try_from(fitting).unwrap_or(i64::MAX).clamp(1, MOST_IN_PAGE);
            // The store gathers the next page while this one is taken apart.
            let (next, ()) = tokio::join!(biased; self.page(&mut page), async {
                listing.entries.extend(found.into_iter().filter_map(|kv| entry(prefix, kv)));
            });
            response = next?;
        }
    }

    /// One page of the list, of fewer keys where they are too large.
    async fn page(&self, page: &mut Page) -> Result<GetResponse, StoreError> {
        loop {
            let response = self
                .call(|mut client: Client| {
                    let options = GetOptions::new()
                        .with_range(page.end.clone())
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
}

/// Which keys to ask for.
struct Page {
    from: Vec<u8>,
    /// The first key behind them.
    end: Vec<u8>,
    limit: i64,
    /// 0 for the present.
    revision: i64,
}

pub(super) fn entry(prefix: &str, kv: KeyValue) -> Option<Entry> {
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
