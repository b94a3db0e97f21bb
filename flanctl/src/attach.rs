//! `flanctl attach` and `detach`: containers on the host's own LAN.

mod docker;
mod follow;
mod label;
mod record;

use std::path::Path;

use flan_agent_api::SubnetEnv;
use flan_backends::bridge;
use flan_kernel::lan::{self, LanError, LanLink};
use flan_kernel::netlink;
use ipnetwork::{IpNetwork, Ipv4Network};

use self::docker::{Container, Docker};
use self::follow::follow;
use self::record::{Origin, Record, Records};
use crate::args::{AttachArgs, AttachmentsArgs, DetachArgs, Form};
use crate::failure::{Failure, Kind};
use crate::progress::told;
use crate::{output, table};

pub(crate) use self::label::with_length;

impl From<LanError> for Failure {
    fn from(error: LanError) -> Self {
        let kind = match error {
            LanError::Invalid(_) => Kind::Usage,
            LanError::Unsuitable(_) => Kind::Refused,
            LanError::Netns(_) | LanError::Kernel { .. } => Kind::Other,
        };
        Self::new(kind, error)
    }
}

/// Attaches one container.
pub(crate) async fn attach(args: &AttachArgs) -> Result<(), Failure> {
    let Some(name) = &args.container else { return follow(args).await };
    let wanted = args.link()?;
    let work = async {
        let records = open(&args.place.attachments).await?;
        let container = Docker::connect(&args.docker_api).await?.find(name).await?;
        attach_one(&records, &container, Origin::Command, wanted, &args.kept()).await
    };
    let record = told(|| format!("attaching {name} to the LAN"), work).await?;
    match args.output {
        Form::Table | Form::Wide => output::print(&record.sentence()),
        Form::Json => output::print_json(&record.item()),
        Form::Yaml => output::print_yaml(&record.item()),
    }
}

/// Detaches a container from all its LANs, or from one.
pub(crate) async fn detach(args: &DetachArgs) -> Result<(), Failure> {
    let records = open(&args.place.attachments).await?;
    let is_meant = |record: &&Record| {
        record.is_of(&args.container) && args.interface.is_none_or(|name| record.interface == name.as_str())
    };
    let all = records.live()?;
    let meant: Vec<&Record> = all.iter().filter(is_meant).collect();
    if meant.is_empty() {
        let on = args.interface.map(|name| format!(" by {name}")).unwrap_or_default();
        let message =
            format!("no container {} is attached to a LAN{on}; see: flanctl attachments", args.container);
        return Err(Failure::new(Kind::NotFound, message));
    }
    for record in meant {
        lan::detach(&record.netns()?, &record.attached()?).await?;
        records.detached(record)?;
        output::print(&format!(
            "detached {} from {}: {} is gone",
            record.container, record.parent, record.interface
        ))?;
    }
    records.sweep().await.map(drop)
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

/// Opens the records, once it is certain that this process may change anything, and clears what ended.
async fn open(directory: &Path) -> Result<Records, Failure> {
    if !netlink::may_change().map_err(|reason| Failure::new(Kind::Other, reason))? {
        return Err(Failure::new(Kind::Usage, "this changes interfaces and routes: run it as root"));
    }
    let records = Records::open(directory)?;
    records.sweep().await?;
    Ok(records)
}

async fn attach_one(
    records: &Records,
    container: &Container,
    origin: Origin,
    mut wanted: LanLink,
    kept: &[IpNetwork],
) -> Result<Record, Failure> {
    let (file, netns) = container.netns()?;
    if netns.is_ours().map_err(|reason| Failure::new(Kind::Other, reason))? {
        return Err(container.is_of_the_host());
    }
    kept.clone_into(&mut wanted.kept);
    let attached = lan::attach(&netns, &wanted).await;
    let attached = match attached {
        Ok(attached) => attached,
        Err(error) => {
            // A VLAN device that was made for it alone.
            records.sweep().await?;
            return Err(error.into());
        }
    };
    let record = Record::new(container, (file, &netns), origin, &wanted, &attached);
    if let Err(failure) = records.write(&record) {
        lan::detach(&netns, &attached).await?;
        return Err(failure);
    }
    Ok(record)
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
            kept: Vec::new(),
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
