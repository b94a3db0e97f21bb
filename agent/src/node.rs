//! Who this host is, whatever its address.

use flan_subnet_lease::NodeIdentity;

use crate::args::Args;

/// The identity as the flags say, else from the host name and the machine id.
pub fn identity(args: &Args) -> NodeIdentity {
    let host = args.node_name.clone().or_else(|| Some(hostname::get().ok()?.to_string_lossy().into_owned()));
    NodeIdentity {
        host: host.filter(|name| !name.is_empty()).map(String::into_boxed_str),
        id: args.node_id.id(),
    }
}
