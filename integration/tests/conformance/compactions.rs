//! Forgetting history.

use anyhow::Result;
use etcd_client::proto::{PbCompactionRequest, PbRangeRequest};

use crate::requests::{compact, delete, prefix, put, range};
use crate::table::{Case, no_difference_in};

const CASES: &[Case] = &[
    ("a new store's first revision, and none at all", |pair| {
        pair.same(compact(-1))?;
        pair.same(compact(0))?;
        pair.same(compact(0))?;
        pair.same(compact(1))?;
        pair.same(compact(1)).map(drop)
    }),
    ("a revision that is still to come", |pair| {
        let now = pair.revision()?;
        pair.refused(compact(now + 1), "future revision")?;
        pair.refused(compact(i64::MAX), "future revision")
    }),
    ("the newest revision, then the same again and an older one", |pair| {
        pair.all_done([put("compact/a", "1"), put("compact/a", "2")])?;
        let now = pair.revision()?;
        pair.done(compact(now))?;
        pair.refused(compact(now), "compacted")?;
        pair.refused(compact(now - 1), "compacted")?;
        pair.refused(compact(0), "compacted")?;
        pair.done(range("compact/a")).map(drop)
    }),
    ("a revision in between", |pair| {
        let first = pair.done(put("compact/b/1", "1"))?.revision();
        pair.all_done([put("compact/b/2", "2"), put("compact/b/1", "3")])?;
        pair.done(delete("compact/b/2"))?;
        pair.done(compact(first + 1))?;
        pair.refused(PbRangeRequest { revision: first, ..prefix("compact/b/") }, "compacted")?;
        for revision in first + 1..=first + 3 {
            pair.done(PbRangeRequest { revision, ..prefix("compact/b/") })?;
        }
        Ok(())
    }),
    ("the revision of a deletion", |pair| {
        pair.done(put("compact/c", "1"))?;
        let gone = pair.done(delete("compact/c"))?.revision();
        pair.done(compact(gone))?;
        pair.done(PbRangeRequest { revision: gone, ..range("compact/c") })?;
        pair.done(put("compact/c", "2"))?;
        pair.done(range("compact/c")).map(drop)
    }),
    ("to the last byte on the disk", |pair| {
        pair.all_done([put("compact/d", "1"), put("compact/d", "2")])?;
        let revision = pair.revision()?;
        pair.done(PbCompactionRequest { revision, physical: true })?;
        pair.done(range("compact/d")).map(drop)
    }),
];

#[test]
fn history_is_forgotten_as_etcd_forgets_it() -> Result<()> {
    no_difference_in(CASES)
}
