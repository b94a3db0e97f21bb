//! The task that probes, and answers the questions of other agents.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use ipnetwork::IpNetwork;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::debug;

use crate::findings::{Findings, Seen};
use crate::message::Message;
use crate::sockets::{Heard, Sockets};
use crate::target::{Target, Way};
use crate::watch::{Counts, Watch};

/// Interval between reports.
const REPORT: Duration = Duration::from_secs(2);
/// Delay before another attempt to open a socket.
pub(crate) const AGAIN: Duration = Duration::from_secs(30);
/// Most answers that are taken in before probes are concluded.
const AT_ONCE: usize = 1000;
/// Delay after a socket's failure.
const PAUSE: Duration = Duration::from_millis(100);

/// What a prober does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Most probes a second; with 0, only the questions of other agents are answered.
    pub rate: u16,
    /// UDP port of agents.
    pub port: u16,
}

/// Handle of the task, which ends with it.
#[derive(Debug)]
pub struct Prober {
    watch: Arc<Mutex<Watch>>,
    changed: Arc<Notify>,
    settings: Settings,
    task: tokio::task::JoinHandle<()>,
}

impl Prober {
    /// Starts the task, which passes what it finds to `tell`, every two seconds at most: `None` while nobody is probed.
    pub fn start(settings: Settings, tell: impl Fn(Option<&Findings>) + Send + 'static) -> Self {
        let watch = Arc::new(Mutex::new(Watch::new(settings.rate, Instant::now())));
        let changed = Arc::new(Notify::new());
        let task = tokio::spawn(run(watch.clone(), changed.clone(), settings, tell));
        Self { watch, changed, settings, task }
    }

    /// Replaces the targets. What is known of those that stay as they were is kept.
    pub fn targets_are(&self, way: Way, targets: Vec<Target>) {
        lock(&self.watch).targets_are(way, targets, Instant::now());
        self.changed.notify_one();
    }

    /// Forgets all targets, and closes the sockets.
    pub fn clear(&self) {
        lock(&self.watch).clear(Instant::now());
        self.changed.notify_one();
    }

    /// Waits until the task ends, which it should not.
    pub async fn failed(&mut self) {
        let _ = (&mut self.task).await;
    }

    /// Returns how packets leave this host, once it is known.
    pub fn way(&self) -> Option<Way> {
        lock(&self.watch).way().cloned()
    }

    /// Returns its settings.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Returns a handle to what is known.
    pub fn view(&self) -> ProberView {
        ProberView { watch: self.watch.clone(), port: self.settings.port }
    }
}

/// What is known, for those who ask.
#[derive(Debug, Clone)]
pub struct ProberView {
    watch: Arc<Mutex<Watch>>,
    port: u16,
}

impl ProberView {
    /// Returns what is known of each target, by its subnet.
    pub fn seen(&self) -> Vec<(IpNetwork, Seen)> {
        lock(&self.watch).seen(self.port, Instant::now())
    }

    /// Returns how many packets were sent and lost.
    pub fn counts(&self) -> Counts {
        lock(&self.watch).counts()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(
    watch: Arc<Mutex<Watch>>,
    changed: Arc<Notify>,
    settings: Settings,
    tell: impl Fn(Option<&Findings>) + Send + 'static,
) {
    let mut sockets = Sockets::default();
    let mut reports = interval(REPORT);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<Findings> = None;
    loop {
        let due = lock(&watch).due();
        tokio::select! {
            () = changed.notified() => {
                let way = lock(&watch).way().cloned();
                match way {
                    Some(way) => sockets.open(&way, settings),
                    None => sockets = Sockets::default(),
                }
            }
            () = sleep_until_due(sockets.again) => {
                let way = lock(&watch).way().cloned();
                if let Some(way) = way {
                    sockets.open(&way, settings);
                }
            }
            heard = sockets.receive() => match heard {
                Ok(heard) => take_in(&watch, &heard),
                Err(reason) => {
                    debug!(%reason, "cannot receive answers of peers");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            () = sleep_until_due(due) => {
                // An answer that waits here came in time, whenever this task runs.
                for _ in 0..AT_ONCE {
                    let Some(Ok(heard)) = sockets.receive().now_or_never() else { break };
                    take_in(&watch, &heard);
                }
                let packets = lock(&watch).time_passed(Instant::now());
                for packet in packets {
                    let sent = sockets.send(&packet, settings.port);
                    // Without a socket or memory, nothing is said of the peer. What the kernel refuses otherwise is lost, as on
                    // the way: containers' packets are, too.
                    let no_fault = [Some(libc::ENOBUFS), Some(libc::EAGAIN)];
                    if sent.is_err_and(|reason| {
                        reason.kind() == ErrorKind::NotConnected || no_fault.contains(&reason.raw_os_error())
                    }) {
                        lock(&watch).not_sent(packet.nonce);
                    }
                }
            }
            _ = reports.tick(), if settings.rate > 0 => {
                let found = lock(&watch).findings(settings.port);
                if found != told {
                    tell(found.as_ref());
                    told = found;
                }
            }
        }
    }
}

fn take_in(watch: &Mutex<Watch>, heard: &Heard<'_>) {
    match heard {
        Heard::Answer(nonce) => lock(watch).answered(*nonce, Instant::now()),
        Heard::Question(number, from, agent) => {
            if lock(watch).asked_by(from.ip(), Instant::now()) {
                let _ = agent.send(&Message::Reply(*number).encode(), *from);
            }
        }
    }
}

async fn sleep_until_due(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
