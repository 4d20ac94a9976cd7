//! The members of an event's JSON that matter.
//!
//! The scan goes from colon to colon and not from byte to byte: what stands before a colon is a
//! key or, within a text, something with a backslash before its quote. And as the events of a
//! stream begin and end alike, the beginning and the end of the last token's are skipped where
//! they come again.

use memchr::memchr;

use super::Usage;

/// Keys whose non-empty text makes an event a token.
const CONTENT_KEYS: [&[u8]; 9] = [
    b"content",
    b"text",
    b"reasoning_content",
    b"reasoning",
    b"arguments",
    b"refusal",
    // Of responses; a chat has an object there.
    b"delta",
    // Of messages.
    b"thinking",
    b"partial_json",
];
/// Most blanks between a key and its colon. (JSON allows any number; servers write none.)
const MAX_BLANKS: usize = 4;
/// What is looked at before a colon: the longest key, its quotes, the blanks, and the byte
/// before all of that.
const WINDOW: usize = 32;
/// Longest beginning or end of an event that is known again.
const MAX_FRAME: usize = 512;

/// The members of JSON's objects whose keys matter, wherever they stand.
#[derive(Debug, Default)]
pub(super) struct Members {
    state: State,
    /// There has been data of this event.
    has_begun: bool,
    /// The last bytes of the event's data.
    recent: [u8; WINDOW],
    /// How the last event with a content began, up to that content's first quote, if there was
    /// nothing else in it that matters.
    beginning: Frame,
    /// How it went on from that content's last quote, likewise.
    end: Frame,
    pub(super) has_content: bool,
    pub(super) has_error: bool,
    pub(super) usage: Usage,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Looking for a colon after such a key.
    #[default]
    Search,
    /// After the colon.
    Value(Key),
    /// After the quote that begins a content.
    Text,
    /// In a number.
    Number(Key, u64),
}

/// Bytes to be known again.
#[derive(Debug)]
struct Frame {
    bytes: [u8; MAX_FRAME],
    len: usize,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            bytes: [0; MAX_FRAME],
            len: 0,
        }
    }
}

impl Frame {
    fn get(&self) -> Option<&[u8]> {
        let known = self.bytes.get(..self.len);
        known.filter(|known| !known.is_empty())
    }

    fn set(&mut self, data: &[u8]) {
        if let Some(room) = self.bytes.get_mut(..data.len()) {
            room.copy_from_slice(data);
            self.len = data.len();
        }
    }
}

/// The length of a text that is not empty, ends here and has nothing escaped in it. It ends on
/// its line, or there would be lines of an event that nobody looked at.
fn plain_text(data: &[u8]) -> Option<usize> {
    let end = data
        .iter()
        .position(|byte| matches!(byte, b'"' | b'\\' | b'\n' | b'\r'))?;
    (end > 0 && data[end] == b'"').then_some(end)
}

/// Whether what follows a text means the same after another text: no key in it begins with that.
fn stands_alone(end: &[u8]) -> bool {
    let colon = memchr(b':', end).unwrap_or(end.len());
    let quotes = end[..colon].iter().filter(|byte| **byte == b'"').count();
    colon == end.len() || quotes > 1
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Content,
    Input,
    Output,
    Error,
}

impl Members {
    /// Another event.
    pub(super) fn begin(&mut self) {
        if self.has_begun {
            self.state = State::Search;
            self.has_begun = false;
            self.recent = [0; WINDOW];
            self.has_content = false;
        }
    }

    /// A line end within the data stands between two of JSON's words.
    pub(super) fn line_end(&mut self) {
        self.feed(b" ");
    }

    /// What follows the data of an event that is the last token's but for the token itself, where
    /// no data of the event has come before.
    #[inline]
    pub(super) fn known_token<'b>(&self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let (beginning, end) = (self.beginning.get()?, self.end.get()?);
        let rest = bytes.strip_prefix(beginning)?;
        let rest = rest[plain_text(rest)?..].strip_prefix(end)?;
        (!self.has_begun).then_some(rest)
    }

    pub(super) fn feed(&mut self, data: &[u8]) {
        let mut at = 0;
        // Where the event's data begins, until something in it has mattered.
        let mut plain = !std::mem::replace(&mut self.has_begun, true);
        // Where the rest begins of an event that has begun as the last one, likewise.
        let mut end = None;
        if plain
            && let Some(begun) = self.beginning.get()
            && data.starts_with(begun)
        {
            at = begun.len();
            self.state = State::Text;
            plain = false;
            end = plain_text(&data[at..]).map(|length| at + length);
            if let Some(from) = end
                && self.end.get() == Some(&data[from..])
            {
                self.has_content = true;
                self.state = State::Search;
                at = data.len();
                end = None;
            }
        }
        while let Some(byte) = data.get(at) {
            self.state = match self.state {
                State::Search => match memchr(b':', &data[at..]) {
                    None => break,
                    Some(colon) => {
                        at += colon;
                        let key = self.key_before(data, at);
                        end = end.filter(|_| key.is_none());
                        key.map_or(State::Search, State::Value)
                    }
                },
                State::Value(key) => match (byte, key) {
                    (b' ' | b'\t' | b'\n' | b'\r', _) => State::Value(key),
                    (b'"', Key::Content) => State::Text,
                    (b'0'..=b'9', Key::Input | Key::Output) => {
                        State::Number(key, u64::from(byte - b'0'))
                    }
                    (b'{' | b'"', Key::Error) => {
                        self.has_error = true;
                        plain = false;
                        State::Search
                    }
                    _ => State::Search,
                },
                State::Text => {
                    if std::mem::take(&mut plain) {
                        self.beginning.set(&data[..at]);
                    }
                    self.has_content |= *byte != b'"';
                    State::Search
                }
                State::Number(key, number) => match byte {
                    b'0'..=b'9' => {
                        let digit = u64::from(byte - b'0');
                        State::Number(key, number.saturating_mul(10).saturating_add(digit))
                    }
                    // No count of tokens.
                    b'.' | b'e' | b'E' => State::Search,
                    _ => {
                        plain = false;
                        match key {
                            Key::Input => self.usage.input = Some(number),
                            _ => self.usage.output = Some(number),
                        }
                        State::Search
                    }
                },
            };
            at += 1;
        }
        if let Some(rest) = end
            .and_then(|from| data.get(from..))
            .filter(|r| stands_alone(r))
        {
            self.end.set(rest);
        }
        self.remember(data);
    }

    /// The key, if it is one that matters, before the colon at a place in the data.
    fn key_before(&self, data: &[u8], colon: usize) -> Option<Key> {
        let mut joined = [0; 2 * WINDOW];
        let window = match colon.checked_sub(WINDOW) {
            Some(from) => &data[from..colon],
            None => {
                joined[..WINDOW].copy_from_slice(&self.recent);
                joined[WINDOW..][..colon].copy_from_slice(&data[..colon]);
                &joined[..WINDOW + colon]
            }
        };
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        let blanks = window.iter().rev().take_while(|b| blank(b)).count();
        let quoted = window[..window.len() - blanks].strip_suffix(b"\"")?;
        if blanks > MAX_BLANKS {
            return None;
        }
        let quote = quoted.iter().rposition(|byte| *byte == b'"')?;
        // It stands within a text, or is a part of a longer key.
        if quote > 0 && quoted[quote - 1] == b'\\' {
            return None;
        }
        match &quoted[quote + 1..] {
            b"prompt_tokens" | b"input_tokens" => Some(Key::Input),
            b"completion_tokens" | b"output_tokens" => Some(Key::Output),
            b"error" => Some(Key::Error),
            key => CONTENT_KEYS.contains(&key).then_some(Key::Content),
        }
    }

    fn remember(&mut self, data: &[u8]) {
        match data.len().checked_sub(WINDOW) {
            Some(from) => self.recent.copy_from_slice(&data[from..]),
            None => {
                self.recent.rotate_left(data.len());
                self.recent[WINDOW - data.len()..].copy_from_slice(data);
            }
        }
    }
}
