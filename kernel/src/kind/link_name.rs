//! The name of a network device.

use std::fmt;
use std::str::FromStr;

/// The name of a network device: 1 to 15 bytes, no `/`, no `:`, no white space, not `.` or `..` (`dev_valid_name` in
/// the kernel's `net/core/dev.c`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName {
    bytes: [u8; 15],
    length: u8,
}

/// A text that cannot name a network device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a network device: a name has 1 to 15 bytes without '/', ':' or white space")]
pub struct InvalidLinkName(pub String);

impl LinkName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl FromStr for LinkName {
    type Err = InvalidLinkName;

    fn from_str(text: &str) -> Result<Self, InvalidLinkName> {
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(bad) {
            return Err(InvalidLinkName(text.to_owned()));
        }
        let mut bytes = [0; 15];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, length: text.len() as u8 })
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_name_keeps_its_text() {
        assert_eq!("flannel.1".parse::<LinkName>().unwrap().as_str(), "flannel.1");
        assert_eq!("flannel-v6.4095".parse::<LinkName>().unwrap().to_string(), "flannel-v6.4095");
    }

    #[test]
    fn a_text_that_the_kernel_refuses_is_no_link_name() {
        for text in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-bytes-xx", "a\0"] {
            assert_eq!(text.parse::<LinkName>(), Err(InvalidLinkName(text.to_owned())));
        }
    }
}
