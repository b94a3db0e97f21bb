//! The site's DNS servers, which answer what is not ours.

use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use hickory_server::proto::rr::Name;
use hickory_server::resolver::config::NameServerConfig;
use hickory_server::resolver::system_conf::parse_resolv_conf;
use hickory_server::store::forwarder::{ForwardConfig, ForwardZoneHandler};
use hickory_server::zone_handler::Catalog;

/// Who answers what is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// The servers that this host asks itself, by `/etc/resolv.conf`.
    OfThisHost,
    /// These servers.
    These(Vec<IpAddr>),
    /// Nobody: it is refused, and who asks goes on to the next server that it knows.
    Nobody,
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::OfThisHost),
            "none" => Ok(Self::Nobody),
            servers => {
                let parsed: Result<Vec<IpAddr>, _> =
                    servers.split(',').map(|one| one.trim().parse()).collect();
                parsed
                    .map(Self::These)
                    .map_err(|_| "it must be host, none, or addresses like 192.0.2.53".to_owned())
            }
        }
    }
}

impl Upstream {
    /// Returns the servers, without those that are ourselves.
    pub(crate) fn servers(&self, ours: &[IpAddr]) -> Vec<IpAddr> {
        let mut servers = match self {
            Self::OfThisHost => servers_in(Path::new("/etc/resolv.conf")),
            Self::These(servers) => servers.clone(),
            Self::Nobody => Vec::new(),
        };
        servers.retain(|server| !ours.contains(server));
        servers
    }
}

fn servers_in(file: &Path) -> Vec<IpAddr> {
    let Ok(content) = std::fs::read(file) else { return Vec::new() };
    let Ok((config, _)) = parse_resolv_conf(content) else { return Vec::new() };
    config.name_servers().iter().map(|server| server.ip).collect()
}

/// Returns what asks these servers; `None` if there are none.
pub(crate) fn forwarder(servers: &[IpAddr]) -> Result<Option<Arc<Catalog>>, String> {
    if servers.is_empty() {
        return Ok(None);
    }
    let name_servers = servers.iter().copied().map(NameServerConfig::udp_and_tcp).collect();
    let handler = ForwardZoneHandler::builder_tokio(ForwardConfig { name_servers, options: None }).build()?;
    let mut catalog = Catalog::new();
    catalog.upsert(Name::root().into(), vec![Arc::new(handler)]);
    Ok(Some(Arc::new(catalog)))
}
