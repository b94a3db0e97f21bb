//! Log levels and formats.

mod guard;
mod sparing;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use self::guard::Guard;
use self::sparing::Sparing;

/// How much is logged, and in which form.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Observation")]
pub struct LogArgs {
    /// Format of the log on standard error
    #[arg(long, value_enum, env = "FLAND_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Verbosity of the log: 1 adds every kernel operation, 5 adds everything
    #[arg(
        short,
        long = "v",
        value_name = "LEVEL",
        env = "FLAND_V",
        default_value_t = 0,
        default_missing_value = "1",
        num_args = 0..=1
    )]
    pub v: u8,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Starts to log to standard error. `RUST_LOG` overrides `-v`. A warning that repeats within a minute is written once.
pub fn start(args: &LogArgs) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(args.v)));
    let terminal = args.log_format == LogFormat::Text && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Guard::new(std::io::stderr(), terminal));
    match args.log_format {
        LogFormat::Json => {
            builder
                .json()
                .flatten_event(true)
                .map_event_format(|format| Sparing::new(format, args.log_format))
                .init();
        }
        LogFormat::Text => {
            let builder = builder.with_ansi(terminal).with_target(false);
            builder.map_event_format(|format| Sparing::new(format, args.log_format)).init();
        }
    }
}

/// boringtun calls ordinary events errors, such as a session that ends because nobody uses it; hickory warns of what any
/// client sends.
fn directives(level: u8) -> String {
    const OURS: [&str; 7] = [
        "flan_agent",
        "flan_backends",
        "flan_docker",
        "flan_embedded_store",
        "flan_kernel",
        "flan_names",
        "flan_subnet_lease",
    ];
    const QUIET: &str = "netlink_proto=error,boringtun=off,hickory_server=off,hickory_net=off,hickory_proto=off,\
                         hickory_resolver=off";
    let ours = |level| OURS.map(|name| format!("{name}={level}")).join(",");
    match level {
        0 => format!("info,{QUIET}"),
        1..=4 => format!("info,{},{QUIET}", ours("debug")),
        _ => format!("debug,{}", ours("trace")),
    }
}
