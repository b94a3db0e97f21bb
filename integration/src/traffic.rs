//! Traffic between two places: a steady ping that counts what is lost, and single HTTP fetches.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;

use crate::command::Place;
use crate::process::{Lifetime, Process};
use crate::wait;

/// Pings a second.
const RATE: u32 = 100;

/// After so many, the sequence numbers of a ping start anew.
const SEQUENCE_NUMBERS: usize = 1 << 16;

/// The path of the page that names the address it was fetched from.
pub const SOURCE_PAGE: &str = "/cgi-bin/source";

/// A steady ping of 100 packets a second that has had its first answer.
#[derive(Debug)]
pub struct Ping {
    process: Process,
}

/// What became of the packets of a [`Ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Requests sent since the first that was answered, without the one that was under way at the end.
    pub sent: usize,
    /// Requests answered.
    pub received: usize,
    /// From the first request without an answer to the last, both included; 0 if all were answered.
    pub outage: usize,
}

impl Ping {
    /// Starts pinging `target` from `place`, and waits for the first answer.
    pub fn start(name: &str, place: &Place, target: impl Into<IpAddr>, log: &Path) -> Result<Ping> {
        let mut command = place.command("ping");
        let interval = format!("{}", 1.0 / f64::from(RATE));
        command.args(["-n", "-i", &interval, &target.into().to_string()]);
        let mut ping =
            Ping { process: Process::spawn(&format!("ping {name}"), &command, log, Lifetime::Bound)? };
        ping.wait_for_answers(1)?;
        Ok(ping)
    }

    /// Waits until `count` more packets have been answered.
    pub fn wait_for_answers(&mut self, count: usize) -> Result<()> {
        let wanted = self.answered().len() + count;
        let limit = Duration::from_secs(20);
        let process = &mut self.process;
        wait::until(&format!("{count} answers to {}", process.name()), limit, || {
            process.ensure_running()?;
            let answered = answered_in(&fs::read_to_string(process.log())?).len();
            ensure!(answered >= wanted, "{answered} of {wanted} answered\n{}", process.last_lines());
            Ok(())
        })
    }

    /// Lets it run until it has been seen to work for some more packets, ends it and counts.
    pub fn stop(mut self) -> Result<Report> {
        // A data path that is dead by now shows as losses below, not as an error here.
        let _ = self.wait_for_answers(5);
        self.process.signal_group(Signal::INT)?;
        let text = wait::until("ping's own summary", Duration::from_secs(5), || {
            let text = fs::read_to_string(self.process.log())?;
            ensure!(text.contains("packets transmitted"), "{}", self.process.last_lines());
            Ok(text)
        })?;
        report(&text)
    }

    /// What was lost so far between the first answer and the last.
    pub fn so_far(&self) -> Report {
        let answered = self.answered();
        report_between(&answered, answered.last().copied().unwrap_or(0)).unwrap_or(Report::NOTHING)
    }

    fn answered(&self) -> BTreeSet<usize> {
        answered_in(&fs::read_to_string(self.process.log()).unwrap_or_default())
    }
}

impl Report {
    const NOTHING: Report = Report { sent: 0, received: 0, outage: 0 };

    /// Packets without an answer.
    pub fn lost(&self) -> usize {
        self.sent - self.received
    }

    /// An error unless all packets were answered, and at least `least` were sent.
    pub fn nothing_lost(&self, least: usize) -> Result<()> {
        ensure!(self.lost() == 0, "{} of {} packets lost", self.lost(), self.sent);
        ensure!(self.sent >= least, "only {} packets sent, which proves little", self.sent);
        Ok(())
    }
}

/// Fetches a page with busybox's wget, in at most 5 s.
pub fn fetch(place: &Place, url: &str) -> Result<String> {
    let limit = wait::scaled(Duration::from_secs(5)).as_secs().to_string();
    place.run("timeout", [&limit, "busybox", "wget", "-q", "-O", "-", url])
}

/// Reads what [`SOURCE_PAGE`] answers: busybox's httpd writes `[::ffff:10.5.3.2]` for an IPv4 peer.
pub fn parse_source(page: &str) -> Result<IpAddr> {
    let text = page.trim().trim_matches(['[', ']']);
    let address: IpAddr = text.parse().with_context(|| format!("not an address: {page:?}"))?;
    Ok(address.to_canonical())
}

fn report(text: &str) -> Result<Report> {
    let answered = answered_in(text);
    let last = *answered.last().context("no ping was answered")?;
    let summary =
        text.lines().find(|line| line.contains("packets transmitted")).context("no summary from ping")?;
    let transmitted: usize = summary
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| anyhow!("not a summary: {summary}"))?;
    // The very last request may have been under way when ping was told to stop.
    let end = if transmitted == last + 1 { last } else { transmitted };
    report_between(&answered, end).context("no ping was answered")
}

/// Of the requests from the first that was answered up to `end`; `None` if none was.
fn report_between(answered: &BTreeSet<usize>, end: usize) -> Option<Report> {
    let first = *answered.first()?;
    let mut unanswered = (first..=end).filter(|seq| !answered.contains(seq));
    let outage = unanswered.next().map_or(0, |first| unanswered.next_back().unwrap_or(first) + 1 - first);
    Some(Report { sent: end + 1 - first, received: answered.len(), outage })
}

/// The sequence numbers with an answer, counted on where the 16 bits that a packet has for them start anew.
fn answered_in(text: &str) -> BTreeSet<usize> {
    let mut newest: usize = 0;
    text.lines()
        .filter(|line| line.contains("bytes from"))
        .filter_map(|line| line.split_once("icmp_seq=")?.1.split_whitespace().next()?.parse().ok())
        .map(|seq: usize| {
            // Within half a turn of the newest: an answer may be overtaken.
            let turns = (newest + SEQUENCE_NUMBERS / 2).saturating_sub(seq) / SEQUENCE_NUMBERS;
            let seq = turns * SEQUENCE_NUMBERS + seq;
            newest = newest.max(seq);
            seq
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(answered: &[usize], transmitted: usize) -> String {
        let lines: Vec<_> = answered
            .iter()
            .map(|seq| format!("64 bytes from 10.5.3.2: icmp_seq={seq} ttl=64 time=0.1 ms"))
            .collect();
        format!("{}\n{transmitted} packets transmitted, {} received\n", lines.join("\n"), answered.len())
    }

    #[test]
    fn a_gap_counts_as_lost() {
        let report = report(&log(&[1, 2, 4, 5], 5)).unwrap();
        assert_eq!((report.sent, report.received, report.lost()), (5, 4, 1));
    }

    #[test]
    fn the_one_packet_under_way_at_the_end_does_not() {
        assert_eq!(report(&log(&[1, 2, 3], 4)).unwrap().lost(), 0);
    }

    #[test]
    fn silence_at_the_end_does() {
        assert_eq!(report(&log(&[1, 2, 3], 9)).unwrap().lost(), 6);
    }

    #[test]
    fn counting_starts_with_the_first_answer() {
        assert_eq!(report(&log(&[3, 4], 4)).unwrap(), Report { sent: 2, received: 2, outage: 0 });
    }

    #[test]
    fn an_outage_reaches_from_the_first_loss_to_the_last() {
        assert_eq!(report(&log(&[1, 4, 6, 7], 7)).unwrap().outage, 4);
        assert_eq!(report(&log(&[1, 3], 3)).unwrap().outage, 1);
    }

    #[test]
    fn sequence_numbers_that_start_anew_are_counted_on() {
        let turned = report(&log(&[65534, 65535, 1, 0, 2], 65_538)).unwrap();
        assert_eq!((turned.sent, turned.lost()), (5, 0));
        let twice = answered_in(&log(&[1, 30_000, 60_000, 20_000, 50_000, 3], 0));
        assert_eq!(twice.last(), Some(&131_075));
    }

    #[test]
    fn a_mapped_source_address_is_read() {
        assert_eq!(parse_source("[::ffff:10.5.3.2]\n").unwrap(), "10.5.3.2".parse::<IpAddr>().unwrap());
    }
}
