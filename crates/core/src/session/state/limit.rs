//! What a state weighs, and what leaves it where that is too much: what was finished first, counted.

use std::collections::HashSet;

use super::{CallState, MessageState, State};
use crate::event::{CallRef, Id, Json, Payload};

/// What a message, a call or a stage weighs beside its texts, its places in the indexes among it.
pub(super) const ENTRY_BYTES: usize = 384;

impl State {
    /// Drops, oldest first, what is finished, where there is too much: users' own events, then messages with their calls,
    /// citations and files, then stages. Down to three quarters, so that it is seldom done.
    pub(super) fn fit(&mut self) {
        let Some(max) = self.max_bytes else { return };
        if self.grown <= max.saturating_sub(self.weighed).max(max / 8) {
            return;
        }
        let target = max / 4 * 3;
        self.weighed = self.weigh();
        self.grown = 0;
        if self.weighed > target {
            self.drop_customs(target);
        }
        if self.weighed > target {
            self.drop_oldest(target);
        }
        if self.weighed > target {
            let mut excess = self.weighed - target;
            let before = self.stages.len();
            self.stages.retain(|stage| {
                let keep = stage.open || excess == 0;
                excess = excess.saturating_sub(if keep { 0 } else { ENTRY_BYTES + stage.stage.len() });
                keep
            });
            self.stage_index = self.stages.iter().enumerate().map(|(at, stage)| (stage.stage.clone(), at)).collect();
            self.count_dropped(0, 0, before - self.stages.len(), self.turn);
        }
    }

    fn weigh(&self) -> usize {
        let messages = self.messages.iter().map(MessageState::weight).sum::<usize>();
        let calls = self.calls.iter().map(CallState::weight).sum::<usize>();
        let attached = self.attached.iter().map(|attached| attached.event.size()).sum::<usize>();
        messages + calls + attached + self.stages.iter().map(|stage| ENTRY_BYTES + stage.stage.len()).sum::<usize>()
    }

    fn count_dropped(&mut self, messages: usize, calls: usize, events: usize, turn: u32) {
        if messages + calls + events > 0 {
            self.dropped.messages += messages as u64;
            self.dropped.calls += calls as u64;
            self.dropped.events += events as u64;
            self.dropped.turn = self.dropped.turn.max(turn);
        }
    }

    fn drop_customs(&mut self, target: usize) {
        let (mut weight, before) = (self.weighed, self.attached.len());
        self.attached.retain(|attached| {
            let keep = weight <= target || !matches!(attached.event.payload, Payload::Custom(_));
            weight -= if keep { 0 } else { attached.event.size() };
            keep
        });
        self.weighed = weight;
        self.count_dropped(0, 0, before - self.attached.len(), self.turn);
    }

    fn drop_oldest(&mut self, target: usize) {
        let turn = self.turn;
        let waits = |call: &CallState| call.turn == turn && !(call.done && call.status.is_some());
        let waiting: HashSet<&Id> =
            self.calls.iter().filter(|call| waits(call)).filter_map(|call| call.message_id.as_ref()).collect();
        let answer = self.answer_at();
        let stays = |at: usize, message: &MessageState| {
            let newest = at + 1 == self.messages.len() || Some(at) == answer || (message.turn == turn && message.role == "user");
            newest || !message.done || waiting.contains(&message.id)
        };
        let mut finished: Vec<(u64, usize)> = Vec::new();
        let messages = self.messages.iter().enumerate().filter(|(at, message)| !stays(*at, message));
        finished.extend(messages.map(|(_, message)| (message.seq, message.weight())));
        finished.extend(self.calls.iter().filter(|call| !waits(call)).map(|call| (call.seq, call.weight())));
        finished.extend(self.attached.iter().map(|attached| (attached.event.seq, attached.event.size())));
        finished.sort_unstable();
        let mut weight = self.weighed;
        let last = finished.iter().find(|(_, bytes)| {
            weight -= bytes;
            weight <= target
        });
        let Some(last) = last.or(finished.last()).map(|(seq, _)| *seq) else { return };
        let gone: HashSet<Id> = (self.messages.iter().enumerate())
            .filter(|(at, message)| message.seq <= last && !stays(*at, message))
            .map(|(_, message)| message.id.clone())
            .collect();
        let newest = |turns: &mut dyn Iterator<Item = u32>| turns.max().unwrap_or(0);
        let of = newest(&mut self.messages.iter().filter(|message| gone.contains(&message.id)).map(|message| message.turn));
        let owned = |message: Option<&Id>| message.is_some_and(|id| gone.contains(id));
        let (calls, attached) = (self.calls.len(), self.attached.len());
        self.calls.retain(|call| waits(call) || !(call.seq <= last || owned(call.message_id.as_ref())));
        self.attached.retain(|attached| attached.event.seq > last && !owned(attached.message_id.as_ref()));
        self.messages.retain(|message| !gone.contains(&message.id));
        self.message_index = self.messages.iter().enumerate().map(|(at, message)| (message.id.clone(), at)).collect();
        self.call_index.clear();
        for (at, call) in self.calls.iter().enumerate() {
            self.call_index.entry(call.id.clone()).or_default().push(at);
        }
        self.count_dropped(gone.len(), calls - self.calls.len(), attached - self.attached.len(), of);
        self.weighed = self.weigh();
    }
}

impl MessageState {
    fn weight(&self) -> usize {
        let said = self.text.len() + self.reasoning.len() + self.refusal.as_ref().map_or(0, String::len);
        let input = self.input.as_ref().map_or(0, |input| input.as_str().len());
        let calls = self.calls.iter().map(|call| size_of::<CallRef>() + call.call_id.len() + call.name.len()).sum::<usize>();
        ENTRY_BYTES + said + input + calls + self.id.len()
    }
}

impl CallState {
    fn weight(&self) -> usize {
        let json = |json: &Option<Json>| json.as_ref().map_or(0, |json| json.as_str().len());
        let texts = self.arguments_raw.len() + self.output_text.len() + json(&self.arguments) + json(&self.output);
        ENTRY_BYTES + texts + self.id.len() + self.name.len()
    }
}
