//! What the agent tells systemd (`sd_notify(3)`). Without systemd nobody listens, and nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Ready.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
}

/// What the agent does, for `systemctl status`.
pub(super) fn working(line: &str) {
    send(&[NotifyState::Status(line)]);
}

/// What the agent waits for.
pub(super) fn waiting(line: &str) {
    send(&[NotifyState::Status(line)]);
}

/// A sign of life for the watchdog.
pub(super) fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// When signs of life are due: twice in the time that the watchdog allows.
pub(super) fn watchdog() -> Interval {
    let limit = sd_notify::watchdog_enabled().unwrap_or(Duration::from_secs(3600));
    let mut interval = interval((limit / 2).max(Duration::from_millis(1)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(reason) = sd_notify::notify(states) {
        tracing::debug!(%reason, "cannot notify systemd");
    }
}
