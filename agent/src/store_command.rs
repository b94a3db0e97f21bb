//! `fland store`: runs only the store, without an agent.

use std::path::PathBuf;

use clap::Args;
use flan_agent_api::Urls;
use flan_embedded_store::Settings;

use crate::embedded::Embedded;
use crate::log::LogArgs;
use crate::notify;
use crate::refused::refused;
use crate::serving_args::ServingArgs;

/// Run only the store, without an agent: an etcd for the agents, in one local file
///
/// It speaks etcd's protocol, and agents name it in --etcd-endpoints. There is one copy of the data, on this host.
/// While the store is down, packets flow as before, and no host can join. It does not need root. Flags have etcd's
/// names where etcd has such a flag. Like those of the agent, each can also be set by an environment variable
/// (FLAND_DATA_DIR).
#[derive(Debug, Clone, Args)]
pub struct StoreCommand {
    /// Data directory, created if missing
    #[arg(long, value_name = "DIR", env = "FLAND_DATA_DIR", default_value = "/var/lib/flan/store")]
    pub data_dir: PathBuf,

    /// URLs to listen on, separated by commas, each with an IP address and a port. Port 0 takes any free port
    #[arg(
        long,
        value_name = "URLS",
        env = "FLAND_LISTEN_CLIENT_URLS",
        default_value = "http://127.0.0.1:2379"
    )]
    pub listen_client_urls: Vec<Urls>,

    /// Certificate file of the store, for https://
    #[arg(long, value_name = "FILE", env = "FLAND_CERT_FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,

    /// Key file of the store's certificate
    #[arg(long, value_name = "FILE", env = "FLAND_KEY_FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,

    /// CA file. Every client must present a certificate signed by one of these CAs. Without it, the store serves anyone
    /// who can reach it
    #[arg(long, value_name = "FILE", env = "FLAND_TRUSTED_CA_FILE", requires = "cert_file")]
    pub trusted_ca_file: Option<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub serving: ServingArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

impl StoreCommand {
    /// Returns the settings of the store.
    ///
    /// # Errors
    /// A URL that is invalid for listening, and what would work.
    pub fn settings(&self) -> Result<Settings, String> {
        let tls = [&self.cert_file, &self.key_file, &self.trusted_ca_file];
        let flags = ["--listen-client-urls", "--trusted-ca-file"];
        self.serving.settings(&self.data_dir, &self.listen_client_urls, tls, flags)
    }
}

/// Serves until the store fails.
///
/// # Errors
/// [`RefusedSetting`](crate::refused::RefusedSetting), or why the store did not start or cannot go on.
pub async fn run(command: &StoreCommand) -> anyhow::Result<()> {
    let mut store = Embedded::start(command.settings().map_err(refused)?).await?;
    notify::ready();
    notify::status(&format!("serving {}", store.urls().join(" ")));
    Err(store.failed().await)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use flan_agent_api::command_line;

    use super::*;

    #[derive(Parser)]
    struct Sample {
        #[command(flatten)]
        store: StoreCommand,
    }

    fn read(arguments: &[&str]) -> Result<Settings, String> {
        let arguments = ["fland"].iter().chain(arguments).map(Into::into);
        let sample: Sample =
            command_line::read(arguments, |_| None, |_| None).map_err(|error| error.to_string())?;
        sample.store.settings()
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
}
