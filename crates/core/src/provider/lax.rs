//! JSON as providers really send it: members of the wrong type count as absent, so that one odd member never costs the
//! rest of its chunk.
//!
//! Owns the lenient reading of strings, counts, lists and objects, borrowed from the frame. Knows no provider.
//! Invariants: 1. one pass, and nothing is copied that has no escapes; 2. of a repeated key the last value that is not
//! absent wins; 3. depth is bounded by `serde_json`'s own limit, and what is skipped is skipped without recursion.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A member of an object: knows whether it was there.
pub(super) trait Member: Default {
    /// Missing, null or of another type.
    fn is_absent(&self) -> bool;
    /// Takes a newer value unless that is absent.
    fn replace(&mut self, newer: Self) {
        if !newer.is_absent() {
            *self = newer;
        }
    }
}

impl Member for Option<&RawValue> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

/// Visitor methods under which a value counts as absent.
macro_rules! absent {
    ($($what:ident)*) => { $($crate::provider::lax::absent!(@ $what);)* };
    (@ unit) => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> { Ok(Self::Value::default()) }
    };
    (@ bool) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> { Ok(Self::Value::default()) }
    };
    (@ number) => {
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> { Ok(Self::Value::default()) }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> { Ok(Self::Value::default()) }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> { Ok(Self::Value::default()) }
    };
    (@ str) => {
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> { Ok(Self::Value::default()) }
    };
    (@ seq) => {
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
            Ok(Self::Value::default())
        }
    };
    (@ map) => {
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
            Ok(Self::Value::default())
        }
    };
}
pub(super) use absent;

/// A string. A whole number counts as its digits: some servers number what others name.
#[derive(Debug, Default)]
pub(super) struct Word<'a>(pub Option<Cow<'a, str>>);

impl Word<'_> {
    /// The text; empty when absent.
    pub(super) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }
    pub(super) fn is_empty(&self) -> bool {
        self.as_str().is_empty()
    }
}

impl Member for Word<'_> {
    fn is_absent(&self) -> bool {
        self.0.is_none()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Word<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Word<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Word(Some(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Word(Some(Cow::Owned(text.to_owned()))))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Word(Some(Cow::Owned(number.to_string()))))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Word(Some(Cow::Owned(number.to_string()))))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
                Ok(Word(whole(number).map(|number| Cow::Owned(number.to_string()))))
            }
            absent!(unit bool seq map);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A count: a whole number that is not negative, also written as a float or in quotes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count(pub Option<u64>);

impl Member for Count {
    fn is_absent(&self) -> bool {
        self.0.is_none()
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a count")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Count, E> {
                Ok(Count(Some(number)))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Count, E> {
                Ok(Count(u64::try_from(number).ok()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Count, E> {
                Ok(Count(whole(number)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Count, E> {
                Ok(Count(text.parse().ok()))
            }
            absent!(unit bool seq map);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A whole number that some writers give a fraction of nought.
#[allow(clippy::cast_sign_loss, reason = "only values that a u64 holds exactly get there")]
fn whole(number: f64) -> Option<u64> {
    let whole = number.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&number); // 2^53
    whole.then_some(number as u64)
}

/// A truth value; anything else is false.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Flag(pub bool);

impl Member for Flag {
    fn is_absent(&self) -> bool {
        !self.0
    }
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Flag;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a truth value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Flag, E> {
                Ok(Flag(value))
            }
            absent!(unit number str seq map);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A list. `here` tells an empty list from none.
#[derive(Debug)]
pub(super) struct List<T> {
    pub here: bool,
    pub items: Vec<T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { here: false, items: Vec::new() }
    }
}

impl<T> Member for List<T> {
    fn is_absent(&self) -> bool {
        !self.here
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = List<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::with_capacity(1); // most lists of a stream hold one
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(List { here: true, items })
            }
            absent!(unit bool number str map);
        }
        deserializer.deserialize_any(Reader(std::marker::PhantomData))
    }
}

/// What a message says: one text, or a list of parts.
#[derive(Debug, Default)]
pub(super) enum Content<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Parts(Vec<&'a RawValue>),
}

impl Member for Content<'_> {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Content<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of parts")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Content::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Content::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
            /// One part that is in no list.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut text = Word::default();
                while let Some(key) = map.next_key::<Key<'de>>()? {
                    match &*key.0 {
                        "text" | "content" | "summary" => text.replace(map.next_value()?),
                        _ => skip(&mut map)?,
                    }
                }
                Ok(text.0.map_or(Content::Absent, Content::Text))
            }
            absent!(unit bool number);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// An object's key.
pub(super) struct Key<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// Members that the reader of an object does not name, where they hold anything.
pub(super) type Others<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

/// Reads the value of a key without a name of its own.
pub(super) fn other<'de, A: MapAccess<'de>>(key: Key<'de>, map: &mut A, others: &mut Others<'de>) -> Result<(), A::Error> {
    let raw: &'de RawValue = map.next_value()?;
    if !is_nothing(raw) {
        others.push((key.0, raw));
    }
    Ok(())
}

/// Whether a value says nothing: null, or an empty text, list or object.
pub(super) fn is_nothing(raw: &RawValue) -> bool {
    let bytes = raw.get().as_bytes();
    match bytes {
        b"null" | b"\"\"" => true,
        [b'[' | b'{', inside @ .., _] => inside.trim_ascii().is_empty(),
        _ => false,
    }
}

/// Skips a value.
pub(super) fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

/// Defines an object that is read leniently: `Name<'a> { field: Type = "key" | "alias", … } skip { "key" … }`.
/// `here` tells an object from anything else; `others` holds what has no name here.
macro_rules! object {
    ($(#[$meta:meta])* $name:ident<$life:lifetime> { $($field:ident: $type:ty = $($key:literal)|+),* $(,)? } skip { $($skip:literal)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        struct $name<$life> {
            here: bool,
            $($field: $type,)*
            others: $crate::provider::lax::Others<$life>,
        }

        impl $crate::provider::lax::Member for $name<'_> {
            fn is_absent(&self) -> bool {
                !self.here
            }
        }

        impl<'de: $life, $life> serde::Deserialize<'de> for $name<$life> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;
                impl<'de> serde::de::Visitor<'de> for Reader {
                    type Value = $name<'de>;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                        let mut object = $name { here: true, ..$name::default() };
                        while let Some(key) = map.next_key::<$crate::provider::lax::Key<'de>>()? {
                            match &*key.0 {
                                $($($key)|+ => $crate::provider::lax::Member::replace(&mut object.$field, map.next_value()?),)*
                                $($skip => $crate::provider::lax::skip(&mut map)?,)*
                                _ => $crate::provider::lax::other(key, &mut map, &mut object.others)?,
                            }
                        }
                        Ok(object)
                    }
                    $crate::provider::lax::absent!(unit bool number str seq);
                }
                deserializer.deserialize_any(Reader)
            }
        }
    };
}
pub(super) use object;

/// The text of a raw value: a string's own text, anything else as it is written; null is empty.
pub(super) fn text_of(raw: &RawValue) -> Cow<'_, str> {
    match raw.get().as_bytes()[0] {
        b'"' => serde_json::from_str::<Word<'_>>(raw.get()).ok().and_then(|word| word.0).unwrap_or_default(),
        b'n' => Cow::Borrowed(""),
        _ => Cow::Borrowed(raw.get()),
    }
}
