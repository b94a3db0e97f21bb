//! `flanctl hand-over`: prepares this host for flanneld in place of fland.
//!
//! Keeps what flanneld takes over: the lease, subnet.env, and the VXLAN devices with MACs, addresses, neighbours and
//! forwarding entries. Turns what flanneld could not replace or delete into objects of its own.

use flan_agent_api::FLANNELS_WIREGUARD_KEY;
use flan_kernel::{FamilyRules, Link, LinkKind, OwnRules};
use flan_wireguard_keys::{KeyFile, KeyFileError};

use crate::args::{HandOverArgs, HostArgs};
use crate::failure::{Failure, Kind};
use crate::host::{Host, Report};

/// Hands the host over.
pub(crate) async fn run(HandOverArgs { host: args, key_file }: &HandOverArgs) -> Result<(), Failure> {
    let mut host = Host::read(args).await?;
    if !host.named.is_empty() {
        let names: Vec<&str> = host.named.iter().map(|network| network.name.as_str()).collect();
        let message = format!(
            "this host is in other networks than the default one, and flanneld knows one: {}; start fland without them \
             among its --networks, and stop it again",
            names.join(", ")
        );
        return Err(Failure::new(Kind::Refused, message));
    }
    let mut report = Report::new("HandOver", args.dry_run);
    let families = families(&host);
    for rules in host.standing_rules(&mut report) {
        let what = match rules.flannels() {
            Some(flannels) => format!("put {flannels} in place of {rules}"),
            None => format!("delete {rules}"),
        };
        report.step(what, replace(rules, &families, args)).await;
    }
    if host.holdings.has_wireguard() {
        give_key(&key_file.file(), &mut report).await;
    }
    let desired = host.holdings.as_flannels();
    let is_through_us = |link: &Link| matches!(link.kind, LinkKind::Tun { .. } | LinkKind::Ipip(_));
    let through_us = host.holdings.state.links.values().any(|link| is_through_us(link));
    host.bring_to(&desired, &mut report).await;
    if report.has_failed() {
        report.next("run flanctl hand-over again before flanneld is started".to_owned());
    } else if through_us {
        report.next("start flanneld soon: no packet reaches another host before it runs".to_owned());
    } else {
        report.next("start flanneld: it takes over the lease, the device and the subnet file".to_owned());
    }
    if let Some(file) = Host::drop_in() {
        report.next(format!(
            "remove {file}, which starts fland with Docker, and give dockerd flannel's options; then: systemctl daemon-reload"
        ));
    }
    report.finish(args.output, "nothing to do: this host is as flannel wants it")
}

/// Installs flanneld's rules, then removes ours.
async fn replace(rules: OwnRules, families: &[FamilyRules], args: &HostArgs) -> Result<(), Failure> {
    if families.is_empty() && rules.flannels().is_some() {
        let message = format!("{} does not say what this host's network is", args.subnet_file.path.display());
        return Err(Failure::new(Kind::Other, message));
    }
    let refused = |reason| Failure::new(Kind::Other, reason);
    rules.put_flannels(families).await.map_err(refused)?;
    rules.remove().await.map_err(refused)
}

/// Gives flanneld this host's key, so that peers go on knowing it.
async fn give_key(ours: &KeyFile, report: &mut Report) {
    let flannels = KeyFile::new(FLANNELS_WIREGUARD_KEY);
    let what = format!("write this host's WireGuard key to {FLANNELS_WIREGUARD_KEY}");
    match ours.read() {
        // A file that flanneld could not read either makes room.
        Ok(Some(key)) if flannels.read().is_ok_and(|known| known.as_ref() == Some(&key)) => {}
        Ok(Some(key)) => report.step(what, async { flannels.write(&key).map_err(key_failure) }).await,
        Ok(None) => report.left(format!(
            "there is no WireGuard key at {}: flanneld takes that in {FLANNELS_WIREGUARD_KEY}, or makes one",
            ours.path().display()
        )),
        Err(reason) => report.failed(what, key_failure(reason)),
    }
}

fn key_failure(reason: KeyFileError) -> Failure {
    Failure::new(Kind::Other, reason)
}

/// Returns the networks in the subnet file.
fn families(host: &Host) -> Vec<FamilyRules> {
    let Some(env) = &host.env else { return Vec::new() };
    let networks = env.networks.iter();
    networks
        .filter_map(|(family, &network)| Some(FamilyRules { network, subnet: *env.bridges.get(family)? }))
        .collect()
}
