//! The store's contents, and the effect of each request on them. Pure: time is an argument. Must agree with etcd's
//! `server/apply.go`.

mod txn;

use std::sync::Arc;

use etcd_client::proto::{PbDeleteRequest, PbKeyValue, PbPutRequest, PbRangeRequest, PbResponseHeader};
use tokio::time::Instant;

use crate::answer::{Delete, Put, Range};
use crate::keys::{Keys, Record, Span};
use crate::leases::Leases;
use crate::refusal::Refusal;

/// Keys and leases.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) keys: Keys,
    pub(crate) leases: Leases,
    /// The last revision on disk. Clients see nothing later.
    pub(crate) stored: i64,
}

impl Contents {
    /// Starts with the keys and leases from disk.
    pub(crate) fn new(keys: Keys, mut leases: Leases) -> Self {
        let revision = keys.revision();
        for record in keys.range(Span::new(&[0], &[0]), revision) {
            leases.move_key(&record.kv.key, 0, record.kv.lease);
        }
        leases.stored();
        Self { keys, leases, stored: revision }
    }

    /// Returns a range of what is on disk.
    pub(crate) fn range(&self, request: &PbRangeRequest) -> Result<Range, Refusal> {
        self.range_at(request, self.stored)
    }

    /// Returns the number of keys on disk.
    pub(crate) fn key_count(&self) -> usize {
        self.keys.range(Span::new(&[0], &[0]), self.stored).count()
    }

    pub(crate) fn put(&mut self, request: PbPutRequest) -> Result<Put, Refusal> {
        self.check_lease(&request)?;
        self.check_kept(&request)?;
        let response = self.put_in_step(request);
        self.keys.end_step();
        Ok(response)
    }

    pub(crate) fn delete(&mut self, request: &PbDeleteRequest) -> Delete {
        let response = self.delete_in_step(request);
        self.keys.end_step();
        response
    }

    /// Ends a lease and deletes its keys.
    pub(crate) fn revoke(&mut self, id: i64) -> Result<(), Refusal> {
        for key in self.leases.revoke(id)? {
            self.keys.delete(key);
        }
        self.keys.end_step();
        Ok(())
    }

    /// Ends a lease if it has expired. It may have been renewed or revoked since the caller looked.
    pub(crate) fn expire(&mut self, id: i64, now: Instant) {
        if self.leases.has_expired(id, now) {
            // `has_expired` found it.
            let _ = self.revoke(id);
        }
    }

    /// Compacts the history up to a revision. Returns the records to remove.
    pub(crate) fn compact(&mut self, revision: i64) -> Result<Vec<(i64, u32)>, Refusal> {
        if revision <= self.keys.compacted() {
            return Err(Refusal::Compacted);
        }
        if revision > self.keys.revision() {
            return Err(Refusal::FutureRevision);
        }
        Ok(self.keys.compact(revision))
    }

    /// Undoes everything that is not on disk.
    pub(crate) fn take_back(&mut self) {
        self.keys.take_back(self.stored);
        self.leases.take_back();
    }

    /// Refuses a put with a lease that does not exist.
    fn check_lease(&self, request: &PbPutRequest) -> Result<(), Refusal> {
        match request.lease {
            0 => Ok(()),
            id if self.leases.contains(id) => Ok(()),
            _ => Err(Refusal::LeaseNotFound),
        }
    }

    /// Refuses a put that keeps the value or lease of a key that does not exist.
    fn check_kept(&self, request: &PbPutRequest) -> Result<(), Refusal> {
        let keeps = request.ignore_value || request.ignore_lease;
        match keeps && self.keys.find(&request.key, self.keys.revision_in_step()).is_none() {
            true => Err(Refusal::KeyNotFound),
            false => Ok(()),
        }
    }

    fn put_in_step(&mut self, request: PbPutRequest) -> Put {
        let before = self.keys.find(&request.key, self.keys.revision_in_step()).cloned();
        let held_by = before.as_ref().map_or(0, |before| before.kv.lease);
        let value = match before.as_ref().filter(|_| request.ignore_value) {
            Some(before) => before.kv.value.clone(),
            None => request.value,
        };
        let lease = if request.ignore_lease { held_by } else { request.lease };
        let before = before.filter(|_| request.prev_kv);
        self.leases.move_key(&request.key, held_by, lease);
        self.keys.put(request.key, value, lease);
        Put { header: header(self.keys.revision_in_step()), before }
    }

    fn delete_in_step(&mut self, request: &PbDeleteRequest) -> Delete {
        let span = Span::new(&request.key, &request.range_end);
        let found: Vec<_> = self.keys.range(span, self.keys.revision_in_step()).cloned().collect();
        for record in &found {
            self.leases.move_key(&record.kv.key, record.kv.lease, 0);
            self.keys.delete(record.kv.key.clone());
        }
        Delete {
            header: header(self.keys.revision_in_step()),
            deleted: count(found.len()),
            before: if request.prev_kv { found } else { Vec::new() },
        }
    }

    /// Refuses a range at a compacted or future revision.
    fn check_range(&self, request: &PbRangeRequest, current: i64) -> Result<(), Refusal> {
        if request.revision > current {
            return Err(Refusal::FutureRevision);
        }
        if request.revision > 0 && request.revision < self.keys.compacted() {
            return Err(Refusal::Compacted);
        }
        Ok(())
    }

    fn range_at(&self, request: &PbRangeRequest, current: i64) -> Result<Range, Refusal> {
        self.check_range(request, current)?;
        let revision = if request.revision > 0 { request.revision } else { current };
        let mut found = self.keys.range(Span::new(&request.key, &request.range_end), revision);
        let mut response = Range { header: header(current), ..Range::default() };
        if request.count_only {
            response.count = count(found.count());
            return Ok(response);
        }
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        // Records to examine. Without a direction, a limit selects the first keys even if ordered by another field.
        let most = if is_of_the_first(request) { limit.saturating_add(1) } else { usize::MAX };
        let mut records: Vec<&Arc<Record>> = found.by_ref().take(most).collect();
        response.count = count(records.len() + found.count());
        records.retain(|record| is_within(request, &record.kv));
        sort(request, &mut records);
        response.more = records.len() > limit;
        records.truncate(limit);
        response.keys_only = request.keys_only;
        response.records = records.into_iter().cloned().collect();
        Ok(response)
    }
}

/// Returns a header with a revision. The service adds the store's identity.
pub(crate) fn header(revision: i64) -> Option<PbResponseHeader> {
    Some(PbResponseHeader { revision, ..PbResponseHeader::default() })
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// `SortOrder` and `SortTarget` of etcd's `rpc.proto`.
mod sorting {
    pub(super) const UNSORTED: i32 = 0;
    pub(super) const DESCENDING: i32 = 2;
    pub(super) const BY_KEY: i32 = 0;
    pub(super) const BY_VERSION: i32 = 1;
    pub(super) const BY_CREATION: i32 = 2;
    pub(super) const BY_CHANGE: i32 = 3;
    pub(super) const BY_VALUE: i32 = 4;
}

/// Returns whether the limit applies before filters and order.
fn is_of_the_first(request: &PbRangeRequest) -> bool {
    let bounds = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    request.sort_order == sorting::UNSORTED && bounds == [0; 4]
}

fn is_within(request: &PbRangeRequest, kv: &PbKeyValue) -> bool {
    let within = |revision, min, max| (min == 0 || revision >= min) && (max == 0 || revision <= max);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

/// Records that compare equal keep the order of their keys in both directions.
fn sort(request: &PbRangeRequest, records: &mut [&Arc<Record>]) {
    let of = |one: &PbKeyValue, other: &PbKeyValue| match request.sort_target {
        sorting::BY_VERSION => one.version.cmp(&other.version),
        sorting::BY_CREATION => one.create_revision.cmp(&other.create_revision),
        sorting::BY_CHANGE => one.mod_revision.cmp(&other.mod_revision),
        sorting::BY_VALUE => one.value.cmp(&other.value),
        _ => one.key.cmp(&other.key),
    };
    let by = |one: &Record, other: &Record| of(&one.kv, &other.kv);
    match request.sort_order {
        sorting::DESCENDING => records.sort_by(|one, other| by(other, one)),
        sorting::UNSORTED if request.sort_target == sorting::BY_KEY => {}
        _ => records.sort_by(|one, other| by(one, other)),
    }
}

#[cfg(test)]
mod tests;
