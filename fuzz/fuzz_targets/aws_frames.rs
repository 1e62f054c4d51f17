//! AWS event stream messages in any split give equal frames and errors, and never panic. Checksums are put right in half
//! of the inputs, so that what lies behind them is reached too.

#![no_main]

#[path = "../split.rs"]
mod split;

use libfuzzer_sys::fuzz_target;
use turnstream_core::frame::{Frame, FrameError, Limits, aws::Reader};

type Said = Vec<Result<(String, Vec<u8>, u64), FrameError>>;

fn read<'a>(limits: Limits, chunks: impl Iterator<Item = &'a [u8]>) -> Said {
    let mut said = Vec::new();
    let mut out = |item: Result<Frame<'_>, FrameError>| {
        said.push(item.map(|frame| (frame.event.to_owned(), frame.data.to_vec(), frame.offset)));
    };
    let mut reader = Reader::new(limits, 0);
    for chunk in chunks {
        reader.feed(chunk, &mut out);
    }
    reader.finish(&mut out);
    said
}

/// The bytes as messages whose lengths and checksums hold: the first byte of each says how long it is.
fn put_right(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((&length, rest)) = bytes.split_first() {
        let (body, rest) = rest.split_at(usize::from(length).min(rest.len()));
        let headers = body.first().map_or(0, |first| usize::from(*first)).min(body.len());
        let start = out.len();
        out.extend_from_slice(&u32::try_from(body.len() + 16).unwrap().to_be_bytes());
        out.extend_from_slice(&u32::try_from(headers).unwrap().to_be_bytes());
        out.extend_from_slice(&crc32fast::hash(&out[start..]).to_be_bytes());
        out.extend_from_slice(body);
        out.extend_from_slice(&crc32fast::hash(&out[start..]).to_be_bytes());
        bytes = rest;
    }
    out
}

fuzz_target!(|input: &[u8]| {
    let (seed, bytes) = split::seed(input);
    let right = put_right(bytes);
    let bytes = if seed[3] % 2 == 0 { bytes } else { &right };
    let small = Limits { max_event_bytes: usize::from(seed[1] % 64), ..Limits::default() };
    for limits in [Limits::default(), small] {
        let whole = read(limits, std::iter::once(bytes));
        assert_eq!(read(limits, split::chunks(seed, bytes)), whole);
        let fatal = whole.iter().position(|item| item.as_ref().is_err_and(FrameError::is_fatal));
        assert!(fatal.is_none_or(|at| at + 1 == whole.len()), "something follows a fatal error");
        for (_, data, offset) in whole.iter().flatten() {
            assert!(std::str::from_utf8(data).is_ok() && *offset <= bytes.len() as u64);
        }
    }
});
