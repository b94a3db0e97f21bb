//! The leases: how long each lasts, and which keys it keeps. Pure: time is an argument. Agrees with etcd's `lease`
//! package.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::refusal::Refusal;

/// The shortest time that etcd grants: one and a half times its election timeout, in whole seconds.
const SHORTEST: i64 = 2;
/// The longest (`MaxLeaseTTL`).
const LONGEST: i64 = 9_000_000_000;

/// The part of a lease that is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Granted time in seconds.
    pub(crate) granted: i64,
    /// Seconds that the lease lasts after a start. Never shorter than what remained when the store ended.
    pub(crate) remaining: i64,
}

#[derive(Debug)]
struct Lease {
    stored: Stored,
    expires: Instant,
    keys: BTreeSet<Vec<u8>>,
}

#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_id: BTreeMap<i64, Lease>,
    /// Leases that differ from the disk.
    unstored: BTreeSet<i64>,
    /// Undoes each change that is not on disk, oldest first.
    undo: Vec<Undo>,
}

#[derive(Debug)]
enum Undo {
    Grant(i64),
    Revoke(i64, Lease),
    Stored(i64, Stored),
    Attach(i64, Vec<u8>),
    Detach(i64, Vec<u8>),
}

impl Leases {
    /// Loads leases from disk. Each lasts as long from `now` on as was left when it was written.
    pub(crate) fn load(stored: impl IntoIterator<Item = (i64, Stored)>, now: Instant) -> Self {
        let lease =
            |stored: Stored| Lease { stored, expires: after(now, stored.remaining), keys: BTreeSet::new() };
        Self {
            by_id: stored.into_iter().map(|(id, stored)| (id, lease(stored))).collect(),
            ..Self::default()
        }
    }

    /// Creates a lease; id 0 asks for any id. Returns id and seconds.
    pub(crate) fn grant(&mut self, id: i64, seconds: i64, now: Instant) -> Result<(i64, i64), Refusal> {
        if seconds > LONGEST {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        let id = match id {
            0 => self.free_id(),
            id if self.by_id.contains_key(&id) => return Err(Refusal::LeaseExists),
            id => id,
        };
        let granted = seconds.max(SHORTEST);
        let stored = Stored { granted, remaining: granted };
        self.by_id.insert(id, Lease { stored, expires: after(now, granted), keys: BTreeSet::new() });
        self.unstored.insert(id);
        self.undo.push(Undo::Grant(id));
        Ok((id, granted))
    }

    /// Ends a lease. Returns its keys in order; the caller deletes them.
    pub(crate) fn revoke(&mut self, id: i64) -> Result<Vec<Vec<u8>>, Refusal> {
        let lease = self.by_id.remove(&id).ok_or(Refusal::LeaseNotFound)?;
        let keys = lease.keys.iter().cloned().collect();
        self.unstored.insert(id);
        self.undo.push(Undo::Revoke(id, lease));
        Ok(keys)
    }

    /// Renews a lease to its full time. Returns the seconds, and whether to write them. `None` for a lease that does
    /// not exist or has expired.
    pub(crate) fn renew(&mut self, id: i64, now: Instant) -> Option<(i64, bool)> {
        let lease = self.by_id.get_mut(&id).filter(|lease| lease.expires > now)?;
        let granted = lease.stored.granted;
        lease.expires = after(now, granted);
        Some((granted, lease.stored.remaining < granted))
    }

    /// Records for the disk how long each of these leases lasts, if the disk says otherwise.
    pub(crate) fn checkpoint(&mut self, ids: &[i64], now: Instant) {
        for id in ids {
            let Some(lease) = self.by_id.get_mut(id) else { continue };
            let remaining =
                seconds_up(lease.expires.saturating_duration_since(now)).min(lease.stored.granted);
            if lease.stored.remaining != remaining {
                self.undo.push(Undo::Stored(*id, lease.stored));
                lease.stored.remaining = remaining;
                self.unstored.insert(*id);
            }
        }
    }

    /// Leases whose time on disk exceeds the real one by more than `slack`.
    pub(crate) fn to_checkpoint(&self, slack: Duration, now: Instant) -> Vec<i64> {
        let is_due = |lease: &Lease| {
            let on_disk = Duration::from_secs(u64::try_from(lease.stored.remaining).unwrap_or(0));
            on_disk > lease.expires.saturating_duration_since(now) + slack
        };
        self.by_id.iter().filter(|(_, lease)| is_due(lease)).map(|(id, _)| *id).collect()
    }

    pub(crate) fn contains(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Returns whether the lease exists and has expired.
    pub(crate) fn has_expired(&self, id: i64, now: Instant) -> bool {
        self.by_id.get(&id).is_some_and(|lease| lease.expires <= now)
    }

    pub(crate) fn expired(&self, now: Instant) -> Vec<i64> {
        self.by_id.iter().filter(|(_, lease)| lease.expires <= now).map(|(id, _)| *id).collect()
    }

    /// Returns remaining seconds, granted seconds, and keys of a lease.
    pub(crate) fn look(&self, id: i64, now: Instant) -> Option<(i64, i64, impl Iterator<Item = &Vec<u8>>)> {
        let lease = self.by_id.get(&id)?;
        let left = lease.expires.saturating_duration_since(now).as_secs();
        Some((i64::try_from(left).unwrap_or(i64::MAX), lease.stored.granted, lease.keys.iter()))
    }

    /// Returns all ids. Leases that expire first come first.
    pub(crate) fn ids(&self) -> Vec<i64> {
        let mut by_time: Vec<_> = self.by_id.iter().map(|(id, lease)| (lease.expires, *id)).collect();
        by_time.sort_unstable();
        by_time.into_iter().map(|(_, id)| id).collect()
    }

    /// Moves a key from one lease to another; 0 means no lease.
    pub(crate) fn move_key(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(lease) = self.by_id.get_mut(&from)
            && lease.keys.remove(key)
        {
            self.undo.push(Undo::Detach(from, key.to_vec()));
        }
        if let Some(lease) = self.by_id.get_mut(&to)
            && lease.keys.insert(key.to_vec())
        {
            self.undo.push(Undo::Attach(to, key.to_vec()));
        }
    }

    /// Returns what to write: the values of each lease, or that it is gone.
    pub(crate) fn unstored(&self) -> Vec<(i64, Option<Stored>)> {
        self.unstored.iter().map(|id| (*id, self.by_id.get(id).map(|lease| lease.stored))).collect()
    }

    /// Records that everything was written.
    pub(crate) fn stored(&mut self) {
        self.unstored.clear();
        self.undo.clear();
    }

    /// Undoes what was not written. The disk may have it nevertheless, so these leases are written again.
    pub(crate) fn take_back(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Grant(id) => drop(self.by_id.remove(&id)),
                Undo::Revoke(id, lease) => drop(self.by_id.insert(id, lease)),
                Undo::Stored(id, stored) => {
                    if let Some(lease) = self.by_id.get_mut(&id) {
                        lease.stored = stored;
                    }
                }
                Undo::Attach(id, key) => {
                    if let Some(lease) = self.by_id.get_mut(&id) {
                        lease.keys.remove(&key);
                    }
                }
                Undo::Detach(id, key) => {
                    if let Some(lease) = self.by_id.get_mut(&id) {
                        lease.keys.insert(key);
                    }
                }
            }
        }
    }

    fn free_id(&self) -> i64 {
        loop {
            let id = rand::random_range(1..=i64::MAX);
            if !self.by_id.contains_key(&id) {
                return id;
            }
        }
    }
}

fn after(now: Instant, seconds: i64) -> Instant {
    now + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn seconds_up(time: Duration) -> i64 {
    i64::try_from(time.as_secs() + u64::from(time.subsec_nanos() > 0)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_seconds(now: Instant, seconds: u64) -> Instant {
        now + Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_lasts_from_its_last_renewal() {
        let now = Instant::now();
        let mut leases = Leases::default();
        assert_eq!(leases.grant(7, 10, now), Ok((7, 10)));
        assert_eq!(leases.renew(7, after_seconds(now, 9)), Some((10, false)));
        assert!(leases.expired(after_seconds(now, 18)).is_empty());
        assert_eq!(leases.expired(after_seconds(now, 19)), [7]);
        assert_eq!(leases.renew(7, after_seconds(now, 19)), None, "it is over, if not yet gone");
    }

    #[test]
    fn what_cannot_be_granted_is_refused_and_what_is_too_short_made_longer() {
        let now = Instant::now();
        let mut leases = Leases::default();
        assert_eq!(leases.grant(7, 1, now), Ok((7, 2)));
        assert_eq!(leases.grant(7, 1, now), Err(Refusal::LeaseExists));
        assert_eq!(leases.grant(8, LONGEST + 1, now), Err(Refusal::LeaseTtlTooLarge));
        assert!(leases.grant(0, 5, now).unwrap().0 > 0);
        assert_eq!(leases.revoke(9), Err(Refusal::LeaseNotFound));
    }

    #[test]
    fn a_start_keeps_what_remained_and_never_shortens_it() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.grant(7, 100, now).unwrap();
        leases.stored();
        let later = after_seconds(now, 60);
        assert_eq!(leases.to_checkpoint(Duration::from_secs(30), later), [7]);
        leases.checkpoint(&[7], later);
        assert_eq!(leases.unstored(), [(7, Some(Stored { granted: 100, remaining: 40 }))]);
        leases.stored();
        // After a renewal, the time on disk is too short.
        assert_eq!(leases.renew(7, later), Some((100, true)));
        leases.checkpoint(&[7], later);
        assert_eq!(leases.unstored(), [(7, Some(Stored { granted: 100, remaining: 100 }))]);
        let again = Leases::load([(7, Stored { granted: 100, remaining: 40 })], later);
        assert!(again.expired(after_seconds(later, 39)).is_empty());
        assert_eq!(again.expired(after_seconds(later, 40)), [7]);
    }

    #[test]
    fn what_was_not_written_can_be_undone() {
        let now = Instant::now();
        let mut leases = Leases::default();
        leases.grant(1, 10, now).unwrap();
        leases.move_key(b"a", 0, 1);
        leases.stored();
        leases.grant(2, 10, now).unwrap();
        leases.move_key(b"a", 1, 2);
        assert_eq!(leases.revoke(2).unwrap(), [b"a".to_vec()]);
        leases.revoke(1).unwrap();
        leases.take_back();
        assert_eq!(leases.ids(), [1]);
        assert_eq!(leases.look(1, now).unwrap().2.collect::<Vec<_>>(), [&b"a".to_vec()]);
        let (stays, goes) = ((1, Some(Stored { granted: 10, remaining: 10 })), (2, None));
        assert_eq!(leases.unstored(), [stays, goes], "the disk may have it otherwise");
    }
}
