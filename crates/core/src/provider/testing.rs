//! What the tests of several providers share.

use super::{Assembler, make};
use crate::event::{AssistantMessage, Payload, ToolCall, Usage};
use crate::frame::Frame;

/// Feeds the frames and ends the stream; no frame may be malformed.
pub(super) fn read_as<S: AsRef<str>>(provider: &str, frames: &[S]) -> Vec<Payload> {
    read_events(provider, &frames.iter().map(|frame| ("", frame.as_ref())).collect::<Vec<_>>())
}

/// The same, of frames with names.
pub(super) fn read_events(provider: &str, frames: &[(&str, &str)]) -> Vec<Payload> {
    let (name, mut machine) = make(provider).expect("a known provider");
    let mut out = Assembler::new(name, "");
    for (event, data) in frames {
        machine.frame(&Frame { event, data: data.as_bytes(), offset: 0 }, &mut out).expect("a frame of the format");
    }
    machine.finish(&mut out);
    out.finish();
    out.drain().collect()
}

/// All payloads of one kind.
macro_rules! all {
    ($events:expr, $kind:ident) => {
        $events
            .iter()
            .filter_map(|event| if let $crate::event::Payload::$kind(it) = event { Some(it) } else { None })
            .collect::<Vec<_>>()
    };
}
pub(super) use all;

macro_rules! only {
    ($name:ident, $kind:ident) => {
        #[doc = concat!("The one ", stringify!($kind), ".")]
        pub(super) fn $name(events: &[Payload]) -> &$kind {
            let found = all!(events, $kind);
            assert_eq!(found.len(), 1, "{events:?}");
            found[0]
        }
    };
}
only!(message, AssistantMessage);
only!(call, ToolCall);
only!(usage, Usage);

/// The arguments of a call, parsed.
pub(super) fn said(call: &ToolCall) -> Option<&str> {
    call.arguments.as_ref().map(crate::event::Json::as_str)
}

/// The data of the one provider event of a name.
pub(super) fn passed<'a>(events: &'a [Payload], name: &str) -> &'a str {
    let found: Vec<_> = all!(events, ProviderEvent).into_iter().filter(|event| event.name == name).collect();
    assert_eq!(found.len(), 1, "{name}");
    found[0].data.as_ref().expect(name).as_str()
}
