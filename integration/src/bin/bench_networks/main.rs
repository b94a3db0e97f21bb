//! `bench-networks`: what many networks on one host cost, compared with as many peers in one network.

mod arguments;
mod docker;
mod report;
mod subject;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use flan_integration::bench::{self, machine::Machine};
use flan_integration::progress::{begin, done};
use flan_integration::store::StoreData;
use flan_integration::{Lab, LabOptions, StoreKind, tools};

use crate::arguments::Arguments;
use crate::report::{Results, Run, render};
use crate::subject::{Values, start};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    bench::main(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    tools::check_for_bench_control()?;
    let busy = bench::busy_percent("")?;
    let machine = Machine::read(&[("etcd", "--version"), ("ip", "-V")])?;
    let mut results = Results::new(arguments, machine, busy);
    if arguments.docker_rounds > 0 {
        begin("docker run in a network of flan and on a bridge");
        let runs = docker::measure(arguments.docker_rounds)?;
        done(&format!("{:.2} of {:.3} s", runs.ratio, runs.bridge_seconds));
        results.docker(runs);
        arguments.report.write(&results)?;
    }
    for &networks in &arguments.networks {
        let peers = arguments.peers;
        let each = measure(arguments, &format!("{networks} networks"), networks, peers)?;
        let control = measure(arguments, "  control: one network", 0, networks * peers)?;
        results.add(Run { networks, each, control });
        // What is measured is not lost if a greater number fails.
        arguments.report.write(&results)?;
    }
    arguments.report.finish(&results, &render(&results))
}

/// One fland in so many networks beside the default one, each with so many peers; in none, with so many in the default one.
fn measure(arguments: &Arguments, what: &str, networks: u32, peers: u32) -> Result<Values> {
    let options =
        LabOptions { store: Some(StoreKind::Etcd), store_data: StoreData::InMemory, ..LabOptions::default() };
    begin(&format!("{what}, {} peers", networks.max(1) * peers));
    let mut values = None;
    Lab::run(options, |lab| {
        values = Some(start(lab, networks, peers, arguments.idle_seconds)?);
        Ok(())
    })
    .with_context(|| what.to_owned())?;
    let values = values.context("nothing was measured")?;
    done(&values.to_string());
    Ok(values)
}
