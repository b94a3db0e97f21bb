//! `bench-names`: how fast names are answered, what they take, and how soon they are known.

mod appearing;
mod arguments;
mod load;
mod question;
mod report;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use flan_integration::bench::{self, machine::Machine};
use flan_integration::progress::{begin, done};
use flan_integration::tools;

use crate::arguments::Arguments;
use crate::report::{Results, render};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    bench::main(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    tools::check_for_bench_names()?;
    let busy = bench::busy_percent("")?;
    let machine = Machine::read(&[("etcd", "--version"), ("dnsmasq", "--version")])?;
    let mut results = Results::new(machine, busy);
    if arguments.containers > 0 {
        begin("docker run, and its name on another host");
        let milliseconds = appearing::measure(arguments.containers)?;
        done(&format!("{milliseconds:.0} ms"));
        results.appears(milliseconds);
        arguments.report.write(&results)?;
    }
    begin(&format!("questions to fland and dnsmasq, {} hosts", arguments.hosts));
    let load = load::measure(arguments)?;
    done(&format!("{:.0} and {:.0} answers a second", load.fland.answers, load.dnsmasq.answers));
    results.load(load);
    arguments.report.finish(&results, &render(&results))
}
