//! How long framing takes, in nanoseconds per event: `cargo run --profile fast -p turnstream-core --example frame_cost`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use turnstream_core::frame::sse::{Decoder, Item};
use turnstream_core::frame::{Format, FrameReader, Limits};

const EVENTS: u32 = 20_000;

/// The best of many runs: the machine's noise only adds.
fn per_event(mut run: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..50 {
        let begin = Instant::now();
        run();
        best = best.min(begin.elapsed());
    }
    best.as_secs_f64() * 1e9 / f64::from(EVENTS)
}

fn main() {
    let json =
        format!(r#"{{"id":"chatcmpl-1","choices":[{{"index":0,"delta":{{"content":" word"}}}}],"pad":"{}"}}"#, "x".repeat(220));
    assert_eq!(json.len(), 300);
    let sse = format!("data: {json}\n\n").repeat(EVENTS as usize);
    let ndjson = format!("{json}\n").repeat(EVENTS as usize);

    let memchr = per_event(|| {
        black_box(memchr::memchr2_iter(b'\n', b'\r', black_box(sse.as_bytes())).count());
    });
    println!("memchr2 over the same bytes   {memchr:6.1} ns/event");
    for chunk in [usize::MAX, 16 << 10, 1400, 100] {
        let mut bytes = 0;
        let decode = per_event(|| {
            let mut decoder = Decoder::new(Limits::default());
            for chunk in sse.as_bytes().chunks(chunk) {
                let see = &mut |item: Item<'_>| {
                    if let Item::Event(event) = item {
                        bytes += event.data.len();
                    }
                };
                decoder.feed(chunk, see).unwrap();
            }
        });
        println!("sse::Decoder, chunks of {:>6} {decode:6.1} ns/event, {:.1} over memchr", chunk.min(sse.len()), decode - memchr);
        assert_eq!(bytes, 300 * EVENTS as usize * 50);
    }
    for (name, input) in [("sse", &sse), ("json", &ndjson)] {
        let mut bytes = 0;
        let read = per_event(|| {
            let mut reader = FrameReader::new(Format::Auto, Limits::default());
            reader.feed(input.as_bytes(), &mut |frame| bytes += frame.unwrap().data.len());
        });
        println!("FrameReader, {name:4}             {read:6.1} ns/event");
        assert_eq!(bytes, 300 * EVENTS as usize * 50);
    }
}
