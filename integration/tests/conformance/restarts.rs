//! What outlives `kill -9`.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use etcd_client::WatchOptions;
use etcd_client::proto::PbRangeRequest;
use flan_integration::store::StoreData;
use flan_integration::wait::until;

use crate::answer::Answer;
use crate::call::Call;
use crate::pair::Pair;
use crate::requests::{compact, delete, grant, prefix, put, put_leased, range, time_to_live, watch_prefix};
use crate::table::{Case, no_difference_with};

/// How long a lease of two seconds may last that a restarted store gives its whole time anew.
const EXPIRY_LIMIT: Duration = Duration::from_secs(20);

const CASES: &[Case] = &[
    ("keys, history and what is forgotten of it", |pair| {
        let first = pair.done(put("restart/a/1", "1"))?.revision();
        pair.all_done([put("restart/a/2", "2"), put("restart/a/1", "3")])?;
        pair.done(delete("restart/a/2"))?;
        pair.done(compact(first + 1))?;
        pair.restart()?;
        pair.refused(PbRangeRequest { revision: first, ..prefix("restart/a/") }, "compacted")?;
        for revision in first + 1..=first + 3 {
            pair.done(PbRangeRequest { revision, ..prefix("restart/a/") })?;
        }
        pair.refused(compact(first + 1), "compacted")?;
        pair.refused(compact(first + 4), "future revision")?;
        pair.done(put("restart/a/2", "4"))?;
        pair.done(prefix("restart/a/")).map(drop)
    }),
    ("a lease with its keys, whose time is not shortened", |pair| {
        pair.all_done([grant(601, 60), grant(602, 1000)])?;
        pair.all_done([put_leased("restart/b/1", "1", 601), put_leased("restart/b/2", "2", 601)])?;
        let before = seconds_left(pair, 601)?;
        pair.restart()?;
        for (before, after) in before.into_iter().zip(seconds_left(pair, 601)?) {
            ensure!((before - 1..=60).contains(&after), "{before} s before, {after} s afterwards");
        }
        for id in [601, 602] {
            // Once it has been kept alive, both have as much.
            pair.done(Call::KeepAlive(vec![id]))?;
            pair.done(time_to_live(id))?;
        }
        pair.refused(grant(601, 60), "lease already exists")?;
        pair.done(prefix("restart/b/")).map(drop)
    }),
    ("a lease that runs out afterwards takes its keys along", |pair| {
        pair.done(grant(603, 2))?;
        pair.all_done([put_leased("restart/c/2", "1", 603), put_leased("restart/c/1", "2", 603)])?;
        let before = pair.revision()?;
        pair.restart()?;
        // Each restarts in its own time, and the watch's first answer tells the revision that it finds.
        until("the lease has run out on both", EXPIRY_LIMIT, || {
            let [one, other] = pair.each(&range("restart/c/1").into())?;
            let revisions = [one.revision(), other.revision()];
            ensure!(revisions == [before + 1; 2], "the revisions are {revisions:?} and were {before}");
            Ok(())
        })?;
        let mut watching = pair.watch();
        let options = WatchOptions::new().with_start_revision(before).with_prev_key();
        let id = watching.create(&watch_prefix("restart/c/", options))?;
        watching.events(&[id], before + 1)?;
        pair.done(prefix("restart/c/"))?;
        pair.done(time_to_live(603)).map(drop)
    }),
    ("a watch goes on where it had come to", |pair| {
        let mut watching = pair.watch();
        let id = watching.create(&watch_prefix("restart/d/", WatchOptions::new()))?;
        let seen = pair.done(put("restart/d/1", "1"))?.revision();
        watching.events(&[id], seen)?;
        pair.all_done([put("restart/d/2", "2"), put("restart/d/1", "3")])?;
        pair.restart()?;
        pair.done(put("restart/d/3", "4"))?;
        let mut watching = pair.watch();
        let options = WatchOptions::new().with_start_revision(seen + 1).with_prev_key();
        let id = watching.create(&watch_prefix("restart/d/", options))?;
        watching.events(&[id], seen + 3)?;
        pair.done(range("restart/d/1")).map(drop)
    }),
];

#[test]
fn a_store_that_was_killed_goes_on_as_etcd_does() -> Result<()> {
    no_difference_with(StoreData::OnDisk, CASES)
}

/// Of a lease, on each.
fn seconds_left(pair: &Pair, id: i64) -> Result<Vec<i64>> {
    let answers = pair.each(&Call::TimeToLive(time_to_live(id)))?.into_iter();
    answers
        .map(|answer| match answer {
            Answer::TimeToLive(answer) => Ok(answer.ttl),
            answer => bail!("{answer:?}"),
        })
        .collect()
}
