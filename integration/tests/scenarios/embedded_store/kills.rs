//! `kill -9` again and again, and what was acknowledged before.

use anyhow::Result;
use flan_integration::Lab;

use super::embedded;
use super::writers::Writers;

const KILLS: usize = 100;

/// Clients that write at the same time.
const WRITERS: usize = 4;

/// Writes between two kills differ from one round to the next, by up to so many.
const MOST_WRITES: usize = 37;

#[test]
fn nothing_that_was_acknowledged_is_lost_by_a_hundred_kills() -> Result<()> {
    Lab::run(embedded(), |lab| {
        let writers = Writers::start(lab, WRITERS)?;
        for round in 1..=KILLS {
            writers.wait_for_more(1 + round * 5 % MOST_WRITES)?;
            lab.store_mut().kill_member(0)?;
            lab.store_mut().start_member(0)?;
        }
        writers.wait_for_more(1)?;
        let count = writers.stop_and_find_all()?;
        println!("{count} writes acknowledged in {KILLS} lives, none lost");
        Ok(())
    })
}
