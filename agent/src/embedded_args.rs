//! Flags of the store in the agent's process.

use std::path::PathBuf;

use clap::Args;
use flan_agent_api::{StoreArgs, Urls};
use flan_embedded_store::Settings;

use crate::serving_args::ServingArgs;

/// The embedded store.
#[derive(Debug, Clone, Args)]
#[command(
    next_help_heading = "Embedded store, instead of etcd",
    mut_group("ServingArgs", |group| group.requires("embedded_store"))
)]
pub struct EmbeddedArgs {
    /// Run the store on this host, in this directory, which is created if missing. The other hosts need no etcd, and
    /// name this host in --etcd-endpoints. There is one copy of the data. If the store fails, fland exits
    #[arg(long, value_name = "DIR", env = "FLAND_EMBEDDED_STORE")]
    pub embedded_store: Option<PathBuf>,

    /// URLs on which the store listens, separated by commas, each with an IP address and a port. The agent connects to
    /// the first one on loopback or on all addresses, else to the first. With https://, the certificate must name that
    /// address
    #[arg(
        long,
        value_name = "URLS",
        env = "FLAND_STORE_LISTEN",
        default_value = "http://127.0.0.1:2379",
        requires = "embedded_store"
    )]
    pub store_listen: Vec<Urls>,

    /// Certificate file of the store, for https://
    #[arg(
        long,
        value_name = "FILE",
        env = "FLAND_STORE_CERT_FILE",
        requires_all = ["embedded_store", "store_key_file"]
    )]
    pub store_cert_file: Option<PathBuf>,

    /// Key file of the store's certificate
    #[arg(
        long,
        value_name = "FILE",
        env = "FLAND_STORE_KEY_FILE",
        requires_all = ["embedded_store", "store_cert_file"]
    )]
    pub store_key_file: Option<PathBuf>,

    /// CA file. Every client, including this agent, must present a certificate signed by one of these CAs. Without it,
    /// the store serves anyone who can reach it
    #[arg(
        long,
        value_name = "FILE",
        env = "FLAND_STORE_TRUSTED_CA_FILE",
        requires_all = ["embedded_store", "store_cert_file"]
    )]
    pub store_trusted_ca_file: Option<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub serving: ServingArgs,
}

impl EmbeddedArgs {
    /// Returns the settings of the store; `None` if the agent runs none.
    ///
    /// # Errors
    /// If `store` names other endpoints, because nobody could tell which store counts, or if a URL is invalid for
    /// listening.
    pub fn settings(&self, store: &StoreArgs) -> Result<Option<Settings>, String> {
        let Some(data_dir) = &self.embedded_store else { return Ok(None) };
        if !store.etcd_endpoints.is_empty() {
            return Err(format!(
                "--embedded-store {} brings the store along, and --etcd-endpoints {} (or the variable \
                 FLAND_ETCD_ENDPOINTS or FLANNELD_ETCD_ENDPOINTS) names another; leave one of the two out",
                data_dir.display(),
                store.given_endpoints()
            ));
        }
        let tls = [&self.store_cert_file, &self.store_key_file, &self.store_trusted_ca_file];
        let flags = ["--store-listen", "--store-trusted-ca-file"];
        self.serving.settings(data_dir, &self.store_listen, tls, flags).map(Some)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use clap::Parser;
    use flan_agent_api::command_line;

    use super::*;

    #[derive(Parser)]
    pub(crate) struct Sample {
        #[command(flatten)]
        pub(crate) store: StoreArgs,
        #[command(flatten)]
        pub(crate) embedded: EmbeddedArgs,
    }

    fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let arguments = ["fland"].iter().chain(arguments).map(Into::into);
        let variable = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let sample: Sample =
            command_line::read(arguments, variable, |_| None).map_err(|error| error.to_string())?;
        sample.embedded.settings(&sample.store)
    }

    #[test]
    fn without_the_flag_there_is_no_store() {
        assert!(read(&[], &[]).unwrap().is_none());
        assert!(read(&["--embedded-store="], &[]).unwrap().is_none());
    }

    #[test]
    fn a_store_listens_on_loopback_unless_told_otherwise() {
        let settings = read(&["--embedded-store", "/var/lib/flan/store"], &[]).unwrap().unwrap();
        assert_eq!(settings.data_dir, PathBuf::from("/var/lib/flan/store"));
        assert_eq!(settings.listen, ["http://127.0.0.1:2379".parse().unwrap()]);
        assert!(settings.tls.is_none() && !settings.insecure);
        assert_eq!(settings.retention, Duration::from_secs(3600));
    }

    #[test]
    fn it_listens_where_it_is_told_to() {
        let urls = "-store-listen=http://127.0.0.1:1,http://[::]:2";
        let settings = read(&["-embedded-store", "/data", urls, "-store-insecure"], &[]).unwrap().unwrap();
        let urls: Vec<_> = settings.listen.iter().map(ToString::to_string).collect();
        assert_eq!(urls, ["http://127.0.0.1:1", "http://[::]:2"]);
        assert!(settings.insecure);
    }

    #[test]
    fn endpoints_beside_it_are_refused_wherever_they_were_given() {
        let refusal = |arguments: &[&str], environment: &[(&str, &str)]| {
            read(arguments, environment).map(drop).unwrap_err()
        };
        let embedded = "--embedded-store=/data";
        assert_eq!(
            refusal(&[embedded, "--etcd-endpoints", "http://10.0.0.2:2379"], &[]),
            "--embedded-store /data brings the store along, and --etcd-endpoints http://10.0.0.2:2379 (or the variable \
             FLAND_ETCD_ENDPOINTS or FLANNELD_ETCD_ENDPOINTS) names another; leave one of the two out"
        );
        // clap reads FLAND_ETCD_ENDPOINTS from the real environment: see tests/command_line.rs.
        let flannels = "FLANNELD_ETCD_ENDPOINTS";
        let refusal = refusal(&[embedded], &[(flannels, "http://127.0.0.1:2379")]);
        assert!(refusal.contains("leave one of the two out"), "{refusal}");
        assert!(read(&[embedded], &[(flannels, "")]).unwrap().is_some(), "an empty one counts as none");
    }

    #[test]
    fn flags_of_a_store_that_is_not_asked_for_are_refused() {
        for flag in [
            "--store-listen=http://10.0.0.2:2379",
            "--store-insecure",
            "--auto-compaction-retention=2h",
            "--store-trusted-ca-file=ca.pem",
        ] {
            let refusal = read(&[flag], &[]).map(drop).unwrap_err();
            assert!(refusal.contains("--embedded-store"), "{flag}: {refusal}");
        }
    }

    #[test]
    fn a_certificate_needs_its_key_and_authorities_need_a_certificate() {
        let refusal = |flag| read(&["--embedded-store=/data", flag], &[]).map(drop).unwrap_err();
        assert!(refusal("--store-cert-file=cert.pem").contains("--store-key-file"));
        assert!(refusal("--store-key-file=key.pem").contains("--store-cert-file"));
        assert!(refusal("--store-trusted-ca-file=ca.pem").contains("--store-cert-file"));
        let whole = ["--embedded-store=/data", "--store-cert-file=cert.pem", "--store-key-file=key.pem"];
        let tls = read(&whole, &[]).unwrap().unwrap().tls.unwrap();
        assert_eq!((tls.certificate, tls.key), ("cert.pem".into(), "key.pem".into()));
        assert_eq!(tls.client_authorities, None);
    }
}
