//! Reading keys.

use anyhow::Result;
use etcd_client::proto::{PbDeleteRequest, PbRangeRequest};

use crate::pair::Pair;
use crate::requests::{ZERO, between, compact, delete, prefix, put, range};
use crate::table::{Case, no_difference_in};

const CASES: &[Case] = &[
    ("a key that is not there", |pair| {
        pair.done(range("range/none"))?;
        pair.done(between("range/none", "range/nono")).map(drop)
    }),
    ("one key", |pair| {
        pair.done(put("range/one", "1"))?;
        pair.done(range("range/one")).map(drop)
    }),
    ("a prefix, a half-open range, from a key on, and all keys", |pair| {
        fill(pair, "range/a/")?;
        pair.all_done([
            prefix("range/a/"),
            between("range/a/1", "range/a/3"),
            between("range/a/2", ZERO),
            between(ZERO, ZERO),
            between(ZERO, "range/a/2"),
        ])
    }),
    ("an end that is not behind the start", |pair| {
        fill(pair, "range/b/")?;
        pair.all_done([between("range/b/2", "range/b/2"), between("range/b/2", "range/b/1")])
    }),
    ("keys that no text could have", |pair| {
        for key in [b"range\0".as_slice(), b"range\0\0", b"range\xff", b"range\xff\xff", b"\xff\xff", b"\0\0"]
        {
            pair.done(put(key, key))?;
            pair.done(range(key))?;
        }
        pair.all_done([
            between("range", b"range\x01"),
            between(b"range\xff", b"range\xff\xff\0"),
            between(b"\xff", ZERO),
            between(ZERO, b"\x01"),
        ])
    }),
    ("a limit, which leaves the count as it is", |pair| {
        fill(pair, "range/c/")?;
        for limit in [-1, 0, 1, 2, 5, 6, 100] {
            pair.done(PbRangeRequest { limit, ..prefix("range/c/") })?;
        }
        Ok(())
    }),
    ("keys only, and the count only", |pair| {
        fill(pair, "range/d/")?;
        let all = prefix("range/d/");
        pair.all_done([
            PbRangeRequest { keys_only: true, ..all.clone() },
            PbRangeRequest { keys_only: true, limit: 2, ..all.clone() },
            PbRangeRequest { count_only: true, ..all.clone() },
            PbRangeRequest { count_only: true, limit: 2, ..all.clone() },
            PbRangeRequest { count_only: true, keys_only: true, ..all.clone() },
            PbRangeRequest { count_only: true, ..range("range/d/1") },
            PbRangeRequest { count_only: true, revision: 1, ..all },
        ])
    }),
    ("every order by everything, with limits", |pair| {
        fill(pair, "range/e/")?;
        // So that no two orders are the same, and one value stands twice.
        pair.all_done([
            put("range/e/3", "9"),
            put("range/e/1", "5"),
            put("range/e/3", "1"),
            put("range/e/5", "7"),
        ])?;
        for sort_target in 0..=4 {
            for sort_order in 0..=2 {
                for limit in [0, 2] {
                    pair.done(PbRangeRequest { sort_order, sort_target, limit, ..prefix("range/e/") })?;
                }
            }
        }
        Ok(())
    }),
    ("equal values in an order by value", |pair| {
        pair.all_done([put("range/f/1", "same"), put("range/f/2", "same"), put("range/f/3", "less")])?;
        for sort_order in 0..=2 {
            pair.done(PbRangeRequest { sort_order, sort_target: 4, ..prefix("range/f/") })?;
        }
        Ok(())
    }),
    ("the least and the greatest revisions", |pair| {
        fill(pair, "range/g/")?;
        let last = pair.done(put("range/g/2", "again"))?.revision();
        let all = prefix("range/g/");
        for revision in last - 5..=last + 1 {
            pair.all_done([
                PbRangeRequest { min_mod_revision: revision, ..all.clone() },
                PbRangeRequest { max_mod_revision: revision, ..all.clone() },
                PbRangeRequest { min_create_revision: revision, ..all.clone() },
                PbRangeRequest { max_create_revision: revision, ..all.clone() },
                PbRangeRequest { min_mod_revision: revision, limit: 1, ..all.clone() },
                PbRangeRequest { max_create_revision: revision, limit: 2, keys_only: true, ..all.clone() },
                PbRangeRequest { max_mod_revision: revision, count_only: true, ..all.clone() },
                PbRangeRequest {
                    min_create_revision: revision - 2,
                    max_mod_revision: revision,
                    sort_order: 2,
                    ..all.clone()
                },
            ])?;
        }
        Ok(())
    }),
    ("every earlier revision", |pair| {
        let before = pair.revision()?;
        fill(pair, "range/h/")?;
        pair.all_done([PbDeleteRequest { prev_kv: true, ..delete("range/h/2") }])?;
        pair.done(put("range/h/2", "back"))?;
        let now = pair.revision()?;
        for revision in before..=now {
            pair.done(PbRangeRequest { revision, ..prefix("range/h/") })?;
            pair.done(PbRangeRequest { revision, limit: 2, ..prefix("range/h/") })?;
            pair.done(PbRangeRequest { revision, ..range("range/h/2") })?;
        }
        Ok(())
    }),
    ("a revision that is still to come", |pair| {
        let future = pair.revision()? + 1;
        pair.refused(PbRangeRequest { revision: future, ..range("range/i") }, "future revision")?;
        pair.refused(
            PbRangeRequest { revision: i64::MAX, count_only: true, ..range("range/i") },
            "future revision",
        )
    }),
    ("a revision below zero", |pair| {
        pair.done(put("range/j", "1"))?;
        pair.done(PbRangeRequest { revision: -1, ..range("range/j") })?;
        pair.done(PbRangeRequest { revision: i64::MIN, ..range("range/j") }).map(drop)
    }),
    ("a revision that is forgotten", |pair| {
        let first = pair.done(put("range/k", "1"))?.revision();
        pair.all_done([put("range/k", "2"), put("range/k", "3")])?;
        pair.done(compact(first + 1))?;
        let at = |revision| PbRangeRequest { revision, ..range("range/k") };
        pair.refused(at(first), "compacted")?;
        pair.refused(at(1), "compacted")?;
        pair.refused(PbRangeRequest { count_only: true, ..at(first) }, "compacted")?;
        pair.all_done([at(first + 1), at(first + 2), at(0)])
    }),
    ("no key at all", |pair| {
        pair.refused(range(""), "key is not provided")?;
        pair.refused(between("", "z"), "key is not provided")
    }),
    ("a read that any member may answer", |pair| {
        pair.done(put("range/l", "1"))?;
        pair.done(PbRangeRequest { serializable: true, ..range("range/l") }).map(drop)
    }),
];

#[test]
fn a_range_is_read_as_etcd_reads_it() -> Result<()> {
    no_difference_in(CASES)
}

/// Five keys, `1` to `5`, with the same as values, written in another order.
fn fill(pair: &mut Pair, prefix: &str) -> Result<()> {
    pair.all_done(["3", "1", "5", "2", "4"].map(|name| put(format!("{prefix}{name}"), name)))
}
