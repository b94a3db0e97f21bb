//! Watches.

use anyhow::{Result, ensure};
use etcd_client::proto::PbPutRequest;
use etcd_client::{WatchFilterType, WatchOptions};

use crate::pair::Pair;
use crate::requests::{
    all, cancel, compact, delete, delete_between, grant, op, progress, put, put_leased, revoke, watch_prefix,
};
use crate::table::{Case, no_difference_in};
use crate::watching::Watching;

/// The type of an event that tells of a deletion.
const DELETED: i32 = 1;

const CASES: &[Case] = &[
    ("puts and deletions in their order", |pair| {
        let (mut watching, id) = watch(pair, "watch/a/", WatchOptions::new())?;
        pair.all_done([put("watch/a/1", "1"), put("watch/elsewhere", "1"), put("watch/a/2", "2")])?;
        pair.all_done([delete("watch/a/1"), delete("watch/a/none")])?;
        let last = pair.done(put("watch/a/1", "3"))?.revision();
        let told = watching.events(&[id], last)?;
        ensure!(told.of(id).len() == 4, "{told:?}");
        Ok(())
    }),
    ("what was there before", |pair| {
        let (mut watching, id) = watch(pair, "watch/b/", WatchOptions::new().with_prev_key())?;
        pair.all_done([put("watch/b/1", "1"), put("watch/b/1", "2")])?;
        pair.done(delete("watch/b/1"))?;
        let last = pair.done(put("watch/b/1", "3"))?.revision();
        watching.events(&[id], last).map(drop)
    }),
    ("one key, a half-open range, from a key on, and all keys", |pair| {
        let mut watching = pair.watch();
        let requests = [
            WatchOptions::new().with_key("watch/c/2"),
            WatchOptions::new().with_key("watch/c/2").with_range("watch/c/4"),
            WatchOptions::new().with_key("watch/c/3").with_from_key(),
            WatchOptions::new().with_all_keys(),
            // No key is the first one that there can be.
            WatchOptions::new().with_range("watch/c/2"),
        ];
        let mut ids = Vec::new();
        for request in requests {
            ids.push(watching.create(&request.into())?);
        }
        for name in ["1", "2", "3", "4"] {
            pair.done(put(format!("watch/c/{name}"), name))?;
        }
        let last =
            pair.done(all(["1", "2", "3"].map(|name| put(format!("watch/c/{name}"), "last"))))?.revision();
        watching.events(&ids, last).map(drop)
    }),
    ("a transaction is one revision", |pair| {
        let (mut watching, id) = watch(pair, "watch/d/", WatchOptions::new().with_prev_key())?;
        pair.all_done([put("watch/d/4", "4"), put("watch/d/5", "5")])?;
        let inner = all([op(put("watch/d/2", "2")), op(delete("watch/d/4"))]);
        let operations =
            [op(put("watch/d/3", "3")), op(inner), op(put("watch/d/1", "1")), op(delete("watch/d/5"))];
        let last = pair.done(all(operations))?.revision();
        watching.events(&[id], last).map(drop)
    }),
    ("a deletion of several keys is one revision", |pair| {
        pair.all_done(["3", "1", "2"].map(|name| put(format!("watch/e/{name}"), name)))?;
        let (mut watching, id) = watch(pair, "watch/e/", WatchOptions::new().with_prev_key())?;
        let last = pair.done(delete_between("watch/e/", "watch/e0"))?.revision();
        ensure!(watching.events(&[id], last)?.of(id).len() == 3);
        Ok(())
    }),
    ("from an earlier revision on", |pair| {
        let first = pair.done(put("watch/f/1", "1"))?.revision();
        pair.all_done([put("watch/f/2", "2"), put("watch/f/1", "3")])?;
        pair.done(delete("watch/f/2"))?;
        for start in first..=first + 3 {
            let options = WatchOptions::new().with_start_revision(start).with_prev_key();
            let (mut watching, id) = watch(pair, "watch/f/", options)?;
            watching.events(&[id], first + 3)?;
        }
        Ok(())
    }),
    ("from a revision on that is still to come", |pair| {
        let now = pair.revision()?;
        let (mut watching, id) = watch(pair, "watch/g", WatchOptions::new().with_start_revision(now + 3))?;
        pair.all_done(["1", "2", "3", "4"].map(|value| put("watch/g", value)))?;
        let told = watching.events(&[id], now + 4)?;
        ensure!(told.of(id).len() == 2, "{told:?}");
        Ok(())
    }),
    ("from a forgotten revision on, and from the last that is not", |pair| {
        let first = pair.done(put("watch/h", "1"))?.revision();
        pair.all_done([put("watch/h", "2"), put("watch/h", "3")])?;
        pair.done(compact(first + 1))?;
        let mut watching = pair.watch();
        let from = |revision| watch_prefix("watch/h", WatchOptions::new().with_start_revision(revision));
        for revision in [first, 1] {
            let id = watching.create(&from(revision))?;
            let cancelled = watching.notice()?;
            ensure!(cancelled.canceled && cancelled.compact_revision == first + 1, "{cancelled:?}");
            ensure!(cancelled.watch_id == id, "{cancelled:?} is not {id}");
        }
        // The stream itself goes on.
        let id = watching.create(&from(first + 1))?;
        watching.events(&[id], first + 2).map(drop)
    }),
    ("what was there before, forgotten", |pair| {
        let first = pair.done(put("watch/i", "1"))?.revision();
        pair.all_done([put("watch/i", "2"), put("watch/i", "3")])?;
        pair.done(compact(first + 1))?;
        let options = WatchOptions::new().with_start_revision(first + 1).with_prev_key();
        let (mut watching, id) = watch(pair, "watch/i", options)?;
        watching.events(&[id], first + 2).map(drop)
    }),
    ("without puts, without deletions, without either", |pair| {
        let mut watching = pair.watch();
        let filtered = |filters: &[WatchFilterType]| {
            watch_prefix("watch/j/", WatchOptions::new().with_filters(filters).with_prev_key())
        };
        let deletions = watching.create(&filtered(&[WatchFilterType::NoPut]))?;
        let puts = watching.create(&filtered(&[WatchFilterType::NoDelete]))?;
        watching.create(&filtered(&[WatchFilterType::NoPut, WatchFilterType::NoDelete]))?;
        pair.all_done([put("watch/j/1", "1"), put("watch/j/2", "2"), put("watch/j/1", "3")])?;
        pair.all_done([delete("watch/j/1")])?;
        let last = pair.done(all([op(put("watch/j/1", "4")), op(delete("watch/j/2"))]))?.revision();
        let told = watching.events(&[deletions, puts], last)?;
        ensure!(told.of(deletions).iter().all(|event| event.r#type == DELETED), "{told:?}");
        ensure!(told.of(puts).iter().all(|event| event.r#type != DELETED), "{told:?}");
        Ok(())
    }),
    ("several watches of one stream, with ids of their own or not", |pair| {
        let mut watching = pair.watch();
        let with_id = |id| watch_prefix("watch/k/", WatchOptions::new().with_watch_id(id));
        let mut ids = Vec::new();
        for id in [0, 0, 7, 3, 0, 0] {
            ids.push(watching.create(&with_id(id))?);
        }
        // Taken.
        watching.send(&with_id(7))?;
        let refused = watching.notice()?;
        ensure!(refused.canceled, "{refused:?}");
        let last = pair.done(put("watch/k/1", "1"))?.revision();
        watching.events(&ids, last).map(drop)
    }),
    ("a watch that is cancelled, and others that are not", |pair| {
        let mut watching = pair.watch();
        let request = watch_prefix("watch/l/", WatchOptions::new());
        let (first, second) = (watching.create(&request)?, watching.create(&request)?);
        let last = pair.done(put("watch/l/1", "1"))?.revision();
        watching.events(&[first, second], last)?;
        watching.send(&cancel(first))?;
        let cancelled = watching.notice()?;
        ensure!(cancelled.canceled && cancelled.watch_id == first, "{cancelled:?}");
        let last = pair.done(put("watch/l/1", "2"))?.revision();
        let told = watching.events(&[second], last)?;
        ensure!(told.of(first).is_empty(), "{told:?}");
        // Neither this one nor one that never was.
        watching.send(&cancel(first))?;
        watching.send(&cancel(99))?;
        let last = pair.done(put("watch/l/1", "3"))?.revision();
        watching.events(&[second], last)?;
        // Its id may be given away again.
        watching.create(&watch_prefix("watch/l/", WatchOptions::new().with_watch_id(first)))?;
        watching.create(&request).map(drop)
    }),
    ("how far the server is", |pair| {
        let (mut watching, id) = watch(pair, "watch/m/", WatchOptions::new())?;
        watching.send(&progress())?;
        watching.notice()?;
        let last = pair.done(put("watch/m/1", "1"))?.revision();
        watching.events(&[id], last)?;
        let last = pair.done(put("watch/elsewhere", "2"))?.revision();
        watching.send(&progress())?;
        let header = watching.notice()?.header.unwrap_or_default();
        ensure!(header.revision == last, "{header:?} is not {last}");
        Ok(())
    }),
    ("a range without a key in it", |pair| {
        let mut watching = pair.watch();
        watching.send(&WatchOptions::new().with_key("watch/n/2").with_range("watch/n/1").into())?;
        watching.notice()?;
        watching.send(&WatchOptions::new().with_key("watch/n/2").with_range("watch/n/2").into())?;
        watching.notice()?;
        let id = watching.create(&watch_prefix("watch/n/", WatchOptions::new()))?;
        let last = pair.done(put("watch/n/1", "1"))?.revision();
        watching.events(&[id], last).map(drop)
    }),
    ("a lease that is revoked takes its keys in one revision", |pair| {
        let (mut watching, id) = watch(pair, "watch/o/", WatchOptions::new().with_prev_key())?;
        pair.done(grant(701, 100))?;
        pair.all_done(["3", "1", "2"].map(|name| put_leased(&format!("watch/o/{name}"), name, 701)))?;
        let last = pair.done(revoke(701))?.revision();
        let told = watching.events(&[id], last)?;
        ensure!(told.of(id).len() == 6, "{told:?}");
        Ok(())
    }),
    ("a lease that runs out takes its keys in one revision", |pair| {
        let (mut watching, id) = watch(pair, "watch/p/", WatchOptions::new().with_prev_key())?;
        pair.all_done([grant(702, 1)])?;
        pair.all_done(["3", "1", "2"].map(|name| put_leased(&format!("watch/p/{name}"), name, 702)))?;
        let last = pair.done(put("watch/p/4", "free"))?.revision() + 1;
        let told = watching.events(&[id], last)?;
        let gone = told.of(id).iter().filter(|event| event.r#type == DELETED).count();
        ensure!(gone == 3, "{gone} deletions in {told:?}");
        ensure!(pair.revision()? == last, "more than one revision");
        Ok(())
    }),
    ("a key that is only touched", |pair| {
        pair.done(put("watch/q", "1"))?;
        let (mut watching, id) = watch(pair, "watch/q", WatchOptions::new().with_prev_key())?;
        let last = pair.done(PbPutRequest { ignore_value: true, ..put("watch/q", "") })?.revision();
        watching.events(&[id], last).map(drop)
    }),
    ("a revision that is larger than a response should be", |pair| {
        let large = vec![b'x'; 700 * 1024];
        let (mut whole, id) = watch(pair, "watch/r/", WatchOptions::new().with_prev_key())?;
        let (mut pieces, same_id) =
            watch(pair, "watch/r/", WatchOptions::new().with_prev_key().with_fragment())?;
        for _ in 0..2 {
            pair.done(all(["1", "2"].map(|name| put(format!("watch/r/{name}"), &large))))?;
        }
        let last = pair.revision()?;
        ensure!(!whole.events(&[id], last)?.in_pieces);
        ensure!(pieces.events(&[same_id], last)?.in_pieces, "it came in one piece");
        Ok(())
    }),
    ("large keys that go at once", |pair| {
        let large = |name: &str| [b"watch/t/", name.as_bytes(), &vec![b'k'; 900 * 1024]].concat();
        pair.all_done(["1", "2", "3"].map(|name| PbPutRequest { key: large(name), ..put("", "1") }))?;
        let (mut whole, id) = watch(pair, "watch/t/", WatchOptions::new())?;
        let (mut pieces, same_id) = watch(pair, "watch/t/", WatchOptions::new().with_fragment())?;
        let last = pair.done(delete_between("watch/t/", "watch/t0"))?.revision();
        ensure!(!whole.events(&[id], last)?.in_pieces);
        ensure!(pieces.events(&[same_id], last)?.in_pieces, "it came in one piece");
        Ok(())
    }),
    ("more than a thousand revisions to catch up with", |pair| {
        let first = pair.revision()? + 1;
        for number in 0..1100 {
            pair.done(put(format!("watch/s/{}", number % 7), number.to_string()))?;
        }
        let (mut watching, id) = watch(pair, "watch/s/", WatchOptions::new().with_start_revision(first))?;
        watching.events(&[id], first + 1099).map(drop)
    }),
];

#[test]
fn a_watch_tells_what_etcd_tells() -> Result<()> {
    no_difference_in(CASES)
}

/// One watch on a stream of its own, and its id.
fn watch(pair: &Pair, prefix: &str, options: WatchOptions) -> Result<(Watching, i64)> {
    let mut watching = pair.watch();
    let id = watching.create(&watch_prefix(prefix, options))?;
    Ok((watching, id))
}
