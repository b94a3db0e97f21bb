//! The store in the agent's process.

use std::time::SystemTime;

use anyhow::anyhow;
use flan_agent_api::{StoreArgs, urls};
use flan_embedded_store::{ListenUrl, Running, Settings, StartError};
use flan_tls_files::{Holder, Identity};
use tracing::info;

use crate::refused::refused;

/// A running store in this process.
pub struct Embedded {
    running: Running,
    data_dir: String,
}

impl Embedded {
    /// Starts the store, and logs it.
    ///
    /// # Errors
    /// [`RefusedSetting`](crate::refused::RefusedSetting), or why its file or addresses cannot be used.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let data_dir = settings.data_dir.display().to_string();
        let running = flan_embedded_store::start(settings).await.map_err(|reason| match reason {
            StartError::Setting(text) => refused(text),
            // These errors include their source, which a chain would repeat.
            reason => anyhow!("{reason}"),
        })?;
        info!(urls = running.client_urls().join(","), data_dir, "serving the store");
        Ok(Self { running, data_dir })
    }

    /// Returns the URLs on which it listens.
    pub fn urls(&self) -> &[String] {
        self.running.client_urls()
    }

    /// Returns its data directory.
    pub fn data_dir(&self) -> &str {
        &self.data_dir
    }

    /// Returns what to ask for its figures.
    pub fn figures(&self) -> &flan_embedded_store::Figures {
        self.running.figures()
    }

    /// Waits until the store fails, and returns the reason. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        let reason = self.running.failed().await;
        anyhow!("the store in {} has failed: {reason}", self.data_dir)
    }
}

/// Refuses certificates with which the agent could not reach its own store.
///
/// # Errors
/// What does not fit, and what would work.
pub fn ensure_reachable(settings: &Settings, client: &StoreArgs) -> Result<(), String> {
    let listen: Vec<String> = settings.listen.iter().map(ToString::to_string).collect();
    let dialled = urls::local_url(listen.iter().map(String::as_str)).and_then(|url| url.parse().ok());
    let (Some(files), Some(url)): (_, Option<ListenUrl>) = (&settings.tls, dialled) else { return Ok(()) };
    if let (Some(authorities), None) = (&files.client_authorities, &client.etcd_certfile) {
        return Err(format!(
            "--store-trusted-ca-file {} lets the store serve only clients with a certificate, and this agent, its first \
             client, has none; give --etcd-certfile and --etcd-keyfile as well",
            authorities.display()
        ));
    }
    let own = Identity::load(Holder::Store, &files.certificate, &files.key, SystemTime::now());
    let names = own.map_err(|bad| bad.to_string())?.names;
    let address = url.address.ip().to_string();
    if names.contains(&address) {
        return Ok(());
    }
    Err(format!(
        "the store's certificate {} is for {}, and this agent dials the store at {url}; issue it with {address} in \
         subjectAltName, or have --store-listen begin with an address of the certificate and without one on loopback",
        files.certificate.display(),
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::embedded_args::tests::Sample;

    /// Checks a start with a certificate for these names, `cert.pem`, and these flags.
    fn start_with(names: &[&str], listen: &str, flags: &[&str]) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("cert.pem"), made.cert.pem()).unwrap();
        fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let (certificate, key) = (path("cert.pem"), path("key.pem"));
        let fixed = ["fland", "--embedded-store=/data", "--store-listen", listen];
        let files = ["--store-cert-file", &certificate, "--store-key-file", &key];
        let args = Sample::try_parse_from([&fixed[..], &files[..], flags].concat()).unwrap();
        let settings = args.embedded.settings(&args.store).unwrap().unwrap();
        assert!(Path::new(&certificate).exists());
        ensure_reachable(&settings, &args.store)
    }

    #[test]
    fn a_certificate_that_does_not_name_what_the_agent_dials_is_refused() {
        let both = "https://127.0.0.1:2379,https://10.0.0.2:2379";
        let refusal = start_with(&["10.0.0.2"], both, &[]).unwrap_err();
        assert!(
            refusal.contains(
                "cert.pem is for 10.0.0.2, and this agent dials the store at https://127.0.0.1:2379"
            ),
            "{refusal}"
        );
        assert!(refusal.contains("127.0.0.1 in subjectAltName"), "{refusal}");
        start_with(&["10.0.0.2"], "https://10.0.0.2:2379", &[]).unwrap();
        start_with(&["10.0.0.2", "127.0.0.1"], both, &[]).unwrap();
        start_with(&["::1"], "https://[::]:2379", &[]).unwrap();
    }

    #[test]
    fn a_store_that_demands_certificates_is_refused_to_an_agent_without_one() {
        let (listen, demands) = ("https://127.0.0.1:2379", "--store-trusted-ca-file=ca.pem");
        let refusal = start_with(&["127.0.0.1"], listen, &[demands]).unwrap_err();
        assert!(refusal.contains("give --etcd-certfile and --etcd-keyfile"), "{refusal}");
        let own = ["--etcd-certfile=own.pem", "--etcd-keyfile=own-key.pem"];
        start_with(&["127.0.0.1"], listen, &[demands, own[0], own[1]]).unwrap();
    }
}
