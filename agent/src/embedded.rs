//! The store, when this process carries it: started, told of, and where a program on this host finds it.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::anyhow;
use flan_embedded_store::{ListenUrl, Running, Settings, StartError};
use tracing::info;

use crate::refused::refused;

/// A store that is served by this process.
pub struct Embedded {
    running: Running,
    data_dir: String,
}

impl Embedded {
    /// Starts it, and says so in the log.
    ///
    /// # Errors
    /// [`RefusedSetting`](crate::refused::RefusedSetting), or why its file or its addresses cannot be used.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let data_dir = settings.data_dir.display().to_string();
        let running = flan_embedded_store::start(settings).await.map_err(|reason| match reason {
            StartError::Setting(text) => refused(text),
            // These say their source themselves; as a chain it would be told twice.
            reason => anyhow!("{reason}"),
        })?;
        info!(urls = running.client_urls().join(","), data_dir, "serving the store");
        Ok(Self { running, data_dir })
    }

    /// Where it listens.
    pub fn urls(&self) -> &[String] {
        self.running.client_urls()
    }

    /// The directory of its data.
    pub fn data_dir(&self) -> &str {
        &self.data_dir
    }

    /// Waits until it can serve no longer, and says why. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        let reason = self.running.failed().await;
        anyhow!("the store in {} can serve no longer: {reason}", self.data_dir)
    }
}

/// The URL by which a program on this host reaches a store that listens at `urls`: on loopback where it listens there,
/// which no change of the host's addresses takes away; else the first. `None` when it listens nowhere.
pub fn local_url(urls: &[String]) -> Option<String> {
    let urls: Vec<ListenUrl> = urls.iter().filter_map(|url| url.parse().ok()).collect();
    let url = urls.iter().find_map(on_loopback).or_else(|| urls.first().copied())?;
    Some(url.to_string())
}

fn on_loopback(url: &ListenUrl) -> Option<ListenUrl> {
    let mut url = *url;
    if url.address.ip().is_unspecified() {
        match url.address.is_ipv4() {
            true => url.address.set_ip(Ipv4Addr::LOCALHOST.into()),
            false => url.address.set_ip(Ipv6Addr::LOCALHOST.into()),
        }
    }
    url.is_loopback().then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialled(urls: &[&str]) -> Option<String> {
        local_url(&urls.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn a_store_on_all_addresses_is_dialled_on_loopback() {
        assert_eq!(dialled(&["http://0.0.0.0:2379"]).unwrap(), "http://127.0.0.1:2379");
        assert_eq!(dialled(&["https://[::]:4001"]).unwrap(), "https://[::1]:4001");
    }

    #[test]
    fn loopback_is_dialled_wherever_it_stands_in_the_list() {
        assert_eq!(dialled(&["http://127.0.0.1:1"]).unwrap(), "http://127.0.0.1:1");
        assert_eq!(dialled(&["http://10.0.0.2:1", "http://[::1]:2"]).unwrap(), "http://[::1]:2");
        assert_eq!(dialled(&["http://10.0.0.2:1", "http://0.0.0.0:2"]).unwrap(), "http://127.0.0.1:2");
    }

    #[test]
    fn without_loopback_the_first_address_is_dialled() {
        assert_eq!(dialled(&["https://10.0.0.2:1", "https://10.0.0.3:1"]).unwrap(), "https://10.0.0.2:1");
        assert_eq!(dialled(&["http://[2001:db8::1]:2379"]).unwrap(), "http://[2001:db8::1]:2379");
        assert_eq!(dialled(&[]), None);
    }
}
