//! How long a store keeps the history of its keys.

use std::time::Duration;

use crate::args::duration;

/// A list of many leases is read in pages, all at the revision of the first one, and a watch begins behind the list. With
/// less than this, a slow one could find that its revision is gone.
const LEAST: Duration = Duration::from_secs(60);

/// Reads `--auto-compaction-retention`: a number with its unit, from one minute to a year.
///
/// # Errors
/// What is wrong with it, and what would work.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    // Who brings this flag over from etcd means hours; humantime would ask for a unit without saying which.
    if text.parse::<u64>().is_ok_and(|number| number > 0) {
        return Err(format!("etcd takes a number alone for hours; write the unit as well, such as {text}h"));
    }
    duration(text, LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_needs_its_unit() {
        assert_eq!(parse("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!(
            parse("8").unwrap_err(),
            "etcd takes a number alone for hours; write the unit as well, such as 8h"
        );
    }

    #[test]
    fn a_history_that_is_too_short_for_a_list_is_refused() {
        assert_eq!(parse("1m"), Ok(Duration::from_secs(60)));
        for short in ["59s", "0", "0h"] {
            assert_eq!(parse(short).unwrap_err(), "at least 1m is needed", "{short}");
        }
        assert!(parse("soon").unwrap_err().contains("expected such as"));
    }
}
