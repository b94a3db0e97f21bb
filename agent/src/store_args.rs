//! The flags that say how to reach the store; the agent and `flanctl` share them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use flan_subnet_lease::{Credentials, StoreConfig};

/// How to reach etcd. Names and meanings are flannel's.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Store")]
pub struct StoreArgs {
    /// URLs of the etcd members, separated by commas; https:// for TLS
    #[arg(
        long,
        value_name = "URLS",
        env = "FLAND_ETCD_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379",
        global = true
    )]
    pub etcd_endpoints: Vec<String>,

    /// What all keys in etcd begin with
    #[arg(
        long,
        value_name = "PATH",
        env = "FLAND_ETCD_PREFIX",
        default_value = "/coreos.com/network",
        global = true
    )]
    pub etcd_prefix: String,

    /// File with the authorities that sign the members' certificates; the system's by default
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_CAFILE", global = true)]
    pub etcd_cafile: Option<PathBuf>,

    /// File with our own certificate
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_CERTFILE", global = true)]
    pub etcd_certfile: Option<PathBuf>,

    /// File with the key of our own certificate
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_KEYFILE", global = true)]
    pub etcd_keyfile: Option<PathBuf>,

    /// User name in etcd
    #[arg(long, value_name = "NAME", env = "FLAND_ETCD_USERNAME", global = true)]
    pub etcd_username: Option<String>,

    /// Password in etcd; better given in the environment, where `ps` does not show it
    #[arg(long, value_name = "PASSWORD", env = "FLAND_ETCD_PASSWORD", hide_env_values = true, global = true)]
    pub etcd_password: Option<String>,
}

impl StoreArgs {
    /// The settings as the store takes them.
    pub fn config(&self) -> StoreConfig {
        let user = match (&self.etcd_username, &self.etcd_password) {
            (None, None) => None,
            (name, password) => {
                Some((name.clone().unwrap_or_default(), password.clone().unwrap_or_default()))
            }
        };
        StoreConfig {
            endpoints: self
                .etcd_endpoints
                .iter()
                .map(|url| url.trim().trim_end_matches('/').to_owned())
                .collect(),
            prefix: format!("/{}", self.etcd_prefix.trim_matches('/')),
            credentials: Credentials {
                ca_file: self.etcd_cafile.clone(),
                cert_file: self.etcd_certfile.clone(),
                key_file: self.etcd_keyfile.clone(),
                user,
            },
        }
    }
}

/// Reads a command line the way flannel's is read: one dash is as good as two, an empty value is as good as none, and
/// a variable `FLANNELD_X` in the environment stands in for `FLAND_X`. Flags win over `FLAND_X`, which wins over
/// `FLANNELD_X`.
///
/// Ends the process on `--help`, `--version` and a command line that cannot be read, with exit code 2 for the last.
pub fn parse<T: clap::Parser>() -> T {
    let mut command = with_environment(T::command(), |name| std::env::var(name).ok());
    command.build(); // adds --help and --version to the flags
    let arguments = as_clap_reads_them(&command, std::env::args_os());
    let matches = command.get_matches_from(arguments);
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn with_environment(command: clap::Command, variable: impl Fn(&str) -> Option<String>) -> clap::Command {
    command.mut_args(|arg| {
        let Some(ours) = arg.get_env().map(|name| name.to_string_lossy().into_owned()) else { return arg };
        let arg = match variable(&ours) {
            Some(value) if value.is_empty() => arg.env(None::<&str>),
            _ => arg,
        };
        let Some(value) =
            variable(&ours.replacen("FLAND_", "FLANNELD_", 1)).filter(|value| !value.is_empty())
        else {
            return arg;
        };
        let secret = arg.is_hide_env_values_set();
        let values: Vec<String> = match arg.get_value_delimiter() {
            Some(delimiter) => value.split(delimiter).map(str::to_owned).collect(),
            None => vec![value],
        };
        arg.default_values(values).hide_default_value(secret)
    })
}

fn as_clap_reads_them(command: &clap::Command, arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let names: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Parser)]
    struct Sample {
        #[command(flatten)]
        store: StoreArgs,
    }

    fn read(arguments: &[&str], environment: &[(&str, &str)]) -> StoreConfig {
        let mut command = with_environment(Sample::command(), |name| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        });
        command.build();
        let arguments = as_clap_reads_them(&command, arguments.iter().map(OsString::from));
        let matches = command.get_matches_from(arguments);
        Sample::from_arg_matches(&matches).unwrap().store.config()
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
    fn one_dash_is_as_good_as_two() {
        assert_eq!(read(&["fland", "-etcd-prefix=/a/b/"], &[]).prefix, "/a/b");
        assert_eq!(read(&["fland", "-etcd-prefix", "/a"], &[]).prefix, "/a");
    }

    #[test]
    fn a_password_from_the_environment_does_not_show_in_the_help() {
        let environment = |name: &str| (name == "FLANNELD_ETCD_PASSWORD").then(|| "s3cret".to_owned());
        let help = with_environment(Sample::command(), environment).render_long_help().to_string();
        assert!(help.contains("etcd-password") && !help.contains("s3cret"), "{help}");
    }

    #[test]
    fn empty_files_and_names_count_as_not_given() {
        let config = read(&["fland", "--etcd-cafile=", "--etcd-username="], &[]);
        assert_eq!(config.credentials.ca_file, None);
        assert_eq!(config.credentials.user, None);
    }
}
