//! What streams of several formats do to their framing, and what a format left out in its first years: each named by the
//! quirk it shows, on streams of our own.

use turnstream_core::event::Payload;
use turnstream_core::provider::{Normalizer, Options};

/// The events of a stream that nobody names the provider of, fed whole and byte by byte.
fn read(provider: &str, stream: &str) -> Vec<Payload> {
    let read = |pieces: &[&[u8]]| {
        let mut normalizer = Normalizer::new("auto", Options::default()).expect("auto is known");
        let mut events = Vec::new();
        for piece in pieces {
            normalizer.feed(piece).expect("a stream");
            events.extend(normalizer.drain());
        }
        normalizer.finish().expect("a stream");
        events.extend(normalizer.drain());
        assert_eq!(normalizer.provider(), provider);
        events
    };
    let whole = read(&[stream.as_bytes()]);
    assert_eq!(read(&stream.as_bytes().chunks(1).collect::<Vec<_>>()), whole);
    whole
}

/// The text of the one message, and all errors and warnings by their codes.
fn text_and_faults(events: &[Payload]) -> (&str, Vec<&str>) {
    let texts: Vec<&str> = events
        .iter()
        .filter_map(|event| if let Payload::AssistantMessage(it) = event { Some(&*it.text) } else { None })
        .collect();
    let faults = events.iter().filter_map(|event| match event {
        Payload::Error(error) => Some(&*error.code),
        Payload::Warning(warning) => Some(&*warning.code),
        _ => None,
    });
    assert_eq!(texts.len(), 1, "{events:?}");
    (texts[0], faults.collect())
}

fn chat(text: &str, finish: &str) -> String {
    format!(r#"data: {{"id":"c","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":{finish}}}]}}"#)
}

#[test]
fn f2_comments_say_nothing() {
    let stream = format!(
        ": PROCESSING\n\n:\n\n{}\n\n: ping - now\n:hi\n\n{}\n\ndata: [DONE]\n\n",
        chat("a", "null"),
        chat("b", "\"stop\"")
    );
    assert_eq!(text_and_faults(&read("openai-chat", &stream)), ("ab", vec![]));
}

#[test]
fn f4_an_error_in_a_field_of_its_own_is_said() {
    let stream = format!("{}\n\nerror: {{\"detail\":\"gpu lost\"}}\n\n", chat("a", "null"));
    assert_eq!(text_and_faults(&read("openai-chat", &stream)), ("a", vec!["error"]));
}

#[test]
fn f7_the_last_event_may_lack_its_blank_line() {
    for end in ["", "\n", "\r\n"] {
        let stream = format!("{}\n\n{}{end}", chat("a", "null"), chat("b", "\"stop\""));
        assert_eq!(text_and_faults(&read("openai-chat", &stream)), ("ab", vec![]));
    }
}

#[test]
fn f8_the_end_may_be_said_by_another_formats_word_or_not_at_all() {
    let completed = r#"data: {"type":"response.completed","response":{"id":"r","status":"completed","output":[]}}"#;
    let text = r#"data: {"type":"response.output_text.delta","output_index":0,"delta":"a"}"#;
    for done in ["", "data: [DONE]\n\n"] {
        assert_eq!(text_and_faults(&read("openai-responses", &format!("{text}\n\n{completed}\n\n{done}"))), ("a", vec![]));
    }
}

#[test]
fn r7_text_may_come_with_the_end_of_its_part_alone() {
    let stream = [
        r#"{"type":"response.created","response":{"id":"r","model":"m"}}"#,
        r#"{"type":"response.output_item.added","output_index":0,"item":{"id":"i","type":"message","content":[]}}"#,
        r#"{"type":"response.output_text.done","output_index":0,"content_index":0,"text":"whole"}"#,
        r#"{"type":"response.output_item.done","output_index":0,"item":{"id":"i","type":"message","content":[{"type":"output_text","text":"whole"}]}}"#,
        r#"{"type":"response.completed","response":{"id":"r","status":"completed","output":[]}}"#,
    ]
    .join("\n");
    assert_eq!(text_and_faults(&read("openai-responses", &stream)), ("whole", vec![]));
}

#[test]
fn r12_events_without_a_sequence_number_are_in_sequence() {
    let stream = [
        r#"{"type":"response.created","response":{"id":"r","model":"m"}}"#,
        r#"{"type":"response.output_text.delta","output_index":0,"delta":"a"}"#,
        r#"{"type":"response.output_text.delta","output_index":0,"delta":"b"}"#,
        r#"{"type":"response.completed","response":{"id":"r","status":"completed","output":[]}}"#,
    ]
    .join("\n");
    assert_eq!(text_and_faults(&read("openai-responses", &stream)), ("ab", vec![]));
}
