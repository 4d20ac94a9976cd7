//! Finds the tokens in a streamed answer: server-sent events with content.
//!
//! A token is an event whose JSON has a non-empty text under one of [`CONTENT_KEYS`]: not a
//! read, not the role chunk, not a comment, not the usage chunk, not `[DONE]`. The scanner keeps
//! constant memory and finds the same however the bytes are split.
//!
//! ```text
//!  bytes ─► lines ─► data of an event ─► members whose key matters     (Scanner, Members)
//! ```
//! It looks from colon to colon and not from byte to byte: what stands before a colon is a key
//! or, within a text, something with a backslash before its quote. And as the events of a stream
//! begin alike, the beginning of the last token's is skipped where it comes again.

use memchr::{memchr, memchr2};

/// Keys whose non-empty text makes an event a token.
const CONTENT_KEYS: [&[u8]; 6] = [
    b"content",
    b"text",
    b"reasoning_content",
    b"reasoning",
    b"arguments",
    b"refusal",
];
const DATA: &[u8] = b"data:";
const DONE: &[u8] = b"[DONE]";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Most blanks between a key and its colon. (JSON allows any number; servers write none.)
const MAX_BLANKS: usize = 4;
/// What is looked at before a colon: the longest key, its quotes, the blanks, and the byte
/// before all of that.
const WINDOW: usize = 32;
/// Longest beginning of an event that is known again.
const MAX_BEGINNING: usize = 512;

/// What a stream has shown so far.
#[derive(Debug, Default)]
pub struct Scanner {
    /// The body is one JSON value and not a stream of events.
    is_document: bool,
    line: Line,
    /// The last byte was a carriage return: a line feed belongs to the same line end.
    after_return: bool,
    /// Bytes of `[DONE]` that the line's data has been so far, if it has been nothing else.
    done_matched: Option<u8>,
    members: Members,
    tokens: u64,
    done: bool,
}

/// Token counts of the last event that had them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// `prompt_tokens` or `input_tokens`.
    pub input: Option<u64>,
    /// `completion_tokens` or `output_tokens`.
    pub output: Option<u64>,
}

/// Where in a line the scanner is.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// This many bytes of a byte order mark have matched, at the very start.
    Mark(u8),
    /// This many bytes of `data:` have matched.
    Field(u8),
    /// After `data:`.
    Data,
    /// In a line that is not data.
    Other,
}

impl Default for Line {
    fn default() -> Self {
        Self::Mark(0)
    }
}

impl Scanner {
    /// A scanner at the start of a stream of events.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scanner of an answer that is one JSON value. It has no tokens to wait for, but may say
    /// how many there were.
    pub fn document() -> Self {
        Self {
            is_document: true,
            ..Self::default()
        }
    }

    /// Looks at the next bytes; returns how many tokens ended in them.
    pub fn feed(&mut self, bytes: &[u8]) -> u64 {
        if self.is_document {
            self.members.feed(bytes);
            return 0;
        }
        let before = self.tokens;
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', rest) else {
                self.part(rest);
                break;
            };
            self.part(&rest[..end]);
            self.line_end();
            self.after_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
        }
        self.tokens - before
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Whether `[DONE]` has come.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether the server has said that something went wrong: an `error` that is not null.
    pub fn has_error(&self) -> bool {
        self.members.has_error
    }

    /// Token counts that the server gave.
    pub fn usage(&self) -> Usage {
        self.members.usage
    }

    /// Some bytes of a line, without its end.
    fn part(&mut self, mut part: &[u8]) {
        if let Line::Mark(matched) = self.line {
            let (now, rest) = continued(BYTE_ORDER_MARK, matched, part);
            self.line = match now {
                Match::Partial(matched) => Line::Mark(matched),
                Match::Whole => Line::Field(0),
                // Its first bytes are no field's either.
                Match::Not if matched > 0 => Line::Other,
                Match::Not => Line::Field(0),
            };
            part = if now == Match::Not { part } else { rest };
        }
        if let Line::Field(matched) = self.line {
            let (now, rest) = continued(DATA, matched, part);
            self.line = match now {
                Match::Partial(matched) => Line::Field(matched),
                Match::Whole => Line::Data,
                Match::Not => Line::Other,
            };
            self.done_matched = Some(0);
            part = rest;
        }
        if self.line == Line::Data {
            self.match_done(part);
            self.members.feed(part);
        }
    }

    fn match_done(&mut self, data: &[u8]) {
        let mut bytes = data.iter();
        while let (Some(matched), Some(byte)) = (self.done_matched, bytes.next()) {
            self.done_matched = match DONE.get(usize::from(matched)) {
                Some(expected) if expected == byte => Some(matched + 1),
                Some(_) if matched == 0 && *byte == b' ' => Some(0),
                None if *byte == b' ' => Some(matched),
                _ => None,
            };
        }
    }

    fn line_end(&mut self) {
        match self.line {
            // An empty line ends the event.
            Line::Field(0) | Line::Mark(0) => {
                self.tokens += u64::from(self.members.has_content);
                self.members.begin();
            }
            Line::Data => {
                self.done |= self.done_matched.map(usize::from) == Some(DONE.len());
                self.members.line_end();
            }
            _ => {}
        }
        self.line = Line::Field(0);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Partial(u8),
    Whole,
    Not,
}

/// Goes on comparing bytes with a word of which so many have matched; what is left of them.
fn continued<'b>(word: &[u8], matched: u8, bytes: &'b [u8]) -> (Match, &'b [u8]) {
    let wanted = word.get(usize::from(matched)..).unwrap_or_default();
    if let Some(rest) = bytes.strip_prefix(wanted) {
        (Match::Whole, rest)
    } else if wanted.starts_with(bytes) {
        (Match::Partial(matched + bytes.len() as u8), &[])
    } else {
        (Match::Not, &[])
    }
}

/// The members of JSON's objects whose keys matter, wherever they stand.
#[derive(Debug, Default)]
struct Members {
    state: State,
    /// There has been data of this event.
    has_begun: bool,
    /// The last bytes of the event's data.
    recent: [u8; WINDOW],
    beginning: Beginning,
    has_content: bool,
    has_error: bool,
    usage: Usage,
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

/// How the last event with a content began, up to that content's first quote, if there was
/// nothing else in it that matters.
#[derive(Debug)]
struct Beginning {
    bytes: [u8; MAX_BEGINNING],
    len: usize,
}

impl Default for Beginning {
    fn default() -> Self {
        Self {
            bytes: [0; MAX_BEGINNING],
            len: 0,
        }
    }
}

impl Beginning {
    fn is_of(&self, data: &[u8]) -> bool {
        self.len > 0 && data.starts_with(&self.bytes[..self.len])
    }

    fn set(&mut self, data: &[u8]) {
        if let Some(room) = self.bytes.get_mut(..data.len()) {
            room.copy_from_slice(data);
            self.len = data.len();
        }
    }
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
    fn begin(&mut self) {
        if self.has_begun {
            self.state = State::Search;
            self.has_begun = false;
            self.recent = [0; WINDOW];
            self.has_content = false;
        }
    }

    /// A line end within the data stands between two of JSON's words.
    fn line_end(&mut self) {
        self.feed(b" ");
    }

    fn feed(&mut self, data: &[u8]) {
        let mut at = 0;
        // Where the event's data begins, until something in it has mattered.
        let mut plain = !std::mem::replace(&mut self.has_begun, true);
        if plain && self.beginning.is_of(data) {
            at = self.beginning.len;
            self.state = State::Text;
            plain = false;
        }
        while let Some(byte) = data.get(at) {
            self.state = match self.state {
                State::Search => match memchr(b':', &data[at..]) {
                    None => break,
                    Some(colon) => {
                        at += colon;
                        self.key_before(data, at)
                            .map_or(State::Search, State::Value)
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

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        ": ping\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"a \\\"quoted\\\" content\"}}]}\r\n\r\n",
        "event: x\nid: 7\ndata:{\"choices\":[{\"delta\":{\"reasoning_content\":\"\\u00e9\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\": null}}]}\n\n",
        "data: {\"choices\":[\ndata: {\"text\" : \"multi-line\"}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"content\"}}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"total_tokens\":15,\"completion_tokens\":3}}\n\n",
        "data: [DONE]\n\n",
    );

    #[test]
    fn only_events_with_content_are_tokens() {
        let mut scanner = Scanner::new();
        assert_eq!(scanner.feed(STREAM.as_bytes()), 3);
        assert!(scanner.is_done() && !scanner.has_error());
        assert_eq!(
            scanner.usage(),
            Usage {
                input: Some(12),
                output: Some(3)
            }
        );
    }

    #[test]
    fn a_token_counts_when_its_event_is_whole() {
        let mut scanner = Scanner::new();
        assert_eq!(scanner.feed(b"data: {\"content\":\"x\"}\n"), 0);
        assert_eq!(scanner.feed(b"\n"), 1);
        assert_eq!(scanner.feed(b"data: [DONE"), 0);
        assert!(!scanner.is_done());
    }

    #[test]
    fn a_document_has_usage_and_no_tokens() {
        let mut scanner = Scanner::document();
        let body = b"{\"choices\":[{\"message\":{\"content\":\"data: x\\n\\n\"}}],\n\
            \"usage\": {\"prompt_tokens\": 4, \"completion_tokens\": 5}}";
        assert_eq!(scanner.feed(body), 0);
        let (input, output) = (Some(4), Some(5));
        assert_eq!(scanner.usage(), Usage { input, output });
    }

    #[test]
    fn an_error_in_the_stream_is_seen() {
        for (event, error) in [
            (r#"{"error":{"message":"out of memory","code":500}}"#, true),
            (r#"{"error":"out of memory"}"#, true),
            (
                r#"{"error":null,"choices":[{"delta":{"content":"\"error\":{"}}]}"#,
                false,
            ),
        ] {
            let mut scanner = Scanner::new();
            scanner.feed(format!("data: {event}\n\n").as_bytes());
            assert_eq!(scanner.has_error(), error, "{event}");
        }
    }
}
