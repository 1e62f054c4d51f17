//! Objects of which every member matters: what is too rare for a struct of its own, and what the vocabulary has no word
//! for and passes on as it came.
//!
//! Knows no format. Members of the wrong type count as absent, as in [`lax`](super::lax).

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::lax::{Count, Key, List, Others, Word, is_nothing};
use super::{Assembler, Malformed};
use crate::event::Json;
use crate::event::json::write_str;

/// A JSON object's members, in order.
#[derive(Default)]
pub(super) struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

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
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, raw)| *raw).filter(|raw| raw.get() != "null")
    }

    fn read<T: Deserialize<'a> + Default>(&self, key: &str) -> T {
        self.raw(key).and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }

    /// The object under `key`; an empty one where there is none.
    pub(super) fn object(&self, key: &str) -> Self {
        self.read(key)
    }

    /// The text under `key`; an empty one where there is none.
    pub(super) fn text(&self, key: &str) -> Cow<'a, str> {
        self.read::<Word<'a>>(key).0.unwrap_or_default()
    }

    /// The count under `key`.
    pub(super) fn count(&self, key: &str) -> Option<u64> {
        self.read::<Count>(key).0
    }

    /// The number under `key`.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.raw(key).and_then(|raw| raw.get().parse().ok())
    }

    /// The values of the list under `key`.
    pub(super) fn list(&self, key: &str) -> Vec<&'a RawValue> {
        self.read::<List<&'a RawValue>>(key).items
    }

    /// Whether `true` stands under `key`.
    pub(super) fn is_true(&self, key: &str) -> bool {
        self.raw(key).is_some_and(|raw| raw.get() == "true")
    }

    /// An object of the members among `keys`, in the order of `keys`; `None` where there is none of them.
    pub(super) fn pick(&self, keys: &[&str]) -> Option<Box<RawValue>> {
        let mut picked = vec![b'{'];
        for (key, raw) in keys.iter().filter_map(|key| Some((key, self.raw(key)?))) {
            if picked.len() > 1 {
                picked.push(b',');
            }
            write_str(&mut picked, key);
            picked.push(b':');
            picked.extend_from_slice(raw.get().as_bytes());
        }
        picked.push(b'}');
        let text = String::from_utf8(picked).ok().filter(|text| text.len() > 2)?;
        RawValue::from_string(text).ok()
    }

    /// Passes on the members that are not null and not among `known`, one event each.
    pub(super) fn pass_others(&self, known: &[&str], out: &mut Assembler) -> Result<(), Malformed> {
        self.others(known).try_for_each(|(key, raw)| pass(key, raw, out))
    }

    /// The same, each beside the id of what it belongs to, under `id_key`.
    pub(super) fn pass_others_of(
        &self,
        (id_key, id): (&str, &str),
        known: &[&str],
        out: &mut Assembler,
    ) -> Result<(), Malformed> {
        self.others(known).try_for_each(|(key, raw)| pass_of((id_key, id), key, raw, out))
    }

    /// All members.
    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, raw)| (&**key, *raw))
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
                while let Some((key, raw)) = map.next_entry::<Key<'de>, _>()? {
                    members.push((key.0, raw));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Passes `raw` on under `name`.
pub(super) fn pass(name: &str, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
    out.provider_event(name, Some(Json::from_raw(raw)?));
    Ok(())
}

/// Passes `raw` on under `name`, beside the id of what it belongs to, under `id_key`.
pub(super) fn pass_of((id_key, id): (&str, &str), name: &str, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
    let value = Json::from_raw(raw)?;
    let mut data = vec![b'{'];
    write_str(&mut data, id_key);
    data.push(b':');
    write_str(&mut data, id);
    data.push(b',');
    write_str(&mut data, name);
    data.push(b':');
    data.extend_from_slice(value.as_str().as_bytes());
    data.push(b'}');
    out.provider_event(name, Some(Json::from_written(data)));
    Ok(())
}

/// Passes `raw` on, of a kind that the format does not name; a strict reader refuses it.
pub(super) fn unknown(name: &str, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
    out.unknown(name, Some(Json::from_raw(raw)?));
    Ok(())
}

/// Members about the stream, which many providers repeat in every chunk: the newest value passes at the end.
#[derive(Default)]
pub(super) struct Latest(Vec<(Box<str>, Box<RawValue>)>);

impl Latest {
    /// Most names that are kept; beyond them a value passes at once.
    const MAX: usize = 64;

    /// Keeps `raw`, unless it holds nothing.
    pub(super) fn keep(&mut self, name: &str, raw: &RawValue, out: &mut Assembler) {
        if is_nothing(raw) {
            return;
        }
        match self.0.iter().position(|(known, _)| **known == *name) {
            Some(at) if self.0[at].1.get() == raw.get() => {}
            Some(at) => self.0[at].1 = raw.to_owned(),
            None if self.0.len() < Self::MAX => self.0.push((name.into(), raw.to_owned())),
            None => out.provider_event(name, Json::from_raw(raw).ok()),
        }
    }

    /// Keeps all of an object's members that have no name there.
    pub(super) fn keep_all(&mut self, others: &Others<'_>, out: &mut Assembler) {
        for (name, raw) in others {
            self.keep(name, raw, out);
        }
    }

    /// The end has come.
    pub(super) fn say(&mut self, out: &mut Assembler) {
        for (name, raw) in self.0.drain(..) {
            out.provider_event(&name, Json::from_raw(&raw).ok());
        }
    }
}
