//! Judges the answers of one endpoint.

use flan_subnet_lease::{MemberStatus, StoreError};
use serde::Serialize;

use super::advice::{ADMINISTRATOR, MAJORITY, brief, remedy};
use super::line::Line;
use crate::store::check::Member;

/// The answers of one endpoint. Unknown values are null.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoint {
    /// Named after the URL.
    #[serde(flatten)]
    pub(crate) line: Line,
    version: Option<String>,
    /// Its id, in hexadecimal like in etcdctl.
    member_id: Option<String>,
    /// The id of the leader; null while there is none.
    leader_id: Option<String>,
    /// Size of its database on disk, in bytes.
    database_bytes: Option<u64>,
    /// Median time of some reads.
    read_microseconds: Option<u64>,
}

impl Endpoint {
    /// Judges the answers of one of the members.
    pub(crate) fn new(member: &Member, members: &[Member]) -> Self {
        let status = member.status.as_ref().ok();
        let read = member.read.as_ref().and_then(|read| read.as_ref().ok());
        let id = |id: u64| format!("{id:x}");
        Self {
            line: endpoint_line(member, members),
            version: status.map(|status| status.version.clone()),
            member_id: status.map(|status| id(status.member_id)),
            leader_id: status.and_then(|status| status.leader).map(id),
            database_bytes: status.map(|status| status.database_bytes),
            read_microseconds: read.map(|read| u64::try_from(read.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

fn endpoint_line(member: &Member, members: &[Member]) -> Line {
    let name = member.endpoint.to_string();
    // Agents accept this answer and do not try another endpoint.
    if let (Err(error @ StoreError::Unauthorised { .. }), None) = (&member.status, &member.read) {
        return Line::failed(name, brief(error), remedy(error, ADMINISTRATOR));
    }
    let mut parts = match &member.status {
        Ok(status) => described(status, members),
        Err(error @ StoreError::NotOffered { .. }) => {
            vec![format!("its status is not told: {}", brief(error))]
        }
        Err(error) => vec![brief(error)],
    };
    match &member.read {
        Some(Ok(read)) => parts.push(format!("reads in {:.2} ms", read.as_secs_f64() * 1000.0)),
        Some(Err(error)) => parts.push(format!("reads nothing: {}", brief(error))),
        None => {}
    }
    // The name already says where.
    let detail = parts.join(", ").replace(&format!("{name}: "), "");
    if member.serves() {
        return Line::ok(name, detail);
    }
    let remedy = match &member.status {
        Err(error) if !detail.contains("no leader") => remedy(error, ADMINISTRATOR),
        _ => MAJORITY.to_owned(),
    };
    // Agents try the next endpoint.
    if members.iter().any(Member::serves) {
        let remedy = format!("agents go on with the others; {remedy}, or take it off --etcd-endpoints");
        return Line::warning(name, detail, remedy);
    }
    Line::failed(name, detail, remedy)
}

/// Describes a member's status.
fn described(status: &MemberStatus, members: &[Member]) -> Vec<String> {
    let version = if status.version.is_empty() { "not told" } else { &status.version };
    let mut parts = vec![format!("version {version}")];
    parts.push(match status.leader {
        None => "leader unknown".to_owned(),
        Some(leader) if leader == status.member_id => "leads".to_owned(),
        Some(leader) => {
            let known = members.iter().find(|member| {
                member
                    .status
                    .as_ref()
                    .is_ok_and(|other| other.member_id == leader && other.cluster_id == status.cluster_id)
            });
            match known {
                Some(known) => format!("follows {}", known.endpoint),
                None => format!("follows member {leader:x}"),
            }
        }
    });
    if status.learner {
        parts.push("has no vote yet".to_owned());
    }
    if status.database_bytes > 0 {
        parts.push(bytes(status.database_bytes));
    }
    parts.extend(status.errors.iter().filter(|error| alarm(error).is_none()).cloned());
    parts
}

/// Returns the kind of alarm in an error such as `memberID:9372538179322589801 alarm:NOSPACE`.
pub(crate) fn alarm(error: &str) -> Option<&str> {
    error.split_once("alarm:").map(|(_, kind)| kind.trim())
}

/// Formats as `20.0 KiB`.
fn bytes(number: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB"];
    let mut size = number as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        (size, unit) = (size / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{number} bytes") } else { format!("{size:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!([17, 20_480, 3 << 30].map(bytes), ["17 bytes", "20.0 KiB", "3.0 GiB"]);
    }
}
