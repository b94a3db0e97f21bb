//! One watch: its key range, and its position in the history.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::contents::Contents;
use crate::keys::{Record, Span};
use crate::message::Event;

/// `FilterType` in etcd's `rpc.proto`.
pub(super) const NO_PUT: i32 = 0;
pub(super) const NO_DELETE: i32 = 1;

/// A response ends after the revision that exceeds this many bytes of events.
const RESPONSE_BYTES: usize = 1 << 20;

/// What a client wants from a watch.
#[derive(Debug, Default)]
pub(super) struct Wish {
    pub(super) key: Vec<u8>,
    pub(super) range_end: Vec<u8>,
    /// The first revision that the client wants; 0 for the next.
    pub(super) start_revision: i64,
    pub(super) no_puts: bool,
    pub(super) no_deletions: bool,
    pub(super) prev_kv: bool,
    pub(super) progress_notify: bool,
    /// Whether the events of one revision may come in several responses.
    pub(super) fragment: bool,
    /// The watch's share of its connection's room for watches.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
pub(super) struct Cursor {
    wish: Wish,
    /// The first revision that was not sent.
    next: i64,
    /// Whether the watch has ever received everything. Since then, compactions take no events from it.
    follows: bool,
    /// The rest of a revision that comes in several responses.
    rest: Vec<Event>,
    /// Whether the watch received events since its last progress report.
    was_told: bool,
}

/// The next thing to send.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// No events.
    Nothing,
    /// Events up to a revision. If `fragment`, more events of that revision follow.
    Events { revision: i64, events: Vec<Event>, fragment: bool },
    /// The requested history is compacted, up to this revision.
    Compacted(i64),
}

impl Cursor {
    /// Creates a watch that begins now, at the given revision.
    pub(super) fn new(mut wish: Wish, revision: i64) -> Result<Self, &'static str> {
        if wish.key.is_empty() {
            wish.key = vec![0];
        }
        let ends_before = !wish.range_end.is_empty() && wish.range_end != [0] && wish.range_end <= wish.key;
        if ends_before {
            return Err("mvcc: watcher range is empty");
        }
        let next = if wish.start_revision > 0 { wish.start_revision } else { revision + 1 };
        Ok(Self { wish, next, follows: next > revision, rest: Vec::new(), was_told: false })
    }

    /// Returns whether the disk has more than the watch has received.
    pub(super) fn is_behind(&self, contents: &Contents) -> bool {
        self.next <= contents.stored || !self.rest.is_empty()
    }

    pub(super) fn next(&mut self, contents: &Contents) -> Next {
        if !self.rest.is_empty() {
            return self.fragment();
        }
        let compacted = contents.keys.compacted();
        let after = self.next - 1;
        let (told, events, bytes) = if self.follows {
            let Some(changes) = contents.keys.changes_for_follower(after) else {
                return Next::Compacted(compacted);
            };
            self.events(contents, changes)
        } else if self.next < compacted {
            return Next::Compacted(compacted);
        } else {
            self.events(contents, contents.keys.changes_since(after))
        };
        self.next = told + 1;
        self.follows |= self.next > contents.stored;
        if events.is_empty() {
            return Next::Nothing;
        }
        self.was_told = true;
        if self.wish.fragment && bytes > RESPONSE_BYTES {
            self.rest = events;
            return self.fragment();
        }
        Next::Events { revision: told, events, fragment: false }
    }

    /// Returns the events of the next response with their bytes, and the revision that they reach.
    fn events<'s>(
        &self,
        contents: &Contents,
        changes: impl Iterator<Item = (i64, &'s [Arc<Record>])>,
    ) -> (i64, Vec<Event>, usize) {
        let mut events: Vec<Event> = Vec::new();
        let mut bytes = 0;
        let mut told = self.next - 1;
        for (revision, changes) in changes {
            if revision > contents.stored || bytes >= RESPONSE_BYTES {
                break;
            }
            for change in changes.iter().filter(|change| self.looks_for(change)) {
                let event = self.event(contents, change);
                bytes += event.length();
                events.push(event);
            }
            told = revision;
        }
        (told, events, bytes)
    }

    /// Returns whether the client wants progress reports, and received no events since this was last asked.
    pub(super) fn is_to_be_told(&mut self) -> bool {
        self.wish.progress_notify && !std::mem::take(&mut self.was_told)
    }

    fn fragment(&mut self) -> Next {
        let mut bytes = 0;
        let fitting = self
            .rest
            .iter()
            .take_while(|event| {
                bytes += event.length();
                bytes <= RESPONSE_BYTES
            })
            .count();
        let later = self.rest.split_off(fitting.max(1).min(self.rest.len()));
        let events = std::mem::replace(&mut self.rest, later);
        Next::Events { revision: self.next - 1, events, fragment: !self.rest.is_empty() }
    }

    fn looks_for(&self, change: &Arc<Record>) -> bool {
        let is_filtered = if change.is_deletion() { self.wish.no_deletions } else { self.wish.no_puts };
        Span::new(&self.wish.key, &self.wish.range_end).contains(&change.kv.key) && !is_filtered
    }

    fn event(&self, contents: &Contents, change: &Arc<Record>) -> Event {
        let before = change.kv.mod_revision - 1;
        let before = match self.wish.prev_kv && before >= contents.keys.compacted() {
            true => contents.keys.find(&change.kv.key, before).cloned(),
            false => None,
        };
        Event { record: change.clone(), before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use crate::leases::Leases;

    fn contents(changes: &[(&str, &str)]) -> Contents {
        let mut keys = Keys::load(Vec::new(), 1, crate::keys::NEVER).0;
        for (key, value) in changes {
            match *value {
                "" => keys.delete((*key).into()),
                value => keys.put((*key).into(), value.into(), 0),
            }
            keys.end_step();
        }
        Contents::new(keys, Leases::default())
    }

    fn told(next: Next) -> Vec<(i64, String)> {
        let Next::Events { events, .. } = next else { panic!("{next:?}") };
        let told = |event: Event| {
            (event.record.kv.mod_revision, String::from_utf8(event.record.kv.key.clone()).unwrap())
        };
        events.into_iter().map(told).collect()
    }

    fn wish(key: &str, end: &str) -> Wish {
        Wish { key: key.into(), range_end: end.into(), ..Wish::default() }
    }

    #[test]
    fn a_watch_goes_on_from_where_it_is() {
        let mut contents = contents(&[("a", "1"), ("b", "1"), ("a", "2")]);
        let mut cursor = Cursor::new(Wish { start_revision: 2, ..wish("a", "") }, contents.stored).unwrap();
        assert_eq!(told(cursor.next(&contents)), [(2, "a".to_owned()), (4, "a".to_owned())]);
        assert_eq!(cursor.next(&contents), Next::Nothing);
        contents.keys.put(b"a".to_vec(), b"3".to_vec(), 0);
        contents.keys.end_step();
        assert_eq!(cursor.next(&contents), Next::Nothing, "what is not on disk is not told");
        contents.stored = 5;
        assert!(cursor.is_behind(&contents));
        assert_eq!(told(cursor.next(&contents)), [(5, "a".to_owned())]);
    }

    #[test]
    fn a_watch_from_the_future_waits_for_it() {
        let contents = contents(&[("a", "1"), ("a", "2")]);
        let mut cursor = Cursor::new(Wish { start_revision: 9, ..wish("a", "") }, contents.stored).unwrap();
        assert_eq!((cursor.next(&contents), cursor.next), (Next::Nothing, 9));
    }

    #[test]
    fn what_is_forgotten_cannot_be_told() {
        let mut contents = contents(&[("a", "1"), ("a", "2"), ("a", "3")]);
        contents.compact(3).unwrap();
        let mut cursor = Cursor::new(Wish { start_revision: 2, ..wish("a", "") }, contents.stored).unwrap();
        assert_eq!(cursor.next(&contents), Next::Compacted(3));
        let mut cursor = Cursor::new(Wish { start_revision: 3, ..wish("a", "") }, contents.stored).unwrap();
        assert_eq!(told(cursor.next(&contents)).len(), 2);
    }

    #[test]
    fn a_compaction_takes_nothing_from_a_watch_that_was_told_of_everything_before() {
        let mut contents = contents(&[("a", "1")]);
        let mut new = Cursor::new(wish("a", "z"), contents.stored).unwrap();
        let mut old = Cursor::new(Wish { start_revision: 2, ..wish("a", "z") }, contents.stored).unwrap();
        assert_eq!(told(old.next(&contents)).len(), 1);

        // Before either continues.
        for value in ["2", "3", ""] {
            match value {
                "" => contents.keys.delete(b"a".to_vec()),
                value => contents.keys.put(b"a".to_vec(), value.into(), 0),
            }
            contents.keys.end_step();
        }
        contents.stored = 5;
        contents.compact(5).unwrap();
        for cursor in [&mut new, &mut old] {
            assert_eq!(told(cursor.next(&contents)), [3, 4, 5].map(|revision| (revision, "a".to_owned())));
            assert_eq!(cursor.next(&contents), Next::Nothing);
        }
        let mut late = Cursor::new(Wish { start_revision: 3, ..wish("a", "z") }, contents.stored).unwrap();
        assert_eq!(late.next(&contents), Next::Compacted(5));
    }

    #[test]
    fn filters_and_previous_values_are_as_asked_for() {
        let contents = contents(&[("a", "1"), ("a", "2"), ("a", "")]);
        let asked = Wish { start_revision: 1, no_puts: true, prev_kv: true, ..wish("a", "") };
        let Next::Events { events, .. } = Cursor::new(asked, contents.stored).unwrap().next(&contents) else {
            panic!()
        };
        assert_eq!(events.len(), 1);
        assert!(events[0].record.is_deletion());
        assert_eq!(events[0].before.as_ref().unwrap().kv.value, b"2");
    }

    #[test]
    fn much_is_told_in_several_responses() {
        let large = "x".repeat(600_000);
        let mut contents = contents(&[]);
        for key in ["a", "b", "c"] {
            contents.keys.put(key.into(), large.clone().into(), 0);
        }
        contents.keys.end_step();
        contents.stored = 2;
        let asked = Wish { start_revision: 1, fragment: true, ..wish("a", "z") };
        let mut cursor = Cursor::new(asked, contents.stored).unwrap();
        let mut seen = Vec::new();
        while let Next::Events { events, fragment, .. } = cursor.next(&contents) {
            seen.push((events.len(), fragment));
        }
        assert_eq!(seen, [(1, true), (1, true), (1, false)]);
    }
}
