//! The one way into the kernel: read what is there, compare with what is wanted, apply the difference.

use std::time::Duration;

use flan_kernel::{
    FailedOperation, Firewall, FirewallError, Kernel, KernelError, Operation, Ownership, Ruleset, State, diff,
};
use tracing::{debug, info, warn};

/// Everything that this host should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Devices, addresses, neighbours, forwarding entries, routes.
    pub state: State,
    /// Packet filter rules.
    pub rules: Ruleset,
}

/// Brings the kernel in line.
pub struct Reconciler<K, F> {
    kernel: K,
    firewall: F,
    ownership: Ownership,
}

/// What one round did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations that were carried out.
    pub applied: usize,
    /// Whether a device was made, or made anew.
    pub device_is_new: bool,
    /// Operations that the kernel refused. They come up again in the next round, as long as they are wanted.
    pub failed: Vec<FailedOperation>,
    /// The kernel could not even be read.
    pub unread: Option<KernelError>,
    /// The rules could not be put right.
    pub firewall: Option<FirewallError>,
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// A reconciler for what `ownership` says is ours.
    pub fn new(kernel: K, firewall: F, ownership: Ownership) -> Self {
        Self { kernel, firewall, ownership }
    }

    /// What the kernel holds of ours.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub async fn actual(&mut self) -> Result<State, KernelError> {
        self.kernel.snapshot(&self.ownership).await
    }

    /// One round. A failure stops nothing else: what could be done is done, and the rest is in the outcome.
    pub async fn reconcile(&mut self, desired: &Desired) -> Outcome {
        let firewall = self.keep_rules(&desired.rules).await.err();
        let mut outcome = Outcome { firewall, ..Outcome::default() };
        let actual = match self.actual().await {
            Ok(actual) => actual,
            Err(reason) => {
                warn!(%reason, "cannot read the kernel's state; leaving it as it is");
                outcome.unread = Some(reason);
                return outcome;
            }
        };
        let operations = diff(&desired.state, &actual);
        for operation in &operations {
            match operation {
                Operation::ReplaceLink { name, because, .. } => {
                    info!(device = %name, because, "making the device anew");
                }
                operation => debug!(%operation, "apply"),
            }
        }
        outcome.failed = self.kernel.apply(&operations).await;
        outcome.device_is_new = operations.iter().any(|operation| {
            matches!(operation, Operation::CreateLink { .. } | Operation::ReplaceLink { .. })
        });
        outcome.applied = operations.len() - outcome.failed.len();
        for failed in outcome.failed.iter().take(SHOWN) {
            warn!(operation = %failed.operation, reason = %failed.reason, "the kernel refused an operation");
        }
        if outcome.failed.len() > SHOWN {
            warn!(more = outcome.failed.len() - SHOWN, "the kernel refused more operations");
        }
        outcome
    }

    /// Puts the packet filter rules in place, where they are not. Nobody tells us when they are changed.
    ///
    /// # Errors
    /// When they can be neither read nor written.
    pub async fn keep_rules(&mut self, rules: &Ruleset) -> Result<(), FirewallError> {
        match self.firewall.apply(rules).await {
            Ok(true) => info!("packet filter rules put in place"),
            Ok(false) => {}
            Err(reason) => {
                warn!(%reason, "cannot put the packet filter rules in place");
                return Err(reason);
            }
        }
        Ok(())
    }

    /// Waits until the kernel may have changed. Cancel-safe.
    pub async fn changed(&mut self) {
        self.kernel.changed().await;
    }
}

impl Outcome {
    /// What is not as it should be, in one line.
    pub fn problem(&self) -> Option<String> {
        let operation = self.failed.first().map(|failed| match self.failed.len() {
            1 => failed.to_string(),
            count => format!("{failed} (and {} more)", count - 1),
        });
        self.unread
            .as_ref()
            .map(|reason| format!("cannot read the kernel's state: {reason}"))
            .or(operation)
            .or(self.firewall.as_ref().map(ToString::to_string))
    }
}

/// Refused operations that are logged one by one.
const SHOWN: usize = 5;

/// How long to wait before a failed round is tried again: 1 s, doubled each time, up to 30 s.
pub fn retry_after(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use flan_kernel::fake::{FakeFirewall, FakeKernel};
    use flan_kernel::{Link, LinkKind, Route, RouteKey, RouteTarget, Vxlan};

    use super::*;

    fn desired(peers: u8) -> Desired {
        let link = "flannel.1".parse().unwrap();
        let kind = LinkKind::Vxlan(Vxlan {
            vni: 1,
            port: 8472,
            underlay: Some("eth0".parse().unwrap()),
            local: Some("192.168.64.11".parse().unwrap()),
            learning: false,
            gbp: false,
        });
        let mac = Some("02:00:00:00:00:01".parse().unwrap());
        let vxlan = Link { kind, mac, mtu: 1450, up: true };
        let mut state = State::default();
        state.links.insert(link, vxlan);
        for peer in 0..peers {
            let gateway = format!("10.5.{peer}.0").parse().unwrap();
            state.routes.insert(
                RouteKey { destination: format!("10.5.{peer}.0/24").parse().unwrap(), metric: 0 },
                Route {
                    target: RouteTarget::Via { gateway, link, onlink: true },
                    protocol: flan_kernel::ROUTE_PROTOCOL,
                },
            );
        }
        Desired { state, rules: Ruleset::default() }
    }

    fn reconciler(kernel: &FakeKernel) -> Reconciler<FakeKernel, FakeFirewall> {
        let ownership = Ownership { links: ["flannel.1".parse().unwrap()].into() };
        Reconciler::new(kernel.clone(), FakeFirewall::new(), ownership)
    }

    #[tokio::test]
    async fn a_second_round_finds_nothing_to_do() {
        let kernel = FakeKernel::new();
        let mut reconciler = reconciler(&kernel);
        assert_eq!(reconciler.reconcile(&desired(3)).await.applied, 4);
        assert_eq!(kernel.state(), desired(3).state);
        assert_eq!(reconciler.reconcile(&desired(3)).await.applied, 0);
    }

    #[tokio::test]
    async fn one_refused_operation_stops_nothing_else_and_is_tried_again() {
        let kernel = FakeKernel::new();
        let mut reconciler = reconciler(&kernel);
        let second = "10.5.1.0/24".parse().unwrap();
        kernel.fail_next(
            move |operation| matches!(operation, Operation::AddRoute { key, .. } if key.destination == second),
            KernelError::Errno(12),
        );
        let outcome = reconciler.reconcile(&desired(3)).await;
        assert_eq!((outcome.applied, outcome.failed.len()), (3, 1));
        assert!(outcome.problem().unwrap().contains("10.5.1.0/24"));
        assert_eq!(reconciler.reconcile(&desired(3)).await.problem(), None);
        assert_eq!(kernel.state(), desired(3).state);
    }

    #[tokio::test]
    async fn a_kernel_that_cannot_be_read_is_not_taken_for_an_empty_one() {
        let kernel = FakeKernel::new();
        let mut reconciler = reconciler(&kernel);
        reconciler.reconcile(&desired(3)).await;
        kernel.take_applied();
        kernel.fail_next_snapshot(KernelError::TimedOut(Duration::from_secs(10)));
        let outcome = reconciler.reconcile(&desired(0)).await;
        assert!(outcome.problem().unwrap().starts_with("cannot read the kernel's state"));
        assert_eq!(kernel.take_applied(), []);
    }

    #[test]
    fn retries_slow_down_to_half_a_minute() {
        let waits: Vec<u64> = (1..8).map(|failures| retry_after(failures).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }
}
