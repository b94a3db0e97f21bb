//! Tables for people, and that of the leases.

use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

use flan_subnet_lease::{printable, shown};

use crate::output::{LastAlive, State, Subnet, SubnetList};

/// Formats rows under a header, with two spaces between columns and no control characters.
pub(crate) fn plain(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim().to_owned()).collect();
    lines.join("\n")
}

/// Formats the leases, one per line; `wide` adds rarely needed columns.
pub(crate) fn render(list: &SubnetList, wide: bool) -> String {
    let mut header = vec!["SUBNET", "HOST", "PUBLIC IP", "BACKEND", "EXPIRES IN"];
    let is_alive_known = list.items.iter().any(|item| item.last_alive.is_some());
    if is_alive_known {
        header.push("LAST ALIVE");
    }
    header.push("STATE");
    if wide {
        header.extend(["NODE ID", "BACKEND DATA", "REVISION"]);
    }
    plain(&header, list.items.iter().map(|item| row(item, is_alive_known, wide)))
}

fn row(item: &Subnet, is_alive_known: bool, wide: bool) -> Vec<String> {
    let mut row = vec![
        if item.subnets.is_empty() { shown(&item.key).into_owned() } else { item.subnets.join(",") },
        or_dash(item.host.as_deref()),
        or_dash(Some(item.public_ips.join(",").as_str())),
        or_dash(item.backend.as_deref()),
        expiry(item),
    ];
    if is_alive_known {
        row.push(last_alive(item));
    }
    row.push(state(item));
    if wide {
        let data: Vec<String> = item.backend_data.iter().map(ToString::to_string).collect();
        let revision = item.mod_revision.map(|revision| revision.to_string());
        row.extend([
            or_dash(item.node_id.as_deref()),
            or_dash(Some(data.join(" ").as_str())),
            or_dash(revision.as_deref()),
        ]);
    }
    row
}

pub(crate) fn or_dash(text: Option<&str>) -> String {
    shown(text.filter(|text| !text.is_empty()).unwrap_or("-")).into_owned()
}

fn expiry(item: &Subnet) -> String {
    match item.expires_in_seconds {
        _ if item.reservation => "never".to_owned(),
        Some(seconds) => short(Duration::from_secs(seconds)),
        None => "?".to_owned(),
    }
}

fn last_alive(item: &Subnet) -> String {
    match item.last_alive {
        None => "-".to_owned(),
        Some(LastAlive { seconds_ago: None }) => "never seen".to_owned(),
        Some(LastAlive { seconds_ago: Some(0) }) => "now".to_owned(),
        Some(LastAlive { seconds_ago: Some(seconds) }) => {
            format!("{} ago", short(Duration::from_secs(seconds)))
        }
    }
}

fn state(item: &Subnet) -> String {
    match (item.state, &item.reason) {
        (State::Active, None) => "active".to_owned(),
        (State::Active, Some(reason)) => format!("active, but {reason}"),
        (State::Reserved, _) => "reserved, not claimed".to_owned(),
        (State::Bad, Some(reason)) => format!("bad: {reason}"),
        (State::Bad, None) => "bad".to_owned(),
    }
}

/// Formats at most two units: `23h59m`, `4m10s`.
pub(crate) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let shown: Vec<String> = [5, 250, 86_399, 200_000]
            .into_iter()
            .map(|seconds| short(Duration::from_secs(seconds)))
            .collect();
        assert_eq!(shown, ["5s", "4m10s", "23h59m", "2d7h"]);
    }
}
