//! The binary. All code is in the library, where tests can read the flags.

use std::process::ExitCode;

fn main() -> ExitCode {
    flan_ctl::run()
}
