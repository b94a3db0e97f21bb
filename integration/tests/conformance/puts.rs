//! Writing keys.

use anyhow::Result;
use etcd_client::proto::PbPutRequest;

use crate::requests::{delete, grant, put, put_leased, range, revoke, time_to_live};
use crate::table::{Case, no_difference_in};

const CASES: &[Case] = &[
    ("a new key, and the same one again", |pair| {
        for value in ["1", "2", "2", ""] {
            pair.done(put("put/a", value))?;
            pair.done(range("put/a"))?;
        }
        Ok(())
    }),
    ("a key that comes back is a new one", |pair| {
        pair.all_done([put("put/b", "1"), put("put/b", "2")])?;
        pair.done(delete("put/b"))?;
        pair.done(put("put/b", "3"))?;
        pair.done(range("put/b")).map(drop)
    }),
    ("bytes that are no text", |pair| {
        pair.done(put(b"put/\0\xff", b"\xff\0"))?;
        pair.done(range(b"put/\0\xff")).map(drop)
    }),
    ("what was there before", |pair| {
        pair.done(PbPutRequest { prev_kv: true, ..put("put/c", "1") })?;
        pair.done(PbPutRequest { prev_kv: true, ..put("put/c", "2") })?;
        pair.done(PbPutRequest { prev_kv: true, ..put("put/c", "3") }).map(drop)
    }),
    ("a lease and not the value", |pair| {
        pair.all_done([grant(201, 100), grant(202, 100)])?;
        pair.done(put_leased("put/d", "1", 201))?;
        pair.done(PbPutRequest { ignore_value: true, prev_kv: true, ..put_leased("put/d", "", 202) })?;
        pair.done(range("put/d"))?;
        pair.all_done([time_to_live(201), time_to_live(202)])?;
        pair.done(PbPutRequest { ignore_value: true, ..put("put/d", "") })?;
        pair.done(range("put/d"))?;
        pair.all_done([revoke(201), revoke(202)])?;
        pair.done(range("put/d")).map(drop)
    }),
    ("a value and not the lease", |pair| {
        pair.done(grant(203, 100))?;
        pair.done(put_leased("put/e", "1", 203))?;
        pair.done(PbPutRequest { ignore_lease: true, prev_kv: true, ..put("put/e", "2") })?;
        pair.done(range("put/e"))?;
        pair.done(PbPutRequest { ignore_lease: true, ignore_value: true, ..put("put/e", "") })?;
        pair.done(range("put/e"))?;
        pair.done(time_to_live(203))?;
        pair.done(put("put/e", "3"))?;
        pair.done(time_to_live(203))?;
        pair.done(PbPutRequest { ignore_lease: true, ..put("put/e", "4") })?;
        pair.done(revoke(203))?;
        pair.done(range("put/e")).map(drop)
    }),
    ("no key at all", |pair| pair.refused(put("", "1"), "key is not provided")),
    ("a value that is to be ignored", |pair| {
        pair.done(put("put/f", "1"))?;
        pair.refused(PbPutRequest { ignore_value: true, ..put("put/f", "2") }, "value is provided")
    }),
    ("a lease that is to be ignored", |pair| {
        pair.done(put("put/g", "1"))?;
        pair.refused(PbPutRequest { ignore_lease: true, ..put_leased("put/g", "2", 7) }, "lease is provided")
    }),
    ("value or lease of a key that is not there", |pair| {
        pair.refused(PbPutRequest { ignore_value: true, ..put("put/none", "") }, "key not found")?;
        pair.refused(PbPutRequest { ignore_lease: true, ..put("put/none", "1") }, "key not found")?;
        pair.refused(PbPutRequest { ignore_value: true, ..put_leased("put/none", "", 999) }, "not found")
    }),
    ("a lease that is not there", |pair| {
        pair.refused(put_leased("put/h", "1", 999), "requested lease not found")?;
        pair.refused(put_leased("put/h", "1", -1), "requested lease not found")?;
        pair.done(range("put/h")).map(drop)
    }),
];

#[test]
fn a_key_is_put_as_etcd_puts_it() -> Result<()> {
    no_difference_in(CASES)
}
