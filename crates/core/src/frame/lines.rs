//! Line framing for text streams: one BOM off the start, then lines that end in LF, CR or CRLF.
//!
//! Owns line ends, the line limit and offsets. Knows nothing of what a line says.
//! Invariants: 1. any split of the input gives the same lines; 2. a line that lies inside one chunk is not copied;
//! 3. every byte is searched once, so a line fed byte by byte costs linear time.

use memchr::memchr2;

use super::FrameError;

const BOM: &[u8; 3] = b"\xEF\xBB\xBF";

/// Takes one byte order mark off the start of a stream, however it is split.
#[derive(Debug, Clone, Default)]
pub(super) struct Bom {
    /// How many bytes of it have come; past 3 there is nothing more to look for.
    seen: u8,
}

impl Bom {
    /// For the middle of a stream, where a BOM is an ordinary character.
    pub(super) fn passed() -> Self {
        Self { seen: 4 }
    }

    /// Bytes held back earlier that turned out to be no BOM, and the rest of `chunk`.
    pub(super) fn strip<'a>(&mut self, chunk: &'a [u8]) -> (&'static [u8], &'a [u8]) {
        let mut rest = chunk;
        while let (Some(&expected), Some((&byte, tail))) = (BOM.get(usize::from(self.seen)), rest.split_first()) {
            if byte != expected {
                let held = &BOM[..usize::from(self.seen)];
                self.seen = 4;
                return (held, rest);
            }
            self.seen += 1;
            rest = tail;
        }
        (&[], rest)
    }

    /// Whether a BOM may still come.
    pub(super) fn pending(&self) -> bool {
        self.seen < 3
    }

    /// How long the BOM was, once it is known to be one.
    pub(super) fn len(&self) -> u64 {
        if self.seen == 3 { 3 } else { 0 }
    }
}

/// Where the next line lies.
pub(super) enum Line<'c> {
    /// In the chunk, whole.
    Inside(&'c [u8]),
    /// Its end came with this chunk; the line is in [`Lines::take_joined`].
    Joined,
}

/// Cuts chunks into lines. Pulled: call [`Self::next`] until it gives `None`, then bring the next chunk.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    limit: usize,
    /// The start of a line whose end has not come.
    partial: Vec<u8>,
    /// The last line ended in CR: an LF that follows belongs to it.
    after_cr: bool,
    /// Bytes taken so far.
    position: u64,
    /// Where the line given last, or the one under way, begins.
    start: u64,
}

impl Lines {
    pub(super) fn new(limit: usize, position: u64) -> Self {
        Self { limit, partial: Vec::new(), after_cr: false, position, start: position }
    }

    /// The next line of `rest`, which shrinks by what was taken; `None` when the chunk is used up.
    #[inline]
    pub(super) fn next<'c>(&mut self, rest: &mut &'c [u8]) -> Result<Option<Line<'c>>, FrameError> {
        let Some(&first) = rest.first() else { return Ok(None) };
        let mut chunk = *rest;
        if std::mem::take(&mut self.after_cr) && first == b'\n' {
            self.position += 1;
            chunk = &chunk[1..];
        }
        if self.partial.is_empty() {
            self.start = self.position;
        }
        // Every other line of a stream is blank: not worth a call to memchr.
        let end = match chunk.first() {
            Some(b'\n' | b'\r') => Some(0),
            _ => memchr2(b'\n', b'\r', chunk),
        };
        let piece = &chunk[..end.unwrap_or(chunk.len())];
        if self.partial.len() + piece.len() > self.limit {
            return Err(FrameError::LineTooLong { offset: self.start, limit: self.limit });
        }
        let Some(end) = end else {
            self.partial.extend_from_slice(piece);
            self.position += piece.len() as u64;
            *rest = &[];
            return Ok(None);
        };
        self.after_cr = chunk[end] == b'\r';
        self.position += end as u64 + 1;
        *rest = &chunk[end + 1..];
        if self.partial.is_empty() {
            return Ok(Some(Line::Inside(piece)));
        }
        self.partial.extend_from_slice(piece);
        Ok(Some(Line::Joined))
    }

    /// Whether the next byte begins a line, with nothing of an earlier one left: not even its LF.
    pub(super) fn is_clear(&self) -> bool {
        self.partial.is_empty() && !self.after_cr
    }

    /// Passes over whole lines.
    pub(super) fn skip(&mut self, length: usize) {
        self.position += length as u64;
    }

    /// Where the first line begins, when bytes stand before it.
    pub(super) fn begin_at(&mut self, position: u64) {
        self.position = position;
    }

    /// Where the line given last begins.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The line that [`Line::Joined`] or the end of input speaks of.
    pub(super) fn take_joined(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }

    /// Gives the buffer of [`Self::take_joined`] back for the next line.
    pub(super) fn give_back(&mut self, mut buffer: Vec<u8>) {
        super::recycle(&mut buffer);
        self.partial = buffer;
    }
}
