//! Points in time that take little room.

use std::num::NonZero;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// About when the first one was noted.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A time in whole seconds, in a quarter of an `Instant`'s room: there are a dozen for each of up to 50,000 targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(NonZero<u32>);

impl Moment {
    pub(crate) fn of(time: Instant) -> Self {
        let seconds = time.saturating_duration_since(*START).as_secs();
        Self(NonZero::<u32>::MIN.saturating_add(seconds.try_into().unwrap_or(u32::MAX)))
    }

    /// Returns how long ago it was, to a second.
    pub(crate) fn ago(self, now: Instant) -> Duration {
        Duration::from_secs(u64::from(Self::of(now).0.get().saturating_sub(self.0.get())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_distance() {
        let now = Instant::now() + Duration::from_secs(3);
        let moment = Moment::of(now);
        assert_eq!(size_of::<Option<Moment>>(), 4);
        assert_eq!(moment.ago(now + Duration::from_secs(70)), Duration::from_secs(70));
        assert_eq!(moment.ago(now - Duration::from_secs(2)), Duration::ZERO);
    }
}
