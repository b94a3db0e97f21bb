//! What must not be in a report: passwords and private keys, wherever they stand.
//!
//! Values that are known to be secret, from settings, are hidden everywhere. Others are hidden where something says that a
//! secret follows: a name such as `password`, or the user of a URL.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use flan_subnet_lease::Password;
use regex::{Captures, Regex, RegexBuilder};
use serde_json::Value;

use crate::env_file::EnvFile;

const HIDDEN: &str = "***";
/// A shorter value is hidden only where it is set: it would be found in half of all words.
const SHORTEST: usize = 5;
/// Names whose values are secret. `ETCD_KEYFILE` or `password_file` name a file.
const NAME: &str = r"[\w-]*(?:password|passwd|psk|pre[_-]?shared[_-]?key|secret|token|private[_-]?key)";
/// `NAME=x`, `NAME: "x y"`, `"name":"x"`, and the same with the quotes escaped, as in a log of JSON.
const SETTING: &str = r#"(?P<name>NAME(?:\\?["'])?[ \t]*[:=][ \t]*)(?P<value>\\"(?:[^"\\]|\\[^"])*\\"|"(?:\\.|[^"\\])*"|'[^']*'|[^\s"'}]+)"#;
/// `--password x`.
const FLAG: &str = r#"(?P<name>--NAME[ \t]+)(?P<value>"(?:\\.|[^"\\])*"|'[^']*'|[^\s"']+)"#;
/// `http://name:password@host`.
const USER_IN_URL: &str = r#"(?P<name>[a-z][a-z0-9+.-]*://)(?P<value>[^\s"',]+)@"#;

/// The known values, and the patterns of others.
pub(super) struct Secrets {
    known: BTreeSet<String>,
    password: Option<Password>,
    patterns: Vec<Regex>,
}

impl Secrets {
    /// Reads those of this host: in the agent's settings file, and its WireGuard keys. `password` is the one for the store.
    pub(super) fn known(settings: &Path, password: Option<Password>) -> Self {
        let patterns = [SETTING, FLAG, USER_IN_URL].into_iter().filter_map(compiled).collect();
        let mut secrets = Self { known: BTreeSet::new(), password, patterns };
        let settings = EnvFile::read(settings).unwrap_or_default();
        let mut keys = USUAL_KEYS.map(str::to_owned).to_vec();
        for (name, value) in settings.variables() {
            if is_secret(name) {
                secrets.add(value);
            } else if name.ends_with("WIREGUARD_KEY_FILE") {
                keys.push(value.to_owned());
            }
        }
        for file in keys {
            secrets.add(std::fs::read_to_string(file).unwrap_or_default().trim());
        }
        secrets
    }

    /// Adds the secrets of a document: the network config, Docker's settings.
    pub(super) fn add_those_of(&mut self, json: &str) {
        if let Ok(document) = serde_json::from_str::<Value>(json) {
            self.add_those_in(&document);
        }
    }

    fn add_those_in(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if is_secret(name) => self.add(text),
                        value => self.add_those_in(value),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.add_those_in(item)),
            _ => {}
        }
    }

    fn add(&mut self, value: &str) {
        if value.len() >= SHORTEST {
            self.known.insert(value.to_owned());
        }
    }

    /// Returns the text without them.
    pub(super) fn removed_from(&self, text: &str) -> String {
        // The longest first: one may be a part of another.
        let mut known: Vec<&String> = self.known.iter().collect();
        known.sort_by_key(|value| std::cmp::Reverse(value.len()));
        let text =
            known.into_iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), HIDDEN));
        let text = self.password.as_ref().map_or(text.clone(), |password| password.hidden_in(&text, HIDDEN));
        self.patterns.iter().fold(text, |text, pattern| {
            let hide = |found: &Captures<'_>| {
                let (name, value) = (&found["name"], &found["value"]);
                let end = if found[0].ends_with('@') { "@" } else { "" };
                let quote = ["\\\"", "\"", "'"]
                    .into_iter()
                    .find(|quote| value.starts_with(quote))
                    .unwrap_or_default();
                match matches!(value, "null" | "none" | "true" | "false" | "\"\"") {
                    true => found[0].to_owned(),
                    false => format!("{name}{quote}{HIDDEN}{quote}{end}"),
                }
            };
            pattern.replace_all(&text, hide).into_owned()
        })
    }
}

/// Where flan and flannel keep a host's WireGuard key by default.
const USUAL_KEYS: [&str; 3] =
    ["/var/lib/flan/wireguard.key", "/run/flannel/wgkey", "/run/flan/wireguard.key"];

fn is_secret(name: &str) -> bool {
    static WHOLE: LazyLock<Option<Regex>> = LazyLock::new(|| compiled(&format!("^{NAME}$")));
    WHOLE.as_ref().is_some_and(|whole| whole.is_match(name))
}

/// A pattern in which `NAME` stands for the names of secrets.
fn compiled(pattern: &str) -> Option<Regex> {
    RegexBuilder::new(&pattern.replace("NAME", NAME)).case_insensitive(true).build().ok()
}

/// Returns the settings of a file as they are understood, one a line, without the values of those that are secret.
pub(super) fn settings_of(file: &Path) -> String {
    let settings = match EnvFile::read(file) {
        Ok(settings) => settings,
        Err(reason) => return format!("{}: {reason}\n", file.display()),
    };
    let mut lines: Vec<String> = settings
        .variables()
        .map(|(name, value)| format!("{name}={}\n", if is_secret(name) { HIDDEN } else { value }))
        .collect();
    lines.sort();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(text: &str) -> String {
        Secrets::known(Path::new("/nowhere"), None).removed_from(text)
    }

    #[test]
    fn what_a_name_says_is_secret_is_hidden_whole() {
        for (text, hidden) in [
            ("FLAND_ETCD_PASSWORD=s3cret", "FLAND_ETCD_PASSWORD=***"),
            ("FLAND_ETCD_PASSWORD=\"two words, here\" B=1", "FLAND_ETCD_PASSWORD=\"***\" B=1"),
            ("FLAND_ETCD_PASSWORD='s3cret'", "FLAND_ETCD_PASSWORD='***'"),
            ("FLAND_ETCD_PASSWORD=\"a\\\"bcdefg\"", "FLAND_ETCD_PASSWORD=\"***\""),
            ("FLAND_ETCD_PASSWORD=/with,comma", "FLAND_ETCD_PASSWORD=***"),
            (r#"{"Type":"wireguard","PSK":"/QID+/=="}"#, r#"{"Type":"wireguard","PSK":"***"}"#),
            (r#"msg="sent {\"password\":\"hunter22\"}""#, r#"msg="sent {\"password\":\"***\"}""#),
            ("fland --etcd-password s3cret --iface eth0", "fland --etcd-password *** --iface eth0"),
            ("fland --etcd-password='s3 cret' --iface eth0", "fland --etcd-password='***' --iface eth0"),
            ("http://root:s3cret@10.0.0.2:2379", "http://***@10.0.0.2:2379"),
            ("http://u:p@ss@h:3128 http://r:pa/ss@h", "http://***@h:3128 http://***@h"),
            (r#"{"pre_shared_key": "AQID"}"#, r#"{"pre_shared_key": "***"}"#),
            ("https://10.0.0.2:2379,http://u:p@h", "https://10.0.0.2:2379,http://***@h"),
        ] {
            assert_eq!(removed(text), hidden);
        }
    }

    #[test]
    fn a_known_secret_is_hidden_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fland");
        std::fs::write(&file, "A=1\nFLAND_ETCD_PASSWORD='s3 cr\"et'\nFLAND_TO_PASSWORD=a\\ b\\\ncdef\n")
            .unwrap();
        let mut secrets = Secrets::known(&file, Some(Password::from("from a flag".to_owned())));
        secrets.add_those_of(
            r#"{"Backend":{"Type":"wireguard","PSK":"/abcdef="},"networks":[{"secret":"nested"}]}"#,
        );
        let text = "typed s3 cr\"et and a bcdef, /abcdef=, nested; from a flag";
        assert_eq!(secrets.removed_from(text), "typed *** and ***, ***, ***; ***");
        assert_eq!(settings_of(&file), "A=1\nFLAND_ETCD_PASSWORD=***\nFLAND_TO_PASSWORD=***\n");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "FLAND_ETCD_KEYFILE=/etc/flan/key.pem",
            "--wireguard-key-file /run/flan/wireguard.key",
            "invalid user ID or password retry_in=2s",
            "invalid user ID or password\nagent         fland answers",
            "oauth token unexpected status",
            "FLAND_ETCD_PASSWORD=\nFLAND_ETCD_ENDPOINTS=http://a:1",
            "10.5.0.0/16 via 192.168.64.12 dev eth0",
            "user@host wrote",
        ] {
            assert_eq!(removed(text), text);
        }
    }
}
