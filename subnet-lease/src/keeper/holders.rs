//! Describes the holders of an exhausted network.

use std::collections::BTreeMap;

use crate::lease::Lease;
use crate::stored::Listing;

/// Lists the number of subnets of each holder, largest first.
pub(super) fn holders(listing: &Listing<Lease>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for lease in listing.readable() {
        *counts.entry(lease.attributes.holder()).or_default() += 1;
    }
    let unreadable = listing.items.len() - listing.readable().count();
    if unreadable > 0 {
        counts.insert("unreadable leases".to_owned(), unreadable);
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rest = counts.len().saturating_sub(SHOWN);
    let mut shown: Vec<String> =
        counts.iter().take(SHOWN).map(|(who, count)| format!("{who}: {count}")).collect();
    if rest > 0 {
        shown.push(format!("{rest} more"));
    }
    shown.join(", ")
}

/// Most holders in an error message.
const SHOWN: usize = 10;

#[cfg(test)]
mod tests {
    use super::super::testing::lease;
    use super::*;
    use crate::samples::entry;

    #[test]
    fn an_exhausted_network_names_who_holds_how_many() {
        let entries = vec![
            lease("10.5.2.0-24", "192.168.64.12", None, 1),
            lease("10.5.3.0-24", "192.168.64.13", None, 2),
            lease("10.5.4.0-24", "192.168.64.13", None, 3),
            entry("x", "{", 4),
        ];
        assert_eq!(
            holders(&Listing::of(entries, 9, 1)),
            "192.168.64.13: 2, 192.168.64.12: 1, unreadable leases: 1"
        );
    }
}
