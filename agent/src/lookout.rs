//! Finds effects of other programs on our packets: rules that drop them, and a Docker outside our subnet.
//!
//! Runs in its own task, so that the event loop does not wait, and changes nothing. A cheap glance shows whether to
//! look closely: the kernel counts nftables changes and reports changes of devices and addresses.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flan_agent_api::{Code, SubnetEnv};
use flan_host::bridge;
use flan_host::settings::Settings;
use flan_host::tables::Tables;
use flan_kernel::LinkName;
use flan_kernel::firewall::others::{Glance, OtherRules, Traffic};
use flan_kernel::netlink::{self, Bridge};
use flan_subnet_lease::Family;
use futures::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::info;

use crate::status::SharedStatus;
use crate::wireguard::Silence;

/// Interval between glances.
const GLANCE: Duration = Duration::from_secs(3);
/// Interval between readings of rules whose changes the kernel does not count.
const UNTOLD: Duration = Duration::from_secs(15);
/// Interval between looks at WireGuard's peers, and at tables of the kernel, which grow with the peers.
const SLOW: Duration = Duration::from_secs(30);
/// Delay after a reading that failed.
const AGAIN: Duration = Duration::from_secs(60);
/// After a long reading, such as of very many rules, wait this many times as long.
const REST: u32 = 50;

/// Handle of the task that checks this host and reports problems.
#[derive(Debug)]
pub struct Lookout {
    ours: watch::Sender<Option<Ours>>,
    changed: Arc<Notify>,
}

/// Our packets and settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    /// The traffic that others' rules must let pass, except for bridges.
    pub traffic: Traffic,
    /// The settings given to dockerd.
    pub env: SubnetEnv,
    /// Our IPIP device, if we have one.
    pub tunnel: Option<LinkName>,
}

impl Lookout {
    /// Starts the task, which waits for [`ours_is`](Self::ours_is) and ends when this is dropped.
    pub fn start(status: SharedStatus) -> Self {
        let (ours, wanted) = watch::channel(None);
        let changed = Arc::new(Notify::new());
        tokio::spawn(keep_looking(wanted, changed.clone(), status));
        Self { ours, changed }
    }

    /// Sets our packets and settings.
    pub fn ours_is(&self, ours: Ours) {
        self.ours.send_replace(Some(ours));
    }

    /// Reports that devices or addresses of this host have changed.
    pub fn host_changed(&self) {
        self.changed.notify_one();
    }
}

async fn keep_looking(mut ours: watch::Receiver<Option<Ours>>, changed: Arc<Notify>, status: SharedStatus) {
    let mut view = View::default();
    let (mut silence, mut slow_due) = (Silence::default(), Instant::now());
    let mut glances = interval(GLANCE);
    glances.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        glances.tick().await;
        let Ok(news) = ours.has_changed() else { return };
        if Instant::now() >= slow_due {
            slow_due = Instant::now() + SLOW;
            look_for_silence(&mut silence, &status).await;
            let were = status.default_network().read().problem(Code::TableFull).is_some();
            // The table of neighbours has those of all peers, although these do not count.
            let look = tokio::task::spawn_blocking(move || Tables::default().nearly_full(were));
            status.report(Code::TableFull, look.await.unwrap_or_default());
        }
        let Some(wanted) = ours.borrow_and_update().clone() else { continue };
        look_at_settings(&wanted, view.bridges.as_deref().unwrap_or_default(), &status);
        let host_changed = changed.notified().now_or_never().is_some();
        let mut look = news || view.is_to_be_sure(Instant::now());
        look |= host_changed && wanted.tunnel.is_some();
        look |= (host_changed || view.bridges.is_none()) && view.read_bridges().await;
        look |= view.reading.is_due(Glance::now(), view.in_doubt, Instant::now()) && view.read_rules().await;
        if look {
            view.tell(&wanted, &status);
        }
    }
}

/// Reports WireGuard peers that packets are sent to in vain.
async fn look_for_silence(silence: &mut Silence, status: &SharedStatus) {
    let Some(source) = status.default_network().wireguard() else { return };
    let Ok(Ok(reports)) = tokio::task::spawn_blocking(move || source.ask()).await else { return };
    let text = silence.look(&reports, SystemTime::now(), Instant::now());
    status.report(Code::SilentPeer, text);
}

/// Reports settings that keep packets from passing. Nobody tells of their changes, and they are few.
fn look_at_settings(ours: &Ours, bridges: &[Bridge], status: &SharedStatus) {
    let settings = Settings::default();
    let families: Vec<Family> =
        ours.traffic.families.iter().map(|family| Family::of(family.network.ip())).collect();
    let of_containers = bridge::in_our_subnets(bridges, &ours.env).into_iter().map(|(name, _)| name);
    let ways = ours.traffic.families.iter().flat_map(|family| &family.devices).map(|way| way.link);
    let mut devices: Vec<LinkName> = of_containers.chain(ways).collect();
    devices.dedup();
    status.report(Code::ForwardingOff, settings.forwarding_off(&families, &devices));
    let underlay = ours.traffic.outer.as_ref().map(|outer| outer.link);
    let filters = underlay.filter(|link| bridges.iter().any(|bridge| bridge.name == *link));
    status.report(Code::BridgeFilter, filters.and_then(|bridge| settings.bridge_filter(bridge)));
}

/// State of the last check.
#[derive(Debug, Default)]
struct View {
    /// `None` until read.
    bridges: Option<Vec<Bridge>>,
    rules: OtherRules,
    reading: Reading,
    /// The problems found then.
    found: Found,
    /// Whether a problem was seen for the first time. A program may be in the middle of rewriting its rules.
    in_doubt: bool,
    /// Why the rules could not be read.
    unread: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    packet_filter: Option<String>,
    bridge: Option<String>,
    other_tunnel: Option<String>,
}

impl View {
    /// Returns whether to read again now to confirm a new problem.
    fn is_to_be_sure(&self, now: Instant) -> bool {
        self.in_doubt && !self.reading.rests(now)
    }

    /// Returns whether the bridges have changed.
    async fn read_bridges(&mut self) -> bool {
        let read = tokio::task::spawn_blocking(netlink::bridges).await;
        let Ok(Ok(bridges)) = read else { return false };
        let is_new = self.bridges.as_ref() != Some(&bridges);
        self.bridges = Some(bridges);
        is_new
    }

    /// Returns whether the rules could be read.
    async fn read_rules(&mut self) -> bool {
        let (glance, started) = (Glance::now(), Instant::now());
        let read = OtherRules::read().await;
        self.reading.is_done(glance, started, Instant::now(), read.is_ok());
        match read {
            Ok(rules) => {
                (self.rules, self.unread) = (rules, None);
                true
            }
            Err(reason) => {
                let reason = reason.to_string();
                if self.unread.as_ref() != Some(&reason) {
                    info!(%reason, "cannot see whether other packet filter rules drop our packets");
                }
                self.unread = Some(reason);
                false
            }
        }
    }

    /// Reports a problem once seen twice, and its end at once.
    fn tell(&mut self, ours: &Ours, status: &SharedStatus) {
        let found = self.judge(ours);
        self.in_doubt = found != self.found && found != Found::default();
        self.found = found.clone();
        for (code, text) in [
            (Code::PacketFilter, found.packet_filter),
            (Code::BridgeDiffers, found.bridge),
            (Code::OtherTunnel, found.other_tunnel),
        ] {
            if text.is_none() || !self.in_doubt {
                status.report(code, text);
            }
        }
    }

    fn judge(&self, ours: &Ours) -> Found {
        let bridges = self.bridges.as_deref().unwrap_or_default();
        let traffic = Traffic { bridges: bridge::in_our_subnets(bridges, &ours.env), ..ours.traffic.clone() };
        let obstacles: Vec<String> = self.rules.obstacles(&traffic).iter().map(ToString::to_string).collect();
        Found {
            packet_filter: (!obstacles.is_empty()).then(|| obstacles.join("; ")),
            bridge: bridge::difference(bridges, &self.rules.masquerading(&traffic), &ours.env),
            other_tunnel: ours.tunnel.and_then(other_tunnel),
        }
    }
}

/// Describes the device of another program that receives IPIP packets, if there is one.
fn other_tunnel(ours: LinkName) -> Option<String> {
    let other = netlink::other_ipip_device(ours).ok()??;
    Some(format!(
        "device {other} of another program receives IPIP packets, which {ours} takes or our rules drop: start fland with \
         --udp-path user, or remove it (ip link del {other})"
    ))
}

/// Decides when to read the rules.
#[derive(Debug, Default)]
struct Reading {
    /// The glance before the last reading.
    glance: Glance,
    /// When the last reading ended.
    read_at: Option<Instant>,
    /// No other reading before this time.
    rests_until: Option<Instant>,
}

impl Reading {
    fn is_due(&self, glance: Glance, in_doubt: bool, now: Instant) -> bool {
        let Some(read_at) = self.read_at else { return true };
        if self.rests(now) {
            return false;
        }
        let nobody_tells = glance.legacy || glance.changes.is_none();
        in_doubt || glance != self.glance || (nobody_tells && now >= read_at + UNTOLD)
    }

    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    fn is_done(&mut self, before: Glance, started: Instant, now: Instant, succeeded: bool) {
        let rest = if succeeded { now.duration_since(started) * REST } else { AGAIN };
        // The glance from before the reading, so that changes during the reading count as new.
        *self = Self { glance: before, read_at: Some(now), rests_until: Some(now + rest) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(changes: u32) -> Glance {
        Glance { changes: Some(changes), legacy: false }
    }

    fn after(seconds: u64, start: Instant) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn rules_are_read_when_they_have_changed_and_else_not() {
        let (start, mut reading) = (Instant::now(), Reading::default());
        assert!(reading.is_due(told(7), false, start));
        reading.is_done(told(7), start, start, true);
        assert!(!reading.is_due(told(7), false, after(3600, start)));
        assert!(reading.is_due(told(8), false, after(3, start)));
        assert!(reading.is_due(told(7), true, after(3, start)), "to be sure of what was seen");
    }

    #[tokio::test]
    async fn rules_of_which_nobody_tells_are_read_now_and_then() {
        let (start, mut reading) = (Instant::now(), Reading::default());
        let legacy = Glance { legacy: true, ..told(7) };
        reading.is_done(legacy, start, start, true);
        assert!(!reading.is_due(legacy, false, after(14, start)));
        assert!(reading.is_due(legacy, false, after(15, start)));
        reading.is_done(Glance::default(), start, start, true);
        assert!(reading.is_due(Glance::default(), false, after(15, start)));
    }

    #[tokio::test]
    async fn a_reading_that_takes_long_or_fails_is_followed_by_a_rest() {
        let (start, mut reading) = (Instant::now(), Reading::default());
        reading.is_done(told(7), start, after(1, start), true);
        assert!(!reading.is_due(told(8), true, after(50, start)));
        assert!(reading.is_due(told(8), false, after(51, start)));
        reading.is_done(told(8), start, start, false);
        assert!(!reading.is_due(told(9), false, after(59, start)));
        assert!(reading.is_due(told(9), false, after(60, start)));
    }

    #[tokio::test]
    async fn what_was_seen_once_is_not_looked_at_again_before_a_new_reading() {
        let start = Instant::now();
        let mut view = View { in_doubt: true, ..View::default() };
        view.reading.is_done(told(7), start, after(1, start), true);
        assert!(!view.is_to_be_sure(after(50, start)));
        assert!(view.is_to_be_sure(after(51, start)));
        view.in_doubt = false;
        assert!(!view.is_to_be_sure(after(51, start)));
    }

    #[test]
    fn what_is_seen_once_is_told_when_it_is_seen_again() {
        let env = SubnetEnv::parse("FLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\n").unwrap();
        let ours = Ours { traffic: Traffic::default(), env, tunnel: None };
        let bridge = |address: &str| {
            let (name, addresses) = ("docker0".parse().unwrap(), vec![address.parse().unwrap()]);
            Some(vec![Bridge { name, mtu: 1500, largest_port: None, addresses }])
        };
        let status = SharedStatus::default();
        status.default_network().update(|status| status.ready = true);
        let problems = || serde_json::to_value(status.read().default.problems).unwrap();
        let mut view = View { bridges: bridge("172.17.0.1/16"), ..View::default() };
        view.tell(&ours, &status);
        assert_eq!((problems(), view.in_doubt), (serde_json::json!([]), true));
        view.tell(&ours, &status);
        assert_eq!((&problems()[0]["name"], view.in_doubt), (&serde_json::json!("bridge-differs"), false));
        view.bridges = bridge("10.5.52.1/24");
        view.tell(&ours, &status);
        assert_eq!(problems(), serde_json::json!([]));
    }
}
