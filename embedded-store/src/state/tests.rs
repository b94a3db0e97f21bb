//! Requests one after the other, as a client sends them.

use etcd_client::proto::{PbDeleteRequest, PbPutRequest, PbRangeRequest};
use tokio::time::Instant;

use super::*;

fn state() -> State {
    State::new(Keys::load(Vec::new(), 1, crate::keys::NEVER).0, Leases::default())
}

fn put(state: &mut State, key: &str, value: &str, lease: i64) {
    let put = PbPutRequest { key: key.into(), value: value.into(), lease, ..PbPutRequest::default() };
    state.put(put).unwrap();
    on_disk(state);
}

fn on_disk(state: &mut State) {
    state.stored = state.keys.revision();
    state.leases.stored();
}

fn all() -> PbRangeRequest {
    PbRangeRequest { key: vec![0], range_end: vec![0], ..PbRangeRequest::default() }
}

fn keys_of(response: &Range) -> Vec<&str> {
    response.records.iter().map(|record| std::str::from_utf8(&record.kv.key).unwrap()).collect()
}

#[test]
fn nobody_sees_what_is_not_on_disk() {
    let mut state = state();
    put(&mut state, "a", "1", 0);
    state.delete(&PbDeleteRequest { key: b"a".to_vec(), ..PbDeleteRequest::default() });
    state.put(PbPutRequest { key: b"b".to_vec(), ..PbPutRequest::default() }).unwrap();
    let seen = state.range(&all()).unwrap();
    assert_eq!((keys_of(&seen), seen.header.unwrap().revision), (vec!["a"], 2));
    state.take_back();
    assert_eq!(state.keys.revision(), 2);
}

#[test]
fn a_page_says_whether_there_is_more_and_how_many_there_are() {
    let mut state = state();
    for key in ["a", "b", "c"] {
        put(&mut state, key, key, 0);
    }
    let page = state.range(&PbRangeRequest { limit: 2, ..all() }).unwrap();
    assert_eq!((keys_of(&page), page.more, page.count), (vec!["a", "b"], true, 3));
    let page = state.range(&PbRangeRequest { limit: 3, ..all() }).unwrap();
    assert_eq!((page.more, page.count), (false, 3));
    let counted = state.range(&PbRangeRequest { count_only: true, ..all() }).unwrap();
    assert_eq!((counted.records.len(), counted.count), (0, 3));
    let last = PbRangeRequest { sort_order: sorting::DESCENDING, limit: 1, ..all() };
    assert_eq!(keys_of(&state.range(&last).unwrap()), ["c"]);
}

#[test]
fn a_time_that_nobody_knows_is_refused() {
    let mut state = state();
    for value in ["1", "2", "3"] {
        put(&mut state, "a", value, 0);
    }
    state.compact(3).unwrap();
    let at = |revision| PbRangeRequest { revision, ..all() };
    assert_eq!(state.range(&at(2)).unwrap_err(), Refusal::Compacted);
    assert_eq!(state.range(&at(5)).unwrap_err(), Refusal::FutureRevision);
    assert_eq!(state.range(&at(3)).unwrap().records[0].kv.value, b"2");
    assert_eq!(state.compact(3), Err(Refusal::Compacted));
    assert_eq!(state.compact(5), Err(Refusal::FutureRevision));
}

#[test]
fn the_end_of_a_lease_deletes_what_it_kept_in_one_revision() {
    let mut state = state();
    let now = Instant::now();
    state.leases.grant(7, 10, now).unwrap();
    put(&mut state, "a", "1", 7);
    put(&mut state, "b", "1", 7);
    put(&mut state, "c", "1", 7);
    put(&mut state, "c", "2", 0);
    let before = state.keys.revision();
    state.expire(7, now);
    assert!(state.leases.contains(7), "its time is not over");
    state.expire(7, now + std::time::Duration::from_secs(11));
    on_disk(&mut state);
    assert_eq!(state.keys.revision(), before + 1);
    assert_eq!(keys_of(&state.range(&all()).unwrap()), ["c"]);
    let put = PbPutRequest { key: b"d".to_vec(), lease: 7, ..PbPutRequest::default() };
    assert_eq!(state.put(put).unwrap_err(), Refusal::LeaseNotFound);
}
