//! The agent of this host, and what it has found itself.

use flan_agent_api::{Code, Status, SubnetEnv, SubnetEnvError};
use flan_kernel::process::Process;

use super::report::Report;
use crate::agent;
use crate::args::CheckedHost;

const AGENT: &str = "agent";
const SUBNET_FILE: &str = "subnet file";
const FLANNELD: &str = "flanneld";

/// Asks the agent. Returns its status if it answers.
pub(super) async fn look(
    args: &CheckedHost,
    env: &Result<Option<SubnetEnv>, SubnetEnvError>,
    report: &mut Report,
) -> Option<Status> {
    let file = args.subnet_file.path.display();
    let status = agent::get::<Status>(&args.socket.path, "/status").await.ok();
    let flanneld = Process::called_here(FLANNELD);
    match (&status, env, &flanneld) {
        (Some(status), _, _) => tell(status, report),
        (None, _, Some(flanneld)) => {
            let text = format!("{flanneld} runs, and no fland; to change over, see docs/from-flannel.md");
            report.fine(AGENT, text);
        }
        (None, Ok(Some(_)), None) => {
            let text = format!(
                "{file} says that this host has joined, and no fland answers at {}: it learns of no new host; start it \
                 (systemctl start fland), and see journalctl -u fland",
                args.socket.path.display()
            );
            report.found(AGENT, Code::AgentDown, text);
        }
        (None, _, None) => report.fine(AGENT, "fland does not run yet"),
    }
    match (env, &status) {
        (Err(reason), _) => {
            let text = format!("cannot use {file}: {reason}; restart fland, which writes it");
            report.found(SUBNET_FILE, Code::SubnetFile, text);
        }
        (Ok(None), Some(status)) if status.default.ready => {
            let text = format!(
                "fland is ready, and {file} is not there; restart fland, which writes it, and then Docker. If fland has \
                 another --subnet-file, name it here as well"
            );
            report.found(SUBNET_FILE, Code::SubnetFile, text);
        }
        _ => {}
    }
    if let (Some(process), true) = (flanneld, status.is_some()) {
        let text = format!(
            "{process} runs beside fland; unless it is for another network, with another VNI and another key in the store, both \
             change the same devices, routes and lease: stop one of the two"
        );
        report.found(AGENT, Code::OtherAgent, text);
    }
    status
}

fn tell(status: &Status, report: &mut Report) {
    let default = &status.default;
    let state = if default.ready { "ready" } else { "not ready" };
    report.fine(AGENT, format!("fland answers, {state}: {}", default.subnets.join(" ")));
    for problem in &default.problems {
        report.found(AGENT, problem.code, problem.text.clone());
    }
    for network in &status.networks {
        for problem in &network.status.problems {
            report.found(AGENT, problem.code, format!("network {}: {}", network.name, problem.text));
        }
    }
}
