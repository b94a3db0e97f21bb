//! Requests that are too large.

use anyhow::{Result, ensure};

use crate::answer::Answer;
use crate::call::Call;
use crate::requests::{all, put, range};
use crate::table::{Case, no_difference_in};

/// What etcd takes as one request, in bytes, with some of its own around it.
const LARGEST: usize = 3 * 512 * 1024;

/// More than etcd needs around it.
const AROUND: usize = 4 * 1024;

const CASES: &[Case] = &[
    ("a value that just fits", |pair| {
        pair.done(put("limit/a", vec![b'x'; LARGEST - AROUND]))?;
        pair.done(range("limit/a")).map(drop)
    }),
    ("a value that does not", |pair| {
        pair.refused(put("limit/b", vec![b'x'; LARGEST]), "request is too large")?;
        pair.refused(put("limit/b", vec![b'x'; LARGEST + AROUND]), "request is too large")?;
        pair.done(range("limit/b")).map(drop)
    }),
    ("a transaction that does not", |pair| {
        let half = vec![b'x'; LARGEST / 2];
        pair.refused(
            all(["1", "2"].map(|name| put(format!("limit/c/{name}"), &half))),
            "request is too large",
        )?;
        pair.done(range("limit/c/1")).map(drop)
    }),
    ("a request that is not even read", |pair| {
        // What is said is the matter of the gRPC library.
        for answer in pair.each(&Call::Put(put("limit/d", vec![b'x'; 2 * LARGEST])))? {
            ensure!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
        }
        pair.done(range("limit/d")).map(drop)
    }),
];

#[test]
fn a_request_may_be_as_large_as_with_etcd() -> Result<()> {
    no_difference_in(CASES)
}
