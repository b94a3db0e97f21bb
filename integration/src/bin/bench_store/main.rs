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
use flan_integration::{tools, wait};

use crate::arguments::Arguments;
use crate::measure::Values;
use crate::report::{Results, judge};
use crate::server::{Kind, Server};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    bench::main(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(run(&arguments))
    })
}

async fn run(arguments: &Arguments) -> Result<()> {
    tools::flan_binary("fland")?;
    tools::find("etcd").context("etcd is not installed; on Debian: apt-get install etcd-server")?;
    let mut found = [Values::default(), Values::default()];
    for round in 1..=arguments.rounds {
        for (kind, values) in Kind::BOTH.into_iter().zip(&mut found) {
            measure(arguments, kind, round, values)
                .await
                .with_context(|| format!("{}, round {round}", kind.name()))?;
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
async fn measure(arguments: &Arguments, kind: Kind, round: u32, values: &mut Values) -> Result<()> {
    let say = |what: &str| begin(&format!("{}, round {round}/{}: {what}", kind.name(), arguments.rounds));
    say("starts and is filled");
    let server = Server::start(kind, &arguments.data_dir).await?;
    let clients = server.clients(arguments.clients).await?;
    load::fill(&clients).await?;
    done("");
    for load in load::Kind::ALL {
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
