//! Checks that our lease is still a reservation, if it was made one.

use std::time::Duration;

use flan_agent_api::Code;
use flan_subnet_lease::{Holding, Reservation, Store, Terms};
use tokio::sync::watch;
use tracing::debug;

use crate::status::SharedNetwork;

/// Compares our lease with the record of a reservation: now, every `interval`, and when our lease changes. Ends with
/// the keeper of the lease.
pub(super) async fn watch(
    store: Store,
    flags: String,
    mut holding: watch::Receiver<Holding>,
    terms: watch::Receiver<Terms>,
    interval: Duration,
    status: SharedNetwork,
) {
    loop {
        let lease = holding.borrow_and_update().lease.clone();
        match store.reservation(&lease.subnets).await {
            Ok(found) => {
                let ours = terms.borrow().attributes.clone();
                let lost = found.filter(|reservation| reservation.is_lost_in(&ours, lease.etcd_lease));
                status.report(Code::ReservationLost, lost.map(|reservation| lost_text(&reservation, &flags)));
            }
            // The lease watch reports a store that cannot be reached, and the right to read these keys is optional.
            Err(reason) => debug!(%reason, "cannot read the records of reservations"),
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            changed = holding.changed() => if changed.is_err() { return },
        }
    }
}

fn lost_text(reservation: &Reservation, flags: &str) -> String {
    let Reservation { subnets, public_ips } = reservation;
    let ips: Vec<String> = public_ips.values().map(ToString::to_string).collect();
    format!(
        "the reservation of {subnets} for this host became an ordinary lease, as under flanneld: it ends when this host is \
         away for as long as a lease lasts; make it a reservation again with: flanctl{} subnets reserve {subnets} \
         --public-ip {}",
        flags,
        ips.join(",")
    )
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::PerFamily;

    use super::*;

    #[test]
    fn the_command_that_reserves_again_is_told_in_full() {
        let reservation = Reservation {
            subnets: "10.5.77.0/24".parse().unwrap(),
            public_ips: PerFamily { v4: Some("192.168.64.11".parse().unwrap()), v6: None },
        };
        let text = lost_text(&reservation, " --etcd-endpoints http://10.0.0.2:2379");
        let command = "flanctl --etcd-endpoints http://10.0.0.2:2379 subnets reserve 10.5.77.0/24 --public-ip 192.168.64.11";
        assert!(text.ends_with(command), "{text}");
    }
}
