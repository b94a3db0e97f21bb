//! The present problems of this host, and their log lines.

use std::time::SystemTime;

use flan_agent_api::{Code, Problem};
use tracing::{info, warn};

/// Records in `problems`, sorted by code, what is wrong of this kind at present, if anything. Logs only changes.
pub(crate) fn report(problems: &mut Vec<Problem>, code: Code, wrong: Option<String>, now: SystemTime) {
    let place = problems.binary_search_by_key(&code, |problem| problem.code);
    match (place, wrong) {
        (Ok(at), None) => {
            let solved = problems.remove(at);
            info!(problem = %code, "solved: {}", solved.text);
        }
        (Ok(at), Some(text)) if problems[at].text == text => {}
        (Ok(at), Some(text)) => {
            warn!(problem = %code, "{text}");
            problems[at].text = text;
        }
        (Err(at), Some(text)) => {
            warn!(problem = %code, "{text}");
            problems.insert(at, Problem { code, text, since: now });
        }
        (Err(_), None) => {}
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
}
