//! What several test files need.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod recordings;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use turnstream_core::event::Payload;

/// The folder of shared test data: `TURNSTREAM_SHARED`, or `shared` beside the checkout. `None` where there is none,
/// having said so; a panic under `TURNSTREAM_REQUIRE=all`.
pub(crate) fn shared() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("TURNSTREAM_SHARED").map_or_else(beside, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(
        std::env::var_os("TURNSTREAM_REQUIRE").is_none_or(|value| value != "all"),
        "no shared test data at {}",
        folder.display()
    );
    eprintln!("skipped: no shared test data at {}", folder.display());
    None
}

/// Every message and call that opens is closed once, every round ends, deltas belong to something open, and a message's
/// deltas are its text.
pub(crate) fn rule_faults(payloads: &[Payload]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |text: String| faults.push(text);
    let mut texts = HashMap::new();
    let (mut open_calls, mut rounds, mut stages) = (HashSet::new(), 0_i32, 0_i32);
    let mut unanswered: HashMap<_, i64> = HashMap::new();
    for payload in payloads {
        match payload {
            Payload::StageStart(_) => stages += 1,
            Payload::StageEnd(_) => stages -= 1,
            Payload::RoundStart(_) => rounds += 1,
            Payload::RoundEnd(_) => rounds -= 1,
            Payload::MessageStart(start) if texts.contains_key(&start.message_id) => {
                fault(format!("message {} starts twice", start.message_id));
            }
            Payload::MessageStart(start) => {
                texts.insert(start.message_id.clone(), Some(String::new()));
            }
            Payload::MessageReset(reset) => {
                texts.insert(reset.message_id.clone(), Some(String::new()));
            }
            Payload::TextDelta(delta) => match texts.get_mut(&delta.message_id) {
                Some(Some(text)) => text.push_str(&delta.text),
                _ => fault(format!("a delta for {}, which is not open", delta.message_id)),
            },
            Payload::AssistantMessage(whole) => match texts.insert(whole.message_id.clone(), None) {
                Some(Some(text)) if *whole.text == text => {}
                _ => fault(format!("message {} is not what its deltas said", whole.message_id)),
            },
            Payload::ToolCallStart(start) if !open_calls.insert(start.call_id.clone()) => {
                fault(format!("call {} starts twice", start.call_id));
            }
            Payload::ToolCallStart(start) => *unanswered.entry(start.call_id.clone()).or_default() += 1,
            // A result whose call is elsewhere may come; a second one for the same call may not.
            Payload::ToolResult(result) => {
                if let Some(left) = unanswered.get_mut(&result.call_id) {
                    *left -= 1;
                    if *left < 0 {
                        fault(format!("call {} is answered twice", result.call_id));
                    }
                }
            }
            Payload::ToolCallDelta(delta) if !open_calls.contains(&delta.call_id) => {
                fault(format!("arguments for {}, which is not open", delta.call_id));
            }
            Payload::ToolCall(call) if !open_calls.remove(&call.call_id) => fault(format!("call {} was not open", call.call_id)),
            _ => {}
        }
        if !(0..=1).contains(&rounds) {
            fault("rounds overlap".to_owned());
        }
    }
    if rounds != 0 || stages != 0 || !open_calls.is_empty() || texts.values().any(Option::is_some) {
        fault("something is still open at the end".to_owned());
    }
    faults
}

/// What this thread has had of a processor: whoever else is on the machine does not count.
#[allow(dead_code, reason = "not every test file measures")]
pub(crate) fn cpu_time() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    std::time::Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
