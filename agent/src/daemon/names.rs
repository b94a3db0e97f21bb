//! Starts the DNS server for the names of containers, and tells it which networks this host is in.

use std::net::IpAddr;
use std::sync::Arc;

use flan_agent_api::{Code, SubnetEnv};
use flan_backends::bridge;
use flan_docker::Driver;
use flan_names::{Order, Place, Settings};
use flan_subnet_lease::{NetworkName, Store, stay_alive};
use ipnetwork::IpNetwork;
use tokio::sync::mpsc;

use crate::args::Args;
use crate::status::SharedStatus;

/// The names that this host serves.
pub(super) struct Names {
    orders: mpsc::UnboundedSender<Order>,
    store: Store,
}

impl Names {
    /// Starts the server, which ends with the process.
    pub(super) fn start(args: &Args, store: &Store, driver: &Arc<Driver>, status: SharedStatus) -> Self {
        let node = args.identity();
        let host = node.key().to_owned();
        let address = bridge::RESOLVER.into();
        let settings = Settings { host, upstream: args.names.names_upstream.clone(), address };
        driver.resolver_is(bridge::RESOLVER);
        let (orders, received) = mpsc::unbounded_channel();
        let report = move |wrong| status.report(Code::Names, wrong);
        tokio::spawn(flan_names::serve(settings, store.clone(), received, report));
        tokio::spawn(stay_alive(store.clone(), node, driver.answers()));
        let (mut others, told) = (driver.others(), orders.clone());
        tokio::spawn(async move {
            while others.changed().await.is_ok() {
                let now = others.borrow_and_update().clone();
                if told.send(Order::Others(now)).is_err() {
                    return;
                }
            }
        });
        Self { orders, store: store.clone() }
    }

    /// This host is in a network, `None` for the default one, with these addresses.
    pub(super) fn network_is(&self, network: Option<NetworkName>, env: &SubnetEnv) {
        let bridge: Vec<IpAddr> = env.bridges.values().map(IpNetwork::ip).collect();
        let store = match &network {
            Some(name) => self.store.network(name),
            None => self.store.clone(),
        };
        let place = Place {
            whole: env.networks.values().copied().collect(),
            own: env.bridges.values().copied().collect(),
        };
        // The server ends with the process.
        let _ = self.orders.send(Order::Network { network, store, place, bridge });
    }

    /// This host has left a network.
    pub(super) fn has_left(&self, network: &NetworkName) {
        let _ = self.orders.send(Order::Left(Some(network.clone())));
    }
}
