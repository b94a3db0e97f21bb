//! The text about a UDP port that somebody else has.

use flan_kernel::netlink::Holder;

/// Describes who holds the port, and what to do.
pub fn taken(port: u16, holder: &Holder) -> String {
    format!(
        "UDP port {port} is taken by {holder}, so no packet of another host arrives; {}, or choose another \
         port (Backend.Port; with wireguard Backend.ListenPort) in the network config of all hosts",
        holder.remedy()
    )
}
