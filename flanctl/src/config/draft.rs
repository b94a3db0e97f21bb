//! A network config before it is written to the store: the user's text, completed with a backend.

use flan_subnet_lease::{ConfigError, ConfigWarning, NetworkConfig, VxlanConfig, without_byte_order_mark};

use crate::failure::{Failure, Kind};

/// Backend added to a config without one, unless another is requested.
pub(super) const DEFAULT_BACKEND: &str = VxlanConfig::NAME;

/// The config to write.
#[derive(Debug)]
pub(super) struct Draft {
    /// The user's text, changed as little as possible.
    pub(super) json: Vec<u8>,
    /// The parsed config.
    pub(super) config: NetworkConfig,
    /// Changes of the user's text, a sentence each.
    pub(super) changes: Vec<String>,
    /// Whether the backend was added without a request.
    is_default_backend: bool,
}

impl Draft {
    /// Completes `written`: adds the `backend`, or [`DEFAULT_BACKEND`], if it has none.
    pub(super) fn new(written: &[u8], backend: Option<&str>) -> Result<Self, Failure> {
        let config = NetworkConfig::parse(written).map_err(unusable)?;
        let json = without_byte_order_mark(written);
        let mut changes = Vec::new();
        if json.len() < written.len() {
            changes.push("left out the byte order mark, which flanneld refuses".to_owned());
        }
        let named = Some(config.backend.name()).filter(|_| !has_no_backend(&config));
        let (json, is_default_backend) = match (named, backend) {
            (Some(named), Some(asked)) if named != asked => {
                let message = format!(
                    "--backend {asked} contradicts the Backend.Type {named} of the config; leave out one"
                );
                return Err(Failure::new(Kind::Usage, message));
            }
            (Some(_), _) => (json.to_vec(), false),
            (None, asked) => {
                let name = asked.unwrap_or(DEFAULT_BACKEND);
                changes.push(format!("added {}, as the config names no backend", backend_field(name)));
                (with_backend(json, name), asked.is_none())
            }
        };
        let config = NetworkConfig::parse(&json).map_err(unusable)?;
        Ok(Self { json, config, changes, is_default_backend })
    }

    /// Refuses to change the backend of an existing network, unless the user named the new one.
    pub(super) fn check_against(&self, stored: &NetworkConfig) -> Result<(), Failure> {
        if !self.is_default_backend || stored.backend == self.config.backend {
            return Ok(());
        }
        let name = stored.backend.name();
        let plain = NetworkConfig::parse(&with_backend(POOL, name)).map_err(unusable)?.backend;
        let (runs, keep) = match stored.backend == plain {
            true if has_no_backend(stored) => (
                format!(", and neither does the stored one: the network runs {name}"),
                format!("--backend {name}"),
            ),
            true => (format!(", and the network runs {name}"), format!("--backend {name}")),
            false => (
                format!(", and the network runs {name} with settings of its own"),
                "copy Backend from what `flanctl config get` prints".to_owned(),
            ),
        };
        let message = format!(
            "this config names no Backend{runs}. Nothing was written. To keep that: {keep}. \
             To change all hosts to plain {DEFAULT_BACKEND}: --backend {DEFAULT_BACKEND}"
        );
        Err(Failure::new(Kind::Refused, message))
    }
}

/// Returns whether flannel would choose a default backend.
pub(super) fn has_no_backend(config: &NetworkConfig) -> bool {
    config.warnings.contains(&ConfigWarning::NoBackend)
}

/// Returns the failure for a config that is invalid for any store.
pub(super) fn unusable(error: ConfigError) -> Failure {
    Failure::new(Kind::Usage, error)
}

/// A minimal valid config.
const POOL: &[u8] = br#"{"Network": "10.5.0.0/16"}"#;

/// Returns the field to add.
pub(super) fn backend_field(name: &str) -> String {
    format!(r#""Backend": {{"Type": "{name}"}}"#)
}

/// Adds a backend as the last field of a non-empty JSON object, on its own line if the first field is.
fn with_backend(object: &[u8], name: &str) -> Vec<u8> {
    let start = object.iter().position(|byte| *byte == b'{').map_or(0, |brace| brace + 1);
    let end = object.iter().rposition(|byte| *byte == b'}').unwrap_or(object.len()).max(start);
    let fields = object[start..end].trim_ascii_end();
    let indent = &fields[..fields.len() - fields.trim_ascii_start().len()];
    let separator: &[u8] = if indent.contains(&b'\n') { indent } else { b" " };
    let (head, tail) = object.split_at(start + fields.len());
    [head, b",", separator, backend_field(name).as_bytes(), tail].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"{"Network":"10.5.0.0/16"}"#;

    fn draft(written: &str, backend: Option<&str>) -> Result<Draft, String> {
        Draft::new(written.as_bytes(), backend).map_err(|failure| failure.to_string())
    }

    fn json(draft: &Draft) -> &str {
        std::str::from_utf8(&draft.json).unwrap()
    }

    fn against(stored: &str, written: &str, backend: Option<&str>) -> Result<(), String> {
        let stored = NetworkConfig::parse(stored.as_bytes()).unwrap();
        draft(written, backend)?.check_against(&stored).map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_backend_is_written_out_in_the_style_of_the_author() {
        for (written, complete) in [
            (PLAIN, r#"{"Network":"10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#),
            (
                " { \"Network\": \"10.5.0.0/16\" }\n",
                " { \"Network\": \"10.5.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"} }\n",
            ),
            (
                "{\r\n\t\"SubnetLen\": 26,\r\n\t\"Network\": \"10.5.0.0/16\"\r\n}\r\n",
                "{\r\n\t\"SubnetLen\": 26,\r\n\t\"Network\": \"10.5.0.0/16\",\r\n\t\"Backend\": {\"Type\": \"vxlan\"}\r\n}\r\n",
            ),
            (
                r#"{"Network":"10.5.0.0/16","x":{"}":"}"},"x":1.50}"#,
                r#"{"Network":"10.5.0.0/16","x":{"}":"}"},"x":1.50, "Backend": {"Type": "vxlan"}}"#,
            ),
        ] {
            let draft = draft(written, None).unwrap();
            assert_eq!(json(&draft), complete);
            assert!(!has_no_backend(&draft.config));
            assert_eq!(
                draft.changes,
                [r#"added "Backend": {"Type": "vxlan"}, as the config names no backend"#]
            );
        }
        assert_eq!(draft(PLAIN, Some("udp")).unwrap().config.backend.name(), "udp");
    }

    #[test]
    fn a_config_that_names_its_backend_stays_as_it_is() {
        let written = "{\"Backend\" :{\"Type\":\"UDP\"},\n\n\"network\":\"10.5.0.0/16\"}";
        for backend in [None, Some("udp")] {
            let draft = draft(written, backend).unwrap();
            assert_eq!((json(&draft), draft.changes.len()), (written, 0));
        }
        assert_eq!(
            draft(written, Some("vxlan")).unwrap_err(),
            "--backend vxlan contradicts the Backend.Type udp of the config; leave out one"
        );
    }

    #[test]
    fn a_byte_order_mark_is_left_out() {
        let draft = draft(&format!("\u{feff}{PLAIN}"), Some("udp")).unwrap();
        assert_eq!(json(&draft), r#"{"Network":"10.5.0.0/16", "Backend": {"Type": "udp"}}"#);
        assert_eq!(draft.changes[0], "left out the byte order mark, which flanneld refuses");
        assert_eq!(draft.config.warnings, []);
    }

    #[test]
    fn the_backend_of_a_network_changes_only_for_who_names_the_new_one() {
        assert_eq!(
            against(PLAIN, PLAIN, None).unwrap_err(),
            "this config names no Backend, and neither does the stored one: the network runs udp. Nothing was written. \
             To keep that: --backend udp. To change all hosts to plain vxlan: --backend vxlan"
        );
        let udp = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
        assert!(
            against(udp, PLAIN, None).unwrap_err().contains("and the network runs udp. Nothing was written")
        );
        let vni = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
        assert!(against(vni, PLAIN, None).unwrap_err().contains(
            "runs vxlan with settings of its own. Nothing was written. \
             To keep that: copy Backend from what `flanctl config get` prints"
        ));
        for stored in [PLAIN, udp, vni] {
            assert_eq!(against(stored, PLAIN, Some("vxlan")), Ok(()));
            assert_eq!(against(stored, vni, None), Ok(()));
        }
        let vxlan = r#"{"Backend":{"Type":"vxlan","VNI":1},"Network":"10.6.0.0/16"}"#;
        assert_eq!(against(vxlan, PLAIN, None), Ok(()));
    }

    #[test]
    fn a_network_of_both_families_gets_a_backend_that_carries_both() {
        let written = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
        draft(written, None).unwrap().config.supported().unwrap();
        draft(written, Some("udp")).unwrap().config.supported().unwrap_err();
    }
}
