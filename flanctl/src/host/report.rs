//! Steps of a change of this host. If one fails, the others continue.

use std::collections::BTreeMap;

use flan_agent_api::API_VERSION;
use serde::Serialize;

use crate::args::ReportForm;
use crate::failure::{Failure, Kind};
use crate::output;

/// Steps of one kind that are listed for people.
const SHOWN: usize = 10;

/// All steps, and what the user must do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    api_version: &'static str,
    kind: &'static str,
    dry_run: bool,
    steps: Vec<Step>,
    /// What was found and not changed, with the reason.
    left: Vec<String>,
    /// What the user must do next.
    next: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    what: String,
    outcome: Outcome,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip)]
    failure: Option<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Planned,
    Done,
    Failed,
}

impl Report {
    /// Creates an empty report. With `dry_run`, no step is taken.
    pub(crate) fn new(kind: &'static str, dry_run: bool) -> Self {
        let (steps, left, next) = Default::default();
        Self { api_version: API_VERSION, kind, dry_run, steps, left, next }
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Takes a step and records it. In a dry run, only records it.
    pub(crate) async fn step(&mut self, what: String, work: impl Future<Output = Result<(), Failure>>) {
        match self.dry_run {
            true => self.went_well(what),
            false => match work.await {
                Ok(()) => self.went_well(what),
                Err(failure) => self.failed(what, failure),
            },
        }
    }

    /// Records a step that succeeded, or would be taken.
    pub(crate) fn went_well(&mut self, what: String) {
        let outcome = if self.dry_run { Outcome::Planned } else { Outcome::Done };
        self.steps.push(Step { what, outcome, reason: None, failure: None });
    }

    /// Records a step that failed.
    #[expect(clippy::needless_pass_by_value, reason = "a failure ends here")]
    pub(crate) fn failed(&mut self, what: String, failure: Failure) {
        let (reason, kind) = (Some(failure.to_string()), Some(failure.kind));
        self.steps.push(Step { what, outcome: Outcome::Failed, reason, failure: kind });
    }

    /// Records what is not changed, and why.
    pub(crate) fn left(&mut self, what: String) {
        self.left.push(what);
    }

    /// Records what the user must do.
    pub(crate) fn next(&mut self, what: String) {
        self.next.push(what);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.steps.iter().any(|step| step.outcome == Outcome::Failed)
    }

    /// Prints the report. Fails if any step did, with the kind that all failures share.
    pub(crate) fn finish(&self, form: ReportForm, nothing: &str) -> Result<(), Failure> {
        match form {
            ReportForm::Text if self.is_empty() => output::print(&self.text_of(&[nothing.to_owned()]))?,
            ReportForm::Text => output::print(&self.text())?,
            ReportForm::Json => output::print_json(self)?,
            ReportForm::Yaml => output::print_yaml(self)?,
        }
        let mut failures = self.steps.iter().filter_map(|step| Some((step.failure?, step)));
        let Some((kind, first)) = failures.next() else { return Ok(()) };
        let others: Vec<Kind> = failures.map(|(kind, _)| kind).collect();
        let kind = if others.iter().all(|other| *other == kind) { kind } else { Kind::Other };
        let message = format!(
            "{} of {} failed; the first: {}: {}",
            others.len() + 1,
            output::count(self.steps.len(), "step"),
            first.what,
            first.reason.as_deref().unwrap_or_default(),
        );
        Err(Failure::new(kind, message))
    }

    /// Formats the report for people.
    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        let mut seen: BTreeMap<(Outcome, &str), usize> = BTreeMap::new();
        for step in &self.steps {
            let seen = seen.entry((step.outcome, verb_and_noun(&step.what))).or_default();
            *seen += 1;
            if *seen <= SHOWN {
                let reason = step.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
                lines.push(format!("{}{}{reason}", label(step.outcome), step.what));
            }
        }
        let more = seen.into_iter().filter(|(_, count)| *count > SHOWN);
        lines.extend(
            more.map(|((outcome, kind), count)| format!("{}{kind}: {} more", label(outcome), count - SHOWN)),
        );
        self.text_of(&lines)
    }

    fn text_of(&self, steps: &[String]) -> String {
        let left = self.left.iter().map(|what| format!("left     {what}"));
        let next = self.next.iter().map(|what| format!("next     {what}"));
        steps.iter().cloned().chain(left).chain(next).collect::<Vec<_>>().join("\n")
    }
}

fn label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Planned => "would    ",
        Outcome::Done => "done     ",
        Outcome::Failed => "failed   ",
    }
}

/// Returns `replace route` for `replace route 10.5.2.0/24 via ...`.
fn verb_and_noun(what: &str) -> &str {
    let end = what.match_indices(' ').nth(1).map_or(what.len(), |(at, _)| at);
    &what[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: Kind, reason: &str) -> Failure {
        Failure::new(kind, reason)
    }

    #[test]
    fn of_many_steps_of_one_kind_people_see_some_and_the_number_of_the_rest() {
        let mut report = Report::new("HandOver", true);
        for number in 0..25 {
            report.went_well(format!("replace route 10.5.{number}.0/24"));
        }
        report.went_well("delete link flannel0".to_owned());
        report.next("start flanneld".to_owned());
        let text = report.text();
        assert_eq!(text.lines().count(), 10 + 1 + 1 + 1, "{text}");
        assert!(text.starts_with("would    replace route 10.5.0.0/24\n"), "{text}");
        assert!(
            text.ends_with(
                "would    delete link flannel0\nwould    replace route: 15 more\nnext     start flanneld"
            ),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_step_that_fails_stops_no_other_and_gives_the_exit_code() {
        let mut report = Report::new("Leave", false);
        report.step("one".to_owned(), async { Err(failure(Kind::Unreachable, "no answer")) }).await;
        report.step("two".to_owned(), async { Ok(()) }).await;
        assert_eq!(report.text(), "failed   one: no answer\ndone     two");
        let unreachable = report.finish(ReportForm::Text, "").unwrap_err();
        assert_eq!(unreachable.kind, Kind::Unreachable);
        assert_eq!(unreachable.to_string(), "1 of 2 steps failed; the first: one: no answer");
        report.failed("three".to_owned(), failure(Kind::Other, "refused"));
        assert_eq!(report.finish(ReportForm::Text, "").unwrap_err().kind, Kind::Other);
    }

    #[tokio::test]
    async fn a_dry_run_takes_no_step() {
        let mut report = Report::new("Leave", true);
        report.step("one".to_owned(), async { panic!("it was taken") }).await;
        assert_eq!(report.text(), "would    one");
    }
}
