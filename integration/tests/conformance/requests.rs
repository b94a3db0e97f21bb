//! Short names for the messages of the etcd v3 API, as they are sent.

use etcd_client::WatchOptions;
use etcd_client::proto::{
    PbCompactionRequest, PbCompare, PbCompareTarget, PbDeleteRequest, PbLeaseGrantRequest,
    PbLeaseRevokeRequest, PbLeaseTimeToLiveRequest, PbPutRequest, PbRangeRequest, PbTargetUnion,
    PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp, PbWatchRequest, PbWatchRequestUnion,
};

/// As an end: from the key on. As a key: the first there can be.
pub(crate) const ZERO: &[u8] = b"\0";

/// How the two sides of a comparison stand to each other; the values are those of the API.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Is {
    Equal = 0,
    Greater = 1,
    Less = 2,
    NotEqual = 3,
}

impl Is {
    pub(crate) const ALL: [Is; 4] = [Is::Equal, Is::Greater, Is::Less, Is::NotEqual];
}

pub(crate) fn range(key: impl AsRef<[u8]>) -> PbRangeRequest {
    PbRangeRequest { key: key.as_ref().to_vec(), ..PbRangeRequest::default() }
}

/// All keys from `key` to before `end`.
pub(crate) fn between(key: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> PbRangeRequest {
    PbRangeRequest { range_end: end.as_ref().to_vec(), ..range(key) }
}

/// All keys that begin with `prefix`, whose last byte is not 255.
pub(crate) fn prefix(prefix: &str) -> PbRangeRequest {
    between(prefix, end_of_prefix(prefix))
}

pub(crate) fn end_of_prefix(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

pub(crate) fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> PbPutRequest {
    PbPutRequest { key: key.as_ref().to_vec(), value: value.as_ref().to_vec(), ..PbPutRequest::default() }
}

/// A put whose key goes with the lease.
pub(crate) fn put_leased(key: &str, value: &str, lease: i64) -> PbPutRequest {
    PbPutRequest { lease, ..put(key, value) }
}

pub(crate) fn delete(key: impl AsRef<[u8]>) -> PbDeleteRequest {
    PbDeleteRequest { key: key.as_ref().to_vec(), ..PbDeleteRequest::default() }
}

pub(crate) fn delete_between(key: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> PbDeleteRequest {
    PbDeleteRequest { range_end: end.as_ref().to_vec(), ..delete(key) }
}

pub(crate) fn compact(revision: i64) -> PbCompactionRequest {
    PbCompactionRequest { revision, physical: false }
}

pub(crate) fn grant(id: i64, ttl: i64) -> PbLeaseGrantRequest {
    PbLeaseGrantRequest { ttl, id }
}

pub(crate) fn revoke(id: i64) -> PbLeaseRevokeRequest {
    PbLeaseRevokeRequest { id }
}

/// The time that a lease has left, and its keys.
pub(crate) fn time_to_live(id: i64) -> PbLeaseTimeToLiveRequest {
    PbLeaseTimeToLiveRequest { id, keys: true }
}

/// A transaction; an array of one type of operation can be given as it is.
pub(crate) fn txn<S, F>(
    compare: impl IntoIterator<Item = PbCompare>,
    success: impl IntoIterator<Item = S>,
    failure: impl IntoIterator<Item = F>,
) -> PbTxnRequest
where
    S: Operation,
    F: Operation,
{
    PbTxnRequest {
        compare: compare.into_iter().collect(),
        success: success.into_iter().map(op).collect(),
        failure: failure.into_iter().map(op).collect(),
    }
}

/// A transaction that compares nothing.
pub(crate) fn all<S: Operation>(operations: impl IntoIterator<Item = S>) -> PbTxnRequest {
    txn([], operations, NOTHING)
}

/// No operations.
pub(crate) const NOTHING: [PbPutRequest; 0] = [];

/// As an operation of a transaction, where there are several kinds in one.
pub(crate) fn op(operation: impl Operation) -> PbTxnRequestOp {
    PbTxnRequestOp { request: operation.request() }
}

/// What can be an operation of a transaction.
pub(crate) trait Operation {
    fn request(self) -> Option<PbTxnOpRequest>;
}

impl Operation for PbRangeRequest {
    fn request(self) -> Option<PbTxnOpRequest> {
        Some(PbTxnOpRequest::RequestRange(self))
    }
}

impl Operation for PbPutRequest {
    fn request(self) -> Option<PbTxnOpRequest> {
        Some(PbTxnOpRequest::RequestPut(self))
    }
}

impl Operation for PbDeleteRequest {
    fn request(self) -> Option<PbTxnOpRequest> {
        Some(PbTxnOpRequest::RequestDeleteRange(self))
    }
}

impl Operation for PbTxnRequest {
    fn request(self) -> Option<PbTxnOpRequest> {
        Some(PbTxnOpRequest::RequestTxn(self))
    }
}

impl Operation for PbTxnRequestOp {
    fn request(self) -> Option<PbTxnOpRequest> {
        self.request
    }
}

pub(crate) fn compare(key: impl AsRef<[u8]>, is: Is, to: PbTargetUnion) -> PbCompare {
    let target = match to {
        PbTargetUnion::Version(_) => PbCompareTarget::Version,
        PbTargetUnion::CreateRevision(_) => PbCompareTarget::Create,
        PbTargetUnion::ModRevision(_) => PbCompareTarget::Mod,
        PbTargetUnion::Value(_) => PbCompareTarget::Value,
        PbTargetUnion::Lease(_) => PbCompareTarget::Lease,
    };
    PbCompare {
        result: is as i32,
        target: target as i32,
        key: key.as_ref().to_vec(),
        range_end: Vec::new(),
        target_union: Some(to),
    }
}

pub(crate) fn value_is(key: &str, value: &str) -> PbCompare {
    compare(key, Is::Equal, PbTargetUnion::Value(value.as_bytes().to_vec()))
}

/// The request for a watch on all keys that begin with `prefix`.
pub(crate) fn watch_prefix(prefix: &str, options: WatchOptions) -> PbWatchRequest {
    options.with_key(prefix).with_prefix().into()
}

pub(crate) fn cancel(watch_id: i64) -> PbWatchRequest {
    // The type of what is inside cannot be named, so it is made empty and filled.
    let mut union = PbWatchRequestUnion::CancelRequest(Default::default());
    if let PbWatchRequestUnion::CancelRequest(request) = &mut union {
        request.watch_id = watch_id;
    }
    PbWatchRequest { request_union: Some(union) }
}

pub(crate) fn progress() -> PbWatchRequest {
    PbWatchRequest { request_union: Some(PbWatchRequestUnion::ProgressRequest(Default::default())) }
}
