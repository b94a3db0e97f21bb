//! WireGuard's keys: read, written, kept in a file, and shown to nobody.
//!
//! All keys are 32 bytes, written as 44 characters of base64, as `wg(8)` does. Only a public key can be printed.

mod file;
mod public;
mod secret;

pub use file::{KeyFile, KeyFileError, Origin};
pub use public::PublicKey;
pub use secret::{PresharedKey, PrivateKey};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Bytes of any key.
pub const KEY_BYTES: usize = 32;

/// A text that is no key. It does not repeat the text, which may be a secret with a typing error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It is not base64.
    #[error("is no WireGuard key: 44 characters of base64 are, as wg genkey prints them")]
    Base64,
    /// It has another length.
    #[error("is no WireGuard key: it has {0} bytes, a key has 32")]
    Length(usize),
}

/// Reads a key, without regard to white space around it.
fn parse(text: &str) -> Result<[u8; KEY_BYTES], InvalidKey> {
    let bytes = zeroize::Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| InvalidKey::Base64)?);
    bytes.as_slice().try_into().map_err(|_| InvalidKey::Length(bytes.len()))
}
