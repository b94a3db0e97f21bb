//! Judges the answers of a check, with a remedy for each problem.

mod advice;
mod endpoint;
mod line;
mod rights;

use std::collections::BTreeMap;

use flan_agent_api::API_VERSION;
use flan_subnet_lease::{MemberStatus, StoreConfig};
use serde::Serialize;

use super::{Member, Needs, SLOW};
use advice::NO_SPACE;
use endpoint::{Endpoint, alarm};
use line::{Line, Verdict};
use rights::rights;

/// The result of a check.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CheckReport {
    api_version: &'static str,
    kind: &'static str,
    /// Whether everything that agents need works.
    ok: bool,
    /// Prefix of all keys.
    prefix: String,
    /// The endpoints, in the given order.
    endpoints: Vec<Endpoint>,
    /// Checks of the store as a whole.
    checks: Vec<Line>,
}

impl CheckReport {
    /// Judges the answers; `needs` is `None` if no endpoint could be asked.
    pub(crate) fn new(config: &StoreConfig, members: &[Member], needs: Option<&Needs>) -> Self {
        let endpoints: Vec<Endpoint> = members.iter().map(|member| Endpoint::new(member, members)).collect();
        let mut checks = vec![alarms(members)];
        checks.extend(one_cluster(members));
        checks.extend(needs.filter(|needs| needs.user_ignored).map(|_| user_ignored()));
        checks.extend(slow(members, needs));
        checks.extend(rights(config, needs));
        let prefix = config.prefix.clone();
        let kind = "StoreCheck";
        let mut report = Self { api_version: API_VERSION, kind, ok: true, prefix, endpoints, checks };
        report.ok = report.failed() == 0;
        report
    }

    /// Returns the number of failures that affect agents.
    pub(crate) fn failed(&self) -> usize {
        self.lines().filter(|line| line.verdict == Verdict::Failed).count()
    }

    /// Formats the report for people.
    pub(crate) fn text(&self) -> String {
        let width = self.lines().map(|line| line.name.len()).max().unwrap_or_default();
        self.lines().map(|line| line.text(width)).collect::<Vec<_>>().join("\n")
    }

    fn lines(&self) -> impl Iterator<Item = &Line> {
        self.endpoints.iter().map(|endpoint| &endpoint.line).chain(&self.checks)
    }
}

/// Judges alarms from any member, since all members know all alarms.
fn alarms(members: &[Member]) -> Line {
    let name = "alarms";
    let statuses: Vec<&MemberStatus> =
        members.iter().filter_map(|member| member.status.as_ref().ok()).collect();
    let mut raised: Vec<&str> =
        statuses.iter().flat_map(|status| &status.errors).filter_map(|error| alarm(error)).collect();
    raised.sort_unstable();
    raised.dedup();
    if raised.is_empty() {
        return match statuses.is_empty() {
            true => Line::not_told(name, "no endpoint tells its status"),
            false => Line::ok(name, "none"),
        };
    }
    let remedy = match raised.contains(&"NOSPACE") {
        true => NO_SPACE,
        false => "see: etcdctl alarm list",
    };
    Line::failed(name, raised.join(", "), remedy)
}

/// Reports a store that ignores our user.
fn user_ignored() -> Line {
    let detail = "authentication is switched off: everybody who reaches the store can change the leases";
    Line::warning("user", detail, "etcdctl auth enable, or give no --etcd-username")
}

/// Reports answers that are slow enough for agents to warn.
fn slow(members: &[Member], needs: Option<&Needs>) -> Option<Line> {
    let served = members.iter().filter(|member| member.serves()).map(|member| member.slowest);
    let slowest = served.chain(needs.map(|needs| needs.took)).max().filter(|took| *took > SLOW)?;
    let detail =
        format!("slow: it took {:.0} s to answer; agents wait for up to 30 s", slowest.as_secs_f32());
    Some(Line::warning("speed", detail, "look at the disk and the load of the store's hosts"))
}

/// Reports endpoints of different clusters: each agent would see the leases of only one.
fn one_cluster(members: &[Member]) -> Option<Line> {
    let mut clusters: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for member in members {
        if let Ok(status) = &member.status {
            clusters.entry(status.cluster_id).or_default().push(&member.endpoint);
        }
    }
    (clusters.len() > 1).then(|| {
        let clusters: Vec<String> =
            clusters.iter().map(|(id, members)| format!("{id:x} at {}", members.join(", "))).collect();
        Line::failed(
            "one cluster",
            clusters.join("; "),
            "give endpoints of one cluster: agents ask any of them",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flan_subnet_lease::{Cause, Credentials, StoreError, StoredConfig, Unanswered};

    use super::*;

    const A: &str = "http://a:2379";
    const B: &str = "http://b:2379";

    fn config() -> StoreConfig {
        let endpoints = vec![A.parse().unwrap(), B.parse().unwrap()];
        StoreConfig { endpoints, prefix: "/net".to_owned(), credentials: Credentials::default() }
    }

    fn status(member_id: u64) -> MemberStatus {
        MemberStatus {
            version: "3.5.9".to_owned(),
            member_id,
            cluster_id: 7,
            leader: Some(10),
            learner: false,
            database_bytes: 20_480,
            errors: vec![],
        }
    }

    fn member(endpoint: &str, status: MemberStatus) -> Member {
        let read = Some(Ok(Duration::from_micros(410)));
        let slowest = Duration::from_millis(3);
        Member { endpoint: endpoint.parse().unwrap(), status: Ok(status), read, slowest }
    }

    fn dead(endpoint: &str) -> Member {
        let unanswered = Unanswered::silent(endpoint, "Connection refused".to_owned());
        unreached(unanswered)
    }

    fn unreached(unanswered: Unanswered) -> Member {
        let endpoint = unanswered.endpoint.parse().unwrap();
        let status = Err(StoreError::Unreachable(vec![unanswered]));
        Member { endpoint, status, read: None, slowest: Duration::from_secs(30) }
    }

    fn needs() -> Needs {
        let json = br#"{"Network": "10.5.0.0/24", "SubnetLen": 28, "Backend": {"Type": "vxlan"}}"#.to_vec();
        Needs {
            config: Ok(Some(StoredConfig { json, create_revision: 3, mod_revision: 3 })),
            list: Ok(12),
            watch: Ok(()),
            etcd_lease: Ok(()),
            write: Ok(()),
            user_ignored: false,
            took: Duration::from_millis(9),
        }
    }

    fn unauthorised(reason: &str) -> StoreError {
        StoreError::Unauthorised { endpoint: A.to_owned(), reason: reason.to_owned() }
    }

    fn not_offered() -> StoreError {
        StoreError::NotOffered { endpoint: A.to_owned(), reason: "unknown method Status".to_owned() }
    }

    fn report(members: &[Member], needs: Option<&Needs>) -> CheckReport {
        CheckReport::new(&config(), members, needs)
    }

    #[test]
    fn a_store_that_serves_is_told_line_by_line() {
        let report = report(&[member(A, status(10)), member(B, status(11))], Some(&needs()));
        assert_eq!(
            report.text(),
            "ok        http://a:2379    version 3.5.9, leads, 20.0 KiB, reads in 0.41 ms\n\
             ok        http://b:2379    version 3.5.9, follows http://a:2379, 20.0 KiB, reads in 0.41 ms\n\
             ok        alarms           none\n\
             ok        read the config  15 subnets of length /28 from 10.5.0.16 to 10.5.0.240 in 10.5.0.0/24, \
             backend vxlan\n\
             ok        list leases      12 leases\n\
             ok        watch leases     opened one\n\
             ok        store leases     granted, renewed and revoked one\n\
             ok        write leases     allowed; nothing was written"
        );
        assert!(report.ok);
    }

    #[test]
    fn a_dead_endpoint_beside_a_living_one_is_a_warning_and_alone_a_failure() {
        let beside = report(&[member(A, status(10)), dead(B)], Some(&needs()));
        let text = beside.text();
        assert!(text.contains("warning   http://b:2379    Connection refused\n"), "{text}");
        assert!(text.contains("-> agents go on with the others"), "{text}");
        assert_eq!(beside.failed(), 0);
        let alone = report(&[dead(A)], None);
        let text = alone.text();
        assert!(text.starts_with("FAILED    http://a:2379    Connection refused\n"), "{text}");
        assert!(text.ends_with("not told  write leases     no endpoint could be asked"), "{text}");
        assert_eq!((alone.failed(), alone.ok), (1, false));
    }

    #[test]
    fn firewalls_are_spoken_of_where_there_is_no_connection_and_nowhere_else() {
        let told = |cause, remedy: Option<&str>| {
            let (reason, remedy) = ("a reason".to_owned(), remedy.map(str::to_owned));
            let member = unreached(Unanswered { endpoint: A.to_owned(), reason, remedy, cause });
            report(&[member], None).text()
        };
        assert!(
            told(Cause::NoConnection, None)
                .contains("-> check the URL, that the store runs there, and that no firewall")
        );
        let tls = told(Cause::NoUnderstanding, Some("renew the store's certificate"));
        assert!(tls.starts_with("FAILED    http://a:2379    a reason\n"), "{tls}");
        assert!(tls.contains("-> renew the store's certificate\n") && !tls.contains("firewall"), "{tls}");
        for cause in [Cause::UnknownHost, Cause::Ended, Cause::NoUnderstanding] {
            assert!(!told(cause, None).contains("firewall"), "{cause:?}");
        }
    }

    #[test]
    fn a_right_that_lacks_is_named_with_the_command_that_grants_it() {
        let denied = || unauthorised("etcdserver: permission denied");
        let needs = Needs {
            config: Err(denied()),
            list: Ok(1),
            watch: Err(unauthorised("etcdserver: user name is empty")),
            write: Err(denied()),
            ..needs()
        };
        let report = report(&[member(A, status(10))], Some(&needs));
        let text = report.text();
        for line in [
            "-> etcdctl role grant-permission ROLE read /net/config\n",
            "-> give --etcd-username and --etcd-password\n",
            "-> etcdctl role grant-permission ROLE --prefix=true readwrite /net/subnets/",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(report.failed(), 3);
    }

    #[test]
    fn a_store_without_a_config_that_agents_can_use_is_no_store_for_them() {
        let stored = |json: &[u8]| StoredConfig { json: json.to_vec(), create_revision: 3, mod_revision: 3 };
        for (config, words) in [(None, "there is none"), (Some(stored(b"{")), "it cannot be used: ")] {
            let needs = Needs { config: Ok(config), ..needs() };
            let report = report(&[member(A, status(10))], Some(&needs));
            assert!(
                report.text().contains(&format!("FAILED    read the config  {words}")),
                "{}",
                report.text()
            );
        }
    }

    #[test]
    fn what_a_store_does_not_offer_is_not_told_and_no_failure() {
        let member = Member { status: Err(not_offered()), ..member(A, status(10)) };
        let needs = Needs { watch: Err(not_offered()), ..needs() };
        let report = report(&[member], Some(&needs));
        let text = report.text();
        for line in [
            "ok        http://a:2379    its status is not told: unknown method Status, reads in 0.41 ms\n",
            "not told  alarms           no endpoint tells its status\n",
            "not told  watch leases     unknown method Status\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(report.ok);
    }

    #[test]
    fn alarms_are_told_once_with_what_ends_them() {
        let full = |id| {
            let errors = vec!["memberID:10 alarm:NOSPACE ".to_owned(), "etcdserver: slow".to_owned()];
            MemberStatus { errors, ..status(id) }
        };
        let report = report(&[member(A, full(10)), member(B, full(11))], Some(&needs()));
        let text = report.text();
        assert!(text.contains("FAILED    alarms           NOSPACE\n"), "{text}");
        assert!(text.contains("20.0 KiB, etcdserver: slow, reads"), "{text}");
        assert_eq!(report.failed(), 1);
    }

    #[test]
    fn a_user_that_the_store_does_not_ask_for_is_a_warning() {
        let needs = Needs { user_ignored: true, ..needs() };
        let report = report(&[member(A, status(10))], Some(&needs));
        let text = report.text();
        assert!(text.contains("warning   user             authentication is switched off: "), "{text}");
        assert!(text.contains("-> etcdctl auth enable") && report.ok, "{text}");
    }

    #[test]
    fn a_store_that_answers_late_is_a_warning_and_no_failure() {
        let needs = Needs { took: Duration::from_secs(2), ..needs() };
        let late = Member { slowest: Duration::from_secs(7), ..member(A, status(10)) };
        let report = report(&[late, dead(B)], Some(&needs));
        let text = report.text();
        assert!(text.contains("warning   speed            slow: it took 7 s to answer; "), "{text}");
        assert!(
            report.ok && !CheckReport::new(&config(), &[dead(A)], None).text().contains("slow"),
            "{text}"
        );
    }

    #[test]
    fn endpoints_of_two_clusters_are_told_apart() {
        let other = MemberStatus { cluster_id: 8, ..status(10) };
        let report = report(&[member(A, status(10)), member(B, other)], Some(&needs()));
        let text = report.text();
        assert!(
            text.contains("FAILED    one cluster      7 at http://a:2379; 8 at http://b:2379\n"),
            "{text}"
        );
    }

    #[test]
    fn a_wrong_password_is_an_answer_and_members_without_a_majority_are_none() {
        let refused = Member {
            status: Err(unauthorised("etcdserver: authentication failed, invalid user ID or password")),
            ..dead(A)
        };
        let text = report(&[refused], None).text();
        assert!(text.contains("-> check --etcd-username and --etcd-password\n"), "{text}");
        let silent = StoreError::Unreachable(vec![Unanswered::silent(A, "no answer within 4 s".to_owned())]);
        let torn = Member { read: Some(Err(silent)), ..member(A, status(10)) };
        let text = report(&[torn], None).text();
        assert!(text.starts_with("FAILED    http://a:2379    version 3.5.9, leads, "), "{text}");
        assert!(text.contains("-> more than half of the members must run"), "{text}");
    }
}
