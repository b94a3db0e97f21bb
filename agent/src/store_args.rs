//! The flags that say how to reach the store; the agent and `flanctl` share them.

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
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_CAFILE", value_parser = any_path(), global = true)]
    pub etcd_cafile: Option<PathBuf>,

    /// File with our own certificate
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_CERTFILE", value_parser = any_path(), global = true)]
    pub etcd_certfile: Option<PathBuf>,

    /// File with the key of our own certificate
    #[arg(long, value_name = "FILE", env = "FLAND_ETCD_KEYFILE", value_parser = any_path(), global = true)]
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
        // flannel takes the empty text for "not given", and unit files rely on it.
        let given = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        let user = self.etcd_username.clone().filter(|name| !name.is_empty());
        StoreConfig {
            endpoints: self
                .etcd_endpoints
                .iter()
                .map(|url| url.trim().trim_end_matches('/').to_owned())
                .collect(),
            prefix: format!("/{}", self.etcd_prefix.trim_matches('/')),
            credentials: Credentials {
                ca_file: given(&self.etcd_cafile),
                cert_file: given(&self.etcd_certfile),
                key_file: given(&self.etcd_keyfile),
                user: user.map(|name| (name, self.etcd_password.clone().unwrap_or_default())),
            },
        }
    }
}

/// A path that may be empty, unlike clap's own.
fn any_path() -> impl clap::builder::TypedValueParser<Value = PathBuf> {
    clap::builder::TypedValueParser::map(clap::builder::OsStringValueParser::new(), PathBuf::from)
}

/// Reads a command line the way flannel's is read: one dash is as good as two, and a variable `FLANNELD_X` in the
/// environment stands in for `FLAND_X`. Flags win over `FLAND_X`, which wins over `FLANNELD_X`.
///
/// Ends the process on `--help`, `--version` and a command line that cannot be read, with exit code 2 for the last.
pub fn parse<T: clap::Parser>() -> T {
    let command = with_flannel_environment(T::command(), |name| std::env::var(name).ok());
    let arguments = with_two_dashes(&command, std::env::args());
    let matches = command.get_matches_from(arguments);
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn with_flannel_environment(
    mut command: clap::Command,
    variable: impl Fn(&str) -> Option<String>,
) -> clap::Command {
    let ids: Vec<_> = command
        .get_arguments()
        .filter(|arg| arg.get_env().is_some())
        .map(|arg| arg.get_id().clone())
        .collect();
    for id in ids {
        command = command.mut_arg(id, |arg| {
            let ours = arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            match variable(&ours.replacen("FLAND_", "FLANNELD_", 1)).filter(|value| !value.is_empty()) {
                Some(value) => match arg.get_value_delimiter() {
                    Some(delimiter) => {
                        let values: Vec<clap::builder::OsStr> =
                            value.split(delimiter).map(|part| part.to_owned().into()).collect();
                        arg.default_values(values)
                    }
                    None => arg.default_value(clap::builder::OsStr::from(value)),
                },
                None => arg,
            }
        });
    }
    command
}

fn with_two_dashes(command: &clap::Command, arguments: impl Iterator<Item = String>) -> Vec<String> {
    let names: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    arguments
        .map(|argument| {
            let name = argument.strip_prefix('-').and_then(|rest| rest.split('=').next()).unwrap_or_default();
            if names.contains(&name) { format!("-{argument}") } else { argument }
        })
        .collect()
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
        let command = with_flannel_environment(Sample::command(), |name| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        });
        let arguments = with_two_dashes(&command, arguments.iter().map(|argument| (*argument).to_owned()));
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
    fn empty_files_and_names_count_as_not_given() {
        let config = read(&["fland", "--etcd-cafile=", "--etcd-username="], &[]);
        assert_eq!(config.credentials.ca_file, None);
        assert_eq!(config.credentials.user, None);
    }
}
