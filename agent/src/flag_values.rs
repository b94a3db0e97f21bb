//! Parsers for flag values.

use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction};
use flan_subnet_lease::PathChoice;

/// 365.25 days, like humantime.
const YEAR: Duration = Duration::from_secs(31_557_600);

/// Parses a duration in whole seconds, from `least` to a year.
pub(crate) fn duration(text: &str, least: Duration) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}; expected such as 24h or 90s"))?;
    if duration < least {
        return Err(format!("at least {} is needed", humantime::format_duration(least)));
    }
    if duration > YEAR {
        return Err("at most 1y is possible".to_owned());
    }
    Ok(Duration::from_secs(duration.as_secs()))
}

/// Parses the name of a path, as the network config has it.
pub(crate) fn path_choice(text: &str) -> Result<PathChoice, String> {
    let known = PathChoice::ALL.into_iter().find(|(_, name)| *name == text);
    known.map(|(path, _)| path).ok_or_else(|| "expected auto, kernel or user".to_owned())
}

/// Makes a boolean flag accept both `--ip-masq` and `--ip-masq=false`, like flannel's.
pub(crate) fn switch(arg: Arg) -> Arg {
    match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(BoolishValueParser::new()),
        _ => arg,
    }
}
