//! `bench-store`: the embedded store beside a real etcd.

mod arguments;
mod fanout;
mod load;
mod measure;
mod report;
mod server;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use flan_integration::bench::{self, machine::Machine};
use flan_integration::progress::{begin, done};
use flan_integration::{StoreKind, tools, wait};

use crate::arguments::Arguments;
use crate::load::Request;
use crate::measure::Values;
use crate::report::{Results, judge};
use crate::server::{Program, Server};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    bench::main(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(run(&arguments))
    })
}

async fn run(arguments: &Arguments) -> Result<()> {
    tools::check_for_store(StoreKind::Etcd)?;
    tools::check_for_store(StoreKind::Embedded)?;
    let mut found = [Values::default(), Values::default()];
    for round in 1..=arguments.rounds {
        for (program, values) in Program::BOTH.into_iter().zip(&mut found) {
            measure(arguments, program, round, values)
                .await
                .with_context(|| format!("{}, round {round}", program.name()))?;
        }
    }
    let [etcd, embedded] = found;
    let results = Results {
        api_version: "flan-bench-store/v2",
        machine: Machine::read(&[("etcd", "--version")])?,
        rounds: arguments.rounds,
        clients: arguments.clients,
        targets: judge(&etcd, &embedded),
        etcd,
        embedded,
    };
    arguments.report.finish(&results, &results.render())
}

/// Everything for one of the two, from an empty directory.
async fn measure(arguments: &Arguments, program: Program, round: u32, values: &mut Values) -> Result<()> {
    let say = |what: &str| begin(&format!("{}, round {round}/{}: {what}", program.name(), arguments.rounds));
    say("starts and is filled");
    let server = Server::start(program, &arguments.data_dir).await?;
    let clients = server.clients(arguments.clients).await?;
    load::fill(&clients).await?;
    done("");
    for load in Request::ALL {
        wait::ensure_not_interrupted()?;
        let (name, unit) = load.rate().name();
        say(name);
        load::run(load, &clients, arguments.seconds, values).await.context(name)?;
        done(&format!("{:.0} {unit}", values.median(load.rate()).unwrap_or(0.0)));
    }
    say("watchers and leases");
    fanout::run(&server, &clients, values).await?;
    done("");
    Ok(())
}
