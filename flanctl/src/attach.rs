//! `flanctl attach` and `detach`: containers on the host's own LAN.

mod docker;
mod follow;
mod label;
mod record;

use std::path::Path;

use flan_agent_api::SubnetEnv;
use flan_backends::bridge;
use flan_kernel::lan::{self, LanError, LanLink};
use ipnetwork::{IpNetwork, Ipv4Network};

use self::docker::{Container, Docker};
use self::follow::follow;
use self::record::{Origin, Record, Records};
use crate::args::{AttachArgs, AttachmentsArgs, DetachArgs, Form, ReportForm};
use crate::failure::{Failure, Kind};
use crate::host::ensure_root;
use crate::progress::told;
use crate::{output, table};

pub(crate) use self::label::with_length;

impl From<LanError> for Failure {
    fn from(error: LanError) -> Self {
        let kind = match error {
            LanError::Invalid(_) => Kind::Usage,
            LanError::Unsuitable(_) | LanError::AddressTaken { .. } => Kind::Refused,
            LanError::Netns(_) | LanError::Kernel { .. } => Kind::Other,
        };
        Self::new(kind, error)
    }
}

/// Attaches one container.
pub(crate) async fn attach(args: &AttachArgs) -> Result<(), Failure> {
    ensure_root()?;
    let Some(name) = &args.container else { return follow(args).await };
    let wanted = args.link()?;
    let work = async {
        let docker = Docker::connect(&args.docker_api).await?;
        let container = docker.find(name).await?.ok_or_else(|| {
            let message =
                format!("container {name} does not run; start it first, or give it a label flan.attach");
            Failure::new(Kind::Refused, message)
        })?;
        attach_one(&args.place.attachments, &container, Origin::Command, wanted).await
    };
    let record = told(|| format!("attaching {name} to the LAN"), work).await?;
    match args.output {
        ReportForm::Text => output::print(&record.sentence()),
        ReportForm::Json => output::print_json(&record.document()),
        ReportForm::Yaml => output::print_yaml(&record.document()),
    }
}

/// Detaches a container from all its LANs, or from one.
pub(crate) async fn detach(args: &DetachArgs) -> Result<(), Failure> {
    ensure_root()?;
    let waiting = || "waiting for another flanctl that attaches or detaches".to_owned();
    let records = told(waiting, Records::open(&args.place.attachments)).await?;
    let is_meant = |record: &Record| {
        record.is_of(&args.container) && args.interface.is_none_or(|name| record.interface == name.as_str())
    };
    let meant: Vec<Record> = records.live()?.into_iter().filter(is_meant).collect();
    if meant.is_empty() {
        let on = args.interface.map(|name| format!(" by {name}")).unwrap_or_default();
        let message =
            format!("no container {} is attached to a LAN{on}; see: flanctl attachments", args.container);
        return Err(Failure::new(Kind::NotFound, message));
    }
    let mut first = Ok(());
    for record in &meant {
        let done = record.detach().await.and_then(|()| records.detached(record));
        match done {
            Ok(()) => output::print(&format!(
                "detached {} from {}: {} is gone",
                record.container, record.parent, record.interface
            ))?,
            Err(failure) => first = first.and(Err(failure)),
        }
    }
    records.sweep().await;
    first
}

/// Prints all attachments of this host.
pub(crate) fn list(args: &AttachmentsArgs) -> Result<(), Failure> {
    let all = record::read(&args.place.attachments)?;
    let list = record::List::of(all.iter().filter(|record| record.is_live()));
    match args.output {
        Form::Table | Form::Wide if list.is_empty() => output::print("no container is attached to a LAN"),
        Form::Table => output::print(&list.table(false)),
        Form::Wide => output::print(&list.table(true)),
        Form::Json => output::print_json(&list),
        Form::Yaml => output::print_yaml(&list),
    }
}

async fn attach_one(
    directory: &Path,
    container: &Container,
    origin: Origin,
    mut wanted: LanLink,
) -> Result<Record, Failure> {
    let (file, netns) = container.netns()?;
    if netns.is_ours().map_err(|reason| Failure::new(Kind::Other, reason))? {
        return Err(container.is_of_the_host());
    }
    let records = Records::open(directory).await?;
    records.sweep().await;
    wanted.counted_in = directory.display().to_string();
    let planned = lan::plan(&netns, &wanted).await?;
    // Whoever is stopped halfway leaves the record, and the next one undoes what it names.
    let mut record = Record::new(container, (file, &netns), origin, &wanted, planned.name());
    records.write(&record)?;
    match planned.make().await {
        Ok(attached) => {
            record.is_made(&attached);
            match records.write(&record) {
                Ok(()) => Ok(record),
                Err(failure) => {
                    let _ = record.detach().await;
                    let _ = records.forget(&record);
                    Err(failure)
                }
            }
        }
        Err(error) => {
            records.forget(&record)?;
            // A VLAN device that was made for it alone.
            records.sweep().await;
            Err(error.into())
        }
    }
}

impl AttachArgs {
    /// The link that the flags ask for.
    fn link(&self) -> Result<LanLink, Failure> {
        let Some(parent) = self.parent else {
            return Err(Failure::new(Kind::Usage, "--parent is missing"));
        };
        Ok(LanLink {
            parent,
            vlan: self.vlan,
            mode: self.mode,
            name: self.name,
            mac: self.mac,
            addresses: self.address.clone(),
            gateways: self.gateway.clone(),
            kept: self.kept(),
            counted_in: String::new(),
        })
    }

    /// What stays reachable over flan beside another gateway: flan's networks, and who answers for names.
    fn kept(&self) -> Vec<IpNetwork> {
        let named = self.subnet_dir.files().unwrap_or_default().into_iter().map(|(_, file)| file);
        let files = std::iter::once(self.subnet_file.path.clone()).chain(named);
        // A host without flan has none.
        let networks = files.filter_map(|file| SubnetEnv::load(&file).ok().flatten());
        let networks =
            networks.flat_map(|env| env.networks.iter().map(|(_, network)| *network).collect::<Vec<_>>());
        let resolver = IpNetwork::V4(Ipv4Network::from(bridge::RESOLVER));
        networks.chain([resolver]).collect()
    }
}

impl record::List {
    fn table(&self, wide: bool) -> String {
        let mut header = vec!["CONTAINER", "INTERFACE", "PARENT", "VLAN", "ADDRESSES", "GATEWAYS"];
        if wide {
            header.extend(["MODE", "MAC", "BY"]);
        }
        table::plain(&header, self.items().iter().map(|item| item.row(wide)))
    }
}
