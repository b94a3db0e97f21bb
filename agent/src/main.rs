//! `fland`: reads the command line, starts the agent, and stops it on a signal.

use std::process::ExitCode;

use flan_agent::args::{Args, LogFormat};
use flan_agent::daemon::{self, RefusedSetting};
use flan_agent::store_args;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// A start with 50,000 peers needs twice the memory that remains in use. jemalloc keeps what is freed apart from what is
/// not, and can give it back; of glibc's heap most stays.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args: Args = store_args::parse();
    start_logging(&args);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("fland")
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(until_stopped(args)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            error!("{reason:#}");
            ExitCode::from(if reason.is::<RefusedSetting>() { 2 } else { 1 })
        }
    }
}

async fn until_stopped(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Many a script sends SIGHUP to make a daemon read its settings again. We have none to read, and go on.
    let _hangup = signal(SignalKind::hangup())?;
    info!(version = env!("CARGO_PKG_VERSION"), "fland starts");
    let signal = tokio::select! {
        outcome = daemon::run(args) => return outcome,
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal, "stopping; routes, lease and subnet file stay, and packets flow as before");
    Ok(())
}

/// Logs go to standard error. `RUST_LOG` wins over `-v`.
fn start_logging(args: &Args) {
    let level = match args.v {
        0 => "info,netlink_proto=error",
        1..=4 => {
            "info,flan_agent=debug,flan_backends=debug,flan_kernel=debug,flan_subnet_lease=debug,netlink_proto=error"
        }
        _ => "debug,flan_agent=trace,flan_backends=trace,flan_kernel=trace,flan_subnet_lease=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(terminal).with_target(false).init();
        }
    }
}
