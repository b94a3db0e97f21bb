//! Times for people.

use std::time::{Duration, SystemTime};

/// The last second of the year 9999. Certificates have no later date.
const LAST: u64 = 253_402_300_799;

/// Formats seconds since 1970 as `2026-11-27 13:45 UTC`. Times before 1970 or after 9999 become the nearest valid time.
pub fn utc(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0).min(LAST);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    // 2026-11-27T13:45:42Z
    let (date, time) = text.split_once('T').unwrap_or((&text, ""));
    format!("{date} {} UTC", time.rsplit_once(':').map_or(time, |(minutes, _)| minutes))
}

/// Seconds since 1970; 0 for earlier times.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_and_an_hour() {
        assert_eq!(utc(1_795_784_475), "2026-11-27 13:01 UTC");
        assert_eq!(utc(-1), "1970-01-01 00:00 UTC");
        assert_eq!(utc(i64::MAX), "9999-12-31 23:59 UTC");
    }
}
