//! What the data paths that move packets in this process share, whatever they send on the wire.
//!
//! A data path has several threads ([`worker`]). Each has a queue of a TUN device and a UDP socket ([`endpoints`]), cuts
//! large packets of the device ([`segmentation`]) and sends them in few calls ([`outgoing`]), and merges what arrives
//! ([`coalescing`]).

pub(crate) mod checksum;
pub(crate) mod coalescing;
pub(crate) mod counters;
pub(crate) mod endpoints;
pub(crate) mod gauge;
pub(crate) mod icmp;
pub(crate) mod icmp6;
pub(crate) mod outgoing;
pub(crate) mod packet;
pub(crate) mod partial;
pub(crate) mod running;
pub(crate) mod segmentation;
pub(crate) mod slots;
pub(crate) mod twin;
pub(crate) mod worker;
