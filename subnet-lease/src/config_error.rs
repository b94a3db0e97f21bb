//! Messages about a network config: errors and warnings. Texts from the config are cut and made printable.

use crate::shown::shown;

/// Something in a network config that works, but perhaps not as its author expects. `{}` prints a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigWarning {
    /// The text begins with a byte order mark, as written by editors on Windows.
    #[error(
        "the network config begins with a byte order mark, which flanneld refuses and fland ignores; \
         flanctl config set writes the config without it"
    )]
    ByteOrderMark,
    /// There is no `Backend`, which means udp.
    #[error(
        "the network config names no Backend: flannel takes udp then, and so does fland; \
         write it out, as \"Backend\": {{\"Type\": \"udp\"}}, or as \"Backend\": {{\"Type\": \"vxlan\"}} for vxlan"
    )]
    NoBackend,
    /// A field occurs more than once, in any case.
    #[error(
        "the network config has the field {field} {} times, as {}; the last one counts, as with flannel",
        names.len(),
        names.iter().take(SHOWN_NAMES).map(|name| shown(name)).collect::<Vec<_>>().join(" and ")
    )]
    RepeatedField {
        /// The field's path.
        field: String,
        /// Its spellings, in order.
        names: Vec<String>,
    },
    /// The path of an unknown field, often misspelt. It is ignored, as in flannel.
    #[error("the network config has the field {}, which neither flannel nor fland knows; it is ignored", shown(.0))]
    UnknownField(String),
    /// More unknown fields than are listed.
    #[error("the network config has more fields that neither flannel nor fland knows")]
    MoreUnknownFields,
}

/// Most spellings of one repeated field to list.
const SHOWN_NAMES: usize = 5;

/// Why a network config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not UTF-8.
    #[error("the network config is UTF-16 text; save it as UTF-8")]
    Utf16,
    /// The text is larger than any network config.
    #[error(
        "the network config has {bytes} bytes; fland reads at most {most}: write a smaller one with flanctl config set"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The most that fland reads.
        most: usize,
    },
    /// Not a JSON object.
    #[error("the network config is not a JSON object: {}", shown(&.0.to_string()))]
    Syntax(#[source] serde_json::Error),
    /// A required field is missing.
    #[error("{field} is missing: {hint}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What would work.
        hint: String,
    },
    /// A field has a value that cannot work.
    #[error("{field} {value} {problem}")]
    Invalid {
        /// The field's path.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong with it, and what would work.
        problem: String,
    },
}

impl ConfigError {
    pub(crate) fn invalid(field: &str, value: &str, problem: &str) -> Self {
        Self::Invalid {
            field: field.to_owned(),
            value: shown(value).into_owned(),
            problem: problem.to_owned(),
        }
    }
}
