//! Choosing calls: few keys and leases, so that most calls meet something.

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbLeaseLeasesRequest, PbPutRequest, PbRangeRequest, PbTargetUnion,
    PbTxnRequest, PbTxnRequestOp,
};
use flan_integration::chance::Chance;

use crate::answer::Answer;
use crate::call::Call;
use crate::requests::{Is, ZERO, compact, compare, delete, grant, op, put, range, revoke, time_to_live};

/// All keys.
const KEYS: [&str; 8] = ["a", "a/1", "a/2", "b", "b/\0", "c", "d", "d/1"];

/// Ends of ranges: none, from the key on, some that lie before some keys.
const ENDS: [&[u8]; 6] = [b"", b"", ZERO, b"a/2", b"c", b"e"];

/// Values.
const VALUES: [&str; 4] = ["", "1", "2", "3"];

/// Leases that come and go; 0 is none.
const LEASES: [i64; 4] = [0, 801, 802, 803];

/// Seconds: no lease runs out by itself here.
const TTL: i64 = 10_000;

/// How deep transactions lie in each other.
const DEEPEST: u32 = 2;

/// What is known of the store, and what to do next.
#[derive(Debug, Default)]
pub(super) struct Chooser {
    revision: i64,
    compacted: i64,
}

impl Chooser {
    /// The next call.
    pub(super) fn choose(&self, chance: &mut Chance) -> Call {
        match chance.below(100) {
            0..26 => self.range(chance).into(),
            26..52 => self.put(chance).into(),
            52..62 => self.delete(chance).into(),
            62..84 => self.txn(chance, DEEPEST).into(),
            84..88 => grant(lease(chance), TTL).into(),
            88..91 => revoke(lease(chance)).into(),
            91..94 => time_to_live(chance.pick(&LEASES)).into(),
            94..96 => Call::KeepAlive(vec![lease(chance), lease(chance)]),
            96 => PbLeaseLeasesRequest {}.into(),
            _ => compact(self.any_revision(chance)).into(),
        }
    }

    /// Takes note of what a call has done.
    pub(super) fn learn(&mut self, call: &Call, answer: &Answer) {
        if let Some(revision) = revision_of(answer) {
            self.revision = self.revision.max(revision);
            if let Call::Compact(request) = call {
                self.compacted = request.revision;
            }
        }
    }

    /// 0, which is now, or one that is remembered, or one to come.
    pub(super) fn revision_to_watch_from(&self, chance: &mut Chance) -> i64 {
        // A deletion in the last revision that is forgotten, etcd 3.4 tells of or not: it is on its way off the disk.
        let (first, count) = (self.compacted + 1, self.revision - self.compacted + 1);
        match chance.below(4) {
            0 => 0,
            _ => first + below(chance, count),
        }
    }

    /// One that is remembered, now and then one that is forgotten or to come.
    fn any_revision(&self, chance: &mut Chance) -> i64 {
        // Most often one of the last, for compactions would leave little to look at.
        let back = match chance.below(10) {
            0 => below(chance, self.revision + 2),
            _ => below(chance, (self.revision - self.compacted).clamp(0, 40) + 2),
        };
        self.revision + 1 - back
    }

    fn range(&self, chance: &mut Chance) -> PbRangeRequest {
        let mut request =
            PbRangeRequest { range_end: chance.pick(&ENDS).to_vec(), ..range(chance.pick(&KEYS)) };
        if chance.below(3) == 0 {
            request.revision = self.any_revision(chance);
        }
        if chance.below(3) == 0 {
            request.limit = below(chance, 4);
        }
        if chance.below(3) == 0 {
            (request.sort_order, request.sort_target) =
                (chance.pick(&[0, 1, 2]), chance.pick(&[0, 1, 2, 3, 4]));
        }
        (request.keys_only, request.count_only) = (chance.below(6) == 0, chance.below(6) == 0);
        match chance.below(10) {
            0 => request.min_mod_revision = self.any_revision(chance),
            1 => request.max_mod_revision = self.any_revision(chance),
            2 => request.min_create_revision = self.any_revision(chance),
            3 => request.max_create_revision = self.any_revision(chance),
            _ => {}
        }
        request
    }

    fn put(&self, chance: &mut Chance) -> PbPutRequest {
        let mut request = put(chance.pick(&KEYS), chance.pick(&VALUES));
        request.prev_kv = chance.below(3) == 0;
        if chance.below(3) == 0 {
            request.lease = chance.pick(&LEASES);
        }
        if chance.below(8) == 0 {
            request.ignore_value = true;
            // With one it is refused, which needs to be seen seldom.
            if chance.below(5) > 0 {
                request.value.clear();
            }
        }
        if chance.below(8) == 0 {
            request.ignore_lease = true;
            if chance.below(5) > 0 {
                request.lease = 0;
            }
        }
        request
    }

    fn delete(&self, chance: &mut Chance) -> PbDeleteRequest {
        let mut request = delete(chance.pick(&KEYS));
        request.prev_kv = chance.below(2) == 0;
        if chance.below(3) == 0 {
            request.range_end = chance.pick(&ENDS).to_vec();
        }
        request
    }

    /// etcd 3.4 does not see that a deletion from a key on has to do with a put in the same transaction, and dies if
    /// the put wants to keep the value that is gone by then.
    fn delete_in_txn(&self, chance: &mut Chance) -> PbDeleteRequest {
        let mut request = self.delete(chance);
        if request.range_end == ZERO {
            request.range_end.clear();
        }
        request
    }

    fn txn(&self, chance: &mut Chance, depth: u32) -> PbTxnRequest {
        PbTxnRequest {
            compare: (0..chance.below(3)).map(|_| self.compare(chance)).collect(),
            success: (0..chance.below(4)).map(|_| self.operation(chance, depth)).collect(),
            failure: (0..chance.below(4)).map(|_| self.operation(chance, depth)).collect(),
        }
    }

    fn operation(&self, chance: &mut Chance, depth: u32) -> PbTxnRequestOp {
        match chance.below(10) {
            0..4 => op(self.range(chance)),
            4..7 => op(self.put(chance)),
            7..9 => op(self.delete_in_txn(chance)),
            _ if depth > 1 => op(self.txn(chance, depth - 1)),
            _ => op(self.put(chance)),
        }
    }

    fn compare(&self, chance: &mut Chance) -> PbCompare {
        let to = match chance.below(5) {
            0 => PbTargetUnion::Version(below(chance, 4)),
            1 => PbTargetUnion::CreateRevision(self.any_revision(chance)),
            2 => PbTargetUnion::ModRevision(self.any_revision(chance)),
            3 => PbTargetUnion::Value(chance.pick(&VALUES).into()),
            _ => PbTargetUnion::Lease(chance.pick(&LEASES)),
        };
        let range_end = if chance.below(3) == 0 { chance.pick(&ENDS).to_vec() } else { Vec::new() };
        PbCompare { range_end, ..compare(chance.pick(&KEYS), chance.pick(&Is::ALL), to) }
    }
}

/// A lease, whether there or not.
fn lease(chance: &mut Chance) -> i64 {
    chance.pick(&LEASES[1..])
}

/// As [`Chance::below`], for the numbers that the API has.
fn below(chance: &mut Chance, bound: i64) -> i64 {
    i64::try_from(chance.below(bound.max(1).unsigned_abs())).unwrap_or_default()
}

/// The revision that an answer has; `None` for a refusal.
fn revision_of(answer: &Answer) -> Option<i64> {
    Some(answer.revision()).filter(|revision| *revision > 0)
}
