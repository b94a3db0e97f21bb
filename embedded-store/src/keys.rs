//! The keys with their history since the last compaction. Pure. Must agree with etcd's `mvcc` package.
//!
//! Changes of the current request, and changes that are not on disk yet, are already here. Readers say up to which
//! revision they read.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use etcd_client::proto::PbKeyValue;

/// One change of one key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// The key after the change. A deletion has only the key and the revision, and version 0.
    pub(crate) kv: PbKeyValue,
    /// Number of the change in its revision, from 0.
    pub(crate) number: u32,
}

impl Record {
    pub(crate) fn is_deletion(&self) -> bool {
        self.kv.version == 0
    }
}

/// Stands for the revision of the last compaction before the first one.
pub(crate) const NEVER: i64 = -1;

/// Revisions by which a follower may be late without losing compacted changes.
const FOLLOWED: usize = 1024;

/// A range of keys, as requests name it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    first: &'a [u8],
    end: Bound<&'a [u8]>,
}

impl<'a> Span<'a> {
    /// Spans only `key` if `range_end` is empty, and all keys from `key` on if it is a zero byte.
    pub(crate) fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        let end = match range_end {
            [] => Bound::Included(key),
            [0] => Bound::Unbounded,
            end => Bound::Excluded(end),
        };
        Self { first: key, end }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        key >= self.first
            && match self.end {
                Bound::Included(last) => key <= last,
                Bound::Excluded(end) => key < end,
                Bound::Unbounded => true,
            }
    }

    fn is_empty(&self) -> bool {
        matches!(self.end, Bound::Excluded(end) if end <= self.first)
    }
}

/// The keys with their history.
#[derive(Debug)]
pub(crate) struct Keys {
    /// The changes of each key, oldest first.
    histories: BTreeMap<Vec<u8>, Vec<Arc<Record>>>,
    /// The changes by revision, without gaps. The first revision may be that of the last compaction.
    log: VecDeque<Vec<Arc<Record>>>,
    /// The first revision in `log`.
    log_start: i64,
    /// The last changes that compactions took out of `log`, by revision without gaps, for watches that still need them.
    taken_out: VecDeque<(i64, Vec<Arc<Record>>)>,
    revision: i64,
    compacted: i64,
    /// The changes of the current revision.
    step: Vec<Arc<Record>>,
}

impl Keys {
    /// Loads the records in order, the last revision and the last compaction. Also returns the records that the
    /// compaction made superfluous.
    pub(crate) fn load(records: Vec<Record>, revision: i64, compacted: i64) -> (Self, Vec<(i64, u32)>) {
        let log_start = compacted.max(2); // an empty store has revision 1
        let mut keys = Self {
            histories: BTreeMap::new(),
            log: VecDeque::new(),
            log_start,
            taken_out: VecDeque::new(),
            revision,
            compacted: NEVER,
            step: Vec::new(),
        };
        keys.log.resize_with(usize::try_from(revision + 1 - log_start).unwrap_or(0), Vec::new);
        for record in records {
            let record = Arc::new(record);
            if let Some(changes) = keys.at(record.kv.mod_revision) {
                changes.push(record.clone());
            }
            keys.histories.entry(record.kv.key.clone()).or_default().push(record);
        }
        let superfluous = keys.compact(compacted);
        (keys, superfluous)
    }

    /// Returns the last revision, on disk or not.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// Returns the revision that the current request sees.
    pub(crate) fn revision_in_step(&self) -> i64 {
        self.revision + i64::from(!self.step.is_empty())
    }

    /// Returns the revision of the last compaction; [`NEVER`] before the first.
    pub(crate) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Returns the keys of the span at a revision, in order.
    pub(crate) fn range<'a>(
        &'a self,
        span: Span<'a>,
        revision: i64,
    ) -> impl Iterator<Item = &'a Arc<Record>> {
        let bounds = (Bound::Included(span.first), span.end);
        // BTreeMap panics on an empty span.
        let found = (!span.is_empty()).then(|| self.histories.range::<[u8], _>(bounds));
        found.into_iter().flatten().filter_map(move |(_, history)| at(history, revision))
    }

    /// Returns one key at a revision.
    pub(crate) fn find(&self, key: &[u8], revision: i64) -> Option<&Arc<Record>> {
        at(self.histories.get(key)?, revision)
    }

    /// Writes a key as part of the next revision.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>, lease: i64) {
        let mod_revision = self.revision + 1;
        let before =
            self.find(&key, mod_revision).map(|record| (record.kv.create_revision, record.kv.version));
        let (create_revision, version) = before.unwrap_or((mod_revision, 0));
        let kv = PbKeyValue { key, value, create_revision, mod_revision, version: version + 1, lease };
        self.change(kv);
    }

    /// Deletes an existing key as part of the next revision.
    pub(crate) fn delete(&mut self, key: Vec<u8>) {
        self.change(PbKeyValue { key, mod_revision: self.revision + 1, ..PbKeyValue::default() });
    }

    fn change(&mut self, kv: PbKeyValue) {
        let number = u32::try_from(self.step.len()).unwrap_or(u32::MAX);
        let record = Arc::new(Record { kv, number });
        self.histories.entry(record.kv.key.clone()).or_default().push(record.clone());
        self.step.push(record);
    }

    /// Ends a request. Its changes, if any, become a revision.
    pub(crate) fn end_step(&mut self) {
        if !self.step.is_empty() {
            self.log.push_back(std::mem::take(&mut self.step));
            self.revision += 1;
        }
    }

    /// Returns the changes after a revision, grouped by revision, without compacted ones.
    pub(crate) fn changes_since(&self, revision: i64) -> impl Iterator<Item = (i64, &[Arc<Record>])> {
        let skipped = usize::try_from(revision + 1 - self.log_start).unwrap_or(0);
        let first = self.log_start.max(revision + 1);
        let changes = self.log.iter().skip(skipped).map(Vec::as_slice);
        changes.zip(first..).map(|(changes, revision)| (revision, changes))
    }

    /// Returns the changes after a revision, for a follower that knew everything until a moment ago. Includes changes
    /// that were compacted since. `None` if they are no longer known.
    pub(crate) fn changes_for_follower(
        &self,
        revision: i64,
    ) -> Option<impl Iterator<Item = (i64, &[Arc<Record>])>> {
        let is_known = self.taken_out.front().is_some_and(|(first, _)| *first <= revision + 1);
        let taken_out = self.taken_out.iter().map(|(revision, changes)| (*revision, changes.as_slice()));
        let later = self.changes_since(self.compacted.max(revision));
        (revision >= self.compacted || is_known)
            .then(|| taken_out.filter(move |(of, _)| *of > revision).chain(later))
    }

    /// Undoes all changes after a revision.
    pub(crate) fn take_back(&mut self, revision: i64) {
        while self.revision > revision {
            for record in self.log.pop_back().unwrap_or_default() {
                if let Some(history) = self.histories.get_mut(&record.kv.key) {
                    history.pop();
                    if history.is_empty() {
                        self.histories.remove(&record.kv.key);
                    }
                }
            }
            self.revision -= 1;
        }
    }

    /// Removes everything that is invisible at `revision` and later. Returns the removed records.
    pub(crate) fn compact(&mut self, revision: i64) -> Vec<(i64, u32)> {
        if revision <= self.compacted {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.compacted, revision);
        let mut forgotten = Vec::new();
        self.histories.retain(|_, history| {
            let older = history.partition_point(|record| record.kv.mod_revision <= revision);
            // The last record stays visible, unless it is a deletion.
            let goes = match older.checked_sub(1).and_then(|last| history.get(last)) {
                Some(last) if !last.is_deletion() => older - 1,
                _ => older,
            };
            forgotten.extend(history.drain(..goes).map(|record| (record.kv.mod_revision, record.number)));
            history.shrink_to_fit();
            !history.is_empty()
        });
        while self.log_start < revision
            && let Some(changes) = self.log.pop_front()
        {
            // The rest of the previous compaction's revision. All of it was taken out then.
            if self.log_start != before {
                self.taken_out.push_back((self.log_start, changes));
            }
            self.log_start += 1;
        }
        // A watch may start at the compacted revision, and receives the rest of it.
        let histories = &self.histories;
        if self.log_start == revision
            && let Some(first) = self.log.front_mut()
        {
            self.taken_out.push_back((revision, first.clone()));
            first.retain(|record| at_exactly(histories.get(&record.kv.key), record));
        }
        self.taken_out.drain(..self.taken_out.len().saturating_sub(FOLLOWED));
        self.taken_out.shrink_to_fit();
        forgotten
    }

    fn at(&mut self, revision: i64) -> Option<&mut Vec<Arc<Record>>> {
        self.log.get_mut(usize::try_from(revision - self.log_start).ok()?)
    }
}

/// Returns the value of a key at a revision, if the key existed.
fn at(history: &[Arc<Record>], revision: i64) -> Option<&Arc<Record>> {
    // Nearly all requests ask for the last one.
    let last = match history.last() {
        Some(last) if last.kv.mod_revision <= revision => last,
        _ => history[..history.partition_point(|record| record.kv.mod_revision <= revision)].last()?,
    };
    (!last.is_deletion()).then_some(last)
}

fn at_exactly(history: Option<&Vec<Arc<Record>>>, record: &Arc<Record>) -> bool {
    history.is_some_and(|history| history.iter().any(|other| Arc::ptr_eq(other, record)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: (&[u8], &[u8]) = (&[0], &[0]);

    fn keys() -> Keys {
        Keys::load(Vec::new(), 1, NEVER).0
    }

    fn put(keys: &mut Keys, key: &str, value: &str) {
        keys.put(key.into(), value.into(), 0);
        keys.end_step();
    }

    fn delete(keys: &mut Keys, key: &str) {
        keys.delete(key.into());
        keys.end_step();
    }

    fn seen(keys: &Keys, revision: i64) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found = keys.range(Span::new(ALL.0, ALL.1), revision);
        found.map(|record| (text(&record.kv.key), text(&record.kv.value))).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_revision_shows_the_keys_as_they_were() {
        let mut keys = keys();
        put(&mut keys, "a", "1");
        put(&mut keys, "b", "2");
        put(&mut keys, "a", "3");
        delete(&mut keys, "b");
        assert_eq!(keys.revision(), 5);
        assert_eq!(seen(&keys, 2), pairs(&[("a", "1")]));
        assert_eq!(seen(&keys, 4), pairs(&[("a", "3"), ("b", "2")]));
        assert_eq!(seen(&keys, 5), pairs(&[("a", "3")]));
        let a = &keys.find(b"a", 5).unwrap().kv;
        assert_eq!((a.create_revision, a.mod_revision, a.version), (2, 4, 2));
    }

    #[test]
    fn a_key_that_is_written_again_after_its_end_begins_anew() {
        let mut keys = keys();
        put(&mut keys, "a", "1");
        delete(&mut keys, "a");
        put(&mut keys, "a", "2");
        let a = &keys.find(b"a", 4).unwrap().kv;
        assert_eq!((a.create_revision, a.version), (4, 1));
    }

    #[test]
    fn a_compaction_keeps_what_can_be_seen_at_its_revision() {
        let mut keys = keys();
        put(&mut keys, "a", "1");
        put(&mut keys, "a", "2");
        put(&mut keys, "b", "1");
        delete(&mut keys, "b");
        put(&mut keys, "a", "3");
        assert_eq!(keys.compact(5), [(2, 0), (4, 0), (5, 0)]);
        assert_eq!(seen(&keys, 5), pairs(&[("a", "2")]));
        assert_eq!(seen(&keys, 6), pairs(&[("a", "3")]));
        let since: Vec<i64> = keys.changes_since(4).map(|(revision, _)| revision).collect();
        assert_eq!(since, [5, 6]);
        assert!(keys.changes_since(4).next().unwrap().1.is_empty(), "the end of b is forgotten");
    }

    #[test]
    fn a_follower_is_told_what_a_compaction_has_just_taken_away() {
        let mut keys = keys();
        put(&mut keys, "a", "1");
        put(&mut keys, "b", "1");
        delete(&mut keys, "b");
        put(&mut keys, "a", "2");
        keys.compact(4);
        let told = |keys: &Keys, revision| -> Option<Vec<(i64, usize)>> {
            let changes = keys.changes_for_follower(revision)?;
            Some(changes.map(|(revision, changes)| (revision, changes.len())).collect())
        };
        assert_eq!(told(&keys, 2), Some(vec![(3, 1), (4, 1), (5, 1)]), "with the end of b");
        assert_eq!(told(&keys, 3), Some(vec![(4, 1), (5, 1)]));
        assert_eq!(told(&keys, 4), Some(vec![(5, 1)]));
        assert_eq!(told(&keys, 5), Some(vec![]));
        keys.compact(5);
        assert_eq!(told(&keys, 2), Some(vec![(3, 1), (4, 1), (5, 1)]), "after another compaction");
        assert_eq!(told(&keys, 4), Some(vec![(5, 1)]));
        put(&mut keys, "a", "3");
        put(&mut keys, "a", "4");
        keys.compact(7);
        assert_eq!(
            told(&keys, 3).unwrap().iter().map(|(revision, _)| *revision).collect::<Vec<_>>(),
            [4, 5, 6, 7]
        );
    }

    #[test]
    fn a_compaction_keeps_no_more_than_followers_need() {
        let mut keys = keys();
        for _ in 0..FOLLOWED + 10 {
            put(&mut keys, "a", "1");
        }
        let last = keys.revision();
        keys.compact(last);
        assert_eq!(keys.changes_for_follower(last - FOLLOWED as i64).unwrap().count(), FOLLOWED);
        assert!(keys.changes_for_follower(last - FOLLOWED as i64 - 1).is_none());
    }

    #[test]
    fn what_is_taken_back_was_never_there() {
        let mut keys = keys();
        put(&mut keys, "a", "1");
        put(&mut keys, "b", "1");
        delete(&mut keys, "a");
        keys.take_back(2);
        assert_eq!((keys.revision(), seen(&keys, 9)), (2, pairs(&[("a", "1")])));
        put(&mut keys, "c", "1");
        assert_eq!(keys.find(b"c", 3).unwrap().kv.mod_revision, 3);
    }

    #[test]
    fn a_span_is_a_key_a_range_or_all_from_a_key_on() {
        assert!(Span::new(b"a", b"").contains(b"a") && !Span::new(b"a", b"").contains(b"a0"));
        assert!(Span::new(b"a", b"b").contains(b"a0") && !Span::new(b"a", b"b").contains(b"b"));
        assert!(Span::new(b"a", &[0]).contains(b"z") && !Span::new(b"b", &[0]).contains(b"a"));
        assert_eq!(keys().range(Span::new(b"b", b"a"), 1).count(), 0);
    }

    #[test]
    fn what_was_stored_is_loaded_as_it_was() {
        let mut keys = keys();
        put(&mut keys, "a", "1");
        put(&mut keys, "b", "2");
        delete(&mut keys, "a");
        put(&mut keys, "b", "3");
        let stored: Vec<Record> =
            keys.changes_since(1).flat_map(|(_, changes)| changes).map(|record| (**record).clone()).collect();
        keys.compact(3);
        let (loaded, superfluous) = Keys::load(stored, 5, 3);
        assert_eq!(superfluous, []);
        for revision in 3..=5 {
            assert_eq!(seen(&loaded, revision), seen(&keys, revision), "{revision}");
        }
        let changes = |keys: &Keys| -> Vec<_> {
            keys.changes_since(2).map(|(revision, changes)| (revision, changes.to_vec())).collect()
        };
        assert_eq!(changes(&loaded), changes(&keys));
    }
}
