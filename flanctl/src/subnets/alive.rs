//! When each host was last alive, as the agent of this host knows it.

use std::collections::HashMap;
use std::path::Path;

use flan_agent_api::{Peer, PeerHealth, PeerState, Peers, Status};

use crate::agent;
use crate::output::{LastAlive, SubnetList};

/// Adds to the leases when their hosts' agents last answered. Leaves it out if no agent of this network runs here: the
/// leases are in the store, and can be read from anywhere.
pub(crate) async fn add(list: &mut SubnetList, socket: &Path) {
    if !socket.exists() {
        return;
    }
    let Ok(status) = agent::get::<Status>(socket, "/status").await else { return };
    let Ok(peers) = agent::get::<Peers>(socket, "/peers").await else { return };
    let own = (status.default.subnets, status.default.public_ips);
    let peers: HashMap<(&[String], &[String]), &Peer> =
        peers.peers.iter().map(|peer| ((&*peer.subnets, &*peer.public_ips), peer)).collect();
    for item in &mut list.items {
        let key = (&*item.subnets, &*item.public_ips);
        item.last_alive = match peers.get(&key) {
            Some(peer) => of_peer(peer),
            None if !own.0.is_empty() && key == (&*own.0, &*own.1) => {
                Some(LastAlive { seconds_ago: Some(0) })
            }
            None => None,
        };
    }
}

fn of_peer(peer: &Peer) -> Option<LastAlive> {
    // flanneld answers nobody.
    let is_asked = |health: &&PeerHealth| health.has_agent && health.state != PeerState::NotProbed;
    let health = peer.health.as_ref().filter(is_asked)?;
    Some(LastAlive { seconds_ago: health.agent_answered_seconds })
}
