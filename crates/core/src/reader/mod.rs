//! Cursors into a session's log, each at its own pace.
//!
//! Owns where a reader stands, how its cursor was taken, what is merged for it and when it ends. Knows no wire format.
//! Invariants: 1. every boundary event after the cursor is handed out once, in order; 2. what is missing is announced by
//! a `gap`, and by a `snapshot` where history has left the log and the store; 3. a reader costs a cursor: it holds no event
//! between two polls, but for a page of history while it reads one, shared with whoever is there too; 4. a reader that follows a
//! turn ends right after its completion, one that follows the session after `session_end`.

mod cursor;
mod join;
mod merge;

use std::sync::Arc;
use std::task::Waker;

pub use cursor::{Cursor, CursorError};
pub use join::{Joined, join};
pub use merge::{belong_together, extend, merge};

use crate::clock::now_ms;
use crate::event::{Context, Event, Gap, Json, Payload, Snapshot};
use crate::session::{Absent, Entry, History, Pace, Page, Session, SessionError, Ticket};
use crate::store::StoreError;

/// The reason of a gap where deltas have left the log that the final event behind them covers.
pub const EVICTED: &str = "evicted";

/// Until when a reader goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Until the completion of the running turn, or of the last one, or of the first to come.
    Turn,
    /// Until the session ends.
    Session,
    /// Until what was there when it opened has been read.
    None,
}

/// How a cursor was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// No cursor was given: from the beginning, a snapshot where that has left the log.
    Live,
    /// Goes on right after the cursor.
    Resumed,
    /// The cursor is the newest event: goes on with what comes.
    CaughtUp,
    /// Events after the cursor have left the log: a snapshot, then all that is there.
    Trimmed,
    /// The cursor is of another life of the log: a snapshot where history is missing, then all that is there.
    OtherEpoch,
    /// The cursor is beyond the newest event: a snapshot, then what comes.
    Ahead,
    /// Nothing comes any more.
    Finished,
}

impl Status {
    /// The word in `stream_open`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Resumed => "resumed",
            Self::CaughtUp => "caught_up",
            Self::Trimmed => "trimmed",
            Self::OtherEpoch => "other_epoch",
            Self::Ahead => "ahead",
            Self::Finished => "finished",
        }
    }
}

/// How a reader reads.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is independent of the others")]
pub struct ReadOptions {
    /// Where to go on; none: from the beginning.
    pub after: Option<Cursor>,
    /// Until when.
    pub follow: Follow,
    /// Whether neighbouring deltas that are ready together come as one, with the last one's seq.
    pub merge: bool,
    /// The producer waits while this reader lags by so many events; 0: it never does.
    pub pace_window: u64,
    /// Refuse a cursor whose tail has left the log, instead of a snapshot.
    pub fail_on_trim: bool,
    /// A snapshot first, wherever but at the log's beginning the reader starts: for who must know what came before.
    pub state_first: bool,
    /// What has left the log is read from the session's store, where it has one: such a reader may have to wait for it.
    pub history: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            after: None,
            follow: Follow::Turn,
            merge: false,
            pace_window: 0,
            fail_on_trim: false,
            state_first: false,
            history: true,
        }
    }
}

/// Why a reader could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The events after the cursor have left the log, and the reader asked to be refused.
    #[error("session {session}: events after {after} have left the log; the earliest is {earliest}")]
    Expired {
        /// The session.
        session: Arc<str>,
        /// The cursor's seq.
        after: u64,
        /// The oldest seq that is there.
        earliest: u64,
    },
    /// The session refuses.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// What a reader hands out.
#[derive(Debug, Clone)]
pub enum Item {
    /// An event as it stands in the log.
    Logged(Arc<Entry>),
    /// Merged deltas (with a seq), or a control frame (seq 0).
    Made(Box<Event>),
}

impl Item {
    /// The event.
    pub fn event(&self) -> &Event {
        match self {
            Self::Logged(entry) => &entry.event,
            Self::Made(event) => event,
        }
    }

    /// The event as a shared entry.
    pub fn into_entry(self) -> Arc<Entry> {
        match self {
            Self::Logged(entry) => entry,
            Self::Made(event) => Arc::new(Entry { event: *event, frame: std::sync::OnceLock::new() }),
        }
    }
}

/// What a poll found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// Items were handed out.
    Ready,
    /// Nothing is there now: park.
    Pending,
    /// Nothing comes any more.
    End,
}

/// A cursor into one session's log. One task or thread at a time.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is independent of the others")]
pub struct Reader {
    session: Arc<Session>,
    seq: u64,
    follow: Follow,
    /// The turn whose completion ends a [`Follow::Turn`] reader.
    target: u32,
    /// Where a [`Follow::None`] reader stops.
    stop: u64,
    merge: bool,
    status: Status,
    snapshot: Option<(u64, Json)>,
    pace: Option<Arc<Pace>>,
    ticket: Ticket,
    ended: bool,
    /// Whether the session counts it: until it is closed, which may be long before the last of it is dropped.
    counted: bool,
    page: Vec<Arc<Entry>>,
    page_bytes: usize,
    /// Whether the store is asked, and what it has been asked for.
    history: bool,
    fetching: Option<Arc<History>>,
    fetch_ticket: Ticket,
}

impl Reader {
    /// Opens a reader; costs a cursor.
    pub fn open(session: &Arc<Session>, options: &ReadOptions) -> Result<Self, ReadError> {
        let page = session.position();
        let (mut seq, mut status) = match &options.after {
            None => (0, Status::Live),
            Some(cursor) if cursor.epoch().is_some_and(|epoch| *epoch != **session.epoch()) => (0, Status::OtherEpoch),
            Some(cursor) if cursor.seq() > page.head => (page.head, Status::Ahead),
            Some(cursor) if cursor.seq() == page.head => (page.head, Status::CaughtUp),
            Some(cursor) => (cursor.seq(), Status::Resumed),
        };
        let mut snapshot = None;
        if status == Status::Ahead {
            snapshot = Some(session.head_snapshot());
        } else if seq < page.trimmed && !(options.history && session.reaches(seq) && !(options.state_first && seq > 0)) {
            if options.fail_on_trim {
                let earliest = page.trimmed + 1;
                return Err(ReadError::Expired { session: session.id().clone(), after: seq, earliest });
            }
            // Who has seen nothing yet has lost nothing.
            if !matches!(status, Status::OtherEpoch | Status::Live) {
                status = Status::Trimmed;
            }
            snapshot = Some(session.base_snapshot());
        } else if options.state_first && seq > 0 {
            snapshot = Some(session.snapshot_at(seq));
        }
        if let Some((at, _)) = &snapshot {
            seq = *at;
        }
        let target = if page.running {
            page.turn
        } else if page.last_turn > 0 {
            page.last_turn
        } else {
            1
        };
        let over = match options.follow {
            Follow::Turn => !page.running && page.last_end > 0 && seq >= page.last_end,
            Follow::Session => false,
            Follow::None => seq >= page.head,
        };
        let over = over || (page.closed && seq >= page.head);
        if over && matches!(status, Status::CaughtUp | Status::Resumed) {
            status = Status::Finished;
        }
        session.count_reader(true);
        let pacing = (options.pace_window > 0).then(|| Arc::new(Pace::new(seq, options.pace_window)));
        if let Some(pace) = &pacing {
            session.join_pace(pace.clone());
        }
        Ok(Self {
            session: session.clone(),
            seq,
            follow: options.follow,
            target,
            stop: page.head,
            merge: options.merge,
            status,
            snapshot,
            pace: pacing,
            ticket: Ticket::default(),
            ended: false,
            counted: true,
            page: Vec::new(),
            page_bytes: usize::MAX,
            history: options.history,
            fetching: None,
            fetch_ticket: Ticket::default(),
        })
    }

    /// From now on a poll takes no more from the log once it weighs so much: few large events are a page too.
    pub fn limit_page(&mut self, bytes: usize) {
        self.page_bytes = bytes;
    }

    /// How the cursor was taken.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Where a new reader would go on.
    pub fn cursor(&self) -> Cursor {
        Cursor::new(self.session.epoch(), self.seq)
    }

    /// Appends up to about `max` items to `out`. Asking again says that the items of the last poll have been consumed.
    pub fn poll(&mut self, max: usize, out: &mut Vec<Item>) -> Poll {
        if let Some(pace) = &self.pace {
            self.session.advance(pace, self.seq);
        }
        if self.ended {
            return Poll::End;
        }
        let before = out.len();
        if let Some((head, state)) = self.snapshot.take() {
            out.push(self.control(Snapshot { head, state: Some(state) }));
        }
        let mut entries = std::mem::take(&mut self.page);
        let Some(position) = self.take(max, &mut entries, out) else {
            return if out.len() > before { Poll::Ready } else { Poll::Pending };
        };
        let found = !entries.is_empty();
        for entry in entries.drain(..) {
            let seq = entry.event.seq;
            let past = self.follow == Follow::None && seq > self.stop;
            let last = if past { self.stop } else { seq - 1 };
            if last > self.seq {
                // Deltas that their final event covers have left from the middle.
                out.push(self.control(Gap { first: self.seq + 1, last, reason: EVICTED.into() }));
                self.seq = last;
            }
            if past {
                self.ended = true;
                break;
            }
            self.seq = seq;
            self.ended = match &entry.event.payload {
                Payload::Completion(_) => self.follow == Follow::Turn && entry.event.context.turn >= self.target,
                Payload::SessionEnd(_) => true,
                _ => false,
            };
            if !(self.merge && merge(out, before, &entry.event)) {
                out.push(Item::Logged(entry));
            }
            if self.ended {
                break;
            }
        }
        entries.clear();
        self.page = entries;
        self.page.shrink_to(64); // a cursor, not a buffer: 512 bytes at most stay
        if out.len() > before {
            return Poll::Ready;
        }
        let over = match self.follow {
            Follow::Turn => !position.running && position.last_turn >= self.target && self.seq >= position.last_end,
            Follow::Session => false,
            Follow::None => self.seq >= self.stop,
        };
        if !found && (over || self.ended || (position.closed && self.seq >= position.head)) {
            self.ended = true;
            return Poll::End;
        }
        if self.ended { Poll::End } else { Poll::Pending }
    }

    /// Copies entries, from the log or from a page of the store's; where neither has them, says so in `out`. None while a page is
    /// on its way.
    fn take(&mut self, max: usize, entries: &mut Vec<Arc<Entry>>, out: &mut Vec<Item>) -> Option<Page> {
        let (mut history, mut reason) = (self.history, "trimmed");
        loop {
            if let Some(page) = &self.fetching {
                let taken = page.take(self.seq, max, self.page_bytes, entries)?;
                if !entries.is_empty() {
                    return Some(self.session.position());
                }
                self.fetching = None;
                self.fetch_ticket = Ticket::default();
                if let Err(error) = taken {
                    history = false;
                    reason = if error == StoreError::Unknown { "trimmed" } else { error.code() };
                }
            }
            let (position, absent) = self.session.page(self.seq, max, self.page_bytes, history, entries);
            match absent {
                Some(Absent::Stored(until)) => self.fetching = self.session.history(self.seq, until),
                Some(Absent::Folded(at, state)) => {
                    // What was there is told by its fold.
                    out.push(self.control(Gap { first: self.seq + 1, last: at, reason: reason.into() }));
                    out.push(self.control(Snapshot { head: at, state: Some(state) }));
                    self.seq = at;
                    return Some(position);
                }
                None => return Some(position),
            }
        }
    }

    /// After [`Poll::Pending`]: has `waker` called when there is more. False: there already is, poll again.
    pub fn park(&mut self, waker: &Waker) -> bool {
        if self.ended {
            return false;
        }
        match &self.fetching {
            Some(page) => page.park(waker, &mut self.fetch_ticket),
            None => self.session.park(self.seq, waker, &mut self.ticket),
        }
    }

    /// Takes [`Self::park`] back.
    pub fn unpark(&mut self) {
        self.session.unpark(&mut self.ticket);
        if let Some(page) = &self.fetching {
            page.unpark(&mut self.fetch_ticket);
        }
    }

    /// Ends the reader: every later poll says [`Poll::End`], and the session keeps nothing of it.
    pub fn close(&mut self) {
        self.ended = true;
        self.unpark();
        self.fetching = None;
        self.snapshot = None;
        if std::mem::take(&mut self.counted) {
            self.session.count_reader(false);
        }
        if let Some(pace) = self.pace.take() {
            self.session.leave_pace(&pace);
        }
    }

    /// Lets go of the session without a word to it: for the child of a fork, where nobody will ever open its lock.
    pub fn abandon(&mut self) {
        self.ended = true;
        (self.ticket, self.fetch_ticket) = (Ticket::default(), Ticket::default());
        self.fetching = None;
        self.counted = false;
        self.pace = None;
    }

    fn control(&self, payload: impl Into<Payload>) -> Item {
        let context = Context::of_session(self.session.id());
        Item::Made(Box::new(Event { seq: 0, time: now_ms(), context: Arc::new(context), payload: payload.into(), extra: None }))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.close();
    }
}
