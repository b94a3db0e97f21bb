//! What the benches share: how they start and end, what they run on, and how they report.

pub mod machine;
pub mod report;
pub mod target;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::progress::{begin, done};
use crate::{cpu, interrupt, wait};

/// How long a bench looks whether the machine does something else.
const IDLE_SAMPLE: Duration = Duration::from_millis(1500);

/// More than this is told as a disturbance, in percent of all CPUs.
const BUSY_PERCENT: f64 = 10.0;

/// What every bench is told about its report. The default of `json` is the bench's own.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// What is printed on standard output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,

    /// The file that gets every single value, and the targets, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/results.json")]
    json: PathBuf,
}

/// The form of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables, the targets last.
    Table,
    /// What goes into the JSON file, too.
    Json,
}

/// The main function of a bench: does its work, and tells on standard error if it fails or is interrupted.
pub fn main(work: impl FnOnce() -> Result<()>) -> ExitCode {
    match interrupt::end_waits_on_signals().and_then(|()| work()) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(_) if wait::ensure_not_interrupted().is_err() => {
            eprintln!("\nInterrupted; everything is removed again.");
        }
        Err(error) => eprintln!("\nThe bench has failed: {error:#}"),
    }
    ExitCode::FAILURE
}

/// How busy the machine is while the bench does nothing, in percent of all CPUs; says so if it is too busy.
pub fn busy_percent(before: &str) -> Result<f64> {
    begin(&format!("{before}is this machine idle?"));
    let busy = cpu::busy_percent_during(IDLE_SAMPLE)?;
    done(&format!("{busy:.0} % busy"));
    if busy > BUSY_PERCENT {
        eprintln!(
            "  Something else works on this machine: the figures will be noisy, and worse than without it."
        );
    }
    Ok(busy)
}

impl ReportArguments {
    /// Writes the JSON file.
    pub fn write(&self, results: &impl Serialize) -> Result<()> {
        report::write_file(&self.json, &json(results)?)
    }

    /// Writes the JSON file, and prints that or the tables.
    pub fn finish(&self, results: &impl Serialize, tables: &str) -> Result<()> {
        self.write(results)?;
        match self.output {
            Output::Table => println!("{tables}"),
            Output::Json => println!("{}", json(results)?),
        }
        eprintln!("Every single value is in {}", self.json.display());
        Ok(())
    }
}

/// For people as well.
fn json(results: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(results).context("cannot write the results as JSON")
}
