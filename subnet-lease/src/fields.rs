//! The fields of a JSON object as Go's `encoding/json` reads them, which flannel uses: names are case-insensitive, and
//! the last of repeated fields counts.

use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::config_error::{ConfigError, ConfigWarning};
use crate::shown::shown;

/// Most warnings about one object.
const MOST_WARNINGS: usize = 20;

/// The fields that nobody has taken yet. Those left at the end are unknown.
pub(crate) struct Fields {
    path: &'static str,
    left: Vec<(String, Box<RawValue>)>,
    warnings: Vec<ConfigWarning>,
}

impl Fields {
    /// Reads the fields of the object in `json`; messages put `path` before their names.
    pub(crate) fn read(path: &'static str, json: &[u8]) -> Result<Self, serde_json::Error> {
        let Pairs(left) = serde_json::from_slice(json)?;
        Ok(Self { path, left, warnings: Vec::new() })
    }

    /// Takes a field's value, if it exists. A null keeps the value of an earlier field of this name.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ConfigError> {
        match self.take_value(name)? {
            Some(value) => self.typed(name, &value).map(Some),
            None => Ok(None),
        }
    }

    /// Takes a field's text, parsed as a `T`. A null counts as missing.
    pub(crate) fn take_parsed<T: std::str::FromStr>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, ConfigError> {
        let Some(json) = self.take_all(name).pop().filter(|json| !is_null(json)) else { return Ok(None) };
        let text: String = self.typed(name, &self.value(name, &json)?)?;
        text.parse().map(Some).map_err(|_| {
            let problem = format!("cannot be read; expected {expected}");
            ConfigError::invalid(&self.full(name), &format!("{text:?}"), &problem)
        })
    }

    /// Takes a key that no message may show. An empty text counts as missing, as in flannel.
    pub(crate) fn take_secret<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, ConfigError> {
        let Some(json) = self.take_all(name).pop().filter(|json| !is_null(json)) else { return Ok(None) };
        let invalid = |problem: &str| ConfigError::invalid(&self.full(name), "(not shown here)", problem);
        let text: String = serde_json::from_str(json.get())
            .map_err(|_| invalid("has the wrong type: a text is expected"))?;
        match text.is_empty() {
            true => Ok(None),
            false => text.parse().map(Some).map_err(|reason: T::Err| invalid(&reason.to_string())),
        }
    }

    /// Takes a field's number, which must be in `range`. A null keeps the value of an earlier field of this name.
    pub(crate) fn take_in<T>(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, ConfigError>
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display,
    {
        let Some(value) = self.take_value(name)? else { return Ok(None) };
        let number = value.as_i64().and_then(|number| T::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let problem = format!("is not a number from {} to {}", range.start(), range.end());
                Err(ConfigError::invalid(&self.full(name), &value.to_string(), &problem))
            }
        }
    }

    /// Takes the fields of a nested object; messages put `path` before their names. A null is not an object.
    pub(crate) fn take_object(
        &mut self,
        name: &str,
        path: &'static str,
        example: &str,
    ) -> Result<Option<Self>, ConfigError> {
        let Some(json) = self.take_all(name).pop() else { return Ok(None) };
        Self::read(path, json.get().as_bytes()).map(Some).map_err(|error| {
            let problem = match json.get().starts_with('{') {
                true => format!("cannot be read: {}", shown(&error.to_string())),
                false => format!("is not an object; {example} is one"),
            };
            ConfigError::invalid(&self.full(name), json.get(), &problem)
        })
    }

    /// Returns the warnings, including those about fields that nobody took.
    pub(crate) fn finish(self) -> Vec<ConfigWarning> {
        let mut warnings = self.warnings;
        for (name, _) in self.left {
            let unknown = ConfigWarning::UnknownField(format!("{}{name}", self.path));
            if warnings.contains(&unknown) {
                continue;
            }
            if warnings.len() >= MOST_WARNINGS {
                warnings.push(ConfigWarning::MoreUnknownFields);
                break;
            }
            warnings.push(unknown);
        }
        warnings
    }

    fn take_value(&mut self, name: &str) -> Result<Option<Value>, ConfigError> {
        match self.take_all(name).iter().rfind(|json| !is_null(json)) {
            Some(json) => self.value(name, json).map(Some),
            None => Ok(None),
        }
    }

    /// Takes all values of a field, in order.
    fn take_all(&mut self, name: &str) -> Vec<Box<RawValue>> {
        let (taken, left) =
            std::mem::take(&mut self.left).into_iter().partition(|(key, _)| key.eq_ignore_ascii_case(name));
        self.left = left;
        let (names, values): (Vec<String>, Vec<_>) = Vec::into_iter(taken).unzip();
        if names.len() > 1 {
            self.warnings.push(ConfigWarning::RepeatedField { field: self.full(name), names });
        }
        values
    }

    fn value(&self, name: &str, json: &RawValue) -> Result<Value, ConfigError> {
        serde_json::from_str(json.get()).map_err(|error| {
            ConfigError::invalid(
                &self.full(name),
                json.get(),
                &format!("cannot be read: {}", shown(&error.to_string())),
            )
        })
    }

    fn typed<T: DeserializeOwned>(&self, name: &str, value: &Value) -> Result<T, ConfigError> {
        T::deserialize(value).map_err(|error| {
            let problem = format!("has the wrong type: {}", shown(&error.to_string()));
            ConfigError::invalid(&self.full(name), &value.to_string(), &problem)
        })
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }
}

fn is_null(json: &RawValue) -> bool {
    json.get() == "null"
}

/// An object with its fields in order, including repeated ones.
struct Pairs(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Pairs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = fields.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::read("", json.as_bytes()).unwrap()
    }

    #[test]
    fn the_last_of_several_counts_in_the_order_of_the_text() {
        let mut fields = fields(r#"{"z": 1, "A": 2, "a": 3, "Z": 4, "z": 5}"#);
        assert_eq!(fields.take_in::<u8>("Z", 0..=9).unwrap(), Some(5));
        assert_eq!(fields.take_in::<u8>("a", 0..=9).unwrap(), Some(3));
        let repeated = |field: &str, names: &[&str]| ConfigWarning::RepeatedField {
            field: field.to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(fields.finish(), [repeated("Z", &["z", "Z", "z"]), repeated("a", &["A", "a"])]);
    }

    /// Go ignores a null for numbers, booleans and strings; for flannel's addresses it is not an address.
    #[test]
    fn a_null_after_a_value_is_taken_as_go_takes_it() {
        let text = r#"{"Number": 5, "number": null, "Flag": true, "flag": null, "Address": "10.5.0.1", "address": null}"#;
        let mut fields = fields(text);
        assert_eq!(fields.take_in::<u8>("Number", 0..=9).unwrap(), Some(5));
        assert_eq!(fields.take::<bool>("Flag").unwrap(), Some(true));
        assert_eq!(fields.take_parsed::<std::net::IpAddr>("Address", "an address").unwrap(), None);
    }

    #[test]
    fn an_unknown_field_is_told_once_and_never_read() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let fields = fields(&format!(r#"{{"x": 1, "x": {deep}, "X": 1e999}}"#));
        let unknown = |name: &str| ConfigWarning::UnknownField(name.to_owned());
        assert_eq!(fields.finish(), [unknown("x"), unknown("X")]);
    }

    #[test]
    fn a_value_that_no_type_holds_is_refused_by_name() {
        let mut fields = fields(r#"{"Number": 1e999}"#);
        let error = fields.take_in::<u8>("Number", 0..=9).unwrap_err().to_string();
        assert_eq!(error, "Number 1e999 cannot be read: number out of range at line 1 column 5");
    }
}
