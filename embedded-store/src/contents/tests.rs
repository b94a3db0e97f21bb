//! Requests in sequence, as a client sends them.

use etcd_client::proto::{PbDeleteRequest, PbPutRequest, PbRangeRequest};
use tokio::time::Instant;

use super::*;

fn contents() -> Contents {
    Contents::new(Keys::load(Vec::new(), 1, crate::keys::NEVER).0, Leases::default())
}

fn put(contents: &mut Contents, key: &str, value: &str, lease: i64) {
    let put = PbPutRequest { key: key.into(), value: value.into(), lease, ..PbPutRequest::default() };
    contents.put(put).unwrap();
    on_disk(contents);
}

fn on_disk(contents: &mut Contents) {
    contents.stored = contents.keys.revision();
    contents.leases.stored();
}

fn all() -> PbRangeRequest {
    PbRangeRequest { key: vec![0], range_end: vec![0], ..PbRangeRequest::default() }
}

fn keys_of(response: &Range) -> Vec<&str> {
    response.records.iter().map(|record| std::str::from_utf8(&record.kv.key).unwrap()).collect()
}

#[test]
fn nobody_sees_what_is_not_on_disk() {
    let mut contents = contents();
    put(&mut contents, "a", "1", 0);
    contents.delete(&PbDeleteRequest { key: b"a".to_vec(), ..PbDeleteRequest::default() });
    contents.put(PbPutRequest { key: b"b".to_vec(), ..PbPutRequest::default() }).unwrap();
    let seen = contents.range(&all()).unwrap();
    assert_eq!((keys_of(&seen), seen.header.unwrap().revision), (vec!["a"], 2));
    contents.take_back();
    assert_eq!(contents.keys.revision(), 2);
}

#[test]
fn a_page_says_whether_there_is_more_and_how_many_there_are() {
    let mut contents = contents();
    for key in ["a", "b", "c"] {
        put(&mut contents, key, key, 0);
    }
    let page = contents.range(&PbRangeRequest { limit: 2, ..all() }).unwrap();
    assert_eq!((keys_of(&page), page.more, page.count), (vec!["a", "b"], true, 3));
    let page = contents.range(&PbRangeRequest { limit: 3, ..all() }).unwrap();
    assert_eq!((page.more, page.count), (false, 3));
    let counted = contents.range(&PbRangeRequest { count_only: true, ..all() }).unwrap();
    assert_eq!((counted.records.len(), counted.count), (0, 3));
    let last = PbRangeRequest { sort_order: sorting::DESCENDING, limit: 1, ..all() };
    assert_eq!(keys_of(&contents.range(&last).unwrap()), ["c"]);
}

#[test]
fn a_time_that_nobody_knows_is_refused() {
    let mut contents = contents();
    for value in ["1", "2", "3"] {
        put(&mut contents, "a", value, 0);
    }
    contents.compact(3).unwrap();
    let at = |revision| PbRangeRequest { revision, ..all() };
    assert_eq!(contents.range(&at(2)).unwrap_err(), Refusal::Compacted);
    assert_eq!(contents.range(&at(5)).unwrap_err(), Refusal::FutureRevision);
    assert_eq!(contents.range(&at(3)).unwrap().records[0].kv.value, b"2");
    assert_eq!(contents.compact(3), Err(Refusal::Compacted));
    assert_eq!(contents.compact(5), Err(Refusal::FutureRevision));
}

#[test]
fn the_end_of_a_lease_deletes_what_it_kept_in_one_revision() {
    let mut contents = contents();
    let now = Instant::now();
    contents.leases.grant(7, 10, now).unwrap();
    put(&mut contents, "a", "1", 7);
    put(&mut contents, "b", "1", 7);
    put(&mut contents, "c", "1", 7);
    put(&mut contents, "c", "2", 0);
    let before = contents.keys.revision();
    contents.expire(7, now);
    assert!(contents.leases.contains(7), "its time is not over");
    contents.expire(7, now + std::time::Duration::from_secs(11));
    on_disk(&mut contents);
    assert_eq!(contents.keys.revision(), before + 1);
    assert_eq!(keys_of(&contents.range(&all()).unwrap()), ["c"]);
    let put = PbPutRequest { key: b"d".to_vec(), lease: 7, ..PbPutRequest::default() };
    assert_eq!(contents.put(put).unwrap_err(), Refusal::LeaseNotFound);
}
