//! Reads all packet filter rules, and detects cheaply whether that is worthwhile.

use std::path::Path;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::chains::{Owner, Table};
use super::{iptables_listing, nft_listing};
use crate::firewall::{FirewallError, program};

/// What changes, or may change, when rules change, and is free to look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Glance {
    /// The number of nftables changes so far; `None` where the kernel does not report it.
    pub changes: Option<u32>,
    /// Whether legacy `iptables` tables exist. The kernel does not report changes of these.
    pub legacy: bool,
}

impl Glance {
    /// Looks at the network namespace of this thread.
    pub fn now() -> Self {
        Self {
            changes: generation(),
            legacy: !legacy_tables(false).is_empty() || !legacy_tables(true).is_empty(),
        }
    }
}

const OURS: [(&str, &str); 4] =
    [("inet", "flan"), ("inet", "flan-networks"), ("ip", "flan-peers"), ("ip6", "flan-peers")];

/// Tables of iptables, in the order in which a packet passes them.
const TABLES: [&str; 4] = ["raw", "mangle", "filter", "nat"];

/// Returns the tables of all other programs.
pub(super) async fn tables() -> Result<Vec<Table>, FirewallError> {
    let mut tables = Vec::new();
    if program::exists("nft") {
        let ours = |table: &Table| OURS.into_iter().any(|name| is(table, name));
        tables.extend(nft_tables().await?.into_iter().filter(|table| !ours(table)));
    }
    for ipv6 in [false, true] {
        let family = if ipv6 { "ip6" } else { "ip" };
        for name in TABLES {
            // `nft` does not show all that iptables has added.
            if let Some(index) = tables.iter().position(|table| is(table, (family, name)))
                && let Some(program) = nft_variant(ipv6)
                && let Some(table) = listed(program, ipv6, name).await
            {
                leave_to(&table, &mut tables[index]);
                tables.push(table);
            }
            if legacy_tables(ipv6).iter().any(|table| table == name)
                && let Some(program) = legacy_variant(ipv6)
            {
                tables.extend(listed(program, ipv6, name).await);
            }
        }
    }
    Ok(tables)
}

/// Returns all tables as `nft` lists them.
async fn nft_tables() -> Result<Vec<Table>, FirewallError> {
    // Our own sets may be long: list without elements first, and with elements only where others have sets.
    let Ok(brief) = program::run("nft", &["-t", "-j", "list", "ruleset"], "").await else {
        // nft before 0.9.3 lacks the terse option.
        return listed_by_nft(&["-j", "list", "ruleset"]).await;
    };
    let with_sets = nft_listing::tables_with_sets(&brief).map_err(|error| unknown_form(&error))?;
    let mut tables = nft_listing::parse(&brief).map_err(|error| unknown_form(&error))?;
    let ours = |(family, name): &&(String, String)| OURS.contains(&(family.as_str(), name.as_str()));
    for (family, name) in with_sets.iter().filter(|home| !ours(home)) {
        // The table may be gone by now.
        let Ok(listed) = listed_by_nft(&["-j", "list", "table", family, name]).await else { continue };
        tables.retain(|table| !is(table, (family, name)));
        tables.extend(listed);
    }
    Ok(tables)
}

async fn listed_by_nft(arguments: &[&str]) -> Result<Vec<Table>, FirewallError> {
    nft_listing::parse(&program::run("nft", arguments, "").await?).map_err(|error| unknown_form(&error))
}

fn unknown_form(error: &serde_json::Error) -> FirewallError {
    let message = format!("unknown output format: {error}");
    FirewallError::Refused { command: "nft -j list".to_owned(), message }
}

fn is(table: &Table, (family, name): (&str, &str)) -> bool {
    matches!(&table.owner, Owner::Nft { family: f, table: t } if f == family && t == name)
}

/// Makes the base chains that iptables lists judged by that listing. The same nft table may hold base chains that
/// iptables does not list, such as those of `/etc/nftables.conf` beside Docker's: these are judged as nft lists them.
pub(super) fn leave_to(by_iptables: &Table, by_nft: &mut Table) {
    for (name, chain) in &mut by_nft.chains {
        if by_iptables.chains.contains_key(name) {
            chain.base = None;
        }
    }
}

/// Returns one table as a program of the `iptables` family lists it; `None` if it refuses, as it does tables of `nft`.
async fn listed(program: &'static str, ipv6: bool, table: &'static str) -> Option<Table> {
    match program::run(program, &["-w", "5", "-t", table, "-S"], "").await {
        Ok(listing) => Some(iptables_listing::parse(program, ipv6, table, &listing)),
        Err(error) => {
            tracing::debug!(%error, "ignoring these rules");
            None
        }
    }
}

/// Returns the program whose rules are in nftables, if installed.
fn nft_variant(ipv6: bool) -> Option<&'static str> {
    let [plain, nft, _] = names(ipv6);
    let plain = program::path(plain).filter(|path| is_nft(path)).map(|_| plain);
    plain.or_else(|| program::exists(nft).then_some(nft))
}

/// Returns the program of the legacy tables, if installed.
fn legacy_variant(ipv6: bool) -> Option<&'static str> {
    let [plain, _, legacy] = names(ipv6);
    let plain = || program::path(plain).filter(|path| !is_nft(path)).map(|_| plain);
    program::exists(legacy).then_some(legacy).or_else(plain)
}

fn names(ipv6: bool) -> [&'static str; 3] {
    if ipv6 {
        ["ip6tables", "ip6tables-nft", "ip6tables-legacy"]
    } else {
        ["iptables", "iptables-nft", "iptables-legacy"]
    }
}

/// Returns whether it is the nft variant. All names of a variant link to `xtables-nft-multi` or `xtables-legacy-multi`.
fn is_nft(path: &Path) -> bool {
    path.canonicalize().is_ok_and(|path| path.to_string_lossy().contains("nft"))
}

/// Returns the legacy tables that exist. Running the program would create them.
fn legacy_tables(ipv6: bool) -> Vec<String> {
    let file = if ipv6 { "ip6_tables_names" } else { "ip_tables_names" };
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

/// `NFT_MSG_GETGEN` and `NFT_MSG_NEWGEN` of the subsystem `NFNL_SUBSYS_NFTABLES` (`linux/netfilter/nf_tables.h`).
const GET_GENERATION: u16 = 10 << 8 | 16;
const GENERATION: u16 = 10 << 8 | 15;
/// `NFTA_GEN_ID`, a 32-bit number in network order.
const GENERATION_ID: u16 = 1;
/// Bytes of `nlmsghdr`, the following `nfgenmsg`, and `nlattr`.
const HEADER: usize = 16;
const FAMILY: usize = 4;
const ATTRIBUTE: usize = 4;

fn generation() -> Option<u32> {
    let socket = Socket::new(NETLINK_NETFILTER).ok()?;
    let mut request = Vec::with_capacity(HEADER + FAMILY);
    request.extend(((HEADER + FAMILY) as u32).to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request.extend([0; 8]); // sequence and port
    request.extend([0; FAMILY]); // any family, version 0
    socket.send_to(&request, &SocketAddr::new(0, 0), 0).ok()?;
    let mut answer = Vec::with_capacity(4096);
    // The kernel answers within `send`.
    socket.recv(&mut answer, libc::MSG_DONTWAIT).ok()?;
    read_generation(&answer)
}

fn read_generation(answer: &[u8]) -> Option<u32> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if u16_at(4)? != GENERATION {
        return None;
    }
    let mut at = HEADER + FAMILY;
    loop {
        let length = usize::from(u16_at(at)?);
        if u16_at(at + 2)? == GENERATION_ID {
            return Some(u32::from_be_bytes(answer.get(at + ATTRIBUTE..at + 8)?.try_into().ok()?));
        }
        at += length.max(ATTRIBUTE).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_changes_is_read_from_among_others() {
        let mut answer = vec![0; HEADER + FAMILY];
        answer[4..6].copy_from_slice(&GENERATION.to_ne_bytes());
        answer.extend([8u16, 2].map(u16::to_ne_bytes).concat());
        answer.extend([9; 4]);
        answer.extend([8u16, GENERATION_ID].map(u16::to_ne_bytes).concat());
        answer.extend(77u32.to_be_bytes());
        assert_eq!(read_generation(&answer), Some(77));
        for length in 0..answer.len() {
            assert_eq!(read_generation(&answer[..length]), None, "cut off after {length} bytes");
        }
    }

    #[test]
    fn a_refusal_is_no_number() {
        assert_eq!(read_generation(&[0; 36]), None);
    }
}
