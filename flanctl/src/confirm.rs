//! Asks for confirmation at the terminal.

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::{Failure, Kind};

/// Asks a question that ends with `[y/N] `.
///
/// # Errors
/// If there is no terminal.
pub(crate) fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Kind::Usage, "there is nobody to ask; give --yes"));
    }
    eprint!("{question}");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::new(Kind::Other, error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
