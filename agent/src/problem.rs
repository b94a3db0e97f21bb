//! The present problems of this host, and their log lines.

use std::time::SystemTime;

use flan_agent_api::{Code, NetworkStatus, Problem};
use tracing::{info, warn};

/// Records in `problems`, sorted by code, what is wrong of this kind at present, if anything. Logs it when it appears and
/// when it is solved, and changes of the text where the text does not change all the time.
pub(crate) fn report(problems: &mut Vec<Problem>, code: Code, wrong: Option<String>, now: SystemTime) {
    let place = problems.binary_search_by_key(&code, |problem| problem.code);
    match (place, wrong) {
        (Ok(at), None) => {
            let solved = problems.remove(at);
            if !has_other_lines(code) {
                info!(problem = %code, name = code.name(), "solved: {}", solved.text);
            }
        }
        (Ok(at), Some(text)) if problems[at].text == text => {}
        (Ok(at), Some(text)) => {
            if !matches!(
                code,
                Code::BadLease | Code::Lease | Code::OutOfReach | Code::Store | Code::TableFull
            ) {
                appears(code, &text);
            }
            problems[at].text = text;
        }
        (Err(at), Some(text)) => {
            appears(code, &text);
            problems.insert(at, Problem { code, text, since: now });
        }
        (Err(_), None) => {}
    }
}

/// Whether other lines tell of it: of what is waited for at every start, and of each operation that the kernel refuses.
fn has_other_lines(code: Code) -> bool {
    matches!(code, Code::Kernel | Code::NotReady)
}

fn appears(code: Code, text: &str) {
    if !has_other_lines(code) {
        warn!(problem = %code, name = code.name(), "{text}");
    }
}

/// Records the problems that follow from the rest of the status.
pub(crate) fn follow(status: &mut NetworkStatus, now: SystemTime) {
    let what = status.waiting_for.as_deref().unwrap_or("its start to end");
    let not_ready = (!status.ready).then(|| format!("this host is not in the network: it waits for {what}"));
    let count = |count: usize, one: &str, more: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {more}")),
    };
    let unreachable = count(
        status.unreachable_count,
        "peer with a good lease is out of reach; flanctl status says why",
        "peers with a good lease are out of reach; flanctl status says why",
    );
    let bad = count(
        status.quarantined_count,
        "lease is bad, and its holder gets no packets; flanctl subnets ls says why",
        "leases are bad, and their holders get no packets; flanctl subnets ls says why",
    );
    for (code, wrong) in [(Code::NotReady, not_ready), (Code::OutOfReach, unreachable), (Code::BadLease, bad)]
    {
        report(&mut status.problems, code, wrong, now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_problem_keeps_its_time_while_it_lasts_and_goes_when_solved() {
        let start = SystemTime::UNIX_EPOCH;
        let mut problems = Vec::new();
        report(&mut problems, Code::PortTaken, Some("8472 is taken by vxlan9".to_owned()), start);
        report(&mut problems, Code::SubnetOverlap, Some("of eth1".to_owned()), start);
        let (later, text) = (start + Duration::from_secs(9), "8472 is taken by vxlan10".to_owned());
        report(&mut problems, Code::PortTaken, Some(text.clone()), later);
        let codes: Vec<Code> = problems.iter().map(|problem| problem.code).collect();
        assert_eq!(codes, [Code::SubnetOverlap, Code::PortTaken]);
        assert_eq!(problems.pop(), Some(Problem { code: Code::PortTaken, text, since: start }));
        report(&mut problems, Code::SubnetOverlap, None, later);
        assert_eq!(problems, []);
    }

    #[test]
    fn what_the_rest_of_the_status_says_is_a_problem_as_well() {
        let mut status = NetworkStatus { unreachable_count: 2, ..NetworkStatus::default() };
        follow(&mut status, SystemTime::UNIX_EPOCH);
        assert_eq!(
            status.problem(Code::NotReady),
            Some("this host is not in the network: it waits for its start to end")
        );
        assert!(status.problem(Code::OutOfReach).unwrap().starts_with("2 peers with a good lease are"));
        (status.ready, status.unreachable_count, status.quarantined_count) = (true, 0, 1);
        follow(&mut status, SystemTime::UNIX_EPOCH);
        let codes: Vec<Code> = status.problems.iter().map(|problem| problem.code).collect();
        assert_eq!(codes, [Code::BadLease]);
    }
}
