//! `bench`: how fast packets travel between two hosts, over each data path, compared with a VXLAN made by hand.

mod arguments;
mod ends;
mod figures;
mod iperf;
mod measure;
mod pair;
mod ping;
mod report;
mod results;
mod rows;
mod runs;
mod targets;
mod underlay;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use flan_integration::bench::{self, machine::Machine};
use flan_integration::progress::{begin, done};
use flan_integration::{Lab, LabOptions, StoreKind, fou, tools, wait, wireguard};

use crate::arguments::Arguments;
use crate::pair::Pair;
use crate::results::{Results, UnderlayRecord};
use crate::rows::{Kernel, Row};
use crate::runs::Run;
use crate::underlay::{Features, Underlay};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    bench::main(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    tools::check_for_bench()?;
    let machine = Machine::read(&[("iperf3", "--version")])?;
    let kernel = Kernel { has_fou: fou::is_there(), has_wireguard: wireguard::is_there() };
    for (has, what) in [(kernel.has_fou, "FOU"), (kernel.has_wireguard, "WireGuard")] {
        if !has {
            eprintln!("This kernel has no {what}: the rows that need it are left out. make vm-bench has it.");
        }
    }
    let rows = arguments.rows(kernel);
    announce(arguments, &rows);

    let mut underlays = Vec::new();
    let mut runs = Vec::new();
    for underlay in arguments.underlays() {
        underlays.push(measure_all(arguments, &rows, underlay, &mut runs)?);
    }
    let results = Results::new(arguments, rows, machine, underlays, runs)?;
    arguments.report.finish(&results, &report::render(&results))
}

/// All runs with one setting of the underlay, in a lab of their own.
fn measure_all(
    arguments: &Arguments,
    rows: &[Row],
    underlay: Underlay,
    runs: &mut Vec<Run>,
) -> Result<UnderlayRecord> {
    let mut record = UnderlayRecord {
        name: underlay,
        set: underlay.set_by(),
        features: Features::new(),
        busy_percent_before: 0.0,
    };
    begin(&format!("{underlay}: an underlay and etcd"));
    Lab::run(LabOptions { store: Some(StoreKind::Etcd), ..LabOptions::default() }, |lab| {
        done("");
        let mut pairs = Vec::new();
        for &row in rows {
            begin(&format!("{underlay}: {row}: two hosts, their path, a warm-up"));
            let pair =
                Pair::make(lab, row, arguments.ends, underlay).with_context(|| format!("row {row}"))?;
            measure::warm_up(&pair, lab.dir()).with_context(|| format!("warm-up of row {row}"))?;
            record.features = underlay::features(pair.host(), "eth0")?;
            pairs.push(pair);
            done("");
        }
        record.busy_percent_before = bench::busy_percent(&format!("{underlay}: "))?;
        for round in 1..=arguments.rounds {
            for measure in arguments.measures() {
                for pair in &pairs {
                    wait::ensure_not_interrupted()?;
                    let row = pair.row();
                    begin(&format!("{underlay}, round {round}/{}: {measure}: {row}", arguments.rounds));
                    let figures = measure::run(measure, pair, arguments.seconds, lab.dir())
                        .with_context(|| format!("row {row}, measure {measure}, round {round}"))?;
                    done(&figures::line(&figures));
                    runs.push(Run { underlay, round, row, measure, figures });
                }
            }
        }
        Ok(())
    })?;
    Ok(record)
}

fn announce(arguments: &Arguments, rows: &[Row]) {
    let runs =
        arguments.underlays().len() * arguments.rounds as usize * arguments.measures().len() * rows.len();
    // Each run starts and ends iperf3 besides.
    let minutes = (runs as f64 * (f64::from(arguments.seconds) + 0.4) / 60.0).ceil();
    eprintln!("{runs} runs, about {minutes} min, in network namespaces of their own.");
}
