//! Removing keys.

use anyhow::Result;
use etcd_client::proto::{PbDeleteRequest, PbRangeRequest};

use crate::requests::{ZERO, between, delete, delete_between, grant, put, put_leased, range, time_to_live};
use crate::table::{Case, no_difference_in};

const CASES: &[Case] = &[
    ("a key that is not there", |pair| {
        let before = pair.revision()?;
        pair.done(delete("delete/none"))?;
        pair.done(delete_between("delete/none", "delete/nono"))?;
        pair.done(PbDeleteRequest { prev_kv: true, ..delete("delete/none") })?;
        assert_eq!(pair.revision()?, before, "nothing was deleted");
        Ok(())
    }),
    ("one key, and once more", |pair| {
        let written = pair.done(put("delete/a", "1"))?.revision();
        pair.all_done([delete("delete/a"), delete("delete/a")])?;
        pair.done(range("delete/a"))?;
        pair.done(PbRangeRequest { revision: written, ..range("delete/a") }).map(drop)
    }),
    ("several keys in one revision, and what they were", |pair| {
        pair.all_done(["3", "1", "2"].map(|name| put(format!("delete/b/{name}"), name)))?;
        pair.done(PbDeleteRequest { prev_kv: true, ..delete_between("delete/b/1", "delete/b/3") })?;
        pair.done(between("delete/b/", "delete/b0"))?;
        pair.done(PbDeleteRequest { prev_kv: true, ..delete("delete/b/3") }).map(drop)
    }),
    ("an end that is not behind the start", |pair| {
        pair.done(put("delete/c", "1"))?;
        pair.all_done([delete_between("delete/c", "delete/c"), delete_between("delete/c", "delete/a")])?;
        pair.done(range("delete/c")).map(drop)
    }),
    ("a key with a lease", |pair| {
        pair.done(grant(301, 100))?;
        pair.all_done([put_leased("delete/d/1", "1", 301), put_leased("delete/d/2", "2", 301)])?;
        pair.done(PbDeleteRequest { prev_kv: true, ..delete("delete/d/1") })?;
        pair.done(time_to_live(301)).map(drop)
    }),
    ("no key at all", |pair| {
        pair.refused(delete(""), "key is not provided")?;
        pair.refused(delete_between("", "z"), "key is not provided")
    }),
    ("from a key on, and all keys", |pair| {
        pair.all_done([put("delete/y", "1"), put("delete/z", "2")])?;
        pair.done(delete_between("delete/z", ZERO))?;
        pair.done(between(ZERO, ZERO))?;
        pair.done(PbDeleteRequest { prev_kv: true, ..delete_between(ZERO, ZERO) })?;
        pair.done(between(ZERO, ZERO)).map(drop)
    }),
];

#[test]
fn a_key_is_deleted_as_etcd_deletes_it() -> Result<()> {
    no_difference_in(CASES)
}
