//! Hosts that come and go.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::chance::Chance;
use flan_integration::command::Place;
use flan_integration::{Host, Lab, wait};

/// How long its peers may take to reach an agent that has just started.
const REACHED_LIMIT: Duration = Duration::from_secs(15);

/// What can become of a visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Start,
    Stop,
    Kill,
    /// Its lease, by flanctl.
    Release,
    /// Its lease, by etcdctl.
    Delete,
}

impl Deed {
    const ALL: [Deed; 5] = [Deed::Start, Deed::Stop, Deed::Kill, Deed::Release, Deed::Delete];

    fn told(self) -> &'static str {
        match self {
            Deed::Start => "started",
            Deed::Stop => "stopped",
            Deed::Kill => "killed with -9",
            Deed::Release => "lease released",
            Deed::Delete => "lease deleted",
        }
    }
}

/// What one of the visitors is about to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    number: usize,
    deed: Deed,
}

#[derive(Debug)]
struct Visitor {
    host: Host,
    /// Its agent runs.
    here: bool,
}

/// Hosts of which one after the other starts, ends or loses its lease.
#[derive(Debug)]
pub(crate) struct Visitors {
    visitors: [Visitor; 2],
    /// From here a visitor must be reached as soon as it is there.
    witness: Place,
    deeds: BTreeMap<Deed, u64>,
}

impl Visitors {
    pub(crate) fn new(hosts: [Host; 2], witness: Place) -> Visitors {
        let visitors = hosts.map(|host| Visitor { host, here: false });
        Visitors { visitors, witness, deeds: BTreeMap::new() }
    }

    /// Something that one of them can do.
    pub(crate) fn choose(&self, lab: &Lab, chance: &mut Chance) -> Result<Plan> {
        let number = chance.pick(&[0, 1]);
        Ok(Plan { number, deed: chance.pick(self.visitors[number].possible(lab)?) })
    }

    /// A plan as people say it.
    pub(crate) fn told(&self, Plan { number, deed }: Plan) -> String {
        format!("{}: {}", self.visitors[number].host.name(), deed.told())
    }

    /// Does it, and waits until all is as it should be then.
    pub(crate) fn perform(&mut self, lab: &Lab, plan: Plan) -> Result<()> {
        let Plan { number, deed } = plan;
        self.visitors[number].perform(lab, deed, &self.witness).with_context(|| self.told(plan))?;
        *self.deeds.entry(deed).or_default() += 1;
        Ok(())
    }

    /// Starts all that are not there.
    pub(crate) fn bring_all(&mut self, lab: &Lab) -> Result<()> {
        for number in 0..self.visitors.len() {
            if !self.visitors[number].here {
                self.perform(lab, Plan { number, deed: Deed::Start })?;
            }
        }
        Ok(())
    }

    /// An error unless each of them is there, has its lease and is reached.
    pub(crate) fn ensure_complete(&mut self, lab: &Lab) -> Result<()> {
        for visitor in &mut self.visitors {
            let name = visitor.host.name().to_owned();
            ensure!(visitor.is_leased(lab)?, "the lease of {name} is not in the store");
            visitor.ensure_reached(&self.witness).with_context(|| format!("{name} is not reached"))?;
        }
        Ok(())
    }

    /// How often each thing happened.
    pub(crate) fn deeds(&self) -> String {
        let mut text = String::new();
        for deed in Deed::ALL {
            let count = self.deeds.get(&deed).copied().unwrap_or(0);
            let separator = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{separator}{count} {}", deed.told());
        }
        text
    }

    /// An error unless things happened often enough for this time; in two minutes or more, all of them.
    pub(crate) fn ensure_all_kinds_of_deeds(&self, seconds: u64) -> Result<()> {
        let count: u64 = self.deeds.values().sum();
        ensure!(count >= seconds / 10, "the visitors did only {count} things in {seconds} s");
        ensure!(seconds < 120 || self.deeds.len() == Deed::ALL.len(), "not everything happened");
        Ok(())
    }
}

impl Visitor {
    fn possible(&self, lab: &Lab) -> Result<&'static [Deed]> {
        Ok(match (self.here, self.is_leased(lab)?) {
            (true, true) => &[Deed::Stop, Deed::Kill, Deed::Release, Deed::Delete],
            // It lost its lease a moment ago. The more often it did, the longer it waits before it takes it back.
            (true, false) => &[Deed::Stop, Deed::Kill],
            (false, true) => &[Deed::Start, Deed::Release, Deed::Delete],
            (false, false) => &[Deed::Start],
        })
    }

    fn perform(&mut self, lab: &Lab, deed: Deed, witness: &Place) -> Result<()> {
        match deed {
            Deed::Start => {
                self.host.start_agent()?;
                self.here = true;
                wait::until("its peers to reach it", REACHED_LIMIT, || self.ensure_reached(witness))
            }
            Deed::Stop => {
                self.here = false;
                self.host.stop_agent()
            }
            Deed::Kill => {
                self.here = false;
                self.host.kill_agent()
            }
            Deed::Release => {
                let subnet = self.host.subnet_env()?.base();
                lab.flanctl(&["subnets", "release", &subnet, "--yes"])?.succeeded("flanctl subnets release")
            }
            Deed::Delete => lab.store().delete(&self.key()?),
        }
    }

    fn ensure_reached(&mut self, witness: &Place) -> Result<()> {
        self.host.ensure_agent_runs()?;
        ping_once(witness, self.host.subnet_env()?.base_address())
    }

    fn is_leased(&self, lab: &Lab) -> Result<bool> {
        // Before its first start it has no subnet.
        Ok(self.host.subnet_file().exists() && lab.store().value(&self.key()?)?.is_some())
    }

    fn key(&self) -> Result<String> {
        Ok(format!("subnets/{}", self.host.subnet_env()?.key()))
    }
}

/// One ping; an error if it is not answered within a second.
pub(crate) fn ping_once(from: &Place, target: Ipv4Addr) -> Result<()> {
    from.run("ping", ["-n", "-c", "1", "-W", "1", &target.to_string()]).map(drop)
}
