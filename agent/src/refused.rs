//! Settings that are refused at the door: who gives them again gets the same answer.

/// A setting that cannot work: nothing is started with it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RefusedSetting(String);

/// A refusal, with the setting and what would work in its text.
pub(crate) fn refused(reason: impl Into<Box<dyn std::error::Error>>) -> anyhow::Error {
    RefusedSetting(reason.into().to_string()).into()
}
