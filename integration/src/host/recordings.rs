//! What a host records while a story goes on.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;

use super::Host;
use crate::docker::Container;
use crate::end::End;
use crate::monitor::Monitor;
use crate::traffic::Ping;

impl Host {
    /// Records every change in this host's kernel from now on.
    pub fn monitor(&mut self) -> Result<Monitor> {
        let log = self.recording("monitor");
        Monitor::start(&self.spec.name, &self.spec.netns.place(), &log)
    }

    /// A steady ping from this host itself.
    pub fn ping(&mut self, target: Ipv4Addr) -> Result<Ping> {
        let log = self.recording("ping");
        Ping::start(&format!("from {} to {target}", self.spec.name), &self.spec.netns.place(), target, &log)
    }

    /// A steady ping from a container of this host.
    pub fn ping_from(&mut self, container: &Container, target: Ipv4Addr) -> Result<Ping> {
        let log = self.recording("ping");
        let name = format!("from container {} to {target}", container.name());
        Ping::start(&name, &container.network_place()?, target, &log)
    }

    /// A steady ping from a namespace that stands for a container of this host.
    pub fn ping_from_end(&mut self, end: &End, target: Ipv4Addr) -> Result<Ping> {
        let log = self.recording("ping");
        Ping::start(
            &format!("from {} on {} to {target}", end.address, self.spec.name),
            &end.place,
            target,
            &log,
        )
    }

    pub(super) fn recording(&mut self, what: &str) -> PathBuf {
        self.recordings += 1;
        self.spec.dir.join(format!("{what}{}.txt", self.recordings))
    }
}
