//! Leases.

use anyhow::{Result, bail, ensure};
use etcd_client::proto::{PbLeaseLeasesRequest, PbLeaseTimeToLiveRequest};

use crate::answer::Answer;
use crate::call::Call;
use crate::requests::{delete, grant, prefix, put, put_leased, range, revoke, time_to_live};
use crate::table::{Case, no_difference_in};

/// The longest time to live that etcd takes, in seconds.
const LONGEST: i64 = 9_000_000_000;

const CASES: &[Case] = &[
    ("a lease without keys", |pair| {
        pair.done(grant(501, 100))?;
        pair.done(time_to_live(501))?;
        pair.done(PbLeaseTimeToLiveRequest { id: 501, keys: false })?;
        pair.done(PbLeaseLeasesRequest {})?;
        pair.done(revoke(501))?;
        pair.done(time_to_live(501)).map(drop)
    }),
    ("times to live that are too short are made longer", |pair| {
        for (id, ttl) in [(502, 1), (503, 2), (504, 0), (505, -5)] {
            pair.same(grant(id, ttl))?;
            pair.same(revoke(id))?;
        }
        Ok(())
    }),
    ("times to live that are too long are refused", |pair| {
        pair.refused(grant(506, LONGEST + 1), "too large lease TTL")?;
        pair.refused(grant(506, i64::MAX), "too large lease TTL")?;
        pair.done(grant(506, LONGEST))?;
        pair.done(time_to_live(506))?;
        pair.done(revoke(506)).map(drop)
    }),
    ("an id that is taken", |pair| {
        pair.done(grant(507, 100))?;
        pair.refused(grant(507, 100), "lease already exists")?;
        pair.refused(grant(507, 200), "lease already exists")?;
        pair.done(revoke(507))?;
        pair.done(grant(507, 100))?;
        pair.done(revoke(507)).map(drop)
    }),
    ("a lease that is not there", |pair| {
        pair.refused(revoke(599), "requested lease not found")?;
        pair.refused(revoke(0), "requested lease not found")?;
        pair.done(time_to_live(599))?;
        pair.done(time_to_live(0))?;
        pair.done(Call::KeepAlive(vec![599])).map(drop)
    }),
    ("kept alive, several on one stream", |pair| {
        pair.all_done([grant(508, 100), grant(509, 200)])?;
        pair.done(Call::KeepAlive(vec![508, 509, 598, 508]))?;
        pair.all_done([time_to_live(508), time_to_live(509)])?;
        pair.done(revoke(508))?;
        pair.done(Call::KeepAlive(vec![508, 509])).map(drop)
    }),
    ("revoked with its keys, in one revision", |pair| {
        pair.done(grant(510, 100))?;
        pair.all_done(["3", "1", "2"].map(|name| put_leased(&format!("lease/a/{name}"), name, 510)))?;
        pair.done(put("lease/a/4", "free"))?;
        pair.done(time_to_live(510))?;
        let before = pair.revision()?;
        pair.done(revoke(510))?;
        assert_eq!(pair.revision()?, before + 1);
        pair.done(prefix("lease/a/"))?;
        pair.refused(revoke(510), "requested lease not found")?;
        pair.done(time_to_live(510))?;
        pair.refused(put_leased("lease/a/1", "1", 510), "requested lease not found")
    }),
    ("revoked without keys, which is no revision", |pair| {
        pair.done(grant(511, 100))?;
        let before = pair.revision()?;
        pair.done(revoke(511))?;
        assert_eq!(pair.revision()?, before);
        Ok(())
    }),
    ("a key that goes from lease to lease", |pair| {
        pair.all_done([grant(512, 100), grant(513, 100)])?;
        pair.all_done([put_leased("lease/b", "1", 512), put_leased("lease/b", "2", 512)])?;
        pair.all_done([time_to_live(512), time_to_live(513)])?;
        pair.done(put_leased("lease/b", "3", 513))?;
        pair.all_done([time_to_live(512), time_to_live(513)])?;
        pair.done(revoke(512))?;
        pair.done(range("lease/b"))?;
        pair.done(put("lease/b", "free"))?;
        pair.done(revoke(513))?;
        pair.done(range("lease/b")).map(drop)
    }),
    ("a key that is deleted, and comes back without it", |pair| {
        pair.done(grant(514, 100))?;
        pair.done(put_leased("lease/c", "1", 514))?;
        pair.done(delete("lease/c"))?;
        pair.done(time_to_live(514))?;
        pair.done(put("lease/c", "2"))?;
        pair.done(revoke(514))?;
        pair.done(range("lease/c")).map(drop)
    }),
    ("a list of those that there are", |pair| {
        pair.all_done([grant(515, 300), grant(516, 200), grant(517, 100)])?;
        pair.same(PbLeaseLeasesRequest {})?;
        pair.done(revoke(516))?;
        pair.same(PbLeaseLeasesRequest {}).map(drop)
    }),
    // The last, for the two choose differently, and lists tell.
    ("an id of the server's choice", |pair| {
        for answer in pair.each(&Call::Grant(grant(0, 100)))? {
            let Answer::Grant(answer) = answer else { bail!("refused: {answer:?}") };
            ensure!(answer.id > 0 && answer.ttl == 100, "{answer:?}");
        }
        Ok(())
    }),
];

#[test]
fn a_lease_lives_as_in_etcd() -> Result<()> {
    no_difference_in(CASES)
}
