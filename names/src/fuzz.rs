//! The server for the target in `fuzz/`: its answers from a directory in memory, without sockets. Compiled only with
//! `--cfg fuzzing`.

use std::net::SocketAddr;
use std::sync::Arc;

use flan_subnet_lease::Container;
use hickory_server::net::xfer::Protocol;

use crate::directory::{Directory, Network, Place};
use crate::handler::{Reply, Shared};

/// Most bytes of an answer by UDP.
pub const MOST_BY_UDP: u16 = crate::handler::MOST_BY_UDP;

/// Returns the answer to a client at 10.7.1.3, if it gets one at once, from a host that is in the networks `blue`
/// (10.7.0.0/16) and `red` (10.9.0.0/16). These containers are in `blue`, and all hosts are alive.
pub fn answer(
    blue: impl IntoIterator<Item = Container>,
    red: impl IntoIterator<Item = Container>,
    request: &[u8],
    by_tcp: bool,
) -> Option<Vec<u8>> {
    let mut directory = Directory::new("h1".to_owned());
    let mut living = std::collections::HashSet::from(["h1".to_owned()]);
    let (blue, red): (Vec<_>, Vec<_>) = (blue.into_iter().collect(), red.into_iter().collect());
    for (name, second, containers) in [("blue", 7, blue), ("red", 9, red)] {
        let network: Network = name.parse().ok();
        let range = |part: &str| vec![format!("10.{second}.{part}").parse().expect("a network")];
        directory.network_is(network.clone(), Place { whole: range("0.0/16"), own: range("1.0/24") });
        for container in containers {
            living.extend(container.host_key().map(str::to_owned));
            directory.container_is(&network, Arc::new(container));
        }
    }
    directory.living_are(living);
    let client: SocketAddr = ([10, 7, 1, 3], 1053).into();
    let protocol = if by_tcp { Protocol::Tcp } else { Protocol::Udp };
    match Shared::new(directory).reply(request, client, protocol) {
        Reply::Now(answer) => Some(answer),
        Reply::Later(_) | Reply::Never => None,
    }
}
