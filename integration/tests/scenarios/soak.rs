//! Minutes of mixed traffic between two hosts on udp, while others come and go: `sudo make soak`.

mod counters;
mod load;
mod silence;
mod visitors;

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::chance::{self, Chance};
use flan_integration::end::End;
use flan_integration::host::{STATUS_PORT, on_all};
use flan_integration::traffic::{Ping, Report};
use flan_integration::vitals::Vitals;
use flan_integration::{Host, Lab, LabOptions, interrupt, tools, wait};

use self::load::Load;
use self::visitors::Visitors;

const NETWORK: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"udp"}}"#;

/// How long the traffic runs, in seconds, if nobody says otherwise.
const SECONDS: u64 = 600;

/// The part of the time after which nothing may grow any more, in percent.
const WARM_UP_PERCENT: u32 = 15;

/// Of so many requests, one may go unanswered. On an idle machine none does; where something else keeps an agent from
/// running for half a second, a queue of its device overflows, which `dropped at the device` shows. One lost with each
/// visitor that comes or goes would be more.
const ONE_LOST_OF: usize = 1000;

/// Requests that each ping must have sent at the least, a second: it means to send 100.
const LEAST_PINGS: u64 = 50;

/// How much an agent may grow after the warm-up, in KiB.
const MOST_GROWTH_KIB: u64 = 4096;

/// How often it is told how things stand. With what the visitors do, which is told when it begins, a line comes at least
/// every 10 s.
const REPORT_EVERY: Duration = Duration::from_secs(8);

/// Milliseconds between what visitors do.
const PAUSES: std::ops::Range<u64> = 1000..4000;

/// How long an agent may take to have its lease back. It waits longer the more often it has just lost it.
const LEASE_BACK_LIMIT: Duration = Duration::from_secs(45);

/// How long the figures are watched for their smallest, which is what counts as normal.
const SETTLING: Duration = Duration::from_secs(6);

/// How long descriptors that an agent opens for a moment may stay open at the end.
const VITALS_LIMIT: Duration = Duration::from_secs(15);

#[test]
#[ignore = "takes minutes: sudo make soak"]
fn traffic_between_two_hosts_on_udp_does_not_notice_others_that_come_and_go() -> Result<()> {
    tools::check_for_bench()?;
    interrupt::end_waits_on_signals()?;
    let duration = Duration::from_secs(number_from("FLAN_SOAK_SECONDS")?.unwrap_or(SECONDS));
    let seed = number_from("FLAN_SOAK_SEED")?.unwrap_or_else(chance::fresh_seed);
    println!("{duration:?} of traffic; FLAN_SOAK_SEED={seed} lets the visitors do the same again");
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut steady = [lab.host("h1")?, lab.host("h2")?];
        on_all(&mut steady, |host| host.start_agent_with(&["--ip-masq", "--healthz-port", STATUS_PORT]))?;
        let ends = [
            End::behind_bridge(steady[0].netns(), &steady[0].subnet_env()?)?,
            End::behind_bridge(steady[1].netns(), &steady[1].subnet_env()?)?,
        ];
        wait::until("the path to carry a packet", Duration::from_secs(15), || {
            visitors::ping_once(&ends[0].place, ends[1].address)
        })?;
        let pings = [
            steady[0].ping_from_end(&ends[0], ends[1].address)?,
            steady[1].ping_from_end(&ends[1], ends[0].address)?,
        ];
        let load = Load::start(lab.dir(), &ends)?;
        let visitors = Visitors::new([lab.host("h3")?, lab.host("h4")?], ends[0].place.clone());
        let mut soak = Soak {
            lab,
            steady,
            pings,
            load,
            visitors,
            chance: Chance::of_seed(seed),
            started: Instant::now(),
            reported: Instant::now(),
        };

        soak.churn_until(duration * WARM_UP_PERCENT / 100)?;
        let before = soak.settle()?;
        soak.churn_until(duration)?;
        soak.settle()?;
        soak.judge(&ends, &before)
    })
}

/// The story under way.
struct Soak<'a> {
    lab: &'a Lab,
    // First: its last transfers need the hosts.
    load: Load,
    pings: [Ping; 2],
    steady: [Host; 2],
    visitors: Visitors,
    chance: Chance,
    started: Instant,
    reported: Instant,
}

impl Soak<'_> {
    /// Lets visitors come and go until so much time has passed since the start.
    fn churn_until(&mut self, end: Duration) -> Result<()> {
        while self.started.elapsed() < end {
            let plan = self.visitors.choose(self.lab, &mut self.chance)?;
            self.tell(&self.visitors.told(plan));
            self.visitors.perform(self.lab, plan)?;
            let pause = Duration::from_millis(PAUSES.start + self.chance.below(PAUSES.end - PAUSES.start));
            self.watch(pause)?;
        }
        Ok(())
    }

    /// Lets all visitors be there, and returns what the steady agents hold then.
    fn settle(&mut self) -> Result<[Vitals; 2]> {
        self.visitors.bring_all(self.lab)?;
        let started = Instant::now();
        while let Err(seen) = self.visitors.ensure_complete(self.lab) {
            ensure!(started.elapsed() < LEASE_BACK_LIMIT, "after {LEASE_BACK_LIMIT:?}: {seen:#}");
            self.watch(Duration::from_millis(200))?;
        }
        self.tell("h3 and h4 are there; the steady agents are watched");
        let mut least = self.vitals()?;
        let end = Instant::now() + SETTLING;
        while Instant::now() < end {
            self.watch(Duration::from_millis(100))?;
            for (least, now) in least.iter_mut().zip(self.vitals()?) {
                *least = now.fewer(*least);
            }
        }
        Ok(least)
    }

    /// Sees that the steady agents and the traffic go on, and tells how things stand.
    fn watch(&mut self, duration: Duration) -> Result<()> {
        let Soak { steady, load, .. } = self;
        wait::while_holds("agents and traffic go on", duration, || {
            wait::ensure_not_interrupted()?;
            steady.iter_mut().try_for_each(Host::ensure_agent_runs)?;
            load.ensure_running()
        })?;
        if self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            let [one, other] = self.pings.each_ref().map(Ping::so_far);
            let vitals = self.vitals()?;
            self.tell(&format!(
                "pings {}+{}, lost {}+{}; {}; h1 {}; h2 {}",
                one.sent,
                other.sent,
                one.lost(),
                other.lost(),
                self.load.tally(),
                vitals[0],
                vitals[1]
            ));
        }
        Ok(())
    }

    fn vitals(&self) -> Result<[Vitals; 2]> {
        Ok([self.steady[0].agent_vitals()?, self.steady[1].agent_vitals()?])
    }

    fn tell(&self, what: &str) {
        println!("{:5.0} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Ends the traffic, prints all figures, and then fails if one is not as it should be.
    fn judge(mut self, ends: &[End; 2], before: &[Vitals; 2]) -> Result<()> {
        let seconds = self.started.elapsed().as_secs();
        let mut wrong = Vec::new();

        // While the traffic still runs, as it did before.
        for (host, before) in self.steady.iter_mut().zip(before) {
            let mut now = host.agent_vitals()?;
            let judged = wait::until("an agent to hold what it held", VITALS_LIMIT, || {
                host.ensure_agent_runs()?;
                now = host.agent_vitals()?;
                now.ensure_as(before, MOST_GROWTH_KIB)
            });
            println!("fland on {}: {before} after the warm-up, {now} at the end", host.name());
            wrong.extend(judged.err().map(|error| error.context(host.name().to_owned())));
        }
        for ping in self.pings {
            let report = ping.stop()?;
            println!("ping: {report:?}, {} lost", report.lost());
            let least = usize::try_from(LEAST_PINGS * seconds)?;
            wrong.extend(ensure_answered(report, least).err());
        }
        let tally = self.load.stop()?;
        println!("{tally}");
        wrong.extend(tally.ensure_something_of_each().err());
        println!("h3 and h4: {}", self.visitors.deeds());
        wrong.extend(self.visitors.ensure_all_kinds_of_deeds(seconds).err());

        let places = [ends[0].place.clone(), ends[1].place.clone()]
            .into_iter()
            .chain(self.steady.iter().map(|host| host.netns().place()));
        for (name, place) in ["h1's end", "h2's end", "h1", "h2"].into_iter().zip(places) {
            let judged = counters::ensure_no_checksum_errors(&place);
            println!("checksum errors at {name}: {}", if judged.is_ok() { "none" } else { "some" });
            wrong.extend(judged.err().map(|error| error.context(format!("at {name}"))));
        }
        for host in &self.steady {
            let (name, dropped) = (host.name(), counters::dropped_at_device(host)?);
            println!("data path of {name}: {dropped} dropped at the device, {}", counters::datapath(host)?);
        }
        let wrong: Vec<_> = wrong.iter().map(|error| format!("{error:#}")).collect();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}

fn ensure_answered(report: Report, least: usize) -> Result<()> {
    let (lost, sent) = (report.lost(), report.sent);
    ensure!(lost * ONE_LOST_OF <= sent, "{lost} of {sent} pings lost, more than 1 of {ONE_LOST_OF}");
    ensure!(sent >= least, "only {sent} pings sent, not {least}, which proves little");
    Ok(())
}

/// A number from the environment; `None` if it is not set or empty.
fn number_from(variable: &str) -> Result<Option<u64>> {
    match env::var(variable) {
        Ok(text) if !text.is_empty() => {
            Ok(Some(text.parse().with_context(|| format!("{variable} is no number: {text:?}"))?))
        }
        _ => Ok(None),
    }
}
