//! Output, and the documents of `-o json` and `-o yaml`.
//!
//! `apiVersion` gives their version: within `flan/v1`, fields may be added, but none is removed or changes its meaning.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::time::Duration;

use flan_agent_api::API_VERSION;
use flan_subnet_lease::{
    BackendData, Lease, LeaseSet, PerFamily, Reservation, Subnets, cut, printable, shown, without_controls,
};
use serde::Serialize;

use crate::args::Form;
use crate::failure::{Failure, Kind};

/// Limit in bytes of backend data that is included unchanged.
const MOST_BACKEND_DATA: usize = 1024;
/// Time between two looks, with `--watch`.
const AGAIN: Duration = Duration::from_secs(2);
/// Keys named in a message.
const SHOWN: usize = 5;

/// Prints lines for people. Escapes control characters, because texts in them may come from any writer of the store.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(&printable_lines(text))
}

/// Prints text from the store unchanged, but escapes control characters on a terminal.
pub(crate) fn print_verbatim(text: &str) -> Result<(), Failure> {
    match std::io::stdout().is_terminal() {
        true => print(&text.replace("\r\n", "\n")),
        false => write(text),
    }
}

/// Escapes control characters, but keeps lines and columns.
pub(crate) fn printable_lines(text: &str) -> String {
    let line = |line: &str| line.split('\t').map(printable).collect::<Vec<_>>().join("\t");
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Writes to standard output. Exits quietly if the reader has closed the pipe.
fn write(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout().lock(), "{}", text.trim_end()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| Failure::new(Kind::Other, format!("cannot print: {error}"))),
    }
}

/// Returns a document as `form` says; `text` makes that for people.
pub(crate) fn in_form(
    form: Form,
    document: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<String, Failure> {
    match form {
        Form::Table | Form::Wide => Ok(printable_lines(&text())),
        Form::Json => json(document),
        Form::Yaml => yaml(document),
    }
}

/// Prints what `render` returns: once, or until interrupted. On a terminal, each print replaces the one before; elsewhere
/// only what has changed is printed again. Ends with the first failure; later ones are told, as what failed may work again.
pub(crate) async fn once_or_again(
    watch: bool,
    render: impl AsyncFn() -> Result<String, Failure>,
) -> Result<(), Failure> {
    if !watch {
        return write(&render().await?);
    }
    let mut text = render().await?;
    let clear = if std::io::stdout().is_terminal() { "\x1b[2J\x1b[H" } else { "" };
    loop {
        write(&format!("{clear}{text}"))?;
        if clear.is_empty() {
            write("")?;
        }
        loop {
            tokio::time::sleep(AGAIN).await;
            match render().await {
                Ok(next) if next == text => {}
                Ok(next) => {
                    text = next;
                    break;
                }
                Err(failure) => eprintln!("flanctl: {}", printable_lines(&failure.to_string())),
            }
        }
    }
}

pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    write(&json(document)?)
}

fn json(document: &impl Serialize) -> Result<String, Failure> {
    let json = serde_json::to_string_pretty(document).map_err(|error| Failure::new(Kind::Other, error))?;
    Ok(harmless_json(&json).into_owned())
}

/// Escapes U+007F to U+009F, which JSON allows in texts and terminals obey.
fn harmless_json(json: &str) -> Cow<'_, str> {
    without_controls(json, |c| c == '\n')
}

pub(crate) fn print_yaml(document: &impl Serialize) -> Result<(), Failure> {
    write(&yaml(document)?)
}

fn yaml(document: &impl Serialize) -> Result<String, Failure> {
    serde_yaml_ng::to_string(document).map_err(|error| Failure::new(Kind::Other, error))
}

/// Formats a number with its noun.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Lists the first keys, and the number of the others.
pub(crate) fn some<T: AsRef<str>>(keys: &[T]) -> String {
    let shown = keys.iter().take(SHOWN).map(|key| shown(key.as_ref())).collect::<Vec<_>>().join(", ");
    match keys.len().saturating_sub(SHOWN) {
        0 => shown,
        rest => format!("{shown} and {rest} more"),
    }
}

/// Returns the sort key of a lease: its subnet, or last if the key names none.
pub(crate) fn place(key: &str) -> impl Ord + use<> {
    let subnets = key.parse::<Subnets>().ok();
    (subnets.is_none(), subnets, key.to_owned())
}

/// All leases, sorted by subnet.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SubnetList {
    api_version: &'static str,
    kind: &'static str,
    pub(crate) items: Vec<Subnet>,
}

/// One lease.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Subnet {
    /// The last part of the key in the store.
    pub(crate) key: String,
    /// `10.5.52.0/24`, one for each family; empty if the key is invalid.
    pub(crate) subnets: Vec<String>,
    /// The holder's name, if published.
    pub(crate) host: Option<String>,
    /// The holder's node id, if published.
    pub(crate) node_id: Option<String>,
    /// The holder's underlay addresses.
    #[serde(rename = "publicIPs")]
    pub(crate) public_ips: Vec<String>,
    /// `vxlan`, `host-gw`, ...; null for backends that publish none, and for a reservation without a holder.
    pub(crate) backend: Option<String>,
    /// The data published by the backend, for each family, unchanged.
    pub(crate) backend_data: Vec<serde_json::Value>,
    /// Seconds until the lease ends unless renewed; null for a reservation, or if the store did not say.
    pub(crate) expires_in_seconds: Option<u64>,
    /// Whether the lease never ends.
    pub(crate) reservation: bool,
    /// Whether a flanneld turned this reservation into a lease that can expire.
    pub(crate) reservation_lost: bool,
    /// `active`: packets are sent to the holder. `reserved`: kept for a host that has not come yet. `bad`: not applied
    /// to the kernel, because of `reason`.
    pub(crate) state: State,
    /// What is wrong with a bad lease, or doubtful about another.
    pub(crate) reason: Option<String>,
    /// When the holder's agent last answered that of this host; null if none runs here, or if the holder does not run flan.
    pub(crate) last_alive: Option<LastAlive>,
    /// Store revision of the last write; null if the value is invalid.
    pub(crate) mod_revision: Option<i64>,
    /// The etcd lease of the key.
    #[serde(skip)]
    pub(crate) etcd_lease: Option<i64>,
}

/// When an agent was last alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LastAlive {
    /// Seconds since its last answer; null if there was none since the agent of this host started.
    pub(crate) seconds_ago: Option<u64>,
}

/// Whether a lease is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Active,
    Reserved,
    Bad,
}

impl SubnetList {
    /// Creates the list from judged leases and the records of reservations, without times.
    pub(crate) fn new(leases: &LeaseSet, remembered: &[Reservation]) -> Self {
        let remembered: HashMap<Subnets, &Reservation> =
            remembered.iter().map(|reservation| (reservation.subnets, reservation)).collect();
        let is_lost = |lease: &Lease| {
            let reservation = remembered.get(&lease.subnets);
            reservation.is_some_and(|one| one.is_lost_in(&lease.attributes, lease.etcd_lease))
        };
        let known = |lease: &Lease, state| {
            let item = Subnet::new(&lease.subnets.key(), Some(lease), state, None);
            Subnet { reservation_lost: is_lost(lease), ..item }
        };
        let mut items: Vec<Subnet> = leases.peers().map(|lease| known(lease, State::Active)).collect();
        items.extend(leases.unclaimed().map(|lease| known(lease, State::Reserved)));
        items.extend(
            leases
                .quarantined()
                .map(|bad| Subnet::new(bad.key, bad.lease, State::Bad, Some(bad.reason.to_string()))),
        );
        items.sort_by_cached_key(|item| place(&item.key));
        tell_of_doubts(&mut items);
        Self { api_version: API_VERSION, kind: "SubnetList", items }
    }

    /// Returns the distinct etcd leases of the items.
    pub(crate) fn etcd_leases(&self) -> Vec<i64> {
        let mut leases: Vec<i64> = self.items.iter().filter_map(|item| item.etcd_lease).collect();
        leases.sort_unstable();
        leases.dedup();
        leases
    }

    /// Sets the remaining time of each lease.
    pub(crate) fn set_expiry(&mut self, left: impl Fn(i64) -> Option<Duration>) {
        for item in &mut self.items {
            item.expires_in_seconds = item.etcd_lease.and_then(&left).map(|left| left.as_secs());
        }
    }
}

impl Subnet {
    fn new(key: &str, lease: Option<&Lease>, state: State, reason: Option<String>) -> Self {
        let attributes = lease.map(|lease| &lease.attributes);
        let texts = |subnets: &Subnets| subnets.iter().map(|(_, one)| one.to_string()).collect();
        let subnets = key.parse().ok();
        Self {
            key: key.to_owned(),
            subnets: subnets.as_ref().map(texts).unwrap_or_default(),
            host: attributes.and_then(|one| one.node.host.as_deref().map(of_bounded_size)),
            node_id: attributes.and_then(|one| one.node.id.as_deref().map(of_bounded_size)),
            public_ips: attributes.map(|one| strings(&one.public_ips)).unwrap_or_default(),
            backend: attributes.and_then(|one| one.backend.as_deref().map(of_bounded_size)),
            backend_data: attributes
                .map(|one| one.data.values().map(value_of_bounded_size).collect())
                .unwrap_or_default(),
            expires_in_seconds: None,
            last_alive: None,
            reservation: lease.is_some_and(Lease::is_reservation),
            reservation_lost: false,
            state,
            reason,
            mod_revision: lease.map(|lease| lease.mod_revision),
            etcd_lease: lease.and_then(|lease| lease.etcd_lease),
        }
    }
}

fn of_bounded_size(text: &str) -> String {
    cut(text).into_owned()
}

/// Returns the backend's data; if it is large, its beginning as text.
fn value_of_bounded_size(data: &BackendData) -> serde_json::Value {
    let value = data.to_value();
    let text = value.to_string();
    if text.len() > MOST_BACKEND_DATA { of_bounded_size(&text).into() } else { value }
}

/// Adds what is doubtful about leases that are not bad.
///
/// If several leases share an address, packets reach the holder of one. Only that host knows which: an older lease may
/// be its own left-over, a newer one an impostor's.
fn tell_of_doubts(items: &mut [Subnet]) {
    let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let active = |item: &&Subnet| item.state == State::Active;
    for item in items.iter().filter(active) {
        for ip in &item.public_ips {
            holders.entry(ip.clone()).or_default().push(item.key.clone());
        }
    }
    for item in items.iter_mut().filter(|item| item.state == State::Active) {
        let doubled = item.public_ips.iter().find_map(|ip| {
            let other = holders.get(ip)?.iter().find(|key| **key != item.key)?;
            Some(format!(
                "public address {ip} is also that of {other}; at most one of the two can be reached"
            ))
        });
        let lost = item.reservation_lost.then(|| {
            let (subnets, ips) = (item.subnets.join(","), item.public_ips.join(","));
            format!(
                "no longer reserved; make it so again: flanctl subnets reserve {subnets} --public-ip {ips}"
            )
        });
        let doubts: Vec<String> = doubled.into_iter().chain(lost).collect();
        item.reason = (!doubts.is_empty()).then(|| doubts.join("; "));
    }
}

fn strings<T: ToString>(values: &PerFamily<T>) -> Vec<String> {
    values.values().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use flan_subnet_lease::{Admission, Caution, Entry, Listing, NetworkConfig, WatchEvent};
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn a_reservation_that_became_an_ordinary_lease_is_noted() {
        let entry = |key: &str, ip: &str, etcd_lease| Entry {
            key: key.to_owned(),
            value: format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"host-gw"}}"#).into_bytes(),
            create_revision: 1,
            mod_revision: 1,
            etcd_lease,
        };
        let entries = vec![
            entry("10.5.7.0-24", "192.168.64.7", Some(1)),
            entry("10.5.8.0-24", "192.168.64.8", None),
            entry("10.5.9.0-24", "192.168.64.9", Some(1)),
        ];
        let config = br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#;
        let admission = Admission { config: NetworkConfig::parse(config).unwrap(), own: None };
        let mut leases = LeaseSet::new(admission, Caution::default());
        let listing = Listing::of(entries, 9, 1);
        leases.apply(WatchEvent::Listed(listing), Instant::now());
        let remembered = ["7", "8"].map(|n| Reservation {
            subnets: format!("10.5.{n}.0/24").parse().unwrap(),
            public_ips: PerFamily { v4: Some(format!("192.168.64.{n}").parse().unwrap()), v6: None },
        });
        let list = SubnetList::new(&leases, &remembered);
        let lost: Vec<bool> = list.items.iter().map(|item| item.reservation_lost).collect();
        assert_eq!(lost, [true, false, false]);
        assert_eq!(
            list.items[0].reason.as_deref(),
            Some(
                "no longer reserved; make it so again: flanctl subnets reserve 10.5.7.0/24 --public-ip 192.168.64.7"
            )
        );
        assert_eq!((list.items[0].state, &list.items[1].reason), (State::Active, &None));
    }

    #[test]
    fn no_text_of_a_lease_steers_the_terminal_in_any_form() {
        assert_eq!(printable_lines("a\tb\u{1b}[2J\nc\r"), "a\tb\\u{1b}[2J\nc\\r");
        let json = serde_json::to_string_pretty(&["\u{1b}\u{9b}\u{7f}\n"]).unwrap();
        let safe = harmless_json(&json);
        assert_eq!(safe, "[\n  \"\\u001b\\u009b\\u007f\\n\"\n]");
        let read = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(read(&safe), read(&json));
        let yaml = serde_yaml_ng::to_string(&["\u{1b}\u{9b}\u{7f}"]).unwrap();
        assert!(!yaml.chars().any(|c| c.is_control() && c != '\n'), "{yaml:?}");
    }

    #[test]
    fn long_texts_of_a_lease_are_cut_for_programs_too() {
        let long = "A".repeat(2000);
        let value = format!(
            r#"{{"PublicIP":"192.168.64.7","BackendType":"host-gw","BackendData":"{long}","HostName":"{long}","NodeID":"{long}"}}"#
        );
        let (key, value) = ("10.5.7.0-24".to_owned(), value.into_bytes());
        let entry = Entry { key, value, create_revision: 1, mod_revision: 1, etcd_lease: Some(1) };
        let config = br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#;
        let admission = Admission { config: NetworkConfig::parse(config).unwrap(), own: None };
        let mut leases = LeaseSet::new(admission, Caution::default());
        let listing = Listing::of(vec![entry], 9, 1);
        leases.apply(WatchEvent::Listed(listing), Instant::now());
        let json = serde_json::to_string(&SubnetList::new(&leases, &[])).unwrap();
        assert_eq!(json.matches("AAA... (200").count(), 3, "{json}");
        assert!(json.len() < 1500, "{} bytes", json.len());
    }
}
