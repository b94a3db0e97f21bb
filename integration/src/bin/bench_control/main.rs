//! `bench-control`: how fast one fland follows the leases of many hosts, and what that costs, compared with `ip -batch`.

mod arguments;
mod control;
mod kernel;
mod leases;
mod measure;
mod peers;
mod repair;
mod report;
mod restart;
mod results;
mod sends;
mod subject;
mod targets;
mod udp;
mod wireguard;
mod writes;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use flan_integration::bench::{self, machine::Machine};
use flan_integration::progress::{begin, done};
use flan_integration::store::StoreData;
use flan_integration::{Lab, LabOptions, StoreKind, fou, tools, wait};

use crate::arguments::Arguments;
use crate::control::Form;
use crate::leases::Leases;
use crate::measure::{Measure, Run, Values, median_of, p99_of};
use crate::peers::{NETWORK, Peer};
use crate::results::Results;
use crate::subject::Subject;

/// Beyond so many peers the control in flannel's form takes minutes.
const MOST_INLINE: u32 = 10_000;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    bench::main(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    tools::check_for_bench_control()?;
    let busy = bench::busy_percent("")?;
    let machine = Machine::read(&[("etcd", "--version"), ("ip", "-V")])?;
    let mut results = Results::new(arguments, machine, busy);
    for peers in arguments.peers() {
        let values = with_peers(arguments, peers).with_context(|| format!("with {peers} peers"))?;
        results.add(Run { peers, values });
        // What is measured is not lost if a greater number fails.
        arguments.report.write(&results)?;
    }
    arguments.report.finish(&results, &report::render(&results))
}

/// Everything for one number of peers, in a lab of its own.
fn with_peers(arguments: &Arguments, peers: u32) -> Result<Values> {
    let mut values = Values::new();
    let say = |what: &str| begin(&format!("{peers} peers: {what}"));
    say("an underlay, etcd, and the leases");
    let store_data = if arguments.etcd_on_disk { StoreData::OnDisk } else { StoreData::InMemory };
    let options = LabOptions { store: Some(StoreKind::Etcd), store_data, ..LabOptions::default() };
    Lab::run(options, |lab| {
        lab.set_network(NETWORK)?;
        let store = Leases::connect(lab)?;
        let started = Instant::now();
        store.load(Peer::residents(peers).map(|peer| (peer.key(), peer.value())))?;
        done(&format!("written in {:.1} s", started.elapsed().as_secs_f64()));

        say("control: a bare watch");
        values.insert(Measure::ControlWatch, store.bare_watch(arguments.writes)?);
        done(&told(&values, &[Measure::ControlWatch]));
        measure_controls(arguments, lab, peers, &mut values)?;
        if !arguments.no_strace && peers <= sends::MOST {
            say("fland starts under strace");
            sends::run(lab, "strace", peers, &mut values).context("under strace")?;
            done(&told(&values, &[Measure::NetlinkSends]));
        }
        if fou::is_there() {
            say("udp in the kernel");
            udp::run(lab, &store, peers, arguments.rounds, &mut values).context("on udp")?;
            done(&told(&values, &[Measure::ProgrammedForUdp]));
        }
        say("wireguard");
        wireguard::run(lab, &store, peers, arguments.rounds, &mut values).context("on wireguard")?;
        done(&told(&values, &[Measure::ReadyOnWireguard]));
        let mut subject = start(arguments, lab, peers, &mut values)?;

        say("leases are added, changed, deleted");
        writes::run(&subject, &store, arguments.writes, &mut values)?;
        done(&told(&values, &[Measure::Added, Measure::Changed, Measure::Deleted]));
        subject.wait_until_quiet()?;

        say("single routes are deleted");
        repair::one_by_one(&subject, &mut values)?;
        done(&told(&values, &[Measure::RouteRepaired]));
        subject.wait_until_quiet()?;

        say("all routes are deleted");
        repair::all_at_once(lab, &subject, &mut values)?;
        done(&told(&values, &[Measure::AllRepaired]));

        say("a restart with everything in place");
        let changes = restart::run(&mut subject, &mut values)?;
        done(&format!("{}; changes: {changes}", told(&values, &[Measure::Restarted])));

        say(&format!("nothing happens for {} s", arguments.idle_seconds));
        restart::idle(&subject, arguments.idle_seconds, &mut values)?;
        done(&told(&values, &[Measure::IdleAtTenSeconds]));
        begin("removing it all");
        Ok(())
    })?;
    done("");
    Ok(values)
}

fn measure_controls(arguments: &Arguments, lab: &Lab, peers: u32, values: &mut Values) -> Result<()> {
    let all = [
        (Form::Inline, Measure::ControlInline, "inline"),
        (Form::NextHops, Measure::ControlNextHops, "nexthops"),
    ];
    for (form, measure, name) in all {
        if form == Form::Inline && peers > MOST_INLINE && !arguments.all_controls {
            continue;
        }
        begin(&format!("{peers} peers: {}", measure.name().0.trim()));
        for round in 1..=arguments.rounds {
            wait::ensure_not_interrupted()?;
            let seconds = control::seconds(lab, &format!("{name}{round}"), form, peers)?;
            values.entry(measure).or_default().push(seconds);
        }
        done(&told(values, &[measure]));
    }
    Ok(())
}

/// Starts fland from nothing as often as is wanted, and returns the last one, which runs.
fn start(arguments: &Arguments, lab: &Lab, peers: u32, values: &mut Values) -> Result<Subject> {
    let mut round = 1;
    loop {
        begin(&format!("{peers} peers: fland starts, round {round}/{}", arguments.rounds));
        let subject = Subject::start(lab, &format!("fland{round}"), peers, values)?;
        done(&told(values, &[Measure::Programmed, Measure::PeakMemory, Measure::SettledMemory]));
        if round == arguments.rounds {
            return Ok(subject);
        }
        subject.end(lab)?;
        round += 1;
    }
}

/// Measures in one line, for the progress.
fn told(values: &Values, measures: &[Measure]) -> String {
    let texts = measures.iter().filter_map(|&measure| {
        let median = measure.shown(median_of(values, measure)?);
        let p99 = p99_of(values, measure).filter(|_| measure.has_p99());
        let p99 = p99.map_or_else(String::new, |p99| format!(" (p99 {})", measure.shown(p99)));
        Some(format!("{median}{p99} {}", measure.name().1).trim_end().to_owned())
    });
    texts.collect::<Vec<_>>().join(", ")
}
