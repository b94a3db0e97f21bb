//! Calls by chance, each compared, and a watch that is compared now and then.

mod chosen;

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use etcd_client::WatchOptions;
use flan_integration::chance::{self, Chance};
use flan_integration::store::StoreData;

use self::chosen::Chooser;
use crate::answer::Answer;
use crate::call::Call;
use crate::pair::Pair;
use crate::requests::put;
use crate::told::told;
use crate::watching::Watching;

/// The variable that lets the same calls be sent again.
const SEED_VARIABLE: &str = "FLAN_CONFORMANCE_SEED";

/// How many.
const CALLS: u32 = 4000;

/// Of so many, one is a new watch instead.
const WATCH_ONE_OF: u64 = 50;

/// Of so many, one is followed by a look at what the watch has told.
const LOOK_ONE_OF: u64 = 20;

/// How many of the calls before a difference are shown.
const SHOWN: usize = 25;

#[test]
fn calls_by_chance_are_answered_as_etcd_answers_them() -> Result<()> {
    let seed = chance::seed_from(SEED_VARIABLE)?;
    println!("make conformance CONFORMANCE_SEED={seed} sends the same calls again");
    Pair::run(StoreData::InMemory, |pair| {
        let chance = Chance::of_seed(seed);
        let mut run = Run { chance, chooser: Chooser::default(), watched: None, refused: 0 };
        let mut latest = VecDeque::new();
        for number in 1..=CALLS {
            run.step(pair, &mut latest).with_context(|| {
                let before: Vec<_> = latest.iter().map(String::as_str).collect();
                format!("call {number} of seed {seed}, after\n    {}\n", before.join("\n    "))
            })?;
        }
        run.look(pair, &mut latest).with_context(|| format!("at the end of seed {seed}"))?;
        let refused = run.refused;
        ensure!(refused < CALLS / 2, "{refused} of {CALLS} calls are refused, which proves little");
        Ok(())
    })
}

/// What goes on.
struct Run {
    chance: Chance,
    chooser: Chooser,
    watched: Option<(Watching, i64)>,
    refused: u32,
}

impl Run {
    /// One call or watch.
    fn step(&mut self, pair: &mut Pair, latest: &mut VecDeque<String>) -> Result<()> {
        if self.chance.below(WATCH_ONE_OF) == 0 {
            return self.watch(pair, latest);
        }
        let call = self.chooser.choose(&mut self.chance);
        if matches!(call, Call::Compact(_)) {
            // etcd looks up what was there before when it sends an event, and that may be forgotten by then.
            self.look(pair, latest)?;
        }
        self.send(pair, latest, &call)?;
        if self.chance.below(LOOK_ONE_OF) == 0 {
            self.look(pair, latest)?;
        }
        Ok(())
    }

    fn send(&mut self, pair: &mut Pair, latest: &mut VecDeque<String>, call: &Call) -> Result<i64> {
        latest.push_back(told(call));
        if latest.len() > SHOWN {
            latest.pop_front();
        }
        let answer = pair.same(call.clone())?;
        self.chooser.learn(call, &answer);
        self.refused += u32::from(matches!(answer, Answer::Refused { .. }));
        Ok(answer.revision())
    }

    /// Ends the watch that there is, and begins one of all keys, from any revision that is not forgotten.
    fn watch(&mut self, pair: &mut Pair, latest: &mut VecDeque<String>) -> Result<()> {
        self.look(pair, latest)?;
        let start = self.chooser.revision_to_watch_from(&mut self.chance);
        let mut options = WatchOptions::new().with_all_keys().with_start_revision(start);
        if self.chance.below(2) == 0 {
            options = options.with_prev_key();
        }
        latest.push_back(format!("a watch of all keys from revision {start}"));
        let mut watching = pair.watch();
        let id = watching.create(&options.into())?;
        self.watched = Some((watching, id));
        // What it has to catch up with must not be forgotten before.
        self.look(pair, latest)
    }

    /// Compares what the watch has told up to now.
    fn look(&mut self, pair: &mut Pair, latest: &mut VecDeque<String>) -> Result<()> {
        if self.watched.is_none() {
            return Ok(());
        }
        let last = self.send(pair, latest, &put("last", "").into())?;
        let (watching, id) = self.watched.as_mut().context("no watch")?;
        watching.events(&[*id], last).map(drop)
    }
}
