//! What a person sees on standard error while a bench runs.

use std::io::Write;

/// Names what begins now.
pub fn begin(what: &str) {
    eprint!("  {what:<68}");
    // Shown while it works; if standard error is gone there is nobody to tell.
    let _ = std::io::stderr().flush();
}

/// Ends the line of [`begin`] with what came out.
pub fn done(outcome: &str) {
    eprintln!("{}", if outcome.is_empty() { "done" } else { outcome });
}
