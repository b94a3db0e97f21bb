//! The search for the largest packet that a narrow path carries.

/// Packets in one step.
pub(crate) const STEPS: u16 = 8;

/// How often the smallest lost size must be lost again, while the one below it passes, before that is the result.
const CONFIRMED: u8 = 2;

/// Searches that came to nothing after which the next one may wait.
const FRUITLESS: u8 = 5;

/// Narrows down, in a few steps, the size from which packets are lost. A packet that is lost by chance costs a new search,
/// and hardly ever leads to a wrong result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Search {
    /// Largest size in bytes that is known to pass.
    passes: u16,
    /// Smallest size known to be lost, larger than that.
    is_lost: u16,
    /// The size that passes if any does, and the one that is known not to.
    ends: (u16, u16),
    /// How often both were confirmed since they are next to each other.
    confirmed: u8,
    /// What the search found last.
    found: Option<u16>,
    /// How often it began anew since then.
    fruitless: u8,
}

impl Search {
    /// Begins where `least` bytes pass and `most` do not.
    pub(crate) fn new(least: u16, most: u16) -> Self {
        let most = most.max(least + 1);
        Self { passes: least, is_lost: most, ends: (least, most), confirmed: 0, found: None, fruitless: 0 }
    }

    /// Returns the sizes to try next, smallest first. Once they are next to each other, these two, to see whether they
    /// still hold.
    pub(crate) fn sizes(&self) -> Vec<u16> {
        let gap = self.is_lost - self.passes;
        if gap == 1 {
            return vec![self.passes, self.is_lost];
        }
        let step = |at: u16| self.passes + (u32::from(gap) * u32::from(at) / u32::from(STEPS)) as u16;
        let mut sizes: Vec<u16> = (0..STEPS).map(step).collect();
        sizes.dedup();
        sizes
    }

    /// Takes in which of the [sizes](Self::sizes) passed.
    pub(crate) fn saw(&mut self, sizes: &[(u16, bool)]) {
        if sizes.iter().map(|(size, _)| *size).ne(self.sizes()) {
            return; // of an earlier step
        }
        if self.is_lost - self.passes == 1 {
            match sizes {
                [(_, true), (_, false)] => {
                    self.confirmed = (self.confirmed + 1).min(CONFIRMED);
                    if self.confirmed == CONFIRMED {
                        (self.found, self.fruitless) = (Some(self.passes), 0);
                    }
                }
                // One was lost by chance, or the path has changed.
                _ => {
                    self.disprove(sizes);
                    self.begin_anew();
                }
            }
            return;
        }
        let passed = sizes.iter().take_while(|(_, passed)| *passed).last();
        let Some((passes, _)) = passed else { return self.begin_anew() };
        self.passes = *passes;
        self.disprove(sizes);
        if let Some((lost, _)) = sizes.iter().find(|(_, passed)| !passed) {
            self.is_lost = *lost;
        }
    }

    fn begin_anew(&mut self) {
        (self.passes, self.is_lost) = self.ends;
        self.confirmed = 0;
        self.fruitless = self.fruitless.saturating_add(1);
    }

    /// Forgets a result that a larger packet has disproved.
    fn disprove(&mut self, sizes: &[(u16, bool)]) {
        let largest = sizes.iter().filter(|(_, passed)| *passed).map(|(size, _)| *size).max();
        self.found = self.found.filter(|found| largest.is_none_or(|largest| largest <= *found));
    }

    /// Returns the largest size that passes, once it is known.
    pub(crate) fn result(&self) -> Option<u16> {
        self.found
    }

    /// Returns whether a step more brings it closer to a result.
    pub(crate) fn is_under_way(&self) -> bool {
        self.confirmed < CONFIRMED && self.fruitless < FRUITLESS
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
        fn the_largest_size_is_found_in_six_steps_and_again_after_the_path_changed(
            first in 64_u16..1450,
            second in 64_u16..1450,
        ) {
            let mut search = Search::new(64, 1450);
            for (largest, steps) in [(first, 6), (second, 8)] {
                for _ in 0..steps {
                    ask(&mut search, largest);
                }
                prop_assert_eq!(search.result(), Some(largest));
                prop_assert!(!search.is_under_way());
            }
        }

        #[test]
        fn packets_lost_by_chance_and_late_answers_lead_to_no_wrong_result(
            steps in prop::collection::vec((any::<u8>(), 0..4_u8), 0..60),
        ) {
            let mut search = Search::new(64, 1450);
            let mut late: Vec<(u16, bool)> = Vec::new();
            for (pattern, kind) in steps {
                if kind == 0 {
                    search.saw(&late);
                }
                // One probe in four loses something besides.
                let pattern = if kind == 1 { pattern } else { 0 };
                let pass = |(at, size): (usize, u16)| (size, size <= 1350 && pattern & (1 << at) == 0);
                late = search.sizes().into_iter().enumerate().map(pass).collect();
                search.saw(&late);
                prop_assert!(search.passes < search.is_lost && search.is_lost <= 1450);
            }
            for _ in 0..12 {
                ask(&mut search, 1350);
            }
            prop_assert_eq!(search.result(), Some(1350));
        }
    }
}
