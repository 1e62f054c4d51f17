//! The calls that a message names.

use std::collections::HashMap;
use std::ops::Deref;

use crate::event::{CallRef, Id, Text};

/// So many calls are found faster by looking at each.
const FEW: usize = 16;

/// Calls in the order in which a message named them. However many they are, one is found without looking at all of them.
#[derive(Debug, Clone, Default)]
pub struct Named {
    calls: Vec<CallRef>,
    /// Where each id stands first, once they are no longer few.
    places: HashMap<Id, usize>,
}

impl Named {
    /// Where the first of that id stands.
    pub fn find(&self, id: &Id) -> Option<usize> {
        if self.calls.len() <= FEW {
            self.calls.iter().position(|call| call.call_id == *id)
        } else {
            self.places.get(id).copied()
        }
    }

    /// Adds a call whose id it does not have.
    pub(super) fn refer(&mut self, id: &Id, name: &Text) {
        if self.find(id).is_none() {
            self.push(CallRef { call_id: id.clone(), name: name.clone() });
        }
    }

    /// Adds those that it does not have.
    pub(crate) fn merge(&mut self, calls: &[CallRef]) {
        for call in calls {
            let known = self.find(&call.call_id).is_some_and(|at| self.calls[at] == *call || self.calls.contains(call));
            if !known {
                self.push(call.clone());
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.calls.clear();
        self.places.clear();
    }

    /// The calls alone.
    pub(crate) fn into_calls(self) -> Vec<CallRef> {
        self.calls
    }

    fn push(&mut self, call: CallRef) {
        let at = self.calls.len();
        if at > FEW {
            self.places.entry(call.call_id.clone()).or_insert(at);
        }
        self.calls.push(call);
        if at == FEW {
            self.index();
        }
    }

    fn index(&mut self) {
        for (at, call) in self.calls.iter().enumerate() {
            self.places.entry(call.call_id.clone()).or_insert(at);
        }
    }
}

impl From<Vec<CallRef>> for Named {
    fn from(calls: Vec<CallRef>) -> Self {
        let mut named = Self { calls, places: HashMap::new() };
        if named.calls.len() > FEW {
            named.index();
        }
        named
    }
}

impl Deref for Named {
    type Target = [CallRef];

    fn deref(&self) -> &[CallRef] {
        &self.calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_there_are_each_is_found_and_none_is_there_twice() {
        let id = |number: usize| Id::from(format!("c{number}"));
        let call = |number: usize, name: &str| CallRef { call_id: id(number), name: name.into() };
        let mut named = Named::default();
        for number in (0..40).chain(0..40) {
            named.refer(&id(number), &"f".into());
            named.merge(&[call(number, "f"), call(number / 2, "f")]);
        }
        assert_eq!(named.iter().map(|call| call.call_id.clone()).collect::<Vec<_>>(), (0..40).map(id).collect::<Vec<_>>());
        assert!((0..40).all(|number| named.find(&id(number)) == Some(number)) && named.find(&id(40)).is_none());
        // Another name under a known id is another call, once.
        for _ in 0..2 {
            named.merge(&[call(3, "g")]);
        }
        assert_eq!((named.len(), named.find(&id(3))), (41, Some(3)));
        assert_eq!(Named::from(named.to_vec()).find(&id(39)), Some(39));
    }
}
