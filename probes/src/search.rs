//! The search for the largest packet that a narrow path carries.

/// Packets in one step.
pub(crate) const STEPS: u16 = 8;

/// Results after which the search begins anew, in case the path carries more by now.
const AGAIN_AFTER: u16 = 30;

/// Narrows down, in a few steps, the size from which packets are lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Search {
    /// Largest size in bytes that is known to pass.
    passes: u16,
    /// Smallest size known to be lost.
    is_lost: u16,
    /// The size that passes if any does, and the one that is known not to.
    ends: (u16, u16),
    /// What the search found last.
    found: Option<u16>,
    /// How often that was confirmed.
    confirmed: u16,
}

impl Search {
    /// Begins where `least` bytes pass and `most` do not.
    pub(crate) fn new(least: u16, most: u16) -> Self {
        Self { passes: least, is_lost: most, ends: (least, most), found: None, confirmed: 0 }
    }

    /// Returns the sizes to try next. Once the search is over, the result alone, to see whether it still holds.
    pub(crate) fn sizes(&self) -> Vec<u16> {
        let gap = self.is_lost.saturating_sub(self.passes);
        if gap <= 1 {
            return vec![self.passes];
        }
        let step = |at: u16| self.passes + (u32::from(gap) * u32::from(at) / u32::from(STEPS)) as u16;
        let mut sizes: Vec<u16> = (0..STEPS).map(step).collect();
        sizes.dedup();
        sizes
    }

    /// Takes in which of these sizes passed, smallest first.
    pub(crate) fn saw(&mut self, sizes: &[(u16, bool)]) {
        let Some(&(smallest, has_passed)) = sizes.first() else { return };
        if smallest != self.passes {
            return; // of an earlier search
        }
        if !has_passed {
            // Either it was lost by chance, or the path has changed.
            (self.passes, self.is_lost) = self.ends;
            return;
        }
        let in_row = sizes.iter().take_while(|(_, passed)| *passed);
        self.passes = in_row.last().map_or(self.passes, |(size, _)| *size);
        let lost = sizes.iter().find(|(_, passed)| !passed);
        self.is_lost = lost.map_or(self.is_lost, |(size, _)| *size);
        if self.is_lost - self.passes > 1 {
            return;
        }
        if self.found.replace(self.passes) != Some(self.passes) {
            self.confirmed = 0;
        }
        self.confirmed += 1;
        if self.confirmed > AGAIN_AFTER {
            (self.passes, self.is_lost, self.confirmed) = (self.ends.0, self.ends.1, 0);
        }
    }

    /// Returns the largest size that passes, once it is known.
    pub(crate) fn result(&self) -> Option<u16> {
        self.found
    }

    /// Returns whether a step more brings it closer to a result.
    pub(crate) fn is_under_way(&self) -> bool {
        self.is_lost - self.passes > 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(search: &mut Search, largest: u16) {
        let seen: Vec<(u16, bool)> = search.sizes().into_iter().map(|size| (size, size <= largest)).collect();
        search.saw(&seen);
    }

    proptest! {
        #[test]
        fn the_largest_size_is_found_in_four_steps_and_again_after_the_path_changed(
            first in 64_u16..1450,
            second in 64_u16..1450,
        ) {
            let mut search = Search::new(64, 1450);
            for _ in 0..4 {
                ask(&mut search, first);
            }
            prop_assert_eq!(search.result(), Some(first));
            for _ in 0..AGAIN_AFTER + 5 {
                ask(&mut search, second);
            }
            prop_assert_eq!(search.result(), Some(second));
        }

        #[test]
        fn whatever_is_lost_by_chance_the_search_ends_with_a_size_that_passed(
            lost in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let mut search = Search::new(64, 1450);
            for pattern in lost {
                let sizes = search.sizes();
                let pass = |(at, size): (usize, u16)| (size, size <= 1350 && pattern & (1 << at) == 0);
                search.saw(&sizes.into_iter().enumerate().map(pass).collect::<Vec<_>>());
                prop_assert!((64..=1350).contains(&search.passes));
                prop_assert!(search.passes < search.is_lost && search.is_lost <= 1450);
            }
        }
    }
}
