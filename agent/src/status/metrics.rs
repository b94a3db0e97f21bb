//! `GET /metrics`: the status as OpenMetrics, by Prometheus' conventions.
//!
//! Figures that are in the status are read from it for each answer. The others are counted as they happen.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use flan_agent_api::{NetworkStatus, Problem, Status};
use flan_probes::{Counts, Seen};
use flan_subnet_lease::StoreFigures;
use ipnetwork::IpNetwork;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Most peers with metrics of their own. Of more, only the mean and the worst are told.
const PEERS: usize = 100;
/// Upper ends of the times of rounds, in seconds.
const ROUNDS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0, 10.0];
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;
type Ratios = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// What is counted as it happens.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// Seconds from the beginning of a round to its end.
    pub(crate) reconcile_seconds: Histogram,
    pub(crate) store: StoreFigures,
    /// Those of the store in this process, if there is one.
    pub(crate) embedded: Option<flan_embedded_store::Figures>,
}

impl Figures {
    pub(crate) fn new(store: StoreFigures, embedded: Option<flan_embedded_store::Figures>) -> Self {
        Self { reconcile_seconds: Histogram::new(ROUNDS), store, embedded }
    }
}

/// What the probes know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probes {
    pub(crate) seen: Vec<(IpNetwork, Seen)>,
    pub(crate) counts: Counts,
}

/// Returns the answer.
pub(super) fn response(status: &Status, figures: Option<&Figures>, probes: &Probes) -> Response {
    ([(CONTENT_TYPE, OPENMETRICS)], text(status, figures, probes)).into_response()
}

fn text(status: &Status, figures: Option<&Figures>, probes: &Probes) -> String {
    let mut registry = Registry::with_prefix("flan");
    let build = Gauges::default();
    build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
    registry.register("build_info", "The version of the agent, as a label", build);
    of_networks(status, &mut registry);
    of_host(status, &mut registry);
    of_probes(probes, &mut registry);
    if let Some(Figures { reconcile_seconds, store, embedded }) = figures {
        let help = "Time of a round in which the kernel was brought in line";
        registry.register_with_unit("reconcile", help, Unit::Seconds, reconcile_seconds.clone());
        let StoreFigures { request_seconds, failures, watch_restarts } = store.clone();
        let help = "Time of a request that the store answered";
        registry.register_with_unit("store_request", help, Unit::Seconds, request_seconds);
        registry.register(
            "store_request_failures",
            "Requests that the store refused or did not answer",
            failures,
        );
        let help = "Watches of the store that broke, after which everything was listed again";
        registry.register("store_watch_restarts", help, watch_restarts);
        if let Some(embedded) = embedded {
            embedded.register(&mut registry);
        }
    }
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

fn of_networks(status: &Status, registry: &mut Registry) {
    let (ready, peers, bad, problems) =
        (Gauges::default(), Gauges::default(), Gauges::default(), Gauges::default());
    let (packets, bytes, drops) = (Counters::default(), Counters::default(), Counters::default());
    let named = status.networks.iter().map(|network| (network.name.as_str(), &network.status));
    for (name, network) in std::iter::once(("default", &status.default)).chain(named) {
        let of = |more: Option<(&'static str, &str)>| -> Labels {
            let more = more.map(|(key, value)| (key, value.to_owned()));
            std::iter::once(("network", name.to_owned())).chain(more).collect()
        };
        ready.get_or_create(&of(None)).set(network.ready.into());
        bad.get_or_create(&of(None)).set(network.quarantined_count as i64);
        for (state, count) in states(network) {
            peers.get_or_create(&of(Some(("state", state)))).set(count as i64);
        }
        for Problem { code, .. } in &network.problems {
            let mut labels = of(Some(("code", &code.to_string())));
            labels.push(("name", code.name().to_owned()));
            problems.get_or_create(&labels).set(1);
        }
        for (key, count) in totals(network) {
            let (family, label) = match key.as_str() {
                "sentPackets" => (&packets, ("direction", "sent")),
                "receivedPackets" => (&packets, ("direction", "received")),
                "sentBytes" => (&bytes, ("direction", "sent")),
                "receivedBytes" => (&bytes, ("direction", "received")),
                key => match key.strip_prefix("dropped") {
                    Some(reason) => {
                        drops.get_or_create(&of(Some(("reason", &snake_case(reason))))).inc_by(count);
                        continue;
                    }
                    None => continue,
                },
            };
            family.get_or_create(&of(Some(label))).inc_by(count);
        }
    }
    registry.register("ready", "Whether this host takes part in the network", ready);
    registry.register("peers", "Peers by whether they answer probes", peers);
    registry.register("quarantined_leases", "Leases that are not applied, because they are bad", bad);
    registry.register("problems", "Present problems, by the code that flanctl status shows", problems);
    registry.register("datapath_packets", "Packets through a data path in the agent", packets);
    registry.register_with_unit("datapath", "Bytes of these packets", Unit::Bytes, bytes);
    registry.register("datapath_drops", "Packets that a data path in the agent dropped", drops);
}

fn of_host(status: &Status, registry: &mut Registry) {
    let repairs = Counters::default();
    for (kind, count) in status.host.repairs.all() {
        repairs.get_or_create(&vec![("kind", kind.to_owned())]).inc_by(count);
    }
    registry.register("repairs", "Repairs of what another program changed, by kind of object", repairs);
}

fn of_probes(probes: &Probes, registry: &mut Registry) {
    let Probes { seen, counts } = probes;
    let (sent, lost) = (Counters::default(), Counters::default());
    for (leg, (sent_packets, lost_packets)) in counts.by_leg() {
        sent.get_or_create(&vec![("leg", leg.to_owned())]).inc_by(sent_packets);
        lost.get_or_create(&vec![("leg", leg.to_owned())]).inc_by(lost_packets);
    }
    registry.register("probes_sent", "Packets of probes, by the part of the way that they test", sent);
    registry.register("probes_lost", "Packets of probes that were not answered", lost);
    let (round_trip, loss) = (Ratios::default(), Ratios::default());
    let (all_round_trips, all_losses) = (Ratios::default(), Ratios::default());
    let trips: Vec<f64> =
        seen.iter().filter_map(|(_, seen)| seen.round_trip).map(|time| time.as_secs_f64()).collect();
    let losses: Vec<f64> = seen
        .iter()
        .filter_map(|(_, seen)| seen.loss_percent)
        .map(|percent| f64::from(percent) / 100.0)
        .collect();
    for (values, family) in [(&trips, &all_round_trips), (&losses, &all_losses)] {
        if let Some(worst) = values.iter().copied().reduce(f64::max) {
            let of = |statistic: &str| vec![("statistic", statistic.to_owned())];
            family.get_or_create(&of("mean")).set(values.iter().sum::<f64>() / values.len() as f64);
            family.get_or_create(&of("max")).set(worst);
        }
    }
    if seen.len() <= PEERS {
        for (subnet, seen) in seen {
            let labels = vec![("host", seen.host.clone()), ("subnet", subnet.to_string())];
            if let Some(time) = seen.round_trip {
                round_trip.get_or_create(&labels).set(time.as_secs_f64());
            }
            if let Some(percent) = seen.loss_percent {
                loss.get_or_create(&labels).set(f64::from(percent) / 100.0);
            }
        }
    }
    let seconds = Unit::Seconds;
    registry.register_with_unit("peer_round_trip", "Round trip to each peer", seconds.clone(), round_trip);
    registry.register_with_unit(
        "peer_loss",
        "Packets lost to each peer",
        Unit::Other("ratio".to_owned()),
        loss,
    );
    registry.register_with_unit("peers_round_trip", "Round trip to all peers", seconds, all_round_trips);
    registry.register_with_unit(
        "peers_loss",
        "Packets lost to all peers",
        Unit::Other("ratio".to_owned()),
        all_losses,
    );
}

/// Returns the peers of a network by state; `unprobed` counts those that nothing is known of.
fn states(network: &NetworkStatus) -> Vec<(&'static str, usize)> {
    let out_of_reach = ("out-of-reach", network.unreachable_count);
    match network.probed {
        Some(probed) => vec![
            ("reachable", probed.reachable),
            ("unreachable", probed.unreachable),
            ("unknown", probed.unknown),
            out_of_reach,
        ],
        None => vec![("unprobed", network.peers), out_of_reach],
    }
}

/// Returns `NoPeer` as `no_peer`.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// Returns the counters of the data path, by the names that the status has for them.
fn totals(network: &NetworkStatus) -> BTreeMap<String, u64> {
    let totals = network.datapath.as_ref().map(|datapath| serde_json::to_value(datapath.totals));
    match totals {
        Some(Ok(serde_json::Value::Object(fields))) => {
            fields.into_iter().filter_map(|(key, value)| Some((key, value.as_u64()?))).collect()
        }
        _ => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use flan_agent_api::{Code, Datapath, Probed};
    use flan_backends::udp::Totals;
    use flan_probes::State;

    use super::*;

    fn seen(host: &str) -> Seen {
        Seen {
            host: host.to_owned(),
            state: State::Reachable,
            since: None,
            round_trip: Some(Duration::from_millis(2)),
            loss_percent: Some(25),
            mtu: Some(1450),
            answered: None,
            agent_answered: None,
            through: None,
            has_agent: true,
            reason: None,
        }
    }

    #[test]
    fn what_the_status_says_is_in_the_metrics() {
        let mut status = Status::default();
        status.default.ready = true;
        status.default.probed = Some(Probed { reachable: 2, unreachable: 1, ..Probed::default() });
        status.default.problems =
            vec![Problem { code: Code::PeerMtu, text: "h2".to_owned(), since: SystemTime::UNIX_EPOCH }];
        status.host.repairs.add("route", 3);
        let totals = Totals { sent_packets: 7, received_bytes: 900, dropped_no_peer: 2, ..Totals::default() };
        let tun = "offload".to_owned();
        status.default.datapath = Some(Datapath { tun, gso: true, gro: true, merge: true, totals });
        let figures = Figures::new(StoreFigures::default(), None);
        figures.reconcile_seconds.observe(0.002);
        let probes = Probes { seen: vec![("10.5.2.0/24".parse().unwrap(), seen("h2"))], ..Probes::default() };
        let text = text(&status, Some(&figures), &probes);
        for line in [
            "# TYPE flan_peers gauge",
            "flan_ready{network=\"default\"} 1",
            "flan_peers{network=\"default\",state=\"reachable\"} 2",
            "flan_peers{network=\"default\",state=\"unreachable\"} 1",
            "flan_problems{network=\"default\",code=\"FLAN-E013\",name=\"peer-mtu\"} 1",
            "flan_repairs_total{kind=\"route\"} 3",
            "flan_reconcile_seconds_count 1",
            "flan_peer_round_trip_seconds{host=\"h2\",subnet=\"10.5.2.0/24\"} 0.002",
            "flan_peer_loss_ratio{host=\"h2\",subnet=\"10.5.2.0/24\"} 0.25",
            "flan_peers_loss_ratio{statistic=\"max\"} 0.25",
            "flan_store_request_failures_total 0",
            "flan_datapath_packets_total{network=\"default\",direction=\"sent\"} 7",
            "flan_datapath_bytes_total{network=\"default\",direction=\"received\"} 900",
            "flan_datapath_drops_total{network=\"default\",reason=\"no_peer\"} 2",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn of_many_peers_only_the_mean_and_the_worst_are_told() {
        let subnets = (0..101).map(|number| format!("10.5.{number}.0/24").parse().unwrap());
        let seen = subnets.map(|subnet| (subnet, seen("h"))).collect();
        let text = text(&Status::default(), None, &Probes { seen, ..Probes::default() });
        assert!(
            !text.contains("flan_peer_round_trip_seconds{") && text.contains("statistic=\"mean\""),
            "{text}"
        );
    }

    #[test]
    fn names_that_hosts_gave_themselves_are_escaped() {
        let probes =
            Probes { seen: vec![("10.5.2.0/24".parse().unwrap(), seen("a\"b\\c"))], ..Probes::default() };
        assert!(text(&Status::default(), None, &probes).contains(r#"host="a\"b\\c""#));
    }
}
