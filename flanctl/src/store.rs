//! `flanctl store`: checks or copies the store.

mod check;
mod copy;

pub(crate) use check::check;
pub(crate) use copy::copy;

use serde::Serialize;

use crate::args::ReportForm;
use crate::failure::Failure;
use crate::output;

/// Prints a report as text or as a document.
fn print(form: ReportForm, report: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
    match form {
        ReportForm::Text => output::print(&text()),
        ReportForm::Json => output::print_json(report),
        ReportForm::Yaml => output::print_yaml(report),
    }
}
