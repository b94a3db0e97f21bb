//! The program; all of it is in the library, where tests find its flags.

use std::process::ExitCode;

fn main() -> ExitCode {
    flan_ctl::run()
}
