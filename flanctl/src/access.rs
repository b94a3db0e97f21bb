//! Finds the store: by flags, else by the environment, else by the settings file of the agent's unit, which exists on
//! every host with an agent.

use std::io;
use std::path::{Path, PathBuf};

use flan_agent_api::command_line::{self, variable_in};
use flan_agent_api::{DEFAULT_ENDPOINT, Urls, urls};
use flan_subnet_lease::{Store, StoreConfig};

use crate::args::{Args, Command, StoreCommand};
use crate::env_file::EnvFile;
use crate::failure::{Failure, Kind};

/// Settings file of `fland.service`.
pub(crate) const UNIT_FILE: &str = "/etc/default/fland";

/// Variables with our credentials and trusted CAs, without their prefixes.
const CREDENTIALS: [&str; 5] =
    ["ETCD_CAFILE", "ETCD_CERTFILE", "ETCD_KEYFILE", "ETCD_USERNAME", "ETCD_PASSWORD"];

/// Where the location of the store came from, for error messages.
pub(crate) struct Access {
    file: SettingsFile,
    told_by: Place,
}

struct SettingsFile {
    path: PathBuf,
    content: Result<EnvFile, io::Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A flag or the environment.
    Person,
    File,
    Nobody,
}

/// Reads the command line, and the settings file for what is missing.
pub(crate) fn read() -> Result<(Args, Access), Failure> {
    // The first pass finds the settings file.
    let first: Args = command_line::parse();
    let file = SettingsFile::open(first.env_file.as_deref())?;
    let told_by = match (&first.store.etcd_endpoints, &file.content) {
        (endpoints, _) if !endpoints.is_empty() => Place::Person,
        // A copy names both stores.
        _ if matches!(first.command, Command::Store(StoreCommand::Copy(_))) => Place::Person,
        (_, Ok(content)) if endpoints_in(content).is_some() => Place::File,
        _ => Place::Nobody,
    };
    let Ok(content) = &file.content else { return Ok((first, Access { file, told_by })) };
    if content.begins_with_mark() {
        eprintln!(
            "flanctl: warning: {} begins with a byte order mark; because of it, systemd does not give fland the variable in \
             the first line. Save the file without the mark",
            file.path.display()
        );
    }
    let is_for_another = is_for_another_store(&first, content);
    let mut args: Args = command_line::parse_beside(|name| {
        let bare = name.trim_start_matches("FLANNELD_").trim_start_matches("FLAND_");
        if is_for_another && CREDENTIALS.contains(&bare) { None } else { content.value(name) }
    });
    if args.store.etcd_endpoints.is_empty() {
        args.store.etcd_endpoints = endpoints_in(content).map(Urls::from).into_iter().collect();
    }
    Ok((args, Access { file, told_by }))
}

/// Creates the client. Warns once on standard error if the store ignores our user.
pub(crate) fn open(config: StoreConfig) -> Result<Store, Failure> {
    let store = Store::new(config)?;
    let (mut ignored, text) = (store.user_ignored(), store.user_ignored_text());
    // Ends with the store or the process.
    tokio::spawn(async move {
        if ignored.wait_for(|ignored| *ignored).await.is_ok() {
            eprintln!("flanctl: warning: {text}");
        }
    });
    Ok(store)
}

/// Returns the store's location from a file: its endpoints, or the address of an embedded store.
fn endpoints_in(file: &EnvFile) -> Option<String> {
    let value = |name: &str| variable_in(|name| file.value(name), name);
    let listening = |name: &str, default: &str| {
        let listen = Urls::from(value(name).unwrap_or_else(|| default.to_owned()));
        urls::local_url(listen.each())
    };
    value("FLAND_ETCD_ENDPOINTS")
        .or_else(|| {
            value("FLAND_EMBEDDED_STORE").and_then(|_| listening("FLAND_STORE_LISTEN", DEFAULT_ENDPOINT))
        })
        // This file may also be that of fland-store.service.
        .or_else(|| listening("FLAND_LISTEN_CLIENT_URLS", ""))
}

/// Returns whether a store without TLS is named while the file uses TLS. It does not get the file's credentials.
fn is_for_another_store(args: &Args, file: &EnvFile) -> bool {
    let named = match &args.command {
        Command::Store(StoreCommand::Copy(copy)) => &copy.from,
        _ => &args.store.etcd_endpoints,
    };
    let has_tls = endpoints_in(file).is_some_and(|urls| urls.contains("https://"))
        || variable_in(|name| file.value(name), "FLAND_ETCD_CAFILE").is_some();
    has_tls && named.iter().flat_map(Urls::each).any(|url| url.starts_with("http://"))
}

impl SettingsFile {
    /// Reads the requested file, which must exist, or the unit's default file, which may be missing.
    fn open(asked_for: Option<&Path>) -> Result<Self, Failure> {
        let path = asked_for.unwrap_or(Path::new(UNIT_FILE)).to_owned();
        let content = match EnvFile::read(&path) {
            Err(reason) if asked_for.is_some() => {
                let message = format!("cannot read {} (--env-file): {reason}", path.display());
                return Err(Failure::new(Kind::Usage, message));
            }
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => Ok(EnvFile::default()),
            content => content,
        };
        Ok(Self { path, content })
    }
}

impl Access {
    /// Returns the rest of a failure's sentence, if it has to do with how the store was found; else an empty text.
    pub(crate) fn comment(&self, kind: Kind) -> String {
        let path = self.file.path.display();
        let forbidden = self.file.content.as_ref().err();
        match (kind, self.told_by, forbidden) {
            (Kind::Unreachable, Place::Nobody, Some(reason)) => format!(
                "; only the default {DEFAULT_ENDPOINT} was tried, as {path} cannot be read ({reason}): run flanctl as root, or give \
                 --etcd-endpoints"
            ),
            (Kind::Unreachable, Place::Nobody, None) => format!(
                "; only the default {DEFAULT_ENDPOINT} was tried, as nothing says where the store is: give --etcd-endpoints, or set \
                 FLAND_ETCD_ENDPOINTS in {path}"
            ),
            (Kind::Unreachable, Place::File, _) => {
                format!("; {path} says that the store is there: does it run?")
            }
            (Kind::Unauthorised, _, Some(reason)) => {
                format!(
                    "; {path}, which may have better ones, cannot be read ({reason}): run flanctl as root"
                )
            }
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn file(text: &str) -> EnvFile {
        let dir = std::env::temp_dir().join(format!("flanctl-access-{:?}", std::thread::current().id()));
        std::fs::write(&dir, text).unwrap();
        let read = EnvFile::read(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        read
    }

    #[test]
    fn the_file_of_a_host_that_has_joined_names_the_store() {
        let joined = file("FLAND_ETCD_ENDPOINTS=https://10.0.0.2:2379,https://10.0.0.3:2379\n");
        assert_eq!(endpoints_in(&joined).unwrap(), "https://10.0.0.2:2379,https://10.0.0.3:2379");
        assert_eq!(endpoints_in(&file("FLANNELD_ETCD_ENDPOINTS=http://e:1\n")).unwrap(), "http://e:1");
        assert_eq!(endpoints_in(&file("FLAND_IP_MASQ=true\n")), None);
    }

    #[test]
    fn a_host_that_carries_the_store_is_dialled_as_its_agent_dials_it() {
        let carried = |listen: &str| endpoints_in(&file(&format!("FLAND_EMBEDDED_STORE=/data\n{listen}\n")));
        assert_eq!(carried("").unwrap(), "http://127.0.0.1:2379");
        assert_eq!(
            carried("FLAND_STORE_LISTEN=https://10.0.0.2:2379,https://0.0.0.0:2380").unwrap(),
            "https://127.0.0.1:2380"
        );
        assert_eq!(carried("FLAND_STORE_LISTEN=\"https://10.0.0.2:2379\"").unwrap(), "https://10.0.0.2:2379");
        let alone = file("FLAND_LISTEN_CLIENT_URLS=https://[::]:2379\n");
        assert_eq!(endpoints_in(&alone).unwrap(), "https://[::1]:2379");
    }

    #[test]
    fn credentials_of_a_store_with_tls_are_for_no_plain_one() {
        let has_tls = file("FLAND_ETCD_ENDPOINTS=https://10.0.0.2:2379\nFLAND_ETCD_PASSWORD=s3cret\n");
        let plain = file("FLAND_ETCD_ENDPOINTS=http://10.0.0.2:2379\nFLAND_ETCD_PASSWORD=s3cret\n");
        let read = |words: &str| Args::try_parse_from(words.split(' ')).unwrap();
        let elsewhere = read("flanctl --etcd-endpoints http://10.0.0.9:2379 config get");
        assert!(is_for_another_store(&elsewhere, &has_tls));
        assert!(!is_for_another_store(&elsewhere, &plain));
        assert!(is_for_another_store(
            &read("flanctl store copy --from http://a:1 --to http://b:1"),
            &has_tls
        ));
        assert!(!is_for_another_store(&read("flanctl --etcd-endpoints https://b:1 config get"), &has_tls));
        assert!(!is_for_another_store(&read("flanctl config get"), &has_tls));
    }

    #[test]
    fn a_failure_says_where_the_store_was_looked_for() {
        let access = |told_by, content| {
            let path = PathBuf::from(UNIT_FILE);
            Access { file: SettingsFile { path, content }, told_by }
        };
        let forbidden = || Err(io::ErrorKind::PermissionDenied.into());
        let comment = access(Place::Nobody, Ok(EnvFile::default())).comment(Kind::Unreachable);
        for part in [DEFAULT_ENDPOINT, "--etcd-endpoints", UNIT_FILE] {
            assert!(comment.contains(part), "{comment}");
        }
        let comment = access(Place::Nobody, forbidden()).comment(Kind::Unreachable);
        assert!(comment.contains("permission denied") && comment.contains("as root"), "{comment}");
        let comment = access(Place::File, Ok(EnvFile::default())).comment(Kind::Unreachable);
        assert_eq!(comment, "; /etc/default/fland says that the store is there: does it run?");
        assert_eq!(access(Place::Person, forbidden()).comment(Kind::Unreachable), "");
        assert_eq!(access(Place::Nobody, forbidden()).comment(Kind::NoConfig), "");
        assert!(access(Place::Person, forbidden()).comment(Kind::Unauthorised).contains("as root"));
    }
}
