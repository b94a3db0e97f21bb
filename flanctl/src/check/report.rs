//! What was looked at, and what was found.

use flan_agent_api::{API_VERSION, Code, Severity};
use flan_subnet_lease::printable;
use serde::Serialize;

/// All parts, in the order in which they were looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    api_version: &'static str,
    kind: &'static str,
    checks: Vec<Part>,
}

/// One part of this host.
#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    /// What is there and as it should be, or why it could not be looked at.
    text: Option<String>,
    problems: Vec<Finding>,
}

/// Something that is wrong.
#[derive(Debug, Serialize)]
struct Finding {
    code: Code,
    name: &'static str,
    severity: Severity,
    text: String,
    remedy: &'static str,
}

/// Column at which texts begin.
const WIDTH: usize = 14;

impl Default for Report {
    fn default() -> Self {
        Self { api_version: API_VERSION, kind: "Check", checks: Vec::new() }
    }
}

impl Report {
    /// Records that a part was looked at, and what is there.
    pub(super) fn fine(&mut self, part: &'static str, text: impl Into<String>) {
        self.part(part).text = Some(text.into());
    }

    /// Records what is wrong with a part. The agent and this command may find the same: the first counts.
    pub(super) fn found(&mut self, part: &'static str, code: Code, text: impl Into<String>) {
        let known = self.checks.iter().flat_map(|part| &part.problems);
        let (same_code, text) = (known.filter(|known| known.code == code), text.into());
        if same_code.map(|known| &known.text).any(|known| *known == text) {
            return;
        }
        let finding =
            Finding { code, name: code.name(), severity: code.severity(), text, remedy: code.remedy() };
        self.part(part).problems.push(finding);
    }

    /// Records what is wrong, if anything, unless there is a problem of this kind already; else that it is fine.
    pub(super) fn judge(
        &mut self,
        part: &'static str,
        code: Code,
        wrong: Option<String>,
        fine: impl Into<String>,
    ) {
        match wrong {
            _ if self.has(code) => {}
            Some(text) => self.found(part, code, text),
            None => self.fine(part, fine),
        }
    }

    /// Returns whether there is a problem of this kind.
    pub(super) fn has(&self, code: Code) -> bool {
        self.checks.iter().flat_map(|part| &part.problems).any(|problem| problem.code == code)
    }

    /// Returns the number of problems.
    pub(super) fn found_count(&self) -> usize {
        self.checks.iter().map(|part| part.problems.len()).sum()
    }

    fn part(&mut self, name: &'static str) -> &mut Part {
        let at = self.checks.iter().position(|part| part.name == name).unwrap_or_else(|| {
            self.checks.push(Part { name, text: None, problems: Vec::new() });
            self.checks.len() - 1
        });
        &mut self.checks[at]
    }

    /// Formats it for people: what is wrong first.
    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        for problem in self.checks.iter().flat_map(|part| &part.problems) {
            lines.push(format!("{} {} {}", problem.severity, problem.code, problem.name));
            lines.push(format!("    {}", printable(&problem.text)));
        }
        if lines.is_empty() {
            lines.push("nothing wrong found".to_owned());
        }
        let texts = self.checks.iter().filter_map(|part| Some((part, part.text.as_ref()?)));
        lines.extend(texts.map(|(part, text)| format!("{:WIDTH$}{}", part.name, printable(text))));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_stands_first_and_is_told_once() {
        let mut report = Report::default();
        report.fine("store", "http://127.0.0.1:2379");
        report.found("agent", Code::PortTaken, "8472 is taken");
        report.judge("port", Code::PortTaken, Some("it is taken".to_owned()), "free");
        report.judge("tables", Code::TableFull, None, "room in all");
        assert_eq!(report.found_count(), 1);
        assert_eq!(
            report.text(),
            "error FLAN-E017 port-taken\n\
             \u{20}   8472 is taken\n\
             store         http://127.0.0.1:2379\n\
             tables        room in all"
        );
    }
}
