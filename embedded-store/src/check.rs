//! Errors of a request that do not depend on the store's contents (etcd's `api/v3rpc/key.go`).

use std::collections::{HashMap, HashSet};

use etcd_client::proto::{
    PbDeleteRequest, PbPutRequest, PbRangeRequest, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp,
};

use crate::refusal::Refusal;

/// Most operations in a transaction, including nested ones. The check compares each put with each deletion.
const MOST_IN_ALL: usize = 16_384;
/// Most comparisons, or operations of one branch (`--max-txn-ops`).
const MOST_OPERATIONS: usize = 128;

pub(crate) fn range(request: &PbRangeRequest) -> Result<(), Refusal> {
    has_key(&request.key)
}

pub(crate) fn put(request: &PbPutRequest) -> Result<(), Refusal> {
    has_key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

pub(crate) fn delete(request: &PbDeleteRequest) -> Result<(), Refusal> {
    has_key(&request.key)
}

pub(crate) fn txn(request: &PbTxnRequest) -> Result<(), Refusal> {
    if total(request) > MOST_IN_ALL {
        return Err(Refusal::TooManyOperations);
    }
    operations(request, MOST_OPERATIONS)?;
    intervals(&request.success)?;
    intervals(&request.failure)?;
    Ok(())
}

fn total(request: &PbTxnRequest) -> usize {
    let count = |operation: &PbTxnRequestOp| match &operation.request {
        Some(PbTxnOpRequest::RequestTxn(inner)) => 1 + total(inner),
        _ => 1,
    };
    request.success.iter().chain(&request.failure).map(count).sum()
}

fn has_key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

fn operations(request: &PbTxnRequest, most: usize) -> Result<(), Refusal> {
    let count = request.compare.len().max(request.success.len()).max(request.failure.len());
    if count > most {
        return Err(Refusal::TooManyOperations);
    }
    request.compare.iter().try_for_each(|compare| has_key(&compare.key))?;
    request.success.iter().chain(&request.failure).try_for_each(|operation| match &operation.request {
        Some(PbTxnOpRequest::RequestRange(request)) => range(request),
        Some(PbTxnOpRequest::RequestPut(request)) => put(request),
        Some(PbTxnOpRequest::RequestDeleteRange(request)) => delete(request),
        Some(PbTxnOpRequest::RequestTxn(request)) => operations(request, most - count),
        None => Err(Refusal::KeyNotFound),
    })
}

/// The keys that one branch of a transaction writes. No path may write a key twice.
#[derive(Default)]
struct Written<'a> {
    puts: HashSet<&'a [u8]>,
    /// The ends of deleted ranges, by their first key.
    deletions: HashMap<&'a [u8], Vec<&'a [u8]>>,
}

impl<'a> Written<'a> {
    fn deletes(&self, key: &[u8]) -> bool {
        // A deletion of all keys from one on does not count: etcd accepts it together with a put.
        let covers = |first: &[u8], end: &[u8]| match end {
            [] => key == first,
            end => key >= first && key < end,
        };
        self.deletions.iter().any(|(first, ends)| ends.iter().any(|end| covers(first, end)))
    }

    fn put(&mut self, key: &'a [u8], is_safe: impl Fn(&[u8]) -> bool) -> Result<(), Refusal> {
        if (self.puts.contains(key) && !is_safe(key)) || self.deletes(key) {
            return Err(Refusal::DuplicateKey);
        }
        self.puts.insert(key);
        Ok(())
    }

    fn add_deletions(&mut self, other: Written<'a>) {
        for (first, ends) in other.deletions {
            self.deletions.entry(first).or_default().extend(ends);
        }
    }
}

fn intervals(operations: &[PbTxnRequestOp]) -> Result<Written<'_>, Refusal> {
    let mut written = Written::default();
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestDeleteRange(deletion)) = &operation.request {
            written.deletions.entry(&deletion.key).or_default().push(&deletion.range_end);
        }
    }
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestTxn(inner)) = &operation.request {
            let (then, otherwise) = (intervals(&inner.success)?, intervals(&inner.failure)?);
            for key in &then.puts {
                written.put(key, |_| false)?;
            }
            // A transaction takes only one of its two branches.
            for key in &otherwise.puts {
                written.put(key, |key| then.puts.contains(key))?;
            }
            written.add_deletions(then);
            written.add_deletions(otherwise);
        }
    }
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestPut(put)) = &operation.request {
            written.put(&put.key, |_| false)?;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_of(key: &str) -> PbTxnRequestOp {
        let put = PbPutRequest { key: key.into(), ..PbPutRequest::default() };
        PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestPut(put)) }
    }

    fn deletion(key: &str, end: &str) -> PbTxnRequestOp {
        let deletion = PbDeleteRequest { key: key.into(), range_end: end.into(), prev_kv: false };
        PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestDeleteRange(deletion)) }
    }

    fn branches(success: Vec<PbTxnRequestOp>, failure: Vec<PbTxnRequestOp>) -> PbTxnRequest {
        PbTxnRequest { compare: Vec::new(), success, failure }
    }

    fn inner(success: Vec<PbTxnRequestOp>, failure: Vec<PbTxnRequestOp>) -> PbTxnRequestOp {
        PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestTxn(branches(success, failure))) }
    }

    #[test]
    fn a_key_is_written_only_once_on_any_way_through() {
        let duplicate = Err(Refusal::DuplicateKey);
        assert_eq!(txn(&branches(vec![put_of("a"), put_of("a")], vec![])), duplicate);
        assert_eq!(txn(&branches(vec![put_of("a"), deletion("a", "")], vec![])), duplicate);
        assert_eq!(txn(&branches(vec![deletion("a", "c"), put_of("b")], vec![])), duplicate);
        assert_eq!(txn(&branches(vec![inner(vec![put_of("a")], vec![]), put_of("a")], vec![])), duplicate);
        assert_eq!(txn(&branches(vec![put_of("a")], vec![put_of("a")])), Ok(()));
        assert_eq!(txn(&branches(vec![deletion("a", "c"), put_of("c")], vec![])), Ok(()));
        assert_eq!(txn(&branches(vec![inner(vec![put_of("a")], vec![put_of("a")])], vec![])), Ok(()));
    }

    #[test]
    fn a_transaction_has_a_limited_number_of_operations_and_none_without_a_key() {
        let many: Vec<_> = (0..=MOST_OPERATIONS).map(|number| put_of(&number.to_string())).collect();
        assert_eq!(txn(&branches(many[1..].to_vec(), vec![])), Ok(()));
        assert_eq!(txn(&branches(many, vec![])), Err(Refusal::TooManyOperations));
        assert_eq!(txn(&branches(vec![put_of("")], vec![])), Err(Refusal::EmptyKey));
        assert_eq!(txn(&branches(vec![PbTxnRequestOp { request: None }], vec![])), Err(Refusal::KeyNotFound));
    }
}
