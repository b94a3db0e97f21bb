//! `fland`: reads the command line, runs the agent or a store, and stops on a signal.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory;
use flan_agent::args::{Args, Command};
use flan_agent::refused::RefusedSetting;
use flan_agent::store_command::{self, StoreCommand};
use flan_agent::{daemon, log};
use flan_agent_api::{command_line, shipped};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

/// A start with 50,000 peers briefly needs twice the memory that stays in use. jemalloc keeps freed memory separate and
/// can return it to the kernel; glibc's heap keeps most of it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Time for work in progress to end after a stop. It takes longer only if a disk hangs, and the store has not confirmed
/// such a write.
const LAST_WORK: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut args: Args = command_line::parse();
    let store = match args.command.take() {
        None => None,
        Some(Command::Store(store)) => Some(store),
        Some(Command::Completions { shell }) => {
            return written(std::io::stdout().write_all(&shipped::completions(Args::command(), shell)));
        }
        Some(Command::Man { directory }) => {
            return written(shipped::man_pages(Args::command(), &directory));
        }
    };
    log::start(store.as_ref().map_or(&args.log, |store| &store.log));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("fland")
        .enable_all()
        .build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let outcome = runtime.block_on(run(args, store));
        runtime.shutdown_timeout(LAST_WORK);
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            error!("{reason:#}");
            ExitCode::from(if reason.is::<RefusedSetting>() { 2 } else { 1 })
        }
    }
}

fn written(done: std::io::Result<()>) -> ExitCode {
    done.map_or_else(
        |error| {
            eprintln!("fland: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

async fn run(args: Args, store: Option<StoreCommand>) -> anyhow::Result<()> {
    match store {
        None => {
            let farewell = "routes, lease and subnet file stay, and packets flow as before";
            until_stopped("fland", daemon::run(args), farewell).await
        }
        Some(command) => {
            let farewell = "what was written is in the file; packets flow as before, and no host can join";
            until_stopped("fland store", store_command::run(&command), farewell).await
        }
    }
}

async fn until_stopped(
    name: &str,
    work: impl Future<Output = anyhow::Result<()>>,
    farewell: &str,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Scripts often send SIGHUP to reload settings. We have none to reload, and must not end.
    let _hangup = signal(SignalKind::hangup())?;
    info!(version = env!("CARGO_PKG_VERSION"), "{name} starts");
    let signal = tokio::select! {
        outcome = work => return outcome,
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal, "stopping; {farewell}");
    Ok(())
}
