//! `fland store`: the store alone, without an agent.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args};
use flan_embedded_store::Settings;

use crate::embedded::Embedded;
use crate::embedded_args::tls;
use crate::log::LogArgs;
use crate::refused::refused;
use crate::urls::{self, Urls};
use crate::{notify, retention};

/// Run the store alone, without an agent: what etcd is to the agents, on one local file
///
/// It speaks etcd's protocol, and agents find it by --etcd-endpoints. There is one copy of the data, on this host. While
/// it is away packets flow as before, and no host can join. It needs no root. Flags have etcd's names where etcd has
/// them; each is also read from the environment, as those of the agent are: FLAND_DATA_DIR.
#[derive(Debug, Clone, Args)]
pub struct StoreCommand {
    /// Directory of the data; made if it is not there
    #[arg(long, value_name = "DIR", env = "FLAND_DATA_DIR", default_value = "/var/lib/flan/store")]
    pub data_dir: PathBuf,

    /// Where to listen: URLs with an IP address and a port, separated by commas; port 0 is any free one
    #[arg(
        long,
        value_name = "URLS",
        env = "FLAND_LISTEN_CLIENT_URLS",
        default_value = "http://127.0.0.1:2379"
    )]
    pub listen_client_urls: Vec<Urls>,

    /// File with our certificate, for https://
    #[arg(long, value_name = "FILE", env = "FLAND_CERT_FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,

    /// File with the key of our certificate
    #[arg(long, value_name = "FILE", env = "FLAND_KEY_FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,

    /// CA file. Every client must present a certificate signed by one of these CAs. Without it, the store serves everybody
    /// who reaches it
    #[arg(long, value_name = "FILE", env = "FLAND_TRUSTED_CA_FILE", requires = "cert_file")]
    pub trusted_ca_file: Option<PathBuf>,

    /// Listen beyond loopback without TLS: everybody who reaches the store can take any subnet
    #[arg(
        long,
        env = "FLAND_STORE_INSECURE",
        default_value = "false",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set,
        value_parser = BoolishValueParser::new()
    )]
    pub store_insecure: bool,

    /// How long the history of the keys is kept, in memory, such as 1h or 30m; at least 1m
    #[arg(
        long,
        value_name = "DURATION",
        env = "FLAND_AUTO_COMPACTION_RETENTION",
        default_value = "1h",
        value_parser = retention::parse
    )]
    pub auto_compaction_retention: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

impl StoreCommand {
    /// What the store is started with.
    ///
    /// # Errors
    /// What is no URL to listen on, and what would be.
    pub fn settings(&self) -> Result<Settings, String> {
        Ok(Settings {
            data_dir: self.data_dir.clone(),
            listen: urls::listen(&self.listen_client_urls, "--listen-client-urls", "--trusted-ca-file")?,
            tls: tls(&self.cert_file, &self.key_file, &self.trusted_ca_file),
            insecure: self.store_insecure,
            retention: self.auto_compaction_retention,
        })
    }
}

/// Serves until the store fails.
///
/// # Errors
/// [`RefusedSetting`](crate::refused::RefusedSetting), or why the store did not start or cannot go on.
pub async fn run(command: &StoreCommand) -> anyhow::Result<()> {
    let mut store = Embedded::start(command.settings().map_err(refused)?).await?;
    notify::ready();
    notify::working(&format!("serving {}", store.urls().join(" ")));
    Err(store.failed().await)
}

#[cfg(test)]
mod tests {
    use crate::args::{Args, Command};
    use crate::store_args;

    use super::*;

    fn read(arguments: &[&str]) -> Result<Settings, String> {
        let arguments = ["fland", "store"].iter().chain(arguments).map(Into::into);
        let args: Args = store_args::read(arguments, |_| None).map_err(|error| error.to_string())?;
        match args.command {
            Some(Command::Store(command)) => command.settings(),
            None => Err("no command was read".to_owned()),
        }
    }

    #[test]
    fn a_store_is_kept_to_this_host_unless_told_otherwise() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.data_dir, PathBuf::from("/var/lib/flan/store"));
        assert_eq!(settings.listen, ["http://127.0.0.1:2379".parse().unwrap()]);
        assert!(settings.tls.is_none() && !settings.insecure);
        assert_eq!(settings.retention, Duration::from_secs(3600));
    }

    #[test]
    fn its_flags_are_read_as_those_of_the_agent_are() {
        let settings = read(&["-data-dir=/data", "-listen-client-urls", "http://[::1]:1", "--cert-file="]);
        let settings = settings.unwrap();
        assert_eq!(settings.data_dir, PathBuf::from("/data"));
        assert_eq!(settings.listen, ["http://[::1]:1".parse().unwrap()]);
        assert!(settings.tls.is_none());
        let urls = "--listen-client-urls=http://127.0.0.1:1,http://10.0.0.2:1";
        let settings = read(&[urls, "--store-insecure"]).unwrap();
        assert!(settings.insecure && settings.listen.len() == 2);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let refusal = |flag| read(&[flag]).map(drop).unwrap_err();
        let url = refusal("--listen-client-urls=http://store:2379");
        assert!(url.contains("http://store:2379") && url.contains("expected an IP address"), "{url}");
        assert!(refusal("--cert-file=cert.pem").contains("--key-file"));
        assert!(refusal("--key-file=key.pem").contains("--cert-file"));
        assert!(refusal("--trusted-ca-file=ca.pem").contains("--cert-file"));
        assert!(refusal("--auto-compaction-retention=1").contains("such as 1h"));
    }

    #[test]
    fn flags_of_the_agent_are_none_of_the_store() {
        for flag in ["--etcd-endpoints=http://10.0.0.2:2379", "--ip-masq", "--embedded-store=/data"] {
            assert!(read(&[flag]).map(drop).unwrap_err().contains("unexpected argument"), "{flag}");
        }
        let before = ["fland", "--ip-masq", "store"].map(Into::into).into_iter();
        assert!(store_args::read::<Args>(before, |_| None).is_err(), "an agent and a store at once");
    }
}
