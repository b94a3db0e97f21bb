//! One line of a check.

use serde::Serialize;

use flan_subnet_lease::printable;

/// One checked item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    /// What was found.
    detail: String,
    /// What to do; null if nothing is wrong.
    remedy: Option<String>,
}

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Verdict {
    Ok,
    /// Agents still work.
    Warning,
    /// Agents cannot work, or not for long.
    Failed,
    /// The store does not say.
    NotTold,
}

impl Line {
    /// Creates a line without problems.
    pub(crate) fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Ok, detail: detail.into(), remedy: None }
    }

    /// Creates a line for a problem with which agents still work.
    pub(crate) fn warning(
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { name: name.into(), verdict: Verdict::Warning, detail: detail.into(), remedy }
    }

    /// Creates a line for a problem that affects agents.
    pub(crate) fn failed(
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Failed, ..Self::warning(name, detail, remedy) }
    }

    /// Creates a line for what the store does not say.
    pub(crate) fn not_told(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::NotTold, ..Self::ok(name, detail) }
    }

    /// Formats the line for people with the name padded to `width`, and the remedy below.
    pub(crate) fn text(&self, width: usize) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "FAILED",
            Verdict::NotTold => "not told",
        };
        let mut text = format!("{verdict:<8}  {:<width$}  {}", self.name, printable(&self.detail));
        if let Some(remedy) = &self.remedy {
            text += &format!("\n{:<8}  {:<width$}  -> {remedy}", "", "");
        }
        text
    }
}
