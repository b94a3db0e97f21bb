//! Records of what is attached: on a file system that a reboot empties, as it does the kernel.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use flan_agent_api::{API_VERSION, write_whole};
use flan_kernel::LinkName;
use flan_kernel::lan::{self, Attached, DefaultRoute, LanLink, Netns};
use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use serde::{Deserialize, Serialize};

use super::docker::Container;
use crate::failure::{Failure, Kind};
use crate::table;

/// Characters of a container's id in the name of a file.
const ID: usize = 12;

/// All records of this host, while no other process changes them.
pub(super) struct Records {
    directory: PathBuf,
    _lock: File,
}

/// One attachment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) container: String,
    container_id: String,
    netns: PathBuf,
    netns_inode: u64,
    pub(super) origin: Origin,
    /// Whether a person detached it, who does not want it back before the container starts again.
    is_detached: bool,
    pub(super) interface: String,
    mac: MacAddr6,
    pub(super) parent: String,
    vlan: Option<u16>,
    vlan_device: Option<String>,
    mode: String,
    addresses: Vec<IpNetwork>,
    gateways: Vec<IpAddr>,
    replaced: Vec<Replaced>,
}

/// Who wanted it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Origin {
    /// Somebody who ran `flanctl attach`.
    Command,
    /// A label of the container.
    Label(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Replaced {
    gateway: IpAddr,
    interface: String,
    kept: Vec<IpNetwork>,
}

impl Records {
    /// Opens the directory, and waits until no other process has it.
    pub(super) fn open(directory: &Path) -> Result<Self, Failure> {
        let failed = failed(directory);
        DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(&failed)?;
        let lock = File::open(directory).map_err(&failed)?;
        lock.lock().map_err(&failed)?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// Returns those whose containers run.
    pub(super) fn live(&self) -> Result<Vec<Record>, Failure> {
        Ok(read(&self.directory)?.into_iter().filter(Record::is_live).collect())
    }

    /// Returns those whose containers run, also what a person detached.
    pub(super) fn known(&self) -> Result<Vec<Record>, Failure> {
        Ok(read(&self.directory)?.into_iter().filter(Record::has_netns).collect())
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), Failure> {
        let path = self.file(record);
        let text = serde_json::to_vec_pretty(record).map_err(|error| Failure::new(Kind::Other, error))?;
        write_whole(&path, &text, 0o644).map_err(failed(&path))
    }

    /// Notes that a person detached it.
    pub(super) fn detached(&self, record: &Record) -> Result<(), Failure> {
        match record.origin {
            Origin::Label(_) => self.write(&Record { is_detached: true, ..record.clone() }),
            Origin::Command => self.forget(record),
        }
    }

    /// Forgets what ended with its container, and removes the VLAN devices that nobody uses any more.
    pub(super) async fn sweep(&self) -> Result<Vec<Record>, Failure> {
        let (known, ended): (Vec<Record>, _) =
            read(&self.directory)?.into_iter().partition(Record::has_netns);
        for record in &ended {
            self.forget(record)?;
        }
        let used = known.iter().filter(|record| record.is_live());
        let used: Vec<LinkName> =
            used.filter_map(|record| record.vlan_device.as_deref()?.parse().ok()).collect();
        lan::remove_vlan_devices_except(&used).await?;
        Ok(ended.into_iter().filter(|record| !record.is_detached).collect())
    }

    fn forget(&self, record: &Record) -> Result<(), Failure> {
        let path = self.file(record);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    fn file(&self, record: &Record) -> PathBuf {
        let id: String = record.container_id.chars().take(ID).collect();
        self.directory.join(format!("{id}-{}.json", record.interface))
    }
}

/// Returns all records. None is no error.
pub(super) fn read(directory: &Path) -> Result<Vec<Record>, Failure> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(directory))?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(directory))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = fs::read(&path).map_err(failed(&path))?;
        records.push(serde_json::from_slice(&text).map_err(|error| failed(&path)(error.into()))?);
    }
    records.sort_by(|one: &Record, other| {
        (&one.container, &one.interface).cmp(&(&other.container, &other.interface))
    });
    Ok(records)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::new(Kind::Other, format!("{}: {error}", path.display()))
}

impl Record {
    pub(super) fn new(
        container: &Container,
        (file, netns): (&Path, &Netns),
        origin: Origin,
        wanted: &LanLink,
        attached: &Attached,
    ) -> Self {
        Self {
            container: container.name.clone(),
            container_id: container.id.clone(),
            netns: file.to_owned(),
            netns_inode: netns.inode(),
            origin,
            is_detached: false,
            interface: attached.name.to_string(),
            mac: attached.mac,
            parent: wanted.parent.to_string(),
            vlan: wanted.vlan.map(lan::VlanId::get),
            vlan_device: attached.vlan_device.map(|name| name.to_string()),
            mode: wanted.mode.to_string(),
            addresses: wanted.addresses.clone(),
            gateways: wanted.gateways.clone(),
            replaced: attached.replaced.iter().map(Replaced::of).collect(),
        }
    }

    /// Returns whether it is of the container with this name or id.
    pub(super) fn is_of(&self, container: &str) -> bool {
        self.container == container || (container.len() >= ID && self.container_id.starts_with(container))
    }

    /// Returns whether it is the one that this label of this container asks for.
    pub(super) fn is_by_label(&self, container_id: &str, label: &str) -> bool {
        self.container_id == container_id && matches!(&self.origin, Origin::Label(known) if known == label)
    }

    /// Returns whether it is attached at present.
    pub(super) fn is_live(&self) -> bool {
        !self.is_detached && self.has_netns()
    }

    fn has_netns(&self) -> bool {
        Netns::open(&self.netns).is_ok_and(|netns| netns.inode() == self.netns_inode)
    }

    pub(super) fn netns(&self) -> Result<Netns, Failure> {
        Netns::open(&self.netns).map_err(failed(&self.netns))
    }

    /// Returns what was made.
    pub(super) fn attached(&self) -> Result<Attached, Failure> {
        let name = |text: &str| text.parse::<LinkName>().map_err(|error| Failure::new(Kind::Other, error));
        let replaced = self.replaced.iter().map(|replaced| {
            let interface = name(&replaced.interface)?;
            Ok(DefaultRoute { gateway: replaced.gateway, interface, kept: replaced.kept.clone() })
        });
        Ok(Attached {
            name: name(&self.interface)?,
            mac: self.mac,
            vlan_device: self.vlan_device.as_deref().map(name).transpose()?,
            replaced: replaced.collect::<Result<_, Failure>>()?,
        })
    }

    /// Says what was attached, for people.
    pub(super) fn sentence(&self) -> String {
        let vlan = self.vlan.map(|vlan| format!(", VLAN {vlan}")).unwrap_or_default();
        let gateways = match self.gateways.is_empty() {
            true => String::new(),
            false => format!(", gateway {}", joined(&self.gateways)),
        };
        format!(
            "attached {} to {}{vlan}: {} has {}{gateways}, MAC {}",
            self.container,
            self.parent,
            self.interface,
            joined(&self.addresses),
            mac(self.mac)
        )
    }

    pub(super) fn item(&self) -> Item {
        Item {
            container: self.container.clone(),
            container_id: self.container_id.clone(),
            interface: self.interface.clone(),
            mac: mac(self.mac),
            parent: self.parent.clone(),
            vlan: self.vlan,
            vlan_device: self.vlan_device.clone(),
            mode: self.mode.clone(),
            addresses: self.addresses.clone(),
            gateways: self.gateways.clone(),
            label: match &self.origin {
                Origin::Label(label) => Some(label.clone()),
                Origin::Command => None,
            },
        }
    }
}

impl Replaced {
    fn of(route: &DefaultRoute) -> Self {
        Self { gateway: route.gateway, interface: route.interface.to_string(), kept: route.kept.clone() }
    }
}

/// All attachments of this host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List {
    api_version: &'static str,
    kind: &'static str,
    items: Vec<Item>,
}

/// An attachment, for people and programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Item {
    container: String,
    container_id: String,
    /// Its interface in the container.
    interface: String,
    mac: String,
    /// The host's interface.
    parent: String,
    vlan: Option<u16>,
    /// The host's device of the VLAN.
    vlan_device: Option<String>,
    /// `macvlan` or `bridge`.
    mode: String,
    addresses: Vec<IpNetwork>,
    gateways: Vec<IpAddr>,
    /// The label that asks for it; null if a person did.
    label: Option<String>,
}

impl List {
    pub(super) fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        Self { api_version: API_VERSION, kind: "AttachmentList", items: records.map(Record::item).collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }
}

impl Item {
    pub(super) fn row(&self, wide: bool) -> Vec<String> {
        let vlan = self.vlan.map(|vlan| vlan.to_string());
        let mut row = vec![
            self.container.clone(),
            self.interface.clone(),
            self.parent.clone(),
            table::or_dash(vlan.as_deref()),
            joined(&self.addresses),
            table::or_dash(Some(joined(&self.gateways).as_str())),
        ];
        if wide {
            let by =
                self.label.as_deref().map_or_else(|| "command".to_owned(), |label| format!("label {label}"));
            row.extend([self.mode.clone(), self.mac.clone(), by]);
        }
        row
    }
}

fn joined<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn mac(mac: MacAddr6) -> String {
    mac.to_string().to_lowercase()
}
