//! Transactions: all comparisons first, including nested ones, then the chosen branches, as one revision.

use etcd_client::proto::{
    PbCompare, PbKeyValue, PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp,
};

use super::{Contents, header};
use crate::answer::{Operation, Txn};
use crate::keys::Span;
use crate::refusal::Refusal;

/// The numbers of `CompareResult` and `CompareTarget` in etcd's `rpc.proto`.
mod comparing {
    pub(super) const EQUAL: i32 = 0;
    pub(super) const GREATER: i32 = 1;
    pub(super) const LESS: i32 = 2;
    pub(super) const NOT_EQUAL: i32 = 3;
    pub(super) const VERSION: i32 = 0;
    pub(super) const CREATION: i32 = 1;
    pub(super) const CHANGE: i32 = 2;
    pub(super) const VALUE: i32 = 3;
    pub(super) const LEASE: i32 = 4;
}

/// The operations that a transaction will carry out: its chosen branch, and the paths of transactions in it.
struct Path<'a> {
    succeeded: bool,
    operations: &'a [PbTxnRequestOp],
    inner: Vec<Path<'a>>,
}

impl Path<'_> {
    /// Visits every operation of the path in order, up to the first refusal.
    fn walk(&self, visit: &mut impl FnMut(&PbTxnOpRequest) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let mut inner = self.inner.iter();
        for operation in self.operations.iter().filter_map(|operation| operation.request.as_ref()) {
            match operation {
                PbTxnOpRequest::RequestTxn(_) => inner.next().map_or(Ok(()), |inner| inner.walk(visit))?,
                operation => visit(operation)?,
            }
        }
        Ok(())
    }
}

impl Contents {
    pub(crate) fn txn(&mut self, request: &PbTxnRequest) -> Result<Txn, Refusal> {
        let path = self.path(request);
        self.check_path(&path)?;
        let response = self.take_path(&path);
        let header = header(self.keys.revision_in_step());
        self.keys.end_step();
        Ok(Txn { header, ..response? })
    }

    fn path<'a>(&self, request: &'a PbTxnRequest) -> Path<'a> {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let operations = if succeeded { &request.success } else { &request.failure };
        let inner = operations
            .iter()
            .filter_map(|operation| match &operation.request {
                Some(PbTxnOpRequest::RequestTxn(inner)) => Some(self.path(inner)),
                _ => None,
            })
            .collect();
        Path { succeeded, operations, inner }
    }

    /// Refuses before any change: first for any put, then for any range.
    fn check_path(&self, path: &Path<'_>) -> Result<(), Refusal> {
        self.check_puts(path)?;
        self.check_ranges(path)
    }

    fn check_puts(&self, path: &Path<'_>) -> Result<(), Refusal> {
        path.walk(&mut |operation| match operation {
            PbTxnOpRequest::RequestPut(put) => {
                // A put outside of a transaction makes these checks in the other order. etcd does the same.
                self.check_kept(put)?;
                self.check_lease(put)
            }
            _ => Ok(()),
        })
    }

    fn check_ranges(&self, path: &Path<'_>) -> Result<(), Refusal> {
        path.walk(&mut |operation| match operation {
            PbTxnOpRequest::RequestRange(range) => self.check_range(range, self.keys.revision()),
            _ => Ok(()),
        })
    }

    fn take_path(&mut self, path: &Path<'_>) -> Result<Txn, Refusal> {
        let mut responses = Vec::with_capacity(path.operations.len());
        let mut inner = path.inner.iter();
        for operation in path.operations {
            let response = match &operation.request {
                Some(PbTxnOpRequest::RequestRange(range)) => {
                    Operation::Range(self.range_at(range, self.keys.revision_in_step())?)
                }
                Some(PbTxnOpRequest::RequestPut(put)) => Operation::Put(self.put_in_step(put.clone())),
                Some(PbTxnOpRequest::RequestDeleteRange(deletion)) => {
                    Operation::Delete(self.delete_in_step(deletion))
                }
                Some(PbTxnOpRequest::RequestTxn(_)) => match inner.next() {
                    Some(inner) => Operation::Txn(self.take_path(inner)?),
                    None => continue,
                },
                None => continue,
            };
            responses.push(response);
        }
        // A nested transaction reports no revision.
        Ok(Txn { header: header(0), succeeded: path.succeeded, responses })
    }

    /// Returns whether a comparison holds for every key of its range. An empty range counts as a key that never
    /// existed.
    fn holds(&self, compare: &PbCompare) -> bool {
        let span = Span::new(&compare.key, &compare.range_end);
        let mut found = self.keys.range(span, self.keys.revision()).peekable();
        if found.peek().is_none() {
            // A missing value differs from every value.
            return compare.target != comparing::VALUE && holds_for(compare, &PbKeyValue::default());
        }
        found.all(|record| holds_for(compare, &record.kv))
    }
}

fn holds_for(compare: &PbCompare, kv: &PbKeyValue) -> bool {
    let number = |target: fn(&PbTargetUnion) -> Option<i64>| {
        compare.target_union.as_ref().and_then(target).unwrap_or_default()
    };
    let order = match compare.target {
        comparing::VERSION => kv.version.cmp(&number(|target| match target {
            PbTargetUnion::Version(version) => Some(*version),
            _ => None,
        })),
        comparing::CREATION => kv.create_revision.cmp(&number(|target| match target {
            PbTargetUnion::CreateRevision(revision) => Some(*revision),
            _ => None,
        })),
        comparing::CHANGE => kv.mod_revision.cmp(&number(|target| match target {
            PbTargetUnion::ModRevision(revision) => Some(*revision),
            _ => None,
        })),
        comparing::LEASE => kv.lease.cmp(&number(|target| match target {
            PbTargetUnion::Lease(lease) => Some(*lease),
            _ => None,
        })),
        comparing::VALUE => match &compare.target_union {
            Some(PbTargetUnion::Value(value)) => kv.value.as_slice().cmp(value),
            _ => kv.value.as_slice().cmp(&[]),
        },
        _ => std::cmp::Ordering::Equal,
    };
    match compare.result {
        comparing::EQUAL => order.is_eq(),
        comparing::GREATER => order.is_gt(),
        comparing::LESS => order.is_lt(),
        comparing::NOT_EQUAL => order.is_ne(),
        _ => true,
    }
}
