//! Settings that are refused at the start. The same settings would be refused again.

/// A setting that cannot work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RefusedSetting(String);

/// Creates a refusal. The text names the setting and what would work.
pub(crate) fn refused(reason: impl Into<Box<dyn std::error::Error>>) -> anyhow::Error {
    RefusedSetting(reason.into().to_string()).into()
}
