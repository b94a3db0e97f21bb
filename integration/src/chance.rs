//! Chance that can be repeated: the same seed, the same choices.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// The choices of this seed.
    pub fn of_seed(seed: u64) -> Chance {
        Chance(seed)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One of these; there is at least one.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap_or_default()]
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The seed that a variable of the environment names; a fresh one if it is not set or empty.
pub fn seed_from(variable: &str) -> Result<u64> {
    match env::var(variable).unwrap_or_default().as_str() {
        "" => Ok(fresh_seed()),
        text => text.parse().with_context(|| format!("{variable}={text} is not a number")),
    }
}

/// Another one each time, short enough to type.
pub fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) % 1_000_000
}
