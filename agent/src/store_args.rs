//! The flags that say how to reach the store; the agent and `flanctl` share them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::error::{ContextKind, ContextValue};
use flan_subnet_lease::{Credentials, Password, StoreConfig, StoreError, without_user};

use crate::urls::{self, Urls, UserSettings};

/// How to reach the store: etcd, or a host that carries it. Names and meanings are flannel's.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Store")]
pub struct StoreArgs {
    /// URLs of the etcd members, or of the host that carries the store, separated by commas; https:// for TLS.
    /// http://127.0.0.1:2379 by default
    // Empty when nobody has given any, which is not the same as when somebody has given the default.
    #[arg(long, value_name = "URLS", env = "FLAND_ETCD_ENDPOINTS", global = true)]
    pub etcd_endpoints: Vec<Urls>,

    /// What all keys in the store begin with
    #[arg(
        long,
        value_name = "PATH",
        env = "FLAND_ETCD_PREFIX",
        default_value = DEFAULT_PREFIX,
        global = true
    )]
    pub etcd_prefix: String,

    /// CA file: certificates of the CAs that sign the store's certificates. The system's CAs by default
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_CAFILE", global = true)]
    pub etcd_cafile: Option<PathBuf>,

    /// File with our own certificate, for a store that demands one; X.509 version 3
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_CERTFILE", global = true)]
    pub etcd_certfile: Option<PathBuf>,

    /// File with the key of our own certificate
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_KEYFILE", global = true)]
    pub etcd_keyfile: Option<PathBuf>,

    /// User name in the store
    #[arg(long, value_name = "NAME", env = "FLAND_ETCD_USERNAME", global = true)]
    pub etcd_username: Option<String>,

    /// Password in the store; better given in the environment, where `ps` does not show it
    #[arg(long, value_name = "PASSWORD", env = "FLAND_ETCD_PASSWORD", hide_env_values = true, global = true)]
    pub etcd_password: Option<Password>,
}

/// Where the store is when nobody says where.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
/// What its keys begin with when nobody says what.
const DEFAULT_PREFIX: &str = "/coreos.com/network";
/// What takes the user that no URL may name.
pub const USER_SETTINGS: UserSettings = ["--etcd-username", "FLAND_ETCD_PASSWORD"];

impl StoreArgs {
    /// The settings as the store takes them.
    ///
    /// # Errors
    /// [`StoreError::Setting`] for an endpoint that is none.
    pub fn config(&self) -> Result<StoreConfig, StoreError> {
        self.config_with(USER_SETTINGS)
    }

    /// The same where other settings than those of the agent take the user.
    ///
    /// # Errors
    /// [`StoreError::Setting`] for an endpoint that is none.
    pub fn config_with(&self, user_settings: UserSettings) -> Result<StoreConfig, StoreError> {
        let default = [Urls::from(DEFAULT_ENDPOINT.to_owned())];
        let endpoints = if self.etcd_endpoints.is_empty() { &default } else { &self.etcd_endpoints[..] };
        let user = match (&self.etcd_username, &self.etcd_password) {
            (None, None) => None,
            (name, password) => {
                let no_password = || String::new().into();
                Some((name.clone().unwrap_or_default(), password.clone().unwrap_or_else(no_password)))
            }
        };
        Ok(StoreConfig {
            endpoints: urls::endpoints(endpoints, user_settings)?,
            prefix: format!("/{}", self.etcd_prefix.trim_matches('/')),
            credentials: Credentials {
                ca_file: self.etcd_cafile.clone(),
                cert_file: self.etcd_certfile.clone(),
                key_file: self.etcd_keyfile.clone(),
                user,
            },
        })
    }

    /// The endpoints that somebody gave, for messages; empty when nobody gave any.
    pub fn given_endpoints(&self) -> String {
        self.etcd_endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// The flags by which another program reaches the same store, as a person types them: those that differ from the
    /// defaults, each with a space before it. Never the password.
    pub fn as_typed(&self) -> String {
        let file = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string());
        let endpoints = Some(self.given_endpoints()).filter(|endpoints| !endpoints.is_empty());
        let prefix = Some(self.etcd_prefix.clone()).filter(|prefix| prefix != DEFAULT_PREFIX);
        [
            ("--etcd-endpoints", endpoints),
            ("--etcd-prefix", prefix),
            ("--etcd-cafile", file(&self.etcd_cafile)),
            ("--etcd-certfile", file(&self.etcd_certfile)),
            ("--etcd-keyfile", file(&self.etcd_keyfile)),
            ("--etcd-username", self.etcd_username.clone()),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some(format!(" {flag} {}", value?)))
        .collect()
    }
}

/// Reads a command line the way flannel's is read: one dash is as good as two, an empty value is as good as none, and
/// a variable `FLANNELD_X` in the environment stands in for `FLAND_X`. Flags win over `FLAND_X`, which wins over
/// `FLANNELD_X`.
///
/// Ends the process on `--help`, `--version` and a command line that cannot be read, with exit code 2 for the last.
pub fn parse<T: clap::Parser>() -> T {
    parse_beside(|_| None)
}

/// The same, with the variables of a file, which everything else wins over.
pub fn parse_beside<T: clap::Parser>(file: impl Fn(&str) -> Option<String>) -> T {
    let variable = |name: &str| std::env::var(name).ok();
    read_beside(std::env::args_os(), variable, file).unwrap_or_else(|error| error.exit())
}

/// The same from other arguments. `variable` tells what of the environment clap does not look at by itself.
#[cfg(test)]
pub(crate) fn read<T: clap::Parser>(
    arguments: impl Iterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<T, clap::Error> {
    read_beside(arguments, variable, |_| None)
}

fn read_beside<T: clap::Parser>(
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

/// The same without the users of URLs: one may stand where none is taken.
fn discreet(error: clap::Error, command: &clap::Command) -> clap::Error {
    let given = |value: &ContextValue| match value {
        ContextValue::String(text) => Some(without_user(text)).filter(|shown| shown != text),
        _ => None,
    };
    if !error.context().any(|(_, value)| given(value).is_some()) {
        return error;
    }
    // What is behind the error, and its advice, may repeat what was given.
    let mut discreet = clap::Error::new(error.kind()).with_cmd(command);
    for (kind, value) in error.context().filter(|(kind, _)| *kind != ContextKind::Suggested) {
        discreet.insert(kind, given(value).map_or_else(|| value.clone(), ContextValue::String));
    }
    discreet
}

/// What a place that has variables says for `FLAND_X`, itself or by `FLANNELD_X`. An empty value is as good as none.
pub fn variable_in(place: impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    let flannels = name.replacen("FLAND_", "FLANNELD_", 1);
    [name, &flannels].into_iter().filter_map(place).find(|value| !value.is_empty())
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
        // FLAND_X of the environment is clap's.
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

/// The long names of all flags, those of subcommands among them.
fn flag_names(command: &clap::Command) -> Vec<&str> {
    let ours = command.get_arguments().filter_map(clap::Arg::get_long);
    ours.chain(command.get_subcommands().flat_map(flag_names)).collect()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Sample {
        #[command(flatten)]
        store: StoreArgs,
    }

    fn read(arguments: &[&str], environment: &[(&str, &str)]) -> StoreConfig {
        let variable = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let sample: Sample = super::read(arguments.iter().map(OsString::from), variable).unwrap();
        sample.store.config().unwrap()
    }

    #[test]
    fn flannels_environment_stands_in_and_a_flag_wins() {
        let environment = [("FLANNELD_ETCD_ENDPOINTS", "http://10.0.0.1:2379,http://10.0.0.2:2379")];
        assert_eq!(
            read(&["fland"], &environment).endpoints,
            ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]
        );
        let flag = read(&["fland", "--etcd-endpoints", "http://10.0.0.3:2379"], &environment);
        assert_eq!(flag.endpoints, ["http://10.0.0.3:2379"]);
        assert_eq!(read(&["fland"], &[]).endpoints, ["http://127.0.0.1:2379"]);
    }

    #[test]
    fn a_file_stands_in_where_neither_flag_nor_environment_says_anything() {
        let place = |variables: &'static [(&str, &str)]| {
            move |name: &str| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            }
        };
        let file = place(&[
            ("FLAND_ETCD_PREFIX", "/file"),
            ("FLANNELD_ETCD_CAFILE", "file.pem"),
            ("FLAND_ETCD_ENDPOINTS", "http://10.0.0.9:2379"),
        ]);
        let environment = place(&[("FLANNELD_ETCD_ENDPOINTS", "http://10.0.0.1:2379")]);
        let arguments = ["flanctl", "--etcd-prefix=/flag"].map(OsString::from).into_iter();
        let sample: Sample = read_beside(arguments, environment, file).unwrap();
        let config = sample.store.config().unwrap();
        assert_eq!((config.prefix.as_str(), &*config.endpoints[0]), ("/flag", "http://10.0.0.1:2379"));
        assert_eq!(config.credentials.ca_file, Some("file.pem".into()));
    }

    #[test]
    fn what_reaches_the_same_store_is_typed_without_defaults_and_password() {
        let typed = |arguments: &[&str]| {
            let arguments = arguments.iter().map(OsString::from);
            super::read::<Sample>(arguments, |_| None).unwrap().store.as_typed()
        };
        assert_eq!(typed(&["fland"]), "");
        let tls = ["fland", "--etcd-endpoints=https://10.0.0.2:2379", "--etcd-cafile=/etc/flan/ca.pem"];
        assert_eq!(typed(&tls), " --etcd-endpoints https://10.0.0.2:2379 --etcd-cafile /etc/flan/ca.pem");
        let user = ["fland", "--etcd-prefix=/a", "--etcd-username=u", "--etcd-password=s3cret"];
        assert_eq!(typed(&user), " --etcd-prefix /a --etcd-username u");
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        assert_eq!(read(&["fland", "-etcd-prefix=/a/b/"], &[]).prefix, "/a/b");
        assert_eq!(read(&["fland", "-etcd-prefix", "/a"], &[]).prefix, "/a");
    }

    #[test]
    fn a_password_from_the_environment_does_not_show_in_the_help() {
        let environment = |name: &str| (name == "FLANNELD_ETCD_PASSWORD").then(|| "s3cret".to_owned());
        let help =
            with_environment(Sample::command(), &environment, &|_| None).render_long_help().to_string();
        assert!(help.contains("etcd-password") && !help.contains("s3cret"), "{help}");
    }

    #[test]
    fn no_output_of_the_flags_shows_a_password() {
        let urls = "http://u:s3cret@10.0.0.2:2379";
        let arguments = ["fland", "--etcd-password=s3cret", "--etcd-endpoints", urls].map(OsString::from);
        let sample: Sample = super::read(arguments.into_iter(), |_| None).unwrap();
        let shown = format!("{:?} {}", sample.store, sample.store.as_typed());
        assert!(shown.contains("http://***@10.0.0.2:2379") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn empty_files_and_names_count_as_not_given() {
        let config = read(&["fland", "--etcd-cafile=", "--etcd-username="], &[]);
        assert_eq!(config.credentials.ca_file, None);
        assert_eq!(config.credentials.user, None);
    }
}
