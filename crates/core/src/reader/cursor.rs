//! Where a reader stands, as text: `<epoch>.<seq>`.
//!
//! No colon and no bracket: an SSE id travels back as a header, and those characters cost a cross-origin client a
//! preflight (WPT). A bare `0` means the beginning, of whatever epoch.

use std::fmt;
use std::sync::Arc;

/// A place in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    epoch: Option<Arc<str>>,
    seq: u64,
}

/// The text is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed cursor: expected <epoch>.<seq>")]
pub struct CursorError;

impl Cursor {
    /// The place after `seq` of the log's life `epoch`.
    pub fn new(epoch: &Arc<str>, seq: u64) -> Self {
        Self { epoch: Some(epoch.clone()), seq }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, CursorError> {
        if text == "0" {
            return Ok(Self { epoch: None, seq: 0 });
        }
        let (epoch, seq) = text.split_once('.').ok_or(CursorError)?;
        let word = !epoch.is_empty() && epoch.len() <= 64 && epoch.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let digits = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
        if !word || !digits {
            return Err(CursorError);
        }
        Ok(Self { epoch: Some(Arc::from(epoch)), seq: seq.parse().map_err(|_| CursorError)? })
    }

    /// The life of the log it belongs to; none for a bare `0`.
    pub fn epoch(&self) -> Option<&str> {
        self.epoch.as_deref()
    }

    /// The last seq that has been read.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.epoch {
            Some(epoch) => write!(f, "{epoch}.{}", self.seq),
            None => write!(f, "{}", self.seq),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_garbage_is_refused() {
        for good in ["0", "abc7.0", "abc7.18446744073709551615"] {
            assert_eq!(Cursor::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", ".", "a.", ".1", "a.-1", "a.+1", "a.1.2", "1", "a:1", "a.18446744073709551616", "a. 1", "é.1"] {
            assert_eq!(Cursor::parse(bad), Err(CursorError), "{bad}");
        }
    }
}
