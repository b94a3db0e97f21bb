//! Errors with exit codes.

use std::fmt;

use flan_subnet_lease::StoreError;

/// An error with its exit code. Displayed as one line.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    message: String,
}

/// The exit codes, as `--help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Other = 1,
    Usage = 2,
    Unreachable = 3,
    Unauthorised = 4,
    NoConfig = 5,
    Refused = 6,
    NotFound = 7,
    TimedOut = 8,
    Problems = 9,
}

impl Kind {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            StoreError::Unreachable(_) => Kind::Unreachable,
            StoreError::Unauthorised { .. } => Kind::Unauthorised,
            StoreError::Setting(_) | StoreError::CredentialFile(_) => Kind::Usage,
            StoreError::LeaseGone(_) | StoreError::NotOffered { .. } | StoreError::Refused { .. } => {
                Kind::Other
            }
        };
        match &error {
            StoreError::CredentialFile(file) if file.is_forbidden() => {
                Self::new(kind, format!("{error}; run flanctl as a user who may read it, such as root"))
            }
            error => Self::new(kind, error),
        }
    }
}
