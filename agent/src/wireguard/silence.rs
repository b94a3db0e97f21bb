//! Peers that packets are sent to, and that do not answer.

use std::collections::HashMap;
use std::time::SystemTime;

use flan_kernel::netlink::SILENT_AFTER;
use flan_wireguard_keys::PublicKey;
use tokio::time::Instant;

use super::WireguardReport;

/// Most peers in one text.
const SHOWN: usize = 5;

/// Finds silent peers by looking again and again. A peer that nobody sends to has no handshake, and nothing is wrong
/// with it.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    seen: HashMap<(usize, PublicKey), Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    sent_bytes: u64,
    /// Since when something was sent at every look, without a handshake.
    trying_since: Option<Instant>,
}

impl Silence {
    /// Looks, and describes the silent peers, if there are any.
    pub(crate) fn look(
        &mut self,
        reports: &[WireguardReport],
        wall: SystemTime,
        now: Instant,
    ) -> Option<String> {
        let mut silent = Vec::new();
        let mut seen = HashMap::with_capacity(reports.len());
        for report in reports {
            let name = (report.device, report.public_key);
            let before = self.seen.get(&name);
            let age = report.latest_handshake.map(|time| wall.duration_since(time).unwrap_or_default());
            let is_stale = age.is_none_or(|age| age >= SILENT_AFTER);
            let is_tried = before.is_some_and(|before| report.sent_bytes > before.sent_bytes);
            let trying_since =
                (is_stale && is_tried).then(|| before.and_then(|before| before.trying_since).unwrap_or(now));
            let long = trying_since.is_some_and(|since| age.is_some() || now - since >= SILENT_AFTER);
            if long {
                silent.push(report);
            }
            seen.insert(name, Seen { sent_bytes: report.sent_bytes, trying_since });
        }
        self.seen = seen;
        (!silent.is_empty()).then(|| describe(&silent))
    }
}

fn describe(silent: &[&WireguardReport]) -> String {
    let one = |report: &&WireguardReport| {
        let subnets: Vec<String> = report.allowed.iter().take(SHOWN).map(ToString::to_string).collect();
        let endpoint =
            report.endpoint.map_or_else(|| "no endpoint".to_owned(), |endpoint| format!("at {endpoint}"));
        format!("{} ({endpoint})", subnets.join(", "))
    };
    let mut shown: Vec<String> = silent.iter().take(SHOWN).map(one).collect();
    if silent.len() > SHOWN {
        shown.push(format!("{} more", silent.len() - SHOWN));
    }
    format!(
        "no WireGuard handshake for three minutes with {}, although packets are sent there: its agent does not run, has \
         another key or PSK, or a firewall or NAT in between drops its UDP port",
        shown.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn report(sent_bytes: u64, handshake: Option<u64>) -> WireguardReport {
        WireguardReport {
            device: 0,
            public_key: [7; 32].into(),
            endpoint: Some("192.168.64.12:51820".parse().unwrap()),
            allowed: ["10.5.2.0/24".parse().unwrap()].into(),
            latest_handshake: handshake.map(|seconds| START + Duration::from_secs(seconds)),
            received_bytes: 0,
            sent_bytes,
        }
    }

    /// Looks every 30 s at what a peer reports after so many seconds. Returns when it is first called silent.
    fn silent_after(report: impl Fn(u64) -> WireguardReport) -> Option<u64> {
        let (mut silence, now) = (Silence::default(), Instant::now());
        (0..20).map(|look| look * 30).find(|&seconds| {
            let passed = Duration::from_secs(seconds);
            silence.look(&[report(seconds)], START + passed, now + passed).is_some()
        })
    }

    #[test]
    fn a_peer_that_does_not_answer_is_silent_after_three_minutes() {
        assert_eq!(silent_after(|seconds| report(seconds * 148, None)), Some(210));
        assert_eq!(silent_after(|seconds| report(seconds * 148, Some(1))), Some(210));
    }

    #[test]
    fn a_peer_that_answers_or_that_nobody_sends_to_is_not_silent() {
        assert_eq!(silent_after(|seconds| report(seconds * 148, Some(seconds / 120 * 120))), None);
        assert_eq!(silent_after(|_| report(148, None)), None);
        assert_eq!(silent_after(|seconds| report(seconds.min(60) * 148, None)), None);
    }

    #[test]
    fn a_peer_of_two_devices_is_looked_at_on_each() {
        let (mut silence, now) = (Silence::default(), Instant::now());
        for look in 0..20 {
            let passed = Duration::from_secs(look * 30);
            let idle = [report(9000, Some(1)), WireguardReport { device: 1, ..report(100, Some(1)) }];
            assert_eq!(silence.look(&idle, START + passed, now + passed), None);
        }
    }

    #[test]
    fn the_text_names_the_peer_and_what_to_look_at() {
        let text = describe(&[&report(1, None)]);
        assert!(text.contains("10.5.2.0/24 (at 192.168.64.12:51820)") && text.contains("firewall"), "{text}");
    }
}
