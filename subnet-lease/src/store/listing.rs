//! Lists a whole collection at one revision, page by page.

use etcd_client::{Client, GetOptions, GetResponse};

use super::collection::{Collection, entry};
use super::error::StoreError;
use super::limits::ANY_SIZE;
use crate::stored::{Listing, Stored, read};

/// Keys in the first page: about 300 KB.
const FIRST_PAGE: i64 = 1000;
/// A page of several keys larger than this is not read, but requested again with fewer keys.
const MOST_BYTES_IN_PAGE: usize = 4 << 20;
/// Target bytes of the later pages, judged by the keys of the page before. Each page makes etcd count all keys after
/// it, so there should be few.
const PAGE_BYTES: usize = 1 << 20;
/// Most keys in a page, however small they are.
const MOST_IN_PAGE: i64 = 20_000;

impl<T: Stored> Collection<T> {
    /// Returns the number of keys.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub async fn count(&self) -> Result<u64, StoreError> {
        let response = self
            .store
            .call(|mut client: Client| {
                let options = GetOptions::new().with_range(self.end.clone()).with_count_only();
                let from = self.prefix.clone();
                async move { client.get(from, Some(options)).await }
            })
            .await?;
        Ok(u64::try_from(response.count()).unwrap_or_default())
    }

    /// Returns all of them, at one revision.
    ///
    /// # Errors
    /// Any [`StoreError`], including a compaction between two pages.
    pub async fn list(&self) -> Result<Listing<T>, StoreError> {
        let mut listing = Listing { items: Vec::new(), revision: 0, cluster_id: 0 };
        let (from, end) = (self.prefix.as_bytes().to_vec(), self.end.clone());
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
            // The store collects the next page while we read this one.
            let (next, ()) = tokio::join!(biased; self.page(&mut page), async {
                listing.items.extend(found.into_iter().filter_map(item));
            });
            response = next?;
        }
    }

    /// Fetches one page, with fewer keys if they are too large.
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

/// Which keys to request.
struct Page {
    from: Vec<u8>,
    /// The first key after them.
    end: Vec<u8>,
    limit: i64,
    /// The upper bound for the next limit.
    most: i64,
    /// 0 for the current one.
    revision: i64,
}

impl Page {
    /// Returns the most bytes allowed. A single key may have any size.
    fn most_bytes(&self) -> usize {
        if self.limit > 1 { MOST_BYTES_IN_PAGE } else { ANY_SIZE }
    }

    /// Makes the next page as large as fits, if its keys are like those that were read.
    fn was_read(&mut self, keys: usize, bytes: usize) {
        let fitting = PAGE_BYTES.saturating_mul(keys) / bytes.max(1);
        self.limit = i64::try_from(fitting).unwrap_or(i64::MAX).clamp(1, self.most);
        self.most = self.most.saturating_mul(2).min(MOST_IN_PAGE);
    }

    /// Requests fewer keys, and lets pages grow step by step from there: near one large key there are others, and a
    /// page that is too large costs the store as much as a good one.
    fn was_too_large(&mut self) {
        self.limit = (self.limit / 8).max(1);
        self.most = self.limit * 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists keys of these sizes in bytes. Returns how many pages were read, and how many were too large.
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
        // From an etcd with a raised size limit.
        assert_eq!(list(&[40 * megabyte; 3]).0, 3);
    }
}
