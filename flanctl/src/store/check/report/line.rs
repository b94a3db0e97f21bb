//! One line of a check.

use serde::Serialize;

use flan_subnet_lease::printable;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    /// What was found.
    detail: String,
    /// What would help; null where nothing is wrong.
    remedy: Option<String>,
}

/// Whether it is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Verdict {
    Ok,
    /// Agents work all the same.
    Warning,
    /// Agents cannot work, or not for long.
    Failed,
    /// The store does not say.
    NotTold,
}

impl Line {
    /// It is as it should be.
    pub(crate) fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Ok, detail: detail.into(), remedy: None }
    }

    /// It is not, and agents work all the same.
    pub(crate) fn warning(
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { name: name.into(), verdict: Verdict::Warning, detail: detail.into(), remedy }
    }

    /// Agents cannot work with it.
    pub(crate) fn failed(
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Failed, ..Self::warning(name, detail, remedy) }
    }

    /// The store does not say.
    pub(crate) fn not_told(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::NotTold, ..Self::ok(name, detail) }
    }

    /// The line for people, the name as wide as given, and what would help below it.
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
