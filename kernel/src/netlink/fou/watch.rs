//! FOU ports that come and go. The kernel sends no notifications about them, so it is asked.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{ports, socket};
use crate::KernelError;
use crate::kind::fou_port::FouPort;
use crate::netlink::generic::Generic;

const INTERVAL: Duration = Duration::from_secs(1);

/// Asks regularly for the FOU ports that are ours.
#[derive(Debug)]
pub(in crate::netlink) struct Watch {
    numbers: BTreeSet<u16>,
    /// `None` until it is needed, and after it broke.
    socket: Option<Generic>,
    /// At the last look.
    seen: BTreeSet<FouPort>,
    /// At any look.
    known: BTreeSet<FouPort>,
    next: Instant,
}

impl Watch {
    pub(in crate::netlink) fn new() -> Self {
        Self {
            numbers: BTreeSet::new(),
            socket: None,
            seen: BTreeSet::new(),
            known: BTreeSet::new(),
            next: Instant::now(),
        }
    }

    /// Sets which port numbers are ours.
    pub(in crate::netlink) fn set_ours(&mut self, numbers: &BTreeSet<u16>) {
        if self.numbers != *numbers {
            self.numbers.clone_from(numbers);
            self.next = Instant::now();
        }
    }

    /// Waits until it is time to ask; for ever if no port is ours. Cancel-safe.
    pub(in crate::netlink) async fn due(&self) {
        if self.numbers.is_empty() {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.next).await;
    }

    /// Returns the ports that came (true) and those that went since the last call, if it is time to ask. A port that is
    /// gone is told until there is one with its number.
    pub(in crate::netlink) fn look(&mut self) -> Vec<(FouPort, bool)> {
        if self.numbers.is_empty() || Instant::now() < self.next {
            return Vec::new();
        }
        self.next = Instant::now() + INTERVAL;
        match self.ask() {
            Ok(now) => self.compare(now),
            Err(reason) => {
                self.socket = None;
                tracing::debug!(%reason, "cannot ask for the FOU ports");
                Vec::new()
            }
        }
    }

    fn compare(&mut self, now: BTreeSet<FouPort>) -> Vec<(FouPort, bool)> {
        let is_missed = |port: &FouPort| !now.iter().any(|other| other.port == port.port);
        let gone = self.known.iter().filter(|port| !now.contains(port));
        // A port that was repaired and deleted again between two looks is missing from both.
        let gone = gone.filter(|port| self.seen.contains(port) || is_missed(port));
        let came = now.difference(&self.seen);
        let changes = gone.map(|port| (*port, false)).chain(came.map(|port| (*port, true))).collect();
        self.known.extend(&now);
        self.seen = now;
        changes
    }

    fn ask(&mut self) -> Result<BTreeSet<FouPort>, KernelError> {
        if self.socket.is_none() {
            self.socket = socket()?;
        }
        let Some(socket) = &mut self.socket else { return Ok(BTreeSet::new()) };
        let found = ports(socket)?.into_iter().filter_map(|found| found.ours);
        Ok(found.filter(|port| self.numbers.contains(&port.port)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn port(last: u8) -> FouPort {
        FouPort { address: Ipv4Addr::new(192, 168, 64, last), port: 8285 }
    }

    #[tokio::test]
    async fn only_what_changed_is_told() {
        let mut watch = Watch::new();
        let mut look = |ports: &[FouPort]| watch.compare(ports.iter().copied().collect());
        assert_eq!(look(&[port(1)]), [(port(1), true)]);
        assert_eq!(look(&[port(1)]), []);
        assert_eq!(look(&[port(2)]), [(port(1), false), (port(2), true)]);
        assert_eq!(look(&[port(2)]), []);
    }

    #[tokio::test]
    async fn a_port_that_is_missing_is_told_until_it_is_back() {
        let mut watch = Watch::new();
        let mut look = |ports: &[FouPort]| watch.compare(ports.iter().copied().collect());
        look(&[port(1)]);
        for _ in 0..2 {
            assert_eq!(look(&[]), [(port(1), false)]);
        }
        assert_eq!(look(&[port(1)]), [(port(1), true)]);
    }
}
