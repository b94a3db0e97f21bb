//! The fland that is measured: one host, its agent, and a witness of what its kernel is told.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::vitals::{self, Vitals};
use flan_integration::witness::{KernelChange, Object, Witness};
use flan_integration::{Host, Lab, wait};

use crate::kernel;
use crate::measure::{Measure, Values};
use crate::peers::{Peer, Programmed, base_of_route};

/// How long fland may take until it does nothing any more.
const QUIET_LIMIT: Duration = Duration::from_secs(180);

/// For how long it has to do nothing.
const QUIET: Duration = Duration::from_millis(1500);

/// More CPU time than this in [`QUIET`] is something, in seconds.
const STIR: f64 = 0.02;

/// A host with its agent.
pub(crate) struct Subject {
    pub(crate) host: Host,
    pub(crate) witness: Witness,
    /// Leases there from the beginning.
    pub(crate) peers: u32,
}

impl Subject {
    /// A new host, and fland on it until all peers are programmed and it is quiet.
    pub(crate) fn start(lab: &Lab, name: &str, peers: u32, values: &mut Values) -> Result<Subject> {
        let host = lab.host(name)?;
        let witness = Witness::start(host.netns())?;
        let mut subject = Subject { host, witness, peers };
        let mark = subject.witness.mark();
        let started = Instant::now();
        subject.host.spawn_agent(&[])?;
        let mut programmed = Programmed::default();
        let last = subject
            .witness
            .wait_for("the last peer", mark, subject.limit(), |change| {
                programmed.follow(change);
                programmed.are(peers)
            })
            .with_context(|| flan_integration::process::last_lines(&subject.host.agent_log()))?;
        subject.host.wait_for_agent()?;
        subject.wait_until_quiet()?;
        kernel::ensure_holds(&subject.host, peers).context("fland")?;

        let pid = subject.pid()?;
        let mut note = |measure, value| values.entry(measure).or_default().push(value);
        note(Measure::Programmed, last.duration_since(started).as_secs_f64());
        note(Measure::StartCpu, vitals::cpu_seconds(pid)?);
        note(Measure::PeakMemory, megabytes(vitals::peak_kib(pid)?));
        note(Measure::SettledMemory, megabytes(Vitals::of(pid)?.resident_kib));
        Ok(subject)
    }

    /// Ends fland, its lease and what it programmed: the next one shall find nobody but the paper peers.
    pub(crate) fn end(mut self, lab: &Lab) -> Result<()> {
        let key = self.host.subnet_env()?.key();
        self.host.kill_agent()?;
        kernel::clear(&self.host)?;
        lab.store().delete(&format!("subnets/{key}"))
    }

    /// Waits until it has used next to no CPU time, and the kernel has told nothing of our objects, for a while.
    pub(crate) fn wait_until_quiet(&self) -> Result<()> {
        let pid = self.pid()?;
        wait::until("fland to be quiet", QUIET_LIMIT, || {
            let (mark, before) = (self.witness.mark(), vitals::cpu_seconds(pid)?);
            thread::sleep(QUIET);
            let used = vitals::cpu_seconds(pid)? - before;
            let told = self.ours(self.witness.since(mark)?)?.len();
            ensure!(used <= STIR && told == 0, "{used:.2} s of CPU and {told} changes in {QUIET:?}");
            Ok(())
        })
    }

    /// The changes that are about objects of the overlay.
    pub(crate) fn ours(&self, changes: Vec<KernelChange>) -> Result<Vec<KernelChange>> {
        let device = kernel::device_index(&self.host)?;
        let is_ours = |change: &KernelChange| match &change.object {
            Object::NextHop { .. } => true,
            Object::Route { destination, .. } if base_of_route(destination).is_some() => true,
            object => object.index() == Some(device),
        };
        Ok(changes.into_iter().filter(is_ours).collect())
    }

    /// How long something may take that concerns all peers.
    pub(crate) fn limit(&self) -> Duration {
        limit(self.peers)
    }

    /// Some of the peers, spread over all.
    pub(crate) fn some_peers(&self, count: u32) -> impl Iterator<Item = Peer> {
        let step = (self.peers / count).max(1) as usize;
        Peer::residents(self.peers).step_by(step).take(count as usize)
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.host.agent_pid().context("no agent runs")
    }
}

/// How long something may take that concerns so many peers: what is slow is to be measured, what hangs to be told.
pub(crate) fn limit(peers: u32) -> Duration {
    Duration::from_secs(60) + Duration::from_millis(5) * peers
}

/// 10^6 bytes.
fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}
