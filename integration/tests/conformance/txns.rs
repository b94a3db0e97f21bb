//! Transactions.

use anyhow::Result;
use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbPutRequest, PbRangeRequest, PbTargetUnion, PbTxnRequest, PbTxnRequestOp,
};

use crate::pair::Pair;
use crate::requests::{
    Is, NOTHING, ZERO, all, between, compact, compare, delete, delete_between, end_of_prefix, grant, op,
    prefix, put, put_leased, range, txn, value_is,
};
use crate::table::{Case, no_difference_in};

/// Operations on one level that etcd takes.
const MOST_OPERATIONS: usize = 128;

const CASES: &[Case] = &[
    ("either branch", |pair| {
        pair.done(put("txn/a", "1"))?;
        let story = |value| txn([value_is("txn/a", value)], [put("txn/a", "yes")], [put("txn/a", "no")]);
        for value in ["1", "1", "yes", "no"] {
            pair.done(story(value))?;
            pair.done(range("txn/a"))?;
        }
        Ok(())
    }),
    ("nothing to compare, and nothing to do", |pair| {
        let before = pair.revision()?;
        pair.done(all(NOTHING))?;
        pair.done(txn([value_is("txn/none", "1")], NOTHING, NOTHING))?;
        assert_eq!(pair.revision()?, before, "nothing was written");
        Ok(())
    }),
    ("reading alone", |pair| {
        pair.done(put("txn/b", "1"))?;
        pair.done(all([range("txn/b"), prefix("txn/")]))?;
        pair.done(all([op(delete("txn/none")), op(range("txn/b"))]))?;
        pair.done(range("txn/b")).map(drop)
    }),
    ("each operation sees those before it", |pair| {
        pair.all_done([put("txn/c/1", "1"), put("txn/c/2", "2")])?;
        pair.done(all([
            op(range("txn/c/1")),
            op(PbPutRequest { prev_kv: true, ..put("txn/c/1", "new") }),
            op(prefix("txn/c/")),
            op(PbDeleteRequest { prev_kv: true, ..delete("txn/c/2") }),
            op(prefix("txn/c/")),
            op(PbRangeRequest { count_only: true, ..prefix("txn/c/") }),
            op(PbPutRequest { prev_kv: true, ..put("txn/c/3", "3") }),
        ]))?;
        pair.done(prefix("txn/c/")).map(drop)
    }),
    ("many writes, one revision", |pair| {
        pair.done(all(["1", "2", "3"].map(|name| put(format!("txn/d/{name}"), name))))?;
        pair.done(all([
            op(put("txn/d/4", "4")),
            op(delete_between("txn/d/1", "txn/d/3")),
            op(put("txn/d/5", "5")),
        ]))?;
        pair.done(prefix("txn/d/")).map(drop)
    }),
    ("an earlier revision inside", |pair| {
        let written = pair.done(put("txn/e", "1"))?.revision();
        pair.done(put("txn/e", "2"))?;
        let then = PbRangeRequest { revision: written, ..range("txn/e") };
        let now = PbRangeRequest { revision: written + 1, ..range("txn/e") };
        pair.done(all([op(put("txn/e", "3")), op(then), op(now), op(range("txn/e"))])).map(drop)
    }),
    ("everything compared with everything", |pair| {
        pair.done(grant(401, 1000))?;
        pair.all_done([put("txn/f", "0"), put_leased("txn/f", "5", 401)])?;
        let now = pair.revision()?;
        for is in Is::ALL {
            for by in [-1, 0, 1] {
                for target in [
                    PbTargetUnion::Version(2 + by),
                    PbTargetUnion::CreateRevision(now - 1 + by),
                    PbTargetUnion::ModRevision(now + by),
                    PbTargetUnion::Value((5 + by).to_string().into_bytes()),
                    PbTargetUnion::Lease(401 + by),
                ] {
                    tell(pair, [compare("txn/f", is, target)])?;
                }
            }
        }
        Ok(())
    }),
    ("a key that is not there, compared", |pair| {
        for is in Is::ALL {
            for by in [-1, 0, 1] {
                for target in [
                    PbTargetUnion::Version(by),
                    PbTargetUnion::CreateRevision(by),
                    PbTargetUnion::ModRevision(by),
                    PbTargetUnion::Lease(by),
                ] {
                    tell(pair, [compare("txn/none", is, target)])?;
                }
            }
            tell(pair, [compare("txn/none", is, PbTargetUnion::Value(Vec::new()))])?;
            tell(pair, [compare("txn/none", is, PbTargetUnion::Value(b"1".to_vec()))])?;
        }
        Ok(())
    }),
    ("a target that does not fit what it is compared with", |pair| {
        pair.done(put("txn/g", "1"))?;
        for target in 0..=4 {
            tell(pair, [PbCompare { target, ..value_is("txn/g", "1") }])?;
            tell(pair, [PbCompare { target, target_union: None, ..value_is("txn/g", "1") }])?;
        }
        Ok(())
    }),
    ("all keys of a range compared", |pair| {
        pair.all_done([put("txn/h/1", "same"), put("txn/h/2", "same"), put("txn/h/3", "other")])?;
        for is in Is::ALL {
            for (start, end) in [("1", "3"), ("1", "4"), ("3", "4"), ("5", "6"), ("3", "1")] {
                let range_end = format!("txn/h/{end}").into_bytes();
                for target in [PbTargetUnion::Value(b"same".to_vec()), PbTargetUnion::Version(1)] {
                    tell(
                        pair,
                        [PbCompare {
                            range_end: range_end.clone(),
                            ..compare(format!("txn/h/{start}"), is, target)
                        }],
                    )?;
                }
            }
            let from = compare("txn/h/2", is, PbTargetUnion::Version(1));
            tell(pair, [PbCompare { range_end: ZERO.to_vec(), ..from }])?;
        }
        Ok(())
    }),
    ("several comparisons, of which one fails", |pair| {
        pair.all_done([put("txn/i/1", "1"), put("txn/i/2", "2")])?;
        tell(pair, [value_is("txn/i/1", "1"), value_is("txn/i/2", "2")])?;
        tell(pair, [value_is("txn/i/1", "1"), value_is("txn/i/2", "3")])
    }),
    ("a transaction in a transaction", |pair| {
        pair.done(put("txn/j/1", "1"))?;
        let inner = |value| {
            let compare = [value_is("txn/j/1", value)];
            txn(compare, [op(put("txn/j/2", "yes")), op(prefix("txn/j/"))], [op(put("txn/j/2", "no"))])
        };
        for value in ["1", "2"] {
            pair.done(all([op(put("txn/j/3", "3")), op(inner(value)), op(range("txn/j/2"))]))?;
            pair.done(prefix("txn/j/"))?;
        }
        let innermost = all([op(inner("1")), op(delete("txn/j/3"))]);
        pair.done(txn([], [innermost], NOTHING))?;
        pair.done(prefix("txn/j/")).map(drop)
    }),
    ("comparisons inside, on what was there before", |pair| {
        pair.done(put("txn/k", "old"))?;
        let inner =
            |value| txn([value_is("txn/k", value)], [put("txn/k/seen", "yes")], [put("txn/k/seen", "no")]);
        pair.done(all([op(put("txn/k", "new")), op(inner("new"))]))?;
        pair.done(prefix("txn/k")).map(drop)
    }),
    ("one key twice", |pair| {
        pair.refused(all([put("txn/l", "1"), put("txn/l", "2")]), "duplicate key")?;
        pair.refused(all([op(put("txn/l", "1")), op(delete("txn/l"))]), "duplicate key")?;
        pair.refused(all([op(delete_between("txn/k", "txn/m")), op(put("txn/l", "1"))]), "duplicate key")?;
        // etcd 3.4 does not see that the one is in the other.
        pair.same(all([op(put("txn/l", "1")), op(delete_between(ZERO, ZERO))]))?;
        pair.done(all([delete("txn/l"), delete("txn/l")]))?;
        pair.done(all([op(delete_between("txn/m", "txn/n")), op(put("txn/l", "1"))])).map(drop)
    }),
    ("one key twice, on different levels", |pair| {
        let inner = all([put("txn/o", "inner")]);
        pair.refused(all([op(put("txn/o", "outer")), op(inner.clone())]), "duplicate key")?;
        pair.refused(all([op(inner.clone()), op(inner.clone())]), "duplicate key")?;
        pair.refused(all([op(delete_between("txn/n", "txn/p")), op(inner.clone())]), "duplicate key")?;
        pair.refused(
            all([op(all([delete_between("txn/n", "txn/p")])), op(put("txn/o", "1"))]),
            "duplicate key",
        )?;
        // Only one of these can happen.
        pair.done(txn([], [inner.clone()], [inner.clone()]))?;
        pair.done(txn([], [op(txn([], [put("txn/o", "1")], [put("txn/o", "2")]))], NOTHING)).map(drop)
    }),
    ("a branch that is not taken is checked as well", |pair| {
        pair.refused(txn([], NOTHING, [put("txn/q", "1"), put("txn/q", "2")]), "duplicate key")?;
        pair.refused(txn([], NOTHING, [put("", "1")]), "key is not provided")?;
        pair.same(txn([], NOTHING, [put_leased("txn/q", "1", 999)]))?;
        pair.same(txn([], NOTHING, [PbRangeRequest { revision: i64::MAX, ..range("txn/q") }]))?;
        pair.same(txn([], NOTHING, [PbPutRequest { ignore_value: true, ..put("txn/none", "") }])).map(drop)
    }),
    ("no key at all", |pair| {
        pair.refused(all([put("", "1")]), "key is not provided")?;
        pair.refused(all([range("")]), "key is not provided")?;
        pair.refused(all([delete("")]), "key is not provided")?;
        pair.refused(all([all([put("", "1")])]), "key is not provided")?;
        pair.refused(txn([value_is("", "1")], NOTHING, NOTHING), "key is not provided")
    }),
    ("an operation that does not say what", |pair| {
        pair.same(all([PbTxnRequestOp { request: None }])).map(drop)
    }),
    ("puts that are refused, of which none happens", |pair| {
        let before = pair.revision()?;
        let first = put("txn/r/1", "1");
        for refused in [
            put_leased("txn/r/2", "2", 999),
            PbPutRequest { ignore_value: true, ..put("txn/r/2", "") },
            PbPutRequest { ignore_value: true, ..put("txn/r/2", "2") },
            PbPutRequest { ignore_lease: true, ..put("txn/r/2", "2") },
            PbPutRequest { ignore_lease: true, ..put_leased("txn/r/2", "2", 7) },
        ] {
            pair.refused(all([first.clone(), refused.clone()]), "etcdserver")?;
            pair.refused(all([op(first.clone()), op(all([refused]))]), "etcdserver")?;
        }
        assert_eq!(pair.revision()?, before, "a part of it has happened");
        Ok(())
    }),
    ("a revision that is still to come, or forgotten", |pair| {
        pair.all_done([put("txn/s", "1"), put("txn/s", "2")])?;
        let now = pair.revision()?;
        pair.done(compact(now))?;
        let at = |revision| op(PbRangeRequest { revision, ..range("txn/s") });
        pair.refused(all([op(put("txn/s", "3")), at(now + 1)]), "future revision")?;
        pair.refused(all([op(put("txn/s", "3")), at(now - 1)]), "compacted")?;
        pair.refused(all([all([at(now - 1)])]), "compacted")?;
        pair.done(all([at(now)])).map(drop)
    }),
    ("as many operations as there may be", |pair| {
        let puts = |count: usize| (0..count).map(|number| put(format!("txn/t/{number:03}"), "1"));
        pair.done(all(puts(MOST_OPERATIONS)))?;
        pair.refused(all(puts(MOST_OPERATIONS + 1)), "too many operations")?;
        pair.refused(txn([], NOTHING, puts(MOST_OPERATIONS + 1)), "too many operations")?;
        let compares = |count| (0..count).map(|_| value_is("txn/t", "1"));
        pair.done(txn(compares(MOST_OPERATIONS), NOTHING, NOTHING))?;
        pair.refused(txn(compares(MOST_OPERATIONS + 1), NOTHING, NOTHING), "too many operations")?;
        // Those inside have what is left of the outer ones.
        pair.same(all([op(all(puts(MOST_OPERATIONS - 1)))]))?;
        pair.same(all([op(all(puts(MOST_OPERATIONS)))]))?;
        pair.same(all([op(all(puts(100))), op(all((200..300).map(|n| put(format!("txn/t/{n}"), "1"))))]))
            .map(drop)
    }),
    ("what is written in a lease's name", |pair| {
        pair.done(grant(402, 1000))?;
        pair.done(all([put_leased("txn/u/1", "1", 402), put_leased("txn/u/2", "2", 402)]))?;
        pair.done(crate::requests::time_to_live(402))?;
        pair.done(all([op(delete("txn/u/1")), op(put("txn/u/2", "free"))]))?;
        pair.done(crate::requests::time_to_live(402))?;
        pair.done(between("txn/u/", end_of_prefix("txn/u/"))).map(drop)
    }),
];

#[test]
fn a_transaction_is_carried_out_as_etcd_does_it() -> Result<()> {
    no_difference_in(CASES)
}

/// Whether the comparison succeeds.
fn tell(pair: &mut Pair, compare: impl IntoIterator<Item = PbCompare>) -> Result<()> {
    let request: PbTxnRequest = txn(compare, NOTHING, NOTHING);
    pair.same(request).map(drop)
}
