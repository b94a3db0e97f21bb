//! Between what is measured: the hosts themselves, or containers on them.

use clap::ValueEnum;
use serde::Serialize;

/// The kind of both ends of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ends {
    /// The hosts' own addresses on the overlay.
    Hosts,
    /// On each host a namespace behind a bridge `docker0`, as Docker makes it, without dockerd.
    Containers,
}
