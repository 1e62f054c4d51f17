//! The driver: bytes to frames to one provider's state machine to payloads.
//!
//! Owns which reader and which state machine take the bytes, what a broken frame does, and recognition where nobody
//! named the provider. Knows no wire format. Invariants: 1. any split of the bytes gives equal payloads; 2. lenient, a
//! broken frame is a warning with its byte offset and the stream goes on; strict, it is an error, after which everything
//! open has been closed; 3. nothing is put out before the provider is known.

use super::echo::Echo;
use super::{Assembler, Likeness, Malformed, ProtocolError, Provider, make, providers, recognise, recognise_error};
use super::{halves, numbers};
use crate::event::{self, Payload};
use crate::frame::{Format, Frame, FrameError, FrameReader, Limits};

/// How many frames, and how many bytes of them, wait for recognition before it is given up.
const MAX_HELD: (usize, usize) = (64, 1 << 20);

/// A stream whose frames never repeat pays for so many of them.
const ECHO_CREDIT: u8 = 16;

/// How a [`Normalizer`] reads.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A broken frame, one of an unknown kind or one out of order is an error instead of a warning.
    pub strict: bool,
    /// Stands in every minted id: makes them unique where several streams meet in one log.
    pub id_prefix: String,
    /// Tool calls that stand in the text, as a model's chat template writes them, become calls; the template's end marks at
    /// the end of the text are dropped. For servers that were not told how to do it.
    pub text_tools: bool,
    /// How much a frame may hold.
    pub limits: Limits,
}

/// One provider stream's bytes to payloads. Does no I/O.
pub struct Normalizer {
    reader: FrameReader,
    core: Core,
}

/// Everything behind the frame reader.
#[allow(clippy::struct_excessive_bools, reason = "each says one thing of the stream, whatever the others say")]
struct Core {
    machine: Option<(&'static str, Box<dyn Provider>)>,
    held: Vec<Held>,
    held_bytes: usize,
    out: Assembler,
    strict: bool,
    /// Whether a frame was understood, and whether one was not.
    good: bool,
    broken: bool,
    failed: Option<ProtocolError>,
    /// Whether the end was said.
    ended: bool,
    /// Whether a number that JSON has not was said.
    unnumbered: bool,
    /// The last frame, where the next may be read by comparing.
    echo: Option<Echo>,
    /// How many frames may still be remembered in vain: each that is heard gives one back.
    echo_credit: u8,
}

/// A frame, or what is wrong with one, until the provider is known.
struct Held {
    event: String,
    data: Vec<u8>,
    offset: u64,
    error: Option<FrameError>,
}

impl Normalizer {
    /// A normalizer for `provider`, or for `"auto"`: recognised by the first frames.
    ///
    /// # Errors
    /// [`ProtocolError::UnknownProvider`].
    pub fn new(provider: &str, options: Options) -> Result<Self, ProtocolError> {
        let machine = match provider {
            "auto" => None,
            name => Some(make(name).ok_or_else(|| ProtocolError::UnknownProvider {
                name: name.chars().take(64).collect(),
                known: providers().collect::<Vec<_>>().join(", "),
            })?),
        };
        let Options { strict, id_prefix, text_tools, limits } = options;
        let mut out = Assembler::new(machine.as_ref().map_or("auto", |machine| machine.0), &id_prefix);
        if text_tools {
            out.read_text_tools();
        }
        let core = Core {
            out,
            machine,
            held: Vec::new(),
            held_bytes: 0,
            strict,
            good: false,
            broken: false,
            failed: None,
            ended: false,
            unnumbered: false,
            echo: None,
            echo_credit: ECHO_CREDIT,
        };
        Ok(Self { reader: FrameReader::new(Format::Auto, limits), core })
    }

    /// The provider's name; `"auto"` until it is recognised.
    pub fn provider(&self) -> &'static str {
        self.core.machine.as_ref().map_or("auto", |machine| machine.0)
    }

    /// Takes bytes, in any split.
    ///
    /// # Errors
    /// The bytes are not what the provider's format says (strict), a frame is larger than the limits, or no provider
    /// is recognised. What came before can still be drained, and is closed; later calls give the same error. Or the end was
    /// said before.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let Self { reader, core } = self;
        if core.ended && !bytes.is_empty() {
            return Err(core.failed.clone().unwrap_or(ProtocolError::Ended { provider: core.name() }));
        }
        let mut rest = bytes;
        while core.failed.is_none() && !rest.is_empty() {
            let between = reader.between_events();
            if let Some(limit) = between
                && let Some(taken) = core.hear_block(rest, limit)
            {
                reader.skip(taken);
                rest = &rest[taken..];
                continue;
            }
            if core.echo_credit == 0 {
                reader.feed(rest, &mut |frame| core.take(frame));
                break;
            }
            let taken = reader.feed_event(rest, &mut |frame| core.take(frame));
            if let Some(echo) = &mut core.echo {
                echo.learn_block(if between.is_some() { &rest[..taken] } else { &[] });
            }
            rest = &rest[taken..];
        }
        core.failed.clone().map_or(Ok(()), Err)
    }

    /// The bytes have ended: closes everything.
    ///
    /// # Errors
    /// As [`Self::feed`]; also when there were bytes and not one frame among them.
    pub fn finish(&mut self) -> Result<(), ProtocolError> {
        let Self { reader, core } = self;
        core.ended = true;
        if core.failed.is_none() {
            reader.finish(&mut |frame| core.take(frame));
        }
        if core.failed.is_none() {
            core.settle();
        }
        if let (None, Some((provider, machine))) = (&core.failed, &mut core.machine) {
            if core.broken && !core.good {
                let error = ProtocolError::NoStream { provider };
                core.fail(error);
            } else {
                machine.finish(&mut core.out);
                core.out.finish();
            }
        }
        core.failed.clone().map_or(Ok(()), Err)
    }

    /// No more bytes will come, for this reason: says it as a fatal error, and closes what is open. A tool call that was
    /// under way is cut, not whole. Does nothing after an error of [`Self::feed`] that has said and closed all that.
    pub fn stop(&mut self, error: event::Error) {
        let core = &mut self.core;
        if core.failed.is_none() || core.machine.is_none() {
            core.out.error(&error.code, &error.message, error.retryable, error.raw);
            core.out.finish();
        }
    }

    /// What has been put out since it was taken last.
    pub fn pending(&mut self) -> &mut Vec<Payload> {
        self.core.out.pending()
    }

    /// Takes the payloads since the last call.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Payload> {
        self.core.out.drain()
    }
}

impl Core {
    fn take(&mut self, frame: Result<Frame<'_>, FrameError>) {
        if self.failed.is_some() {
            return;
        }
        if self.machine.is_none() {
            return self.hold(frame);
        }
        match frame {
            Ok(frame) => self.frame(&frame),
            Err(error) => self.frame_error(error),
        }
    }

    /// Takes the event that `bytes` begin with by comparing it with the last one; says how long it was.
    #[inline]
    fn hear_block(&mut self, bytes: &[u8], limit: usize) -> Option<usize> {
        let echo = self.echo.as_ref()?;
        let (text, taken) = echo.hear_block(bytes).filter(|(_, taken)| *taken <= limit)?;
        self.out.say(echo.piece, &text);
        self.echo_credit = (self.echo_credit + 1).min(ECHO_CREDIT);
        Some(taken)
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        let Some((_, machine)) = &mut self.machine else { return };
        if let Some(echo) = &mut self.echo {
            if let Some(text) = echo.hear(frame) {
                self.out.say(echo.piece, &text);
                self.echo_credit = (self.echo_credit + 1).min(ECHO_CREDIT);
                return;
            }
            self.echo = None;
        }
        let mended = halves::mend(frame.data);
        let frame = &match &mended {
            Some(data) => {
                self.out.expect_halves();
                Frame { data, ..*frame }
            }
            None => *frame,
        };
        let mut taken = machine.frame(frame, &mut self.out);
        let numbered = if taken.is_err() && !self.strict { numbers::mend(frame.data) } else { None };
        if let Some(data) = &numbered {
            // No machine has done anything with a frame that is not JSON.
            taken = machine.frame(&Frame { data, ..*frame }, &mut self.out);
            if !std::mem::replace(&mut self.unnumbered, true) {
                let message =
                    format!("frame at byte {}: a number that JSON has not is null, here and from here on", frame.offset);
                self.out.warning("not_a_number", &message);
            }
        }
        if let Some(heard) = self.out.take_heard()
            && self.echo_credit > 0
            && mended.is_none()
            && numbered.is_none()
        {
            self.echo_credit -= 1;
            self.echo = Echo::learn(frame, heard, machine.noise());
        }
        self.good |= taken.is_ok();
        let (unknown, disorder) = (self.out.take_unknown(), self.out.take_disorder());
        let fault = match (taken, unknown, disorder) {
            (Err(Malformed(message)), ..) => Some(message),
            (Ok(()), Some(kind), _) if self.strict => Some(format!("unknown kind {kind:?}")),
            (Ok(()), _, Some(code)) if self.strict => Some(format!("out of order: {code}")),
            (Ok(()), ..) => None,
        };
        if let Some(message) = fault {
            if self.strict {
                self.fail(ProtocolError::Malformed { provider: self.name(), offset: frame.offset, message });
            } else {
                self.broken = true;
                self.out.warning("malformed_frame", &format!("frame at byte {}: {message}", frame.offset));
            }
        }
    }

    fn frame_error(&mut self, error: FrameError) {
        if self.strict || error.is_fatal() {
            self.fail(ProtocolError::Frame { provider: self.name(), error });
        } else {
            self.broken = true;
            self.out.warning("malformed_frame", &error.to_string());
        }
    }

    fn fail(&mut self, error: ProtocolError) {
        let code = match &error {
            ProtocolError::Frame { error: FrameError::LineTooLong { .. } | FrameError::EventTooLong { .. }, .. } => {
                "frame_too_long"
            }
            _ => "protocol_error",
        };
        if self.machine.is_some() {
            self.out.error(code, &error.to_string(), false, None);
            self.out.finish();
        }
        self.failed = Some(error);
    }

    fn name(&self) -> &'static str {
        self.machine.as_ref().map_or("auto", |machine| machine.0)
    }

    // --- recognition ------------------------------------------------------------------------------------------------

    fn hold(&mut self, frame: Result<Frame<'_>, FrameError>) {
        let sure = match frame {
            Ok(frame) => {
                self.held_bytes += frame.data.len();
                self.held.push(Held {
                    event: frame.event.to_owned(),
                    data: frame.data.to_vec(),
                    offset: frame.offset,
                    error: None,
                });
                let mend = || numbers::mend(frame.data).filter(|_| !self.strict);
                let seen = recognise(&frame).or_else(|| recognise(&Frame { data: &mend()?, ..frame }));
                seen.filter(|(_, likeness)| *likeness == Likeness::Yes)
            }
            Err(error) => {
                self.held.push(Held { event: String::new(), data: Vec::new(), offset: 0, error: Some(error) });
                None
            }
        };
        match sure {
            Some((name, _)) => self.recognised(name),
            None if self.held.len() >= MAX_HELD.0 || self.held_bytes >= MAX_HELD.1 => self.settle(),
            None => {}
        }
    }

    fn recognised(&mut self, name: &'static str) {
        self.machine = make(name);
        self.out.set_provider(name);
        for held in std::mem::take(&mut self.held) {
            self.take(match held.error {
                Some(error) => Err(error),
                None => Ok(Frame { event: &held.event, data: &held.data, offset: held.offset }),
            });
        }
    }

    /// No more will come that helps: takes the likeliest provider, or none.
    fn settle(&mut self) {
        if self.machine.is_none() {
            let frames = self.held.iter().filter(|held| held.error.is_none());
            let likely =
                frames.filter_map(|held| recognise(&Frame { event: &held.event, data: &held.data, offset: held.offset }));
            let error = || match self.held.as_slice() {
                [Held { error: None, event, data, offset }] => recognise_error(&Frame { event, data, offset: *offset }),
                _ => None,
            };
            if let Some(name) = likely.max_by_key(|(_, likeness)| *likeness).map(|(name, _)| name).or_else(error) {
                self.recognised(name);
            } else {
                self.failed = Some(ProtocolError::Unrecognised { frames: self.held.len() });
                self.held = Vec::new();
            }
        }
    }
}
