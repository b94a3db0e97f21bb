//! `flanctl store`: the store behind it all.

mod check;

pub(crate) use check::check;

use serde::Serialize;

use crate::args::ReportForm;
use crate::failure::Failure;
use crate::output;

/// Prints a report: its text for people, itself for programs.
fn print(form: ReportForm, report: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
    match form {
        ReportForm::Text => output::print(&text()),
        ReportForm::Json => output::print_json(report),
        ReportForm::Yaml => output::print_yaml(report),
    }
}
