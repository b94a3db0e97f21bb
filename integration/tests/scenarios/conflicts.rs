//! Others in the same kernel: what is theirs is left alone and named, and what is ours is kept without a fight.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::lab::ROUTER;
use flan_integration::overlay::DEVICE;
use flan_integration::witness::{KernelChange, Object, Witness};
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::paper_peer::PaperPeer;
use crate::stage::{NETWORK, hosts_with_status, text_of};

const CONTESTED: PaperPeer = PaperPeer { third: 200, mac: "02:00:00:00:02:00" };
const OTHER: PaperPeer = PaperPeer { third: 201, mac: "02:00:00:00:02:01" };

/// How soon a problem must be told.
const TOLD: Duration = Duration::from_secs(5);

/// How long a fight lasts, and how often the agent may repair in its second half.
const FIGHT: Duration = Duration::from_secs(8);
const MOST_REPAIRS: usize = 6;

/// The longest pause between two repairs that are undone again and again, and some time more.
const LONGEST_PAUSE: Duration = Duration::from_secs(40);

/// Waits until the status tells of a problem of the kernel in which all of these are named.
fn wait_for_problem(host: &Host, parts: &[&str]) -> Result<()> {
    wait::until(&format!("a problem that names {parts:?}"), TOLD, || {
        let status = host.status()?;
        let problem = text_of(&status, "kernel").unwrap_or_default();
        ensure!(parts.iter().all(|part| problem.contains(part)), "the problem is {problem:?}");
        Ok(())
    })
}

fn wait_until_no_problem(host: &Host) -> Result<()> {
    wait::until("the problem to be over", TOLD, || {
        let problem = text_of(&host.status()?, "kernel");
        ensure!(problem.is_none(), "{problem:?}");
        Ok(())
    })
}

/// True for a change that makes, or unmakes, the route to this peer.
fn is_route_to(peer: PaperPeer, change: &KernelChange) -> bool {
    matches!(&change.object, Object::Route { destination, .. } if destination.to_string() == peer.subnet())
}

#[test]
fn a_foreign_route_for_a_peers_subnet_is_never_touched_and_ours_comes_when_it_goes() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts_with_status(lab, 1)?;
        let host = &hosts[0];
        let subnet = CONTESTED.subnet();
        host.ip(&format!("route add {subnet} via {ROUTER} dev eth0 proto static"))?;
        let theirs = host.ip(&format!("route show {subnet}"))?;
        let witness = Witness::start(host.netns())?;
        let mark = witness.mark();

        CONTESTED.put(lab.store())?;
        OTHER.put(lab.store())?;
        wait_for_problem(host, &[&subnet, "static", "eth0"])?;
        let lines = host.log_lines(&[&subnet, "static", "eth0"])?;
        ensure!(!lines.is_empty(), "the log does not name the route that is in the way");
        OTHER.is_known_to(host)?;
        wait::while_holds("their route stands", Duration::from_secs(2), || {
            let now = host.ip(&format!("route show {subnet}"))?;
            ensure!(now == theirs, "{now}");
            Ok(())
        })?;
        let touched: Vec<_> =
            witness.since(mark)?.into_iter().filter(|change| is_route_to(CONTESTED, change)).collect();
        ensure!(touched.is_empty(), "their route was touched: {touched:?}");

        host.ip(&format!("route del {subnet} proto static"))?;
        wait::until("our route", Duration::from_secs(2), || CONTESTED.is_known_to(host))?;
        wait_until_no_problem(host)?;
        hosts[0].ensure_agent_runs()
    })
}

#[test]
fn another_device_with_our_vni_and_port_is_named_and_left_alone_until_it_goes() -> Result<()> {
    const THEIRS: &str = "other-vxlan";
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        let local = host.address();
        host.ip(&format!(
            "link add {THEIRS} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning"
        ))?;
        host.ip(&format!("link set {THEIRS} up"))?;
        let theirs = host.ip(&format!("-details link show dev {THEIRS}"))?;

        host.spawn_agent(&STATUS_FLAGS)?;
        wait_for_problem(&host, &[THEIRS])?;
        let lines = host.log_lines(&[THEIRS])?;
        ensure!(!lines.is_empty(), "the log does not name the device that is in the way");
        wait::while_holds("their device stands", Duration::from_secs(2), || {
            let now = host.ip(&format!("-details link show dev {THEIRS}"))?;
            ensure!(now == theirs, "{now}");
            Ok(())
        })?;
        host.ensure_agent_runs()?;

        host.ip(&format!("link del {THEIRS}"))?;
        host.wait_for_agent()?;
        host.ip(&format!("link show dev {DEVICE}"))?;
        wait_until_no_problem(&host)
    })
}

#[test]
fn a_route_that_somebody_deletes_again_and_again_is_named_and_repaired_ever_more_slowly() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = hosts_with_status(lab, 1)?;
        let host = &hosts[0];
        CONTESTED.put(lab.store())?;
        OTHER.put(lab.store())?;
        wait::until("both peers", TOLD, || {
            CONTESTED.is_known_to(host)?;
            OTHER.is_known_to(host)
        })?;

        let fight = Fight::start(host)?;
        let over = AtomicBool::new(false);
        let repairs = thread::scope(|scope| {
            let fighter = scope.spawn(|| fight.delete_until(&over));
            let others = others_are_repaired_while(host, || !fighter.is_finished());
            over.store(true, Ordering::Relaxed);
            let repairs = fighter.join().map_err(|_| anyhow!("the fighter panicked"))??;
            others.map(|()| repairs)
        })?;

        let (early, late) = repairs.split_at(repairs.partition_point(|at| *at < FIGHT / 2));
        println!("{} repairs in the first half, {} in the second", early.len(), late.len());
        ensure!(!early.is_empty(), "the route was not repaired at all");
        ensure!(late.len() <= MOST_REPAIRS, "the agent fights on: {} repairs in {:?}", late.len(), FIGHT / 2);
        let lines = host.log_lines(&["WARN", &CONTESTED.subnet()])?;
        ensure!(!lines.is_empty(), "no warning names {}", CONTESTED.subnet());
        wait::until("the route to be back after the fight", LONGEST_PAUSE, || CONTESTED.is_known_to(host))?;
        hosts[0].ensure_agent_runs()
    })
}

/// For as long as a fight lasts, which must go on meanwhile.
fn others_are_repaired_while(host: &Host, the_fight_goes_on: impl Fn() -> bool) -> Result<()> {
    for _ in 0..2 {
        wait::while_holds("a fight", FIGHT / 2, || {
            ensure!(the_fight_goes_on(), "the fighter has given up");
            Ok(())
        })?;
        host.ip(&format!("route del {}", OTHER.subnet()))?;
        wait::until("the other route", Duration::from_secs(1), || OTHER.is_known_to(host))?;
    }
    Ok(())
}

/// Somebody who wants the route to [`CONTESTED`] gone.
struct Fight<'a> {
    host: &'a Host,
    witness: Witness,
}

impl Fight<'_> {
    fn start(host: &Host) -> Result<Fight<'_>> {
        Ok(Fight { host, witness: Witness::start(host.netns())? })
    }

    /// Deletes the route as soon as it is there, until it is over; when it came back each time, since the start.
    fn delete_until(&self, over: &AtomicBool) -> Result<Vec<Duration>> {
        let (started, mut repairs) = (Instant::now(), Vec::new());
        let mut mark = self.witness.mark();
        self.delete()?;
        while !over.load(Ordering::Relaxed) {
            let is_back = |change: &KernelChange| !change.gone && is_route_to(CONTESTED, change);
            // Not back yet is what is hoped for.
            let pause = Duration::from_millis(200);
            let Ok(back) = self.witness.wait_for("a repair", mark, pause, is_back) else { continue };
            repairs.push(back.duration_since(started));
            mark = self.witness.mark();
            self.delete()?;
        }
        Ok(repairs)
    }

    fn delete(&self) -> Result<()> {
        self.host.ip(&format!("route del {}", CONTESTED.subnet())).map(drop).context("the fighter")
    }
}
