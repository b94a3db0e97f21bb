//! Formatting of MACs.

use std::fmt;

use macaddr::MacAddr6;

/// A MAC as `ip(8)` prints it, in lower case.
pub(crate) struct Mac<'a>(pub(crate) &'a MacAddr6);

impl fmt::Display for Mac<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0.into_array();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
