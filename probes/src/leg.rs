//! One kind of packet to one target: whether it comes back at present.

use std::time::Duration;

use tokio::time::Instant;

use crate::moment::Moment;

/// Answers in a row after which a leg that failed works again.
const WORKS_AFTER: u16 = 3;

/// What became of one packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was not sent.
    #[default]
    NotAsked,
    /// Nothing came back in time.
    Lost,
    /// An answer came after this time.
    After(Duration),
}

/// What is known of a leg.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There was no answer yet, and not enough were missing.
    #[default]
    Unknown,
    /// Answers come.
    Works,
    /// None come.
    Fails,
}

/// A leg. One lost packet changes nothing, nor does one answer after many lost ones.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Leg {
    verdict: Verdict,
    /// Answers in a row, or missing answers in a row, negative.
    streak: i16,
    since: Option<Moment>,
    last_answer: Option<Moment>,
    first_asked: Option<Moment>,
}

/// When a leg fails.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// After so many lost packets in a row.
    pub(crate) lost: u16,
    /// And so long after the last answer.
    pub(crate) time: Duration,
}

/// A peer that never answered may be starting.
const OF_NEW: Patience = Patience { lost: 5, time: Duration::from_secs(10) };

impl Leg {
    /// A leg of which one packet says enough.
    pub(crate) fn decided(answer: Answer) -> Self {
        let verdict = match answer {
            Answer::NotAsked => Verdict::Unknown,
            Answer::Lost => Verdict::Fails,
            Answer::After(_) => Verdict::Works,
        };
        // Somebody who asks knows more of the past than this.
        Self { verdict, last_answer: Some(Moment::of(Instant::now())), ..Self::default() }
    }

    /// Takes in what became of a packet.
    pub(crate) fn saw(&mut self, answer: Answer, patience: Patience, now: Instant) {
        let is_answered = match answer {
            Answer::NotAsked => return,
            Answer::Lost => false,
            Answer::After(_) => true,
        };
        let moment = Moment::of(now);
        let first_asked = *self.first_asked.get_or_insert(moment);
        self.streak = if is_answered {
            self.last_answer = Some(moment);
            self.streak.max(0).saturating_add(1)
        } else {
            self.streak.min(0).saturating_sub(1)
        };
        let row = self.streak.unsigned_abs();
        let runs_out = |patience: Patience| {
            !is_answered
                && row >= patience.lost
                && self.last_answer.unwrap_or(first_asked).ago(now) >= patience.time
        };
        let verdict = match self.verdict {
            Verdict::Unknown if is_answered => Verdict::Works,
            Verdict::Unknown if runs_out(OF_NEW) => Verdict::Fails,
            Verdict::Works if runs_out(patience) => Verdict::Fails,
            Verdict::Fails if is_answered && row >= WORKS_AFTER => Verdict::Works,
            same => same,
        };
        if verdict != self.verdict {
            (self.verdict, self.since) = (verdict, Some(moment));
        }
    }

    #[cfg(test)]
    fn verdict(&self) -> Verdict {
        self.verdict
    }

    pub(crate) fn works(&self) -> bool {
        self.verdict == Verdict::Works
    }

    pub(crate) fn fails(&self) -> bool {
        self.verdict == Verdict::Fails
    }

    /// Returns since when the verdict stands.
    pub(crate) fn since(&self) -> Option<Moment> {
        self.since
    }

    pub(crate) fn last_answer(&self) -> Option<Moment> {
        self.last_answer
    }

    /// Returns whether the last packet agrees with the verdict. While it does not, the next probe should come soon.
    pub(crate) fn is_settled(&self) -> bool {
        match self.verdict {
            Verdict::Unknown => self.streak == 0,
            Verdict::Works => self.streak > 0,
            Verdict::Fails => self.streak < 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { lost: 3, time: Duration::ZERO };

    /// Returns the verdict after each of these packets: `+` is answered, `-` lost.
    fn verdicts(packets: &str) -> String {
        let (mut leg, now) = (Leg::default(), Instant::now());
        let packets = packets.chars().enumerate().map(|(at, packet)| {
            let answer = if packet == '+' { Answer::After(Duration::from_millis(1)) } else { Answer::Lost };
            leg.saw(answer, PATIENCE, now + Duration::from_secs(at as u64 * 2));
            match leg.verdict() {
                Verdict::Unknown => '?',
                Verdict::Works => 'w',
                Verdict::Fails => 'f',
            }
        });
        packets.collect()
    }

    #[test]
    fn three_in_a_row_decide_either_way_and_fewer_change_nothing() {
        for (packets, expected) in
            [("+--+---+++", "wwwwwwfffw"), ("------++-+++", "?????ffffffw"), ("-+", "?w")]
        {
            assert_eq!(verdicts(packets), expected, "{packets}");
        }
    }

    #[test]
    fn a_leg_with_time_to_wait_fails_no_earlier() {
        let (mut leg, now) = (Leg::default(), Instant::now());
        let patience = Patience { lost: 3, time: Duration::from_secs(10) };
        let after = |seconds| now + Duration::from_secs(seconds);
        leg.saw(Answer::After(Duration::ZERO), patience, now);
        (1..10).for_each(|second| leg.saw(Answer::Lost, patience, after(second)));
        assert!(leg.works());
        leg.saw(Answer::Lost, patience, after(10));
        assert!(leg.fails());
    }

    #[test]
    fn a_leg_is_unsettled_while_the_last_packet_contradicts_the_verdict() {
        let (mut leg, now) = (Leg::default(), Instant::now());
        assert!(leg.is_settled(), "nothing was asked");
        let mut saw = |answer| {
            leg.saw(answer, PATIENCE, now);
            leg.is_settled()
        };
        let answered = Answer::After(Duration::ZERO);
        assert!(!saw(Answer::Lost));
        assert!(saw(answered));
        assert_eq!([Answer::Lost, Answer::Lost, Answer::Lost].map(&mut saw), [false, false, true]);
        assert_eq!([answered, answered, answered].map(saw), [false, false, true]);
    }
}
