//! Measures which peers packets reach: round trip, loss, the largest size that passes, and whether their agents run.
//!
//! Each probe of a peer sends a few packets at once: an ICMP echo to its underlay address, a small one and one as large as
//! containers may send to its address on the overlay, and a [question](Message) to its agent. Which of them come back
//! shows what is wrong. The number of probes a second is bounded, whatever the number of peers.
//!
//! [`Prober`] is the task with the sockets, and [`ping()`] does the same once for somebody who waits. What the task decides
//! is in `watch.rs` and `health.rs`, which take the time as an argument. This crate knows addresses, and nothing of leases.

mod findings;
mod health;
mod leg;
mod message;
mod moment;
mod ping;
mod prober;
mod search;
mod sockets;
mod target;
mod watch;

pub use findings::{Findings, Named, Seen};
pub use health::{SMALL, State};
pub use message::{MESSAGE_BYTES, Message};
pub use ping::{Outcome, PingLeg, Tally, ping};
pub use prober::{Prober, ProberView, Settings};
pub use target::{Target, Way};
pub use watch::Counts;
