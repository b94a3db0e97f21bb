//! All of a collection at one revision, page by page.

use etcd_client::{Client, GetOptions, GetResponse};

use super::collection::{Collection, entry};
use super::error::StoreError;
use super::limits::ANY_SIZE;
use crate::stored::{Listing, Stored, read};

/// Keys in the first page of a list: about 300 KB.
const FIRST_PAGE: i64 = 1000;
/// A page of several keys that has more bytes than this is not read, but asked for again with fewer keys.
const MOST_BYTES_IN_PAGE: usize = 4 << 20;
/// Bytes of keys and values that the later pages are to have, by the size of those in the page before. Each page makes
/// etcd count all keys behind it, so there should be few.
const PAGE_BYTES: usize = 1 << 20;
/// No page has more keys, however small they are.
const MOST_IN_PAGE: i64 = 20_000;

impl<T: Stored> Collection<T> {
    /// How many keys there are.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn count(&self) -> Result<u64, StoreError> {
        let response = self
            .store
            .call(|mut client: Client| {
                let options = GetOptions::new().with_range(prefix_end(&self.prefix)).with_count_only();
                let from = self.prefix.clone();
                async move { client.get(from, Some(options)).await }
            })
            .await?;
        Ok(u64::try_from(response.count()).unwrap_or_default())
    }

    /// All of them, at one revision.
    ///
    /// # Errors
    /// Any [`StoreError`], among them a compaction between two pages.
    pub async fn list(&self) -> Result<Listing<T>, StoreError> {
        let mut listing = Listing { items: Vec::new(), revision: 0, cluster_id: 0 };
        let (from, end) = (self.prefix.as_bytes().to_vec(), prefix_end(&self.prefix));
        let mut page = Page { from, end, limit: FIRST_PAGE, most: MOST_IN_PAGE, revision: 0 };
        let mut response = self.page(&mut page).await?;
        if let Some(header) = response.header() {
            (listing.revision, listing.cluster_id) = (header.revision(), header.cluster_id());
        }
        page.revision = listing.revision;
        let item = |kv| entry(&self.prefix, kv).map(read);
        loop {
            let more = response.more();
            let found = response.take_kvs();
            let Some(last) = found.last().filter(|_| more) else {
                listing.items.extend(found.into_iter().filter_map(item));
                return Ok(listing);
            };
            page.from = [last.key(), &[0]].concat();
            page.was_read(found.len(), found.iter().map(|kv| kv.key().len() + kv.value().len()).sum());
            // The store gathers the next page while this one is read.
            let (next, ()) = tokio::join!(biased; self.page(&mut page), async {
                listing.items.extend(found.into_iter().filter_map(item));
            });
            response = next?;
        }
    }

    /// One page of the list, of fewer keys where they are too large.
    async fn page(&self, page: &mut Page) -> Result<GetResponse, StoreError> {
        loop {
            let response = self
                .store
                .call(|client: Client| {
                    let options = GetOptions::new()
                        .with_range(page.end.clone())
                        .with_limit(page.limit)
                        .with_revision(page.revision);
                    let from = page.from.clone();
                    let most_bytes = page.most_bytes();
                    let mut client = client.kv_client().max_decoding_message_size(most_bytes);
                    async move { client.get(from, Some(options)).await }
                })
                .await;
            match response {
                // Values that no agent wrote may be as large as etcd allows.
                Err(StoreError::Refused { reason, .. })
                    if page.limit > 1 && reason.contains("message length too large") =>
                {
                    page.was_too_large();
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
    /// What the limit may be next.
    most: i64,
    /// 0 for the present.
    revision: i64,
}

impl Page {
    /// Bytes that it may have. One key is taken whatever its size.
    fn most_bytes(&self) -> usize {
        if self.limit > 1 { MOST_BYTES_IN_PAGE } else { ANY_SIZE }
    }

    /// The next one has as many keys as fit, if they are as large as those that were read.
    fn was_read(&mut self, keys: usize, bytes: usize) {
        let fitting = PAGE_BYTES.saturating_mul(keys) / bytes.max(1);
        self.limit = i64::try_from(fitting).unwrap_or(i64::MAX).clamp(1, self.most);
        self.most = self.most.saturating_mul(2).min(MOST_IN_PAGE);
    }

    /// The next try has fewer keys. From there the pages grow step by step: where one key is large, others are, and a page
    /// that is too large costs the store as much as one that is not.
    fn was_too_large(&mut self) {
        self.limit = (self.limit / 8).max(1);
        self.most = self.limit * 2;
    }
}

/// The first key after all keys with the prefix, which ends with `/`.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists keys of these sizes in bytes. Answers how many pages were read, and how many were too large.
    fn list(sizes: &[usize]) -> (usize, usize) {
        let mut page = Page { from: vec![], end: vec![], limit: FIRST_PAGE, most: MOST_IN_PAGE, revision: 0 };
        let (mut at, mut read, mut too_large) = (0, 0, 0);
        while at < sizes.len() {
            let end = sizes.len().min(at + usize::try_from(page.limit).unwrap());
            let bytes: usize = sizes[at..end].iter().sum();
            if bytes > page.most_bytes() {
                page.was_too_large();
                too_large += 1;
                continue;
            }
            page.was_read(end - at, bytes);
            (at, read) = (end, read + 1);
        }
        (read, too_large)
    }

    #[test]
    fn pages_get_by_whatever_stands_between_the_leases() {
        let (lease, megabyte) = (300, 1_048_576);
        assert_eq!(list(&[lease; 50_000]), (16, 0));
        // One by one, after few tries that were too large.
        let before: Vec<usize> = [[lease; 2_000].as_slice(), &[megabyte; 60], &[lease; 2_000]].concat();
        let (read, too_large) = list(&before);
        assert!(read < 90 && too_large < 10, "{read} pages, {too_large} too large");
        let between: Vec<usize> = [[lease; 100].as_slice(), &[megabyte]].concat().repeat(60);
        let (read, too_large) = list(&between);
        assert!(read < 200 && too_large < 40, "{read} pages, {too_large} too large");
        // Of an etcd that was told to take more.
        assert_eq!(list(&[40 * megabyte; 3]).0, 3);
    }
}
