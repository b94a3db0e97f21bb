//! What is known of one target, from its probes.

use std::time::Duration;

use tokio::time::Instant;

use crate::leg::{Answer, Leg, Patience};
use crate::moment::Moment;
use crate::search::Search;

/// Bytes of a small packet, with its IP header.
pub const SMALL: u16 = 64;
/// Packets on the overlay: three lost in a row are no chance.
const OF_PATHS: Patience = Patience { lost: 3, time: Duration::ZERO };
/// The same on a path that loses others, too.
const OF_LOSSY_PATHS: Patience = Patience { lost: 8, time: Duration::ZERO };
/// The agent may be restarting.
const OF_AGENT: Patience = Patience { lost: 5, time: Duration::from_secs(10) };
/// Probes over which loss is counted.
const WINDOW: u32 = 32;
/// Lost packets among them from which a peer is lossy: more than one in ten.
const LOSSY_FROM: u32 = 4;

/// What became of the packets of one probe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Echo to the underlay address.
    pub underlay: Answer,
    /// Echo through the overlay.
    pub overlay: Answer,
    /// Echo through the overlay, as large as containers may send.
    pub full: Answer,
    /// The agent's answer, through the overlay.
    pub agent: Answer,
    /// Echoes of other sizes in bytes, smallest first, and whether they were answered.
    pub sizes: Vec<(u16, bool)>,
}

/// What a person should know first about a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Packets come back.
    Reachable,
    /// Not enough is known yet.
    Unknown,
    /// More than one packet in ten is lost.
    Lossy,
    /// Large packets do not come back.
    Narrow,
    /// Nothing comes back.
    Unreachable,
}

/// What is known of a target.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    underlay: Leg,
    /// Anything through the overlay: echo or the agent.
    overlay: Leg,
    full: Leg,
    agent: Leg,
    /// One small packet of each of the last probes since the overlay works: a bit each, 1 for a lost one; and how many there
    /// are.
    lost: (u32, u32),
    /// Whether an echo ever came back through the overlay.
    answers_echoes: bool,
    /// Whether the agent ever answered. If not, a firewall may be before it.
    answers_questions: bool,
    round_trip: Option<Duration>,
    search: Option<Search>,
}

impl Health {
    /// What follows from answers that speak for themselves, and the search for the largest size if it was made.
    pub(crate) fn decided(answers: &Answers, search: Search) -> Self {
        let Answers { underlay, overlay, full, agent, .. } = answers;
        Self {
            underlay: Leg::decided(*underlay),
            overlay: Leg::decided(agent.max_by_hope(*overlay)),
            full: Leg::decided(*full),
            agent: Leg::decided(*agent),
            search: (*full == Answer::Lost).then_some(search),
            // Who asks now is told in any case.
            answers_questions: true,
            ..Self::default()
        }
    }

    /// Takes in what became of a probe. `mtu` is what containers may send.
    pub(crate) fn saw(&mut self, answers: &Answers, mtu: u16, now: Instant) {
        let Answers { underlay, overlay, full, agent, sizes } = answers;
        self.underlay.saw(*underlay, OF_PATHS, now);
        // A firewall may drop echoes and let the agent answer. Its silence alone says nothing of the path.
        let came = match (overlay, agent) {
            (Answer::NotAsked, Answer::Lost) => Answer::NotAsked,
            (Answer::After(_), _) => *overlay,
            _ => (*agent).max_by_hope(*overlay),
        };
        let worked = self.overlay.works();
        self.overlay.saw(came, if self.answers_echoes { OF_PATHS } else { OF_AGENT }, now);
        if self.overlay.works() && !worked {
            self.lost = (0, 0);
        }
        self.answers_echoes |= matches!(overlay, Answer::After(_));
        self.answers_questions |= matches!(agent, Answer::After(_));
        // One packet a probe is counted. That another one came does not bring it back.
        match if self.answers_echoes { *overlay } else { came } {
            Answer::NotAsked => {}
            Answer::Lost => self.count(true),
            Answer::After(_) => self.count(false),
        }
        if matches!(came, Answer::After(_)) {
            // Somebody has begun to drop echoes, and other packets still come.
            self.answers_echoes &= self.lost != (u32::MAX, WINDOW);
        }
        if let Answer::After(time) = came {
            self.round_trip = Some(self.round_trip.map_or(time, |known| (known * 7 + time) / 8));
        }
        // A packet says something of its size or of the agent only if the path carried another one at the same time.
        if matches!(came, Answer::After(_)) {
            self.agent.saw(*agent, OF_AGENT, now);
            if matches!(overlay, Answer::After(_)) {
                self.full.saw(*full, if self.is_lossy() { OF_LOSSY_PATHS } else { OF_PATHS }, now);
                self.search_on(sizes, mtu);
            }
        }
        if self.overlay.fails() {
            self.search = None;
        }
    }

    fn count(&mut self, lost: bool) {
        let (bits, count) = self.lost;
        self.lost = (bits << 1 | u32::from(lost), (count + 1).min(WINDOW));
    }

    fn search_on(&mut self, sizes: &[(u16, bool)], mtu: u16) {
        if !self.full.fails() {
            self.search = None;
            return;
        }
        self.search.get_or_insert_with(|| Search::new(SMALL, mtu)).saw(sizes);
    }

    /// Returns the sizes in bytes of the echoes that the next probe should send besides, smallest first.
    pub(crate) fn sizes(&self) -> Vec<u16> {
        self.search.as_ref().map(Search::sizes).unwrap_or_default()
    }

    /// Returns whether the last probe confirmed what is known. If not, the next one should come soon.
    pub(crate) fn is_settled(&self) -> bool {
        let is_settled = self.underlay.is_settled() && self.overlay.is_settled();
        // Of the others nothing new is learned while the path carries nothing.
        let others = [&self.full, &self.agent];
        let is_searching = self.search.as_ref().is_some_and(Search::is_under_way);
        is_settled && (self.overlay.fails() || others.iter().all(|leg| leg.is_settled()) && !is_searching)
    }

    /// Returns what to know first. The agent is another matter: packets pass without it.
    pub(crate) fn state(&self) -> State {
        match () {
            () if self.overlay.fails() => State::Unreachable,
            () if !self.overlay.works() => State::Unknown,
            // While the size is searched, the problem would change its text.
            () if self.full.fails()
                && self.search.as_ref().is_some_and(|search| search.result().is_some()) =>
            {
                State::Narrow
            }
            () if self.is_lossy() => State::Lossy,
            () => State::Reachable,
        }
    }

    /// Returns whether more than one packet in ten is lost, of those that are not lost in a row now: that is a peer that goes
    /// away.
    pub(crate) fn is_lossy(&self) -> bool {
        let (bits, count) = self.lost;
        let row = bits.trailing_ones();
        let lost = bits.count_ones() - row;
        lost >= LOSSY_FROM && lost * 10 > count
    }

    /// Returns the part of the last 32 small packets that was lost, in percent; `None` before the first.
    pub(crate) fn loss_percent(&self) -> Option<u32> {
        let (bits, count) = self.lost;
        (count > 0).then(|| bits.count_ones() * 100 / count)
    }

    /// Returns the round trip of a small packet, smoothed.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip.filter(|_| self.overlay.works())
    }

    /// Returns the largest packet in bytes that passes, of at most `mtu`; `None` if it is not known.
    pub(crate) fn largest(&self, mtu: u16) -> Option<u16> {
        match &self.search {
            Some(search) if self.full.fails() => search.result(),
            _ => (self.overlay.works() && self.full.works()).then_some(mtu),
        }
    }

    /// Returns since when the [`State`] is what it is, as far as reachable or not is concerned.
    pub(crate) fn since(&self) -> Option<Moment> {
        match self.state() {
            State::Narrow => self.full.since(),
            _ => self.overlay.since(),
        }
    }

    /// Returns whether the underlay address answers at present.
    pub(crate) fn does_underlay_answer(&self) -> bool {
        self.underlay.works()
    }

    /// Returns whether the overlay has ever answered.
    pub(crate) fn was_reachable(&self) -> bool {
        self.overlay.last_answer().is_some()
    }

    /// Returns whether an echo ever came back through the overlay. If not, its silence may be that of its agent.
    pub(crate) fn answers_echoes(&self) -> bool {
        self.answers_echoes
    }

    /// Returns whether the agent answers no more, although the overlay works. One that never answered may be behind a
    /// firewall.
    pub(crate) fn is_agent_silent(&self) -> bool {
        self.overlay.works() && self.agent.fails() && self.answers_questions
    }

    /// Returns when the agent last answered.
    pub(crate) fn agent_answered(&self) -> Option<Moment> {
        self.agent.last_answer()
    }

    /// Returns when anything last came from the peer through the overlay.
    pub(crate) fn answered(&self) -> Option<Moment> {
        self.overlay.last_answer()
    }
}

impl Answer {
    /// Returns the better of two.
    fn max_by_hope(self, other: Self) -> Self {
        match (self, other) {
            (Self::After(_), _) | (Self::Lost, Self::NotAsked) => self,
            _ => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1450;

    /// A path, and what a probe of a target behind it brings.
    #[derive(Clone, Copy)]
    struct Path {
        underlay: bool,
        overlay: bool,
        largest: u16,
        agent: bool,
    }

    const GOOD: Path = Path { underlay: true, overlay: true, largest: MTU, agent: true };

    fn probe(health: &mut Health, path: Path, now: &mut Instant) -> State {
        *now += Duration::from_secs(2);
        let answer = |is_there| match is_there {
            true => Answer::After(Duration::from_micros(700)),
            false => Answer::Lost,
        };
        let sizes =
            health.sizes().into_iter().map(|size| (size, path.overlay && size <= path.largest)).collect();
        let answers = Answers {
            underlay: answer(path.underlay),
            overlay: answer(path.overlay),
            full: answer(path.overlay && path.largest >= MTU),
            agent: answer(path.overlay && path.agent),
            sizes,
        };
        health.saw(&answers, MTU, *now);
        health.state()
    }

    fn probed(paths: &[(usize, Path)]) -> (Health, Vec<State>) {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let mut states = Vec::new();
        for (count, path) in paths {
            for _ in 0..*count {
                let state = probe(&mut health, *path, &mut now);
                if states.last() != Some(&state) {
                    states.push(state);
                }
            }
        }
        (health, states)
    }

    #[test]
    fn a_dropped_encapsulation_is_told_from_a_host_that_is_away() {
        let (health, states) = probed(&[(3, GOOD), (3, Path { overlay: false, ..GOOD })]);
        assert_eq!(states, [State::Reachable, State::Unreachable]);
        assert!(health.does_underlay_answer() && !health.is_agent_silent());
        let (health, _) = probed(&[(3, GOOD), (3, Path { overlay: false, underlay: false, ..GOOD })]);
        assert!(!health.does_underlay_answer());
        assert_eq!(health.state(), State::Unreachable);
    }

    #[test]
    fn a_narrow_path_is_told_with_the_size_that_passes_until_it_is_wide_again() {
        let (health, states) = probed(&[(1, GOOD), (10, Path { largest: 1350, ..GOOD })]);
        assert_eq!(states, [State::Reachable, State::Narrow]);
        assert_eq!((health.largest(MTU), health.is_settled()), (Some(1350), true));
        let (health, states) = probed(&[(1, GOOD), (10, Path { largest: 1350, ..GOOD }), (3, GOOD)]);
        assert_eq!((states.last(), health.largest(MTU)), (Some(&State::Reachable), Some(MTU)));
    }

    #[test]
    fn an_agent_that_is_silent_is_told_only_while_packets_pass() {
        let silent = Path { agent: false, ..GOOD };
        let (health, states) = probed(&[(2, GOOD), (4, silent)]);
        assert_eq!((states, health.is_agent_silent()), (vec![State::Reachable], false));
        assert!(probed(&[(2, GOOD), (5, silent)]).0.is_agent_silent());
        assert!(!probed(&[(9, silent)]).0.is_agent_silent(), "it never answered");
        assert!(!probed(&[(2, GOOD), (5, silent), (3, Path { overlay: false, ..GOOD })]).0.is_agent_silent());
        assert!(!probed(&[(2, GOOD), (5, silent), (3, GOOD)]).0.is_agent_silent());
    }

    #[test]
    fn a_peer_that_goes_away_is_settled_whatever_was_lost_first() {
        let away = Path { underlay: false, overlay: false, ..GOOD };
        let narrow = Path { largest: 1350, ..GOOD };
        for first in [Path { agent: false, ..GOOD }, narrow] {
            assert!(probed(&[(3, GOOD), (2, first), (4, away)]).0.is_settled());
            assert!(probed(&[(3, GOOD), (4, first), (4, away)]).0.is_settled());
        }
    }

    #[test]
    fn a_lossy_path_is_not_called_narrow() {
        let no_full = Path { largest: 1350, ..GOOD };
        let lost = Path { overlay: false, ..GOOD };
        let mut pattern: Vec<(usize, Path)> = (0..6).flat_map(|_| [(3, GOOD), (1, lost)]).collect();
        pattern.push((5, no_full));
        let (health, states) = probed(&pattern);
        assert_eq!(states, [State::Reachable, State::Lossy]);
        assert_eq!(health.sizes(), [0; 0], "nothing is searched");
    }

    #[test]
    fn a_peer_that_loses_some_is_lossy_and_one_that_comes_back_is_not() {
        let lost = Path { overlay: false, ..GOOD };
        let pattern: Vec<(usize, Path)> = (0..6).flat_map(|_| [(3, GOOD), (1, lost)]).collect();
        let (health, states) = probed(&pattern);
        assert_eq!(states, [State::Reachable, State::Lossy]);
        assert!(health.loss_percent().is_some_and(|percent| percent >= 20));
        let (health, states) = probed(&[(9, GOOD), (9, lost), (3, GOOD)]);
        assert_eq!(states, [State::Reachable, State::Unreachable, State::Reachable]);
        assert_eq!(health.loss_percent(), Some(0));
    }

    #[test]
    fn a_peer_whose_firewall_drops_echoes_is_reachable_while_its_agent_answers() {
        let (mut health, now) = (Health::default(), Instant::now());
        let answers = Answers {
            underlay: Answer::Lost,
            overlay: Answer::Lost,
            full: Answer::Lost,
            agent: Answer::After(Duration::from_millis(1)),
            sizes: Vec::new(),
        };
        for probe in 0..9 {
            health.saw(&answers, MTU, now + Duration::from_secs(2 * probe));
        }
        assert_eq!(health.state(), State::Reachable);
        assert!(health.is_settled());
    }
}
