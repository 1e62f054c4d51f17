//! Reading JSON the way wire formats need it: text that is borrowed where it can be, objects whose members are all seen.
//!
//! Owns leniency towards nulls and wrong kinds. Knows no format.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Malformed;

/// A string, borrowed unless it holds escapes; null reads as empty. (serde borrows a `Cow` only outside an `Option`.)
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Str<'a>(pub(super) Cow<'a, str>);

impl std::ops::Deref for Str<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Str<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Str<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or null")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Str(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Str(Cow::Owned(text.to_owned())))
            }
            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Str::default())
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// A JSON object's members in order, for what is too rare to be worth a struct and too loose to fit one.
#[derive(Debug, Default)]
pub(super) struct Object<'a>(Vec<(Str<'a>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// Reads an object; anything else is malformed.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        Ok(serde_json::from_slice(data)?)
    }

    /// Reads the object in `raw`.
    pub(super) fn from_raw(raw: &'a RawValue) -> Result<Self, Malformed> {
        Self::parse(raw.get().as_bytes())
    }

    /// The member `key`, unless it is absent or null. Of duplicates the last counts.
    pub(super) fn raw(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(name, _)| &**name == key).map(|(_, raw)| *raw).filter(|raw| raw.get() != "null")
    }

    /// The object under `key`; an empty one where there is none.
    pub(super) fn object(&self, key: &str) -> Self {
        self.raw(key).and_then(|raw| Self::from_raw(raw).ok()).unwrap_or_default()
    }

    /// The string under `key`; an empty one where there is none.
    pub(super) fn text(&self, key: &str) -> Str<'a> {
        self.raw(key).and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }

    /// The whole number under `key`.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.raw(key).and_then(|raw| serde_json::from_str(raw.get()).ok())
    }

    /// Whether `true` stands under `key`.
    pub(super) fn is_true(&self, key: &str) -> bool {
        self.raw(key).is_some_and(|raw| raw.get() == "true")
    }

    /// The values of the list under `key`.
    pub(super) fn list(&self, key: &str) -> Vec<&'a RawValue> {
        self.raw(key).and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }

    /// The members that are not null and not among `known`.
    pub(super) fn others(&self, known: &[&str]) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().filter(|(key, raw)| raw.get() != "null" && !known.contains(&&**key)).map(|(key, raw)| (&**key, *raw))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}
