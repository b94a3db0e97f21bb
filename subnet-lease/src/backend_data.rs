//! What a backend writes into a lease: vxlan's and wireguard's data as numbers, anything else as text.

use flan_wireguard_keys::PublicKey;
use macaddr::MacAddr6;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use serde_json::Value;
use serde_json::value::RawValue;

/// `BackendData` or `BackendV6Data` of a lease: any JSON. It is written as it was read, with the fields of an object
/// sorted by name.
///
/// There is one per host of the network, so the data of flannel's and our vxlan takes only 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendData(Form);

/// `BackendData` and `BackendV6Data` of the vxlan backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanData {
    /// VXLAN network identifier; hosts with an old flannel omit it.
    #[serde(rename = "VNI", default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// MAC of the holder's VXLAN device.
    #[serde(rename = "VtepMAC", with = "mac_text")]
    pub vtep_mac: MacAddr6,
}

/// `BackendData` and `BackendV6Data` of the wireguard backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardData {
    /// The holder's key.
    #[serde(rename = "PublicKey")]
    pub public_key: PublicKey,
    /// The UDP port to send to; hosts with an old flannel omit it, and mean the config's.
    #[serde(rename = "Port", default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// Exactly the form in which [`VxlanData`] is written.
    Vxlan(VxlanData),
    /// Exactly the form in which [`WireguardData`] is written.
    Wireguard(Box<WireguardData>),
    Other(Box<Text>),
}

/// Compact JSON. Boxed as a whole, it keeps the usual form small.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Text(Box<str>);

impl BackendData {
    /// Returns vxlan's data, if it is readable as such.
    pub fn vxlan(&self) -> Option<VxlanData> {
        match &self.0 {
            Form::Vxlan(data) => Some(*data),
            Form::Wireguard(_) => None,
            Form::Other(text) => serde_json::from_str(&text.0).ok(),
        }
    }

    /// Returns wireguard's data, if it is readable as such.
    pub fn wireguard(&self) -> Option<WireguardData> {
        match &self.0 {
            Form::Vxlan(_) => None,
            Form::Wireguard(data) => Some(**data),
            Form::Other(text) => serde_json::from_str(&text.0).ok(),
        }
    }

    /// Returns the JSON.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn from_text(json: &str) -> Result<Self, serde_json::Error> {
        Ok(match usual(json) {
            Some(form) => Self(form),
            None => serde_json::from_str::<Value>(json)?.into(),
        })
    }
}

impl From<Value> for BackendData {
    fn from(value: Value) -> Self {
        let json = value.to_string();
        Self(usual(&json).unwrap_or_else(|| Form::Other(Box::new(Text(json.into())))))
    }
}

impl From<VxlanData> for BackendData {
    fn from(data: VxlanData) -> Self {
        Self(Form::Vxlan(data))
    }
}

impl From<WireguardData> for BackendData {
    fn from(data: WireguardData) -> Self {
        Self(Form::Wireguard(Box::new(data)))
    }
}

impl Serialize for BackendData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Form::Vxlan(data) => data.serialize(serializer),
            Form::Wireguard(data) => data.serialize(serializer),
            Form::Other(text) => {
                serde_json::from_str::<&RawValue>(&text.0).map_err(S::Error::custom)?.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for BackendData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_text(<&RawValue>::deserialize(deserializer)?.get()).map_err(D::Error::custom)
    }
}

/// Reads what is in exactly the form in which flannel and flan write it.
fn usual(json: &str) -> Option<Form> {
    vxlan(json).map(Form::Vxlan).or_else(|| wireguard(json).map(Box::new).map(Form::Wireguard))
}

/// Reads `{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","Port":51820}`, only in exactly this form.
fn wireguard(json: &str) -> Option<WireguardData> {
    let data: WireguardData =
        serde_json::from_str(json.strip_prefix("{\"PublicKey\"").map(|_| json)?).ok()?;
    (serde_json::to_string(&data).ok()? == json).then_some(data)
}

/// Reads `{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`, only in exactly this form.
fn vxlan(json: &str) -> Option<VxlanData> {
    let fields = json.strip_prefix('{')?.strip_suffix("\"}")?;
    let (vni, mac) = match fields.strip_prefix("\"VNI\":") {
        Some(rest) => {
            let (digits, rest) = rest.split_once(',')?;
            let other_form = digits.starts_with('0') && digits != "0" || digits.starts_with('+');
            (Some(digits.parse().ok().filter(|_| !other_form)?), rest)
        }
        None => (None, fields),
    };
    let mac = mac.strip_prefix("\"VtepMAC\":\"")?.as_bytes();
    let mut octets = [0; 6];
    if mac.len() != 17 {
        return None;
    }
    for (octet, text) in octets.iter_mut().zip(mac.chunks(3)) {
        if text.get(2).is_some_and(|colon| *colon != b':') {
            return None;
        }
        *octet = hex(text[0])? << 4 | hex(text[1])?;
    }
    Some(VxlanData { vni, vtep_mac: octets.into() })
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// A MAC as flannel writes it: lower case, with colons.
mod mac_text {
    use macaddr::MacAddr6;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mac: &MacAddr6, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&mac.to_string().to_lowercase())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MacAddr6, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not a MAC address")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> BackendData {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn vxlan_data_is_written_as_flannel_writes_it() {
        let data = VxlanData { vni: Some(1), vtep_mac: "C6:D2:32:6F:8F:44".parse().unwrap() };
        assert_eq!(serde_json::to_string(&data).unwrap(), r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#);
        assert_eq!(size_of::<Option<BackendData>>(), 16);
    }

    #[test]
    fn whatever_was_read_is_written_again_as_it_was() {
        for (json, usual) in [
            (r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#, true),
            (r#"{"VtepMAC":"c6:d2:32:6f:8f:44"}"#, true),
            (r#"{"VNI":0,"VtepMAC":"c6:d2:32:6f:8f:44"}"#, true),
            (r#"{"VNI":1,"VtepMAC":"C6:D2:32:6F:8F:44"}"#, false),
            (r#"{"VNI":null,"VtepMAC":"c6:d2:32:6f:8f:44"}"#, false),
            (r#"{"GBP":true,"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#, false),
            (r#"{"Port":51821,"PublicKey":"cGs="}"#, false),
            (r#"{"VNI":4294967296,"VtepMAC":"c6:d2:32:6f:8f:44"}"#, false),
            (r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f-44"}"#, false),
            (r#"[1.5,"x"]"#, false),
        ] {
            let data = read(json);
            assert_eq!(matches!(data.0, Form::Vxlan(_)), usual, "{json}");
            assert_eq!(serde_json::to_string(&data).unwrap(), json);
            assert_eq!(BackendData::from(data.to_value()), data, "{json}");
        }
        let blanks = read(r#" { "VtepMAC" : "c6:d2:32:6f:8f:44" , "VNI" : 1 } "#);
        assert_eq!(blanks, read(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#));
    }

    #[test]
    fn a_key_is_written_as_flannel_writes_it() {
        let key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        let json = format!(r#"{{"PublicKey":"{key}","Port":51820}}"#);
        let data = WireguardData { public_key: key.parse().unwrap(), port: Some(51820) };
        assert_eq!(serde_json::to_string(&BackendData::from(data)).unwrap(), json);
        assert_eq!(read(&json), BackendData::from(data));
        let old = read(&format!(r#"{{"PublicKey":"{key}"}}"#)).wireguard().unwrap();
        assert_eq!((old.public_key, old.port), (data.public_key, None));
        // Any order is read, and written again as it was.
        let sorted = read(&format!(r#"{{"Port":51820,"PublicKey":"{key}"}}"#));
        assert_eq!(sorted.wireguard(), Some(data));
        assert_eq!(read(r#"{"PublicKey":"cGs="}"#).wireguard(), None);
    }

    #[test]
    fn a_mac_in_another_notation_is_understood() {
        let data = read(r#"{"VNI":1,"VtepMAC":"C6-D2-32-6F-8F-44"}"#).vxlan().unwrap();
        assert_eq!(data.vtep_mac, "c6:d2:32:6f:8f:44".parse().unwrap());
        assert_eq!(read(r#"{"VNI":1,"VtepMAC":"x"}"#).vxlan(), None);
    }

    proptest! {
        #[test]
        fn the_usual_form_reads_what_it_writes(vni: Option<u32>, mac: [u8; 6]) {
            let data = VxlanData { vni, vtep_mac: mac.into() };
            prop_assert_eq!(usual(&serde_json::to_string(&data).unwrap()), Some(Form::Vxlan(data)));
        }

        #[test]
        fn any_text_is_read_without_panic(json in "\\{(\"VNI\":[0-9+]{0,12},)?\"VtepMAC\":\"[0-9a-fA-F:é]{15,18}\"\\}") {
            if let Ok(data) = serde_json::from_str::<BackendData>(&json) {
                prop_assert_eq!(serde_json::to_string(&data).unwrap(), json);
            }
        }
    }
}
