//! Records of what is attached: on a file system that a reboot empties, as it does the kernel.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flan_agent_api::{API_VERSION, write_whole};
use flan_kernel::LinkName;
use flan_kernel::lan::{self, Attached, LanLink, Netns};
use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use serde::{Deserialize, Serialize};

use super::docker::Container;
use crate::failure::{Failure, Kind};
use crate::output::printable_lines;
use crate::table;

/// How often it is asked whether another process has the records yet.
const LOOK: Duration = Duration::from_millis(50);
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
    /// `None` until the link is made as a whole.
    mac: Option<MacAddr6>,
    pub(super) parent: String,
    vlan: Option<u16>,
    vlan_device: Option<String>,
    mode: String,
    addresses: Vec<IpNetwork>,
    gateways: Vec<IpAddr>,
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

impl Records {
    /// Opens the directory, and waits until no other process has it.
    pub(super) async fn open(directory: &Path) -> Result<Self, Failure> {
        let failed = failed(directory);
        DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(&failed)?;
        let lock = File::open(directory).map_err(&failed)?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { directory: directory.to_owned(), _lock: lock }),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK).await,
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    /// Returns what is attached.
    pub(super) fn live(&self) -> Result<Vec<Record>, Failure> {
        Ok(read(&self.directory)?.into_iter().filter(Record::is_live).collect())
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

    /// Forgets what ended with its container, undoes what somebody left unfinished, and removes the VLAN devices that nobody
    /// uses any more. Who came for something else is told what goes wrong, and goes on.
    pub(super) async fn sweep(&self) {
        if let Err(failure) = self.try_to_sweep().await {
            eprintln!(
                "flanctl: cannot clear what is no longer used: {}",
                printable_lines(&failure.to_string())
            );
        }
    }

    async fn try_to_sweep(&self) -> Result<(), Failure> {
        let mut used = Vec::new();
        let (records, is_whole) = read_all(&self.directory)?;
        for record in records {
            if record.has_ended() {
                self.forget(&record)?;
            } else if record.mac.is_none() {
                record.detach().await?;
                self.forget(&record)?;
            } else if !record.is_detached {
                used.extend(record.vlan_device.as_deref().and_then(|name| name.parse::<LinkName>().ok()));
            }
        }
        // What cannot be read may stand on any of them.
        match is_whole {
            true => Ok(lan::remove_vlan_devices_except(&used, &self.directory.display().to_string()).await?),
            false => Ok(()),
        }
    }

    pub(super) fn forget(&self, record: &Record) -> Result<(), Failure> {
        let path = self.file(record);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Each label has a file of its own, so that nothing else takes the place of what is detached.
    fn file(&self, record: &Record) -> PathBuf {
        let id: String = record.container_id.chars().take(ID).collect();
        let what = match &record.origin {
            Origin::Command => record.interface.clone(),
            Origin::Label(label) => {
                let mut hasher = DefaultHasher::new();
                label.hash(&mut hasher);
                format!("label-{:016x}", hasher.finish())
            }
        };
        self.directory.join(format!("{id}-{what}.json"))
    }
}

/// Returns all records. None is no error, and one that cannot be read hides no other.
pub(super) fn read(directory: &Path) -> Result<Vec<Record>, Failure> {
    Ok(read_all(directory)?.0)
}

/// The same, and whether each of them could be read.
fn read_all(directory: &Path) -> Result<(Vec<Record>, bool), Failure> {
    let mut is_whole = true;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), true)),
        entries => entries.map_err(failed(directory))?,
    };
    let mut records: Vec<Record> = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(directory))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let read = fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
        match read {
            Ok(record) => records.push(record),
            // Its container ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                is_whole = false;
                eprintln!("flanctl: leaving {} alone: {error}", path.display());
            }
        }
    }
    records.sort_by(|one, other| (&one.container, &one.interface).cmp(&(&other.container, &other.interface)));
    Ok((records, is_whole))
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
        interface: LinkName,
    ) -> Self {
        Self {
            container: container.name.clone(),
            container_id: container.id.clone(),
            netns: file.to_owned(),
            netns_inode: netns.inode(),
            origin,
            is_detached: false,
            interface: interface.to_string(),
            mac: None,
            parent: wanted.parent.to_string(),
            vlan: wanted.vlan.map(lan::VlanId::get),
            vlan_device: None,
            mode: wanted.mode.to_string(),
            addresses: wanted.addresses.clone(),
            gateways: wanted.gateways.clone(),
        }
    }

    /// Notes that the link is made as a whole.
    pub(super) fn is_made(&mut self, attached: &Attached) {
        self.mac = Some(attached.mac);
        self.vlan_device = attached.vlan_device.map(|name| name.to_string());
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
        !self.is_detached && self.mac.is_some() && !self.has_ended()
    }

    /// Returns whether its container has. Who may not look does not know.
    pub(super) fn has_ended(&self) -> bool {
        match Netns::open(&self.netns) {
            Ok(netns) => netns.inode() != self.netns_inode,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Takes the interface away from the container. One that has ended is without it already.
    pub(super) async fn detach(&self) -> Result<(), Failure> {
        if self.has_ended() {
            return Ok(());
        }
        let netns = Netns::open(&self.netns).map_err(failed(&self.netns))?;
        let name = self.interface.parse::<LinkName>().map_err(|error| Failure::new(Kind::Other, error))?;
        Ok(lan::detach(&netns, name, self.mac).await?)
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
            self.mac()
        )
    }

    fn mac(&self) -> String {
        self.mac.map(|mac| mac.to_string().to_lowercase()).unwrap_or_default()
    }

    /// What was attached, for programs.
    pub(super) fn document(&self) -> impl Serialize {
        Document { api_version: API_VERSION, kind: "Attachment", item: self.item() }
    }

    fn item(&self) -> Item {
        Item {
            container: self.container.clone(),
            container_id: self.container_id.clone(),
            interface: self.interface.clone(),
            mac: self.mac(),
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

/// All attachments of this host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List {
    api_version: &'static str,
    kind: &'static str,
    items: Vec<Item>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    item: Item,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn record(origin: Origin) -> Record {
        Record {
            container: "web".to_owned(),
            container_id: "0123456789abcdef".to_owned(),
            netns: "/proc/self/ns/net".into(),
            netns_inode: Netns::open(Path::new("/proc/self/ns/net")).unwrap().inode(),
            origin,
            is_detached: false,
            interface: "lan0".to_owned(),
            mac: Some(MacAddr6::new(2, 0, 0, 0, 0, 1)),
            parent: "eth0".to_owned(),
            vlan: None,
            vlan_device: None,
            mode: "macvlan".to_owned(),
            addresses: vec!["192.168.1.77/24".parse().unwrap()],
            gateways: Vec::new(),
        }
    }

    async fn records() -> (tempfile::TempDir, Records) {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path()).await.unwrap();
        (directory, records)
    }

    #[tokio::test]
    async fn what_a_person_detached_is_remembered_whoever_takes_its_interface() {
        let (_directory, records) = records().await;
        let labelled = record(Origin::Label("flan.attach".to_owned()));
        records.write(&labelled).unwrap();
        records.detached(&labelled).unwrap();
        records.write(&record(Origin::Command)).unwrap();
        let all = read(&records.directory).unwrap();
        assert!(all.iter().any(|record| record.is_by_label("0123456789abcdef", "flan.attach")));
        assert_eq!(records.live().unwrap().len(), 1);
        // What a person attached is forgotten.
        records.detached(&record(Origin::Command)).unwrap();
        assert_eq!(read(&records.directory).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_hides_no_other() {
        let (directory, records) = records().await;
        std::fs::write(directory.path().join("other.json"), "{}").unwrap();
        records.write(&record(Origin::Command)).unwrap();
        assert_eq!(records.live().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn of_two_processes_one_waits() {
        let (directory, records) = records().await;
        let mut other = std::pin::pin!(Records::open(directory.path()));
        assert!(tokio::time::timeout(3 * LOOK, &mut other).await.is_err());
        drop(records);
        other.await.unwrap();
    }

    #[test]
    fn an_attachment_ends_with_its_network_namespace() {
        let mut ended = record(Origin::Command);
        assert!(ended.is_live());
        ended.netns_inode += 1;
        assert!(ended.has_ended());
        ended.netns = "/no/such/file".into();
        assert!(ended.has_ended());
        let unfinished = Record { mac: None, ..record(Origin::Command) };
        assert!(!unfinished.is_live() && !unfinished.has_ended());
    }

    #[test]
    fn a_container_is_named_by_its_name_or_most_of_its_id() {
        let record = record(Origin::Command);
        assert!(record.is_of("web") && record.is_of("0123456789ab") && record.is_of("0123456789abcdef"));
        assert!(!record.is_of("we") && !record.is_of("0123") && !record.is_of("x123456789ab"));
    }
}
