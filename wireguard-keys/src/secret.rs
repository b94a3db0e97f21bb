//! Keys that nobody may see: no `Display`, no `Serialize`, and a `Debug` without content. They are wiped when dropped.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::{InvalidKey, KEY_BYTES, PublicKey, parse};

/// The private key of a host.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Zeroizing<[u8; KEY_BYTES]>);

/// A key that all hosts of a network share, mixed into every handshake.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(Zeroizing<[u8; KEY_BYTES]>);

impl PrivateKey {
    /// Makes a new key.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::rng().fill(&mut bytes[..]);
        // As wg(8) does: clamped, so that every program sees the same bytes (RFC 7748, section 5).
        bytes[0] &= 248;
        bytes[31] = bytes[31] & 127 | 64;
        Self(bytes)
    }

    /// Returns the public key that belongs to it.
    pub fn public(&self) -> PublicKey {
        x25519_dalek::PublicKey::from(&StaticSecret::from(*self.0)).to_bytes().into()
    }

    /// Returns the key's bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Returns the key as it stands in a file.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n", *Zeroizing::new(STANDARD.encode(*self.0))))
    }
}

impl From<[u8; KEY_BYTES]> for PrivateKey {
    fn from(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl FromStr for PrivateKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        parse(text).map(Self::from)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

impl PresharedKey {
    /// Returns the key's bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl From<[u8; KEY_BYTES]> for PresharedKey {
    fn from(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl FromStr for PresharedKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        parse(text).map(Self::from)
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_what_wg_pubkey_prints() {
        // RFC 7748, section 6.1: Alice's keys.
        let key: PrivateKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse().unwrap();
        assert_eq!(key.public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn no_secret_shows_itself() {
        let text = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        let (private, shared): (PrivateKey, PresharedKey) = (text.parse().unwrap(), text.parse().unwrap());
        let shown = format!("{private:?} {shared:?} {:?}", private.as_bytes().len());
        assert!(!shown.contains("dwdt") && !shown.contains("119"), "{shown}");
        let error = "dwdt!".parse::<PrivateKey>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("dwdt"));
    }

    #[test]
    fn new_keys_differ_and_are_clamped() {
        let (one, other) = (PrivateKey::generate(), PrivateKey::generate());
        assert_ne!(one, other);
        assert_eq!((one.as_bytes()[0] & 7, one.as_bytes()[31] & 192), (0, 64));
    }
}
