//! What the data path has done.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one data path; its threads write them, and anybody may read them.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub(crate) $name: AtomicU64,)* }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "camelCase")]
        pub struct Totals { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Returns the counters now.
            pub fn totals(&self) -> Totals {
                Totals { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Inner packets that were sent, after segmentation; divided by `sent_batches`, the segments per batch.
    sent_packets,
    /// Bytes of these.
    sent_bytes,
    /// System calls that sent them.
    sent_batches,
    /// Inner packets that arrived.
    received_packets,
    /// Bytes of these.
    received_bytes,
    /// System calls that received them.
    received_batches,
    /// Writes to the device; fewer than packets if some were merged.
    written,
    /// Packets that were written as part of the one before them.
    merged,
    /// Dropped: no peer has the destination.
    dropped_no_peer,
    /// Dropped: the packet's time to live expired.
    dropped_ttl,
    /// Dropped: not an IPv4 packet, or an inconsistent one.
    dropped_malformed,
    /// Dropped: the datagram did not come from a peer.
    dropped_foreign_source,
    /// Dropped: the inner source is not in the subnet of the peer that sent it, or the inner destination is not in ours
    /// (`StrictSource`).
    dropped_strict_source,
    /// Dropped: larger than the path carries.
    dropped_too_big,
    /// Dropped: the queue of the socket, the device or a paced peer was full.
    dropped_full,
    /// Dropped: the kernel refused it for another reason.
    dropped_refused,
    /// ICMP errors sent to senders.
    icmp_sent,
}

pub(crate) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Relaxed);
}
