//! `flanctl check`: every reason, found on this host, why packets do not pass.
//!
//! It changes nothing. Each module looks at one part, with what others have found: the store says which backend this host
//! needs, the backend which devices and ports.

mod agent;
mod docker;
mod interface;
mod kernel;
mod path;
mod peers;
mod report;
mod rules;
mod store;
mod this_host;

pub(crate) use flan_host::docker::SETTINGS_FILE as DEFAULT_SETTINGS;

use flan_agent_api::SubnetEnv;
use flan_subnet_lease::StoreConfig;

pub(crate) use self::report::Report;
use self::this_host::{Examination, ThisHost};
use crate::args::{CheckArgs, CheckedHost, ReportForm};
use crate::failure::{Failure, Kind};
use crate::output;
use crate::progress::told;

/// Looks, and prints what was found. Fails if anything is wrong. `comment` says where the store's URLs are from.
pub(crate) async fn check(args: &CheckArgs, config: StoreConfig, comment: &str) -> Result<(), Failure> {
    ensure_root()?;
    let report = told(|| "looking at this host".to_owned(), examined(&args.host, &config, comment)).await;
    match args.output {
        ReportForm::Json => output::print_json(&report)?,
        ReportForm::Yaml => output::print_yaml(&report)?,
        ReportForm::Text => output::print(&report.text())?,
    }
    match report.found_count() {
        0 => Ok(()),
        count => {
            Err(Failure::new(Kind::Problems, format!("{} on this host", output::count(count, "problem"))))
        }
    }
}

/// Returns an error unless this process may see everything.
pub(crate) fn ensure_root() -> Result<(), Failure> {
    let can = flan_kernel::netlink::may_change().map_err(|reason| Failure::new(Kind::Other, reason))?;
    let message = "this reads packet filters and other programs' ports: run it as root";
    if can { Ok(()) } else { Err(Failure::new(Kind::Usage, message)) }
}

/// Returns what was found.
pub(crate) async fn examined(args: &CheckedHost, config: &StoreConfig, comment: &str) -> Report {
    let mut report = Report::default();
    examine(args, config, comment, &mut report).await;
    report
}

async fn examine(args: &CheckedHost, config: &StoreConfig, comment: &str, report: &mut Report) {
    let file = SubnetEnv::load(&args.subnet_file.path);
    let running = agent::look(args, &file, report).await;
    let host = ThisHost::new(running, file, &args.node_id);
    let stored = store::look(config, comment, &host, report).await;
    let Some(stored) = stored else {
        // Without a config nobody knows what this host needs.
        docker::look(args, &host, &[], report).await;
        kernel::look_at_tables(report);
        return;
    };
    let config = &stored.config;
    let external = interface::look(args, config, &host, report).await;
    if let Some(external) = &external {
        interface::look_for_others(external, &stored, &host, report).await;
    }
    kernel::look_at_features(config, &host, report);
    kernel::look_at_port(config, &host, report).await;
    interface::look_at_networks(config, &host, report).await;
    let overlays: Vec<_> = config.networks().map(|(_, network)| network).collect();
    let seen = Examination { config, external: external.as_ref(), host: &host, leases: &stored.leases };
    kernel::look_at_settings(&seen, report).await;
    peers::look(&seen, report).await;
    rules::look(&seen, report).await;
    docker::look(args, &host, &overlays, report).await;
    kernel::look_at_tables(report);
    match &host.running {
        Some(status) if status.default.probed.is_some() => path::of_agent(status, report),
        _ => path::look(&seen, report).await,
    }
}
