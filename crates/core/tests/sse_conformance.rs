//! The decoder against the shared cases of the standard: each whole, in the chunks its source feeds, and byte by byte.

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use turnstream_core::frame::Limits;
use turnstream_core::frame::sse::{Decoder, Item};

#[derive(Deserialize)]
struct Case {
    name: String,
    input_base64: Option<String>,
    #[serde(default)]
    input_parts: Vec<(String, usize)>,
    chunk_lengths: Option<Vec<usize>>,
    expected: Vec<Expected>,
    final_last_event_id: String,
    final_retry: Option<u64>,
    comments: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Expected {
    event: String,
    data: Option<String>,
    data_sha256: Option<String>,
    data_bytes: Option<usize>,
    id: String,
    retry: Option<u64>,
}

impl Case {
    fn input(&self) -> Vec<u8> {
        match &self.input_base64 {
            Some(text) => BASE64.decode(text).unwrap(),
            None => self.input_parts.iter().flat_map(|(text, times)| BASE64.decode(text).unwrap().repeat(*times)).collect(),
        }
    }

    fn check<'a>(&self, how: &str, chunks: impl Iterator<Item = &'a [u8]>) {
        let at = format!("{} {how}", self.name);
        let mut expected = self.expected.iter();
        let mut comments = Vec::new();
        let mut see = |item: Item<'_>| match item {
            Item::Event(event) => {
                let expected = expected.next().unwrap_or_else(|| panic!("{at}: one event too many"));
                let name = if event.name.is_empty() { "message" } else { event.name };
                assert_eq!((name, event.id, event.retry), (&*expected.event, &*expected.id, expected.retry), "{at}");
                match (&expected.data, &expected.data_sha256) {
                    (Some(data), _) => assert_eq!(event.data, data, "{at}"),
                    (None, Some(digest)) => {
                        assert_eq!(Some(event.data.len()), expected.data_bytes, "{at}");
                        assert_eq!(&format!("{:x}", Sha256::digest(event.data)), digest, "{at}");
                    }
                    (None, None) => panic!("{at}: the case says no data"),
                }
            }
            Item::Comment(text) => comments.push(text.to_owned()),
            Item::Unknown(..) => {}
        };
        let mut decoder = Decoder::new(Limits::default());
        for chunk in chunks {
            decoder.feed(chunk, &mut see).unwrap();
        }
        decoder.finish(&mut see).unwrap();
        assert_eq!(expected.len(), 0, "{at}: events are missing");
        assert_eq!((decoder.last_event_id(), decoder.retry()), (&*self.final_last_event_id, self.final_retry), "{at}");
        if let Some(expected) = &self.comments {
            assert_eq!(&comments, expected, "{at}");
        }
    }
}

#[test]
fn all_cases() {
    let Some(shared) = common::shared() else { return };
    let text = std::fs::read(shared.join("conformance/sse_cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&text).unwrap();
    assert!(cases.len() >= 161, "{} cases", cases.len());
    for case in &cases {
        let input = case.input();
        case.check("whole", std::iter::once(&*input));
        case.check("byte by byte", input.chunks(1));
        if let Some(lengths) = &case.chunk_lengths {
            assert_eq!(lengths.iter().sum::<usize>(), input.len(), "{}", case.name);
            let mut rest = &*input;
            case.check(
                "as given",
                lengths.iter().map(|&length| {
                    let (chunk, tail) = rest.split_at(length);
                    rest = tail;
                    chunk
                }),
            );
        }
    }
}
