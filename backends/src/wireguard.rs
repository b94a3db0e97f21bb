//! The wireguard backend.

mod plan;

pub(crate) use self::plan::is_name;
pub use self::plan::{Wireguard, WireguardHost};
