//! The requests to the writer, and its answers.

use etcd_client::proto::{PbDeleteRequest, PbPutRequest, PbTxnOpRequest, PbTxnRequest};
use tokio::time::Instant;

use crate::answer;
use crate::contents::Contents;
use crate::refusal::Refusal;

/// A change, which only the writer may make.
#[derive(Debug, Clone)]
pub(crate) enum WriteRequest {
    Put(PbPutRequest),
    Delete(PbDeleteRequest),
    Txn(PbTxnRequest),
    Grant {
        id: i64,
        seconds: i64,
    },
    Revoke(i64),
    Compact(i64),
    /// Ends those of these leases that have expired.
    Expire(Vec<i64>),
    /// Records how long these leases last.
    Checkpoint(Vec<i64>),
}

/// The answer to a successful request.
#[derive(Debug)]
pub(crate) enum WriteAnswer {
    Put(answer::Put),
    Delete(answer::Delete),
    Txn(answer::Txn),
    /// Id and seconds of the lease, and the revision.
    Granted {
        id: i64,
        seconds: i64,
        revision: i64,
    },
    /// Done; the revision.
    Done(i64),
}

pub(crate) type WriteResult = Result<WriteAnswer, Refusal>;

impl WriteRequest {
    /// Applies the request to the contents in memory.
    pub(crate) fn carry_out(self, contents: &mut Contents, now: Instant) -> WriteResult {
        match self {
            WriteRequest::Put(put) => return contents.put(put).map(WriteAnswer::Put),
            WriteRequest::Delete(deletion) => return Ok(WriteAnswer::Delete(contents.delete(&deletion))),
            WriteRequest::Txn(txn) => return contents.txn(&txn).map(WriteAnswer::Txn),
            WriteRequest::Grant { id, seconds } => {
                let (id, seconds) = contents.leases.grant(id, seconds, now)?;
                return Ok(WriteAnswer::Granted { id, seconds, revision: contents.keys.revision() });
            }
            WriteRequest::Revoke(id) => contents.revoke(id)?,
            // The writer handles compactions itself.
            WriteRequest::Compact(_) => {}
            WriteRequest::Expire(ids) => {
                for id in ids {
                    contents.expire(id, now);
                }
            }
            WriteRequest::Checkpoint(ids) => contents.leases.checkpoint(&ids, now),
        }
        Ok(WriteAnswer::Done(contents.keys.revision()))
    }

    pub(crate) fn reads_only(&self) -> bool {
        matches!(self, Self::Txn(txn) if only_reads(txn))
    }

    /// Returns whether the request frees disk space, at the latest after the next compaction.
    pub(crate) fn makes_room(&self) -> bool {
        match self {
            Self::Put(_) | Self::Grant { .. } => false,
            Self::Txn(txn) => {
                !only_reads(txn)
                    && all_operations(txn, &|operation| !matches!(operation, PbTxnOpRequest::RequestPut(_)))
            }
            Self::Delete(_) | Self::Revoke(_) | Self::Compact(_) | Self::Expire(_) | Self::Checkpoint(_) => {
                true
            }
        }
    }
}

fn only_reads(txn: &PbTxnRequest) -> bool {
    all_operations(txn, &|operation| matches!(operation, PbTxnOpRequest::RequestRange(_)))
}

/// Returns whether all operations that a transaction may carry out are of this kind.
fn all_operations(txn: &PbTxnRequest, is_so: &dyn Fn(&PbTxnOpRequest) -> bool) -> bool {
    txn.success.iter().chain(&txn.failure).filter_map(|operation| operation.request.as_ref()).all(
        |operation| match operation {
            PbTxnOpRequest::RequestTxn(inner) => all_operations(inner, is_so),
            operation => is_so(operation),
        },
    )
}
