//! What must not be in a report: passwords and private keys, wherever they stand.

use std::collections::BTreeSet;
use std::path::Path;

use regex::{Captures, Regex, RegexBuilder};

const HIDDEN: &str = "***";
/// A shorter value is not looked for elsewhere: it would be found in half of all words. Where it is set, it is hidden anyway.
const SHORTEST: usize = 5;
/// Settings whose values are secret: `FLAND_ETCD_PASSWORD=x`, `"PSK": "x"`, `--to-password x`. Of a file only its name is
/// given.
const SETTING: &str = r#"(?P<name>[\w-]*(?:password|passwd|psk|presharedkey|secret|token|private[_-]?key)"?\s*(?:[:=]|\s)\s*"?)(?P<value>[^\s"',}]+)"#;
/// `http://name:password@host`.
const USER_IN_URL: &str = r"(?P<name>[a-z][a-z0-9+.-]*://)(?P<value>[^\s/@]+)@";

/// Values that are hidden, and the patterns of those that are not known.
pub(super) struct Secrets {
    known: BTreeSet<String>,
    patterns: Vec<Regex>,
}

impl Secrets {
    /// Reads those of this host: in the agent's settings file, and its WireGuard keys.
    pub(super) fn known(settings: &Path) -> Self {
        let patterns = [SETTING, USER_IN_URL]
            .iter()
            .filter_map(|pattern| RegexBuilder::new(pattern).case_insensitive(true).build().ok());
        let mut secrets = Self { known: BTreeSet::new(), patterns: patterns.collect() };
        let settings = std::fs::read_to_string(settings).unwrap_or_default();
        for file in key_files(&settings) {
            let key = std::fs::read_to_string(file).unwrap_or_default();
            secrets.known.insert(key.trim().to_owned());
        }
        secrets.known.retain(|value| value.len() >= SHORTEST);
        secrets.with_those_in([settings.as_str()])
    }

    /// Adds the values of all settings with a secret in these texts.
    pub(super) fn with_those_in<'a>(mut self, texts: impl IntoIterator<Item = &'a str>) -> Self {
        for text in texts {
            let found = self.patterns.iter().flat_map(|pattern| pattern.captures_iter(text));
            let values = found.filter_map(|found| Some(found.name("value")?.as_str().to_owned()));
            let new: Vec<String> =
                values.filter(|value| value.len() >= SHORTEST && !is_harmless(value)).collect();
            self.known.extend(new);
        }
        self
    }

    /// Returns the text without them.
    pub(super) fn removed_from(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for pattern in &self.patterns {
            let hide = |found: &Captures<'_>| {
                let end = if found[0].ends_with('@') { "@" } else { "" };
                match is_harmless(&found["value"]) {
                    true => found[0].to_owned(),
                    false => format!("{}{HIDDEN}{end}", &found["name"]),
                }
            };
            text = pattern.replace_all(&text, hide).into_owned();
        }
        // The longest first: one may be a part of another.
        let mut known: Vec<&String> = self.known.iter().collect();
        known.sort_by_key(|value| std::cmp::Reverse(value.len()));
        known.into_iter().fold(text, |text, value| text.replace(value.as_str(), HIDDEN))
    }
}

/// The value says where the secret is, or that there is none.
fn is_harmless(value: &str) -> bool {
    value.starts_with('/')
        || value.starts_with('<')
        || matches!(value, HIDDEN | "null" | "none" | "true" | "false")
}

/// The files with this host's WireGuard keys, as the settings name them and by default.
fn key_files(settings: &str) -> Vec<String> {
    let named = settings.lines().filter_map(|line| {
        let (name, file) = line.split_once('=')?;
        name.trim().ends_with("WIREGUARD_KEY_FILE").then(|| file.trim().trim_matches('"').to_owned())
    });
    let usual = ["/var/lib/flan/wireguard.key", "/run/flannel/wgkey", "/run/flan/wireguard.key"];
    named.chain(usual.map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(text: &str) -> String {
        Secrets::known(Path::new("/nowhere")).with_those_in([text]).removed_from(text)
    }

    #[test]
    fn secrets_are_hidden_wherever_they_are_set() {
        for (text, hidden) in [
            ("FLAND_ETCD_PASSWORD=s3cret", "FLAND_ETCD_PASSWORD=***"),
            ("FLAND_ETCD_PASSWORD=\"s3cret\"", "FLAND_ETCD_PASSWORD=\"***\""),
            (r#"{"Type":"wireguard","PSK":"AQID+/=="}"#, r#"{"Type":"wireguard","PSK":"***"}"#),
            ("fland --etcd-password s3cret --iface eth0", "fland --etcd-password *** --iface eth0"),
            ("fland --etcd-password=s3cret", "fland --etcd-password=***"),
            ("http://root:s3cret@10.0.0.2:2379", "http://***@10.0.0.2:2379"),
            ("https://10.0.0.2:2379,http://u:p@h", "https://10.0.0.2:2379,http://***@h"),
        ] {
            assert_eq!(removed(text), hidden);
        }
    }

    #[test]
    fn a_secret_that_is_set_in_one_place_is_hidden_in_all() {
        let text = "FLAND_ETCD_PASSWORD=s3cret\nsomebody typed s3cret here";
        assert!(!removed(text).contains("s3cret"));
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "FLAND_ETCD_KEYFILE=/etc/flan/key.pem",
            "--wireguard-key-file /run/flan/wireguard.key",
            "public key AQIDBAUGBwgJ",
            "10.5.0.0/16 via 192.168.64.12 dev eth0",
            "user@host wrote",
        ] {
            assert_eq!(removed(text), text);
        }
    }
}
