//! The state that an agent left on this host, for `hand-over` and `leave`. No agent can start meanwhile.

mod report;

use std::path::{Path, PathBuf};

use flan_agent_api::{OnlyAgent, SubnetEnv};
use flan_backends::Holdings;
use flan_kernel::{FirewallError, Kernel, KernelError, OwnRules, State, diff, netlink};
use flan_subnet_lease::{NetworkName, Subnets};

pub(crate) use report::Report;

use crate::args::HostArgs;
use crate::failure::{Failure, Kind};

/// Drop-in of `make install`, which starts fland with Docker.
const DOCKER_DROP_IN: &str = "/etc/systemd/system/docker.service.d/flan.conf";

/// The host, read once.
pub(crate) struct Host {
    kernel: netlink::Linux,
    /// The content of the subnet file, if it exists.
    pub(crate) env: Option<SubnetEnv>,
    /// The networks beside the default one that this host is in, with their subnet files.
    pub(crate) named: Vec<Named>,
    pub(crate) holdings: Holdings,
    /// Each set of rules, and whether it is installed.
    rules: Vec<(OwnRules, Result<bool, FirewallError>)>,
    _only: OnlyAgent,
}

/// A network beside the default one.
pub(crate) struct Named {
    pub(crate) name: NetworkName,
    /// Its subnet file.
    pub(crate) file: PathBuf,
    /// This host's subnets in it, as the file says.
    pub(crate) subnets: Option<Subnets>,
}

impl Host {
    /// Reads all our state on this host.
    pub(crate) async fn read(args: &HostArgs) -> Result<Self, Failure> {
        ensure_root()?;
        let only =
            OnlyAgent::claim().map_err(|error| Failure::new(Kind::Other, error))?.ok_or_else(|| {
                let message = "fland runs on this host; stop it first, with: systemctl disable --now fland";
                Failure::new(Kind::Refused, message)
            })?;
        let env = load(&args.subnet_file.path)?;
        let files = args.subnet_dir.files().map_err(|reason| {
            let directory = args.subnet_dir.path.display();
            Failure::new(Kind::Other, format!("cannot read the directory {directory}: {reason}"))
        })?;
        let mut named = Vec::new();
        for (name, file) in files {
            let subnets = load(&file)?.as_ref().and_then(SubnetEnv::subnets);
            named.push(Named { name, file, subnets });
        }
        let mut kernel = netlink::Linux::new().map_err(|reason| unread(&reason))?;
        let default = env.as_ref().and_then(SubnetEnv::subnets);
        let subnets: Vec<_> = default.into_iter().chain(named.iter().filter_map(|one| one.subnets)).collect();
        let holdings = Holdings::read(&mut kernel, &subnets).await.map_err(|reason| unread(&reason))?;
        let mut rules = Vec::new();
        for set in OwnRules::ALL {
            rules.push((set, set.stand().await));
        }
        Ok(Self { kernel, env, named, holdings, rules, _only: only })
    }

    /// Returns the installed sets of rules. Reports the unreadable ones as failed steps.
    pub(crate) fn standing_rules(&self, report: &mut Report) -> Vec<OwnRules> {
        let mut standing = Vec::new();
        for (rules, stand) in &self.rules {
            match stand {
                Ok(true) => standing.push(*rules),
                Ok(false) => {}
                Err(reason) => {
                    report.failed(format!("look for {rules}"), Failure::new(Kind::Other, reason));
                }
            }
        }
        standing
    }

    /// Replaces our objects in the kernel by `desired`.
    pub(crate) async fn bring_to(&mut self, desired: &State, report: &mut Report) {
        let operations = diff(desired, &self.holdings.state);
        let refused = if report.is_dry_run() { Vec::new() } else { self.kernel.apply(&operations).await };
        let mut refused = refused.into_iter().peekable();
        for operation in operations {
            match refused.next_if(|refusal| refusal.operation == operation) {
                Some(refusal) => {
                    report.failed(operation.to_string(), Failure::new(Kind::Other, refusal.reason));
                }
                None => report.went_well(operation.to_string()),
            }
        }
        for link in &self.holdings.others {
            report.left(format!("{link}: it does not belong to this host's subnet"));
        }
    }

    /// Returns the path of the drop-in with which Docker's unit starts fland, if it is installed.
    pub(crate) fn drop_in() -> Option<&'static str> {
        Path::new(DOCKER_DROP_IN).exists().then_some(DOCKER_DROP_IN)
    }
}

/// Reads a subnet file; `None` if it does not exist.
fn load(file: &Path) -> Result<Option<SubnetEnv>, Failure> {
    SubnetEnv::load(file).map_err(|reason| {
        let message = format!("cannot use {}: {reason}; mend it or delete it", file.display());
        Failure::new(Kind::Usage, message)
    })
}

/// Returns an error unless this process may change devices, routes and rules.
pub(crate) fn ensure_root() -> Result<(), Failure> {
    match netlink::may_change().map_err(|reason| unread(&reason))? {
        true => Ok(()),
        false => Err(Failure::new(Kind::Usage, "this changes devices, routes and rules: run it as root")),
    }
}

fn unread(reason: &KernelError) -> Failure {
    Failure::new(Kind::Other, format!("cannot read the kernel's state: {reason}"))
}
