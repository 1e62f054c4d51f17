//! How an input is cut into chunks: by the first bytes of the input itself.

/// The bytes that decide, and the input proper.
pub fn seed(input: &[u8]) -> ([u8; 4], &[u8]) {
    match input.split_first_chunk() {
        Some((seed, rest)) => (*seed, rest),
        None => ([1, 2, 3, 0], input),
    }
}

/// Chunks of lengths that take turns; empty ones are among them.
pub fn chunks(seed: [u8; 4], bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    let mut turn = 0;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = usize::from(seed[turn % 4] % 16) + usize::from(turn % 4 == 3);
        turn += 1;
        let (chunk, tail) = rest.split_at(length.min(rest.len()));
        rest = tail;
        Some(chunk)
    })
}
