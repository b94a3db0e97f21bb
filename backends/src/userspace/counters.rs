//! What the data path has done.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)* ; $($(#[$only_doc:meta])* $only:ident,)*) => {
        /// Counters of one data path; its threads write them, and anybody may read them.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub(crate) $name: AtomicU64,)*
            $($(#[$only_doc])* pub(crate) $only: AtomicU64,)*
        }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)*
            $($(#[$only_doc])* #[serde(skip_serializing_if = "is_zero")] pub $only: u64,)*
        }

        impl Counters {
            /// Returns the counters now.
            pub fn totals(&self) -> Totals {
                Totals { $($name: self.$name.load(Relaxed),)* $($only: self.$only.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Inner packets that were sent, after segmentation; divided by `sent_batches`, the segments per batch. On
    /// WireGuard, this and the next five count messages: encrypted packets and handshakes.
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
    ; // WireGuard's own, shown where they are not zero:
    /// Handshakes that succeeded, begun by either side.
    handshakes,
    /// Handshakes under load that were answered with a cookie instead.
    cookies_sent,
    /// Dropped: nobody knows the peer's endpoint.
    dropped_no_endpoint,
    /// Dropped while it waited for a handshake that failed.
    dropped_no_session,
    /// Dropped: the inner source is not among the allowed addresses of the peer that sent it.
    dropped_not_allowed,
    /// Dropped: it cannot be decrypted, or is no message of WireGuard.
    dropped_undecryptable,
    /// Dropped: it arrived before, or too late to say.
    dropped_replayed,
    /// Dropped: it belongs to no session of ours, or to one that has ended.
    dropped_unknown_session,
    /// Dropped: a handshake of somebody who is no peer, or whose keys do not fit.
    dropped_handshake,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

pub(crate) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Relaxed);
}
