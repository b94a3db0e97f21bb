//! `flanctl leave`: removes everything of ours from this host, and nothing else.

mod lease;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use flan_agent_api::SubnetEnv;
use flan_kernel::{State, netlink};
use flan_subnet_lease::{Lease, NodeIdentity, Store};
use ipnetwork::IpNetwork;

use crate::args::LeaveArgs;
use crate::confirm::confirmed;
use crate::failure::{Failure, Kind};
use crate::host::{Host, Report};
use crate::subnets;

use lease::Holder;

/// Runtime directory of the agent's unit.
const RUN_DIRECTORY: &str = "/run/flannel";

/// Takes this host out of the network. Without a store, keeps the lease.
pub(crate) async fn run(store: Option<Store>, args: &LeaveArgs) -> Result<(), Failure> {
    let mut host = Host::read(&args.host).await?;
    let leases = match &store {
        Some(store) => Some(own_leases(store, &host, args).await),
        None => None,
    };
    let planned = perform(&mut host, &leases, args, true).await;
    if args.host.dry_run || planned.is_empty() {
        return planned.finish(args.host.output, "nothing to do: nothing of fland's is on this host");
    }
    if !args.yes {
        eprintln!("{}", planned.text());
        let question = "Take this host out of the network? Its containers lose the other hosts. [y/N] ";
        if !confirmed(question)? {
            return Err(Failure::new(Kind::Refused, "nothing was changed"));
        }
    }
    perform(&mut host, &leases, args, false).await.finish(args.host.output, "")
}

/// This host's leases, each with the store of its network.
type Leases = Option<Result<Vec<(Store, Lease)>, Failure>>;

/// Takes all steps. In a dry run, only reports them.
async fn perform(host: &mut Host, leases: &Leases, args: &LeaveArgs, dry_run: bool) -> Report {
    let mut report = Report::new("Leave", dry_run);
    match leases {
        Some(Ok(leases)) => {
            for (store, lease) in leases {
                let permanence = if lease.is_reservation() { "reservation" } else { "lease" };
                let holder = lease.attributes.holder();
                let what = format!("delete the {permanence} {} of {holder} from the store", lease.subnets);
                report.step(what, delete_lease(store, lease)).await;
            }
        }
        Some(Err(failure)) => {
            let reason = format!("{failure}; with --keep-lease it stays until it expires");
            report.failed(
                "delete this host's lease from the store".to_owned(),
                Failure::new(failure.kind, reason),
            );
        }
        None => {}
    }
    for rules in host.standing_rules(&mut report) {
        let work = async { rules.remove().await.map_err(|reason| Failure::new(Kind::Other, reason)) };
        report.step(format!("delete {rules}"), work).await;
    }
    host.bring_to(&State::default(), &mut report).await;
    delete_files(&mut report, host, args).await;
    if let Some(file) = Host::drop_in() {
        report.next(format!("remove {file}, which starts fland with Docker; then: systemctl daemon-reload"));
    }
    if let Some(env) = &host.env {
        let bridges: Vec<String> = env.bridges.values().map(ToString::to_string).collect();
        report.next(format!(
            "give Docker another subnet than {}, which may be another host's soon; it keeps that of docker0: systemctl stop \
             docker docker.socket && ip link delete docker0 && systemctl start docker",
            bridges.join(" and ")
        ));
    }
    report
}

/// Deletes the files last, and only if nothing failed, because a retry needs them to find the rest.
async fn delete_files(report: &mut Report, host: &Host, args: &LeaveArgs) {
    let named = host.named.iter().map(|network| &network.file);
    for file in named.chain([&args.host.subnet_file.path, &args.docker_opts]) {
        if !file.exists() {
            continue;
        }
        if report.has_failed() {
            report.left(format!("{}: the next try finds what is left by it", file.display()));
            continue;
        }
        report.step(format!("delete {}", file.display()), async { delete_file(file) }).await;
    }
    if !report.is_dry_run() {
        // Fails if another program has files in a directory, which then stays.
        let _ = std::fs::remove_dir(&args.host.subnet_dir.path);
        let _ = std::fs::remove_dir(RUN_DIRECTORY);
    }
}

fn delete_file(file: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::new(Kind::Other, error)),
        _ => Ok(()),
    }
}

async fn delete_lease(store: &Store, lease: &Lease) -> Result<(), Failure> {
    match subnets::delete(store, &lease.subnets.key(), lease.mod_revision).await? {
        true => Ok(()),
        false => {
            Err(Failure::new(Kind::Refused, "somebody else wrote it at the same moment; look and try again"))
        }
    }
}

async fn own_leases(store: &Store, host: &Host, args: &LeaveArgs) -> Result<Vec<(Store, Lease)>, Failure> {
    let addresses = addresses(args).await?;
    let default = (store.clone(), host.env.as_ref().and_then(SubnetEnv::subnets));
    let named = host.named.iter().map(|network| (store.network(&network.name), network.subnets));
    let mut all = Vec::new();
    for (store, previous) in std::iter::once(default).chain(named) {
        let node = NodeIdentity { host: None, id: args.node_id.id() };
        let holder = Holder { node, addresses: addresses.clone(), previous };
        let leases = holder.leases(&store.leases().list().await?);
        all.extend(leases.into_iter().map(|lease| (store.clone(), lease)));
    }
    Ok(all)
}

/// Returns every address by which a lease may name this host.
async fn addresses(args: &LeaveArgs) -> Result<BTreeSet<IpAddr>, Failure> {
    let interfaces = netlink::interfaces().await.map_err(|reason| Failure::new(Kind::Other, reason))?;
    let held = interfaces.iter().filter(|interface| !interface.loopback);
    let held = held.flat_map(|interface| interface.addresses.iter().map(IpNetwork::ip));
    Ok(held.chain(args.public_ips.given().values().copied()).collect())
}
