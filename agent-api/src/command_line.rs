//! Reads a command line like flannel: one dash equals two, an empty value equals none, and a variable `FLANNELD_X` in
//! the environment stands in for `FLAND_X`. Flags override `FLAND_X`, which overrides `FLANNELD_X`.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use flan_subnet_lease::without_user;

/// Parses the command line and environment of this process.
///
/// Exits on `--help`, on `--version`, and, with exit code 2, on an invalid command line.
pub fn parse<T: clap::Parser>() -> T {
    parse_beside(|_| None)
}

/// The same, with the variables of a file, which have the lowest priority.
pub fn parse_beside<T: clap::Parser>(file: impl Fn(&str) -> Option<String>) -> T {
    let variable = |name: &str| std::env::var(name).ok();
    read(std::env::args_os(), variable, file).unwrap_or_else(|error| error.exit())
}

/// The same for other arguments. `variable` looks up environment variables that clap does not read itself.
///
/// # Errors
/// What is wrong with the command line, without users from URLs.
pub fn read<T: clap::Parser>(
    arguments: impl Iterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<String>,
    file: impl Fn(&str) -> Option<String>,
) -> Result<T, clap::Error> {
    let mut command = with_environment(T::command(), &variable, &file);
    command.build(); // adds --help and --version to the flags
    let arguments = as_clap_reads_them(&command, arguments);
    let matches = command.try_get_matches_from_mut(arguments).map_err(|error| discreet(error, &command))?;
    T::from_arg_matches(&matches)
}

/// Looks up `FLAND_X`, else `FLANNELD_X`; for the WireGuard key, flannel's variable has no such prefix. An empty value
/// equals none.
pub fn variable_in(place: impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    let flannels = name.replacen("FLAND_", "FLANNELD_", 1);
    let bare = name.strip_prefix("FLAND_").filter(|bare| *bare == "WIREGUARD_KEY_FILE").unwrap_or(&flannels);
    [name, &flannels, bare].into_iter().filter_map(place).find(|value| !value.is_empty())
}

/// Removes users of URLs from the error. One may appear where no user is accepted.
fn discreet(error: clap::Error, command: &clap::Command) -> clap::Error {
    let given = |value: &ContextValue| match value {
        ContextValue::String(text) => Some(without_user(text)).filter(|shown| shown != text),
        _ => None,
    };
    if !error.context().any(|(_, value)| given(value).is_some()) {
        return error;
    }
    // The error's details and advice may repeat a value.
    let mut discreet = clap::Error::new(error.kind()).with_cmd(command);
    for (kind, value) in error.context().filter(|(kind, _)| *kind != ContextKind::Suggested) {
        discreet.insert(kind, given(value).map_or_else(|| value.clone(), ContextValue::String));
    }
    discreet
}

fn with_environment(
    command: clap::Command,
    variable: &dyn Fn(&str) -> Option<String>,
    file: &dyn Fn(&str) -> Option<String>,
) -> clap::Command {
    let command = command.mut_subcommands(|command| with_environment(command, variable, file));
    command.mut_args(|arg| {
        let Some(ours) = arg.get_env().map(|name| name.to_string_lossy().into_owned()) else { return arg };
        let arg = match variable(&ours) {
            Some(value) if value.is_empty() => arg.env(None::<&str>),
            Some(value) if without_user(&value) != value => arg.hide_env_values(true),
            _ => arg,
        };
        // clap reads FLAND_X from the environment.
        let Some(value) = variable_in(variable, &ours).or_else(|| variable_in(file, &ours)) else {
            return arg;
        };
        let secret = arg.is_hide_env_values_set() || without_user(&value) != value;
        let values: Vec<String> = match arg.get_value_delimiter() {
            Some(delimiter) => value.split(delimiter).map(str::to_owned).collect(),
            None => vec![value],
        };
        arg.default_values(values).hide_default_value(secret)
    })
}

fn as_clap_reads_them(command: &clap::Command, arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let names = flag_names(command);
    let read = |argument: OsString| {
        let text = argument.to_string_lossy();
        let name = text.trim_start_matches('-').split('=').next().unwrap_or_default();
        if !text.starts_with('-') || !names.contains(&name) {
            return Some(argument);
        }
        let dashes = text.len() - text.trim_start_matches('-').len();
        let is_empty = text.split_once('=').is_some_and(|(_, value)| value.is_empty());
        (!is_empty).then(|| if dashes == 1 { OsString::from(format!("-{text}")) } else { argument.clone() })
    };
    arguments.filter_map(read).collect()
}

/// Returns the long names of all flags, including those of subcommands.
fn flag_names(command: &clap::Command) -> Vec<&str> {
    let ours = command.get_arguments().filter_map(clap::Arg::get_long);
    ours.chain(command.get_subcommands().flat_map(flag_names)).collect()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use flan_subnet_lease::StoreConfig;

    use super::*;
    use crate::store_args::StoreArgs;

    #[derive(Parser)]
    struct Sample {
        #[command(flatten)]
        store: StoreArgs,
    }

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn read_from(arguments: &[&str], environment: Variables<'_>, file: Variables<'_>) -> StoreConfig {
        let value = |place: Variables<'_>, name: &str| {
            place.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let arguments = arguments.iter().map(OsString::from);
        let sample: Sample =
            read(arguments, |name| value(environment, name), |name| value(file, name)).unwrap();
        sample.store.config().unwrap()
    }

    #[test]
    fn flannels_environment_stands_in_and_a_flag_wins() {
        let environment = [("FLANNELD_ETCD_ENDPOINTS", "http://10.0.0.1:2379,http://10.0.0.2:2379")];
        let endpoints = |arguments: &[&str], environment| read_from(arguments, environment, &[]).endpoints;
        assert_eq!(endpoints(&["fland"], &environment), ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]);
        let flag = ["fland", "--etcd-endpoints", "http://10.0.0.3:2379"];
        assert_eq!(endpoints(&flag, &environment), ["http://10.0.0.3:2379"]);
        assert_eq!(endpoints(&["fland"], &[]), ["http://127.0.0.1:2379"]);
    }

    #[test]
    fn a_file_stands_in_where_neither_flag_nor_environment_says_anything() {
        let file = [
            ("FLAND_ETCD_PREFIX", "/file"),
            ("FLANNELD_ETCD_CAFILE", "file.pem"),
            ("FLAND_ETCD_ENDPOINTS", "http://10.0.0.9:2379"),
        ];
        let environment = [("FLANNELD_ETCD_ENDPOINTS", "http://10.0.0.1:2379")];
        let config = read_from(&["flanctl", "--etcd-prefix=/flag"], &environment, &file);
        assert_eq!((config.prefix.as_str(), &*config.endpoints[0]), ("/flag", "http://10.0.0.1:2379"));
        assert_eq!(config.credentials.ca_file, Some("file.pem".into()));
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        assert_eq!(read_from(&["fland", "-etcd-prefix=/a/b/"], &[], &[]).prefix, "/a/b");
        assert_eq!(read_from(&["fland", "-etcd-prefix", "/a"], &[], &[]).prefix, "/a");
    }

    #[test]
    fn a_password_from_the_environment_does_not_show_in_the_help() {
        let environment = |name: &str| (name == "FLANNELD_ETCD_PASSWORD").then(|| "s3cret".to_owned());
        let help =
            with_environment(Sample::command(), &environment, &|_| None).render_long_help().to_string();
        assert!(help.contains("etcd-password") && !help.contains("s3cret"), "{help}");
    }

    #[test]
    fn empty_files_and_names_count_as_not_given() {
        let config = read_from(&["fland", "--etcd-cafile=", "--etcd-username="], &[], &[]);
        assert_eq!(config.credentials.ca_file, None);
        assert_eq!(config.credentials.user, None);
    }
}
