//! Finds the tokens in a streamed answer: server-sent events with content.
//!
//! A token is an event whose JSON has a non-empty text under one of a few keys: not a
//! read, not the role chunk, not a comment, not the usage chunk, not `[DONE]`. It is so in chats,
//! completions, messages (Anthropic's) and responses; the last also repeat what they have said, in
//! events that their names tell apart. The scanner keeps constant memory and finds the same however
//! the bytes are split.
//!
//! ```text
//!  bytes ─► lines ─► data of an event ─► members whose key matters     (Scanner, Members)
//!             └────► its name                                          (Name)
//! ```

mod members;
mod name;

use memchr::memchr2;

use members::Members;
use name::Name;

const DATA: &[u8] = b"data:";
const EVENT: &[u8] = b"event:";
const DONE: &[u8] = b"[DONE]";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

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
    /// Of the event.
    name: Name,
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
    /// This many bytes of `event:` have.
    NameField(u8),
    /// After `data:`.
    Data,
    /// After `event:`.
    Name,
    /// In any other line.
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
            if self.line == Line::Field(0)
                && !self.after_return
                && let Some(after) = self.known_event(rest)
            {
                self.tokens += 1;
                self.name.clear();
                rest = after;
                continue;
            }
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

    /// What follows a whole event that says the same as the last token's, but for the token:
    /// nearly every one. Nothing of it needs to be remembered.
    #[inline]
    fn known_event<'b>(&self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        self.members
            .known_token(bytes.strip_prefix(DATA)?)?
            .strip_prefix(b"\n\n")
            .filter(|_| self.name.may_be_tokens())
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
                // No other field begins as it does.
                Match::Not if matched == 0 => Line::NameField(0),
                Match::Not => Line::Other,
            };
            self.done_matched = Some(0);
            part = if self.line == Line::NameField(0) {
                part
            } else {
                rest
            };
        }
        if let Line::NameField(matched) = self.line {
            let (now, rest) = continued(EVENT, matched, part);
            self.line = match now {
                Match::Partial(matched) => Line::NameField(matched),
                Match::Whole => Line::Name,
                Match::Not => Line::Other,
            };
            if now == Match::Whole {
                self.name.clear();
            }
            part = rest;
        }
        if self.line == Line::Name {
            self.name.extend(part);
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
                self.tokens += u64::from(self.members.has_content && self.name.may_be_tokens());
                self.members.has_error |= self.name.is_error();
                self.members.begin();
                self.name.clear();
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
    fn no_line_is_skipped_with_a_text_that_has_no_end() {
        // The second event begins and ends as the first: a line lies within what would be its text.
        let event = |text: &str| format!("data: {{\"content\":\"{text}\",\"n\":0}}\n\n");
        for odd in ["b\ndata: [DONE]\n", "b\rdata: [DONE]\r"] {
            let stream = event("a") + &event("a") + &event(odd);
            let mut scanner = Scanner::new();
            scanner.feed(stream.as_bytes());
            assert!(scanner.is_done(), "{odd:?}");
        }
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
    fn what_a_response_repeats_is_no_token() {
        let response = r#"{"status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"ab"}]}],"usage":{"input_tokens":21,"output_tokens":2}}"#;
        let events = [
            (
                "created",
                r#"{"response":{"error":null,"output":[],"text":{"format":{"type":"text"}}}}"#
                    .to_owned(),
            ),
            (
                "output_item.added",
                r#"{"item":{"content":[],"role":"assistant"}}"#.to_owned(),
            ),
            (
                "content_part.added",
                r#"{"part":{"text":"","type":"output_text"}}"#.to_owned(),
            ),
            (
                "output_text.delta",
                r#"{"content_index":0,"delta":"a","sequence_number":4}"#.to_owned(),
            ),
            (
                "output_text.delta",
                r#"{"content_index":0,"delta":"b","sequence_number":5}"#.to_owned(),
            ),
            (
                "output_text.delta",
                r#"{"content_index":0,"delta":"","sequence_number":6}"#.to_owned(),
            ),
            ("output_text.done", r#"{"text":"ab"}"#.to_owned()),
            ("content_part.done", r#"{"part":{"text":"ab"}}"#.to_owned()),
            ("completed", format!(r#"{{"response":{response}}}"#)),
        ];
        let mut scanner = Scanner::new();
        let found: Vec<u64> = events
            .iter()
            .map(|(name, data)| {
                scanner.feed(format!("event: response.{name}\ndata: {data}\n\n").as_bytes())
            })
            .collect();
        assert_eq!(found, [0, 0, 0, 1, 1, 0, 0, 0, 0]);
        let (input, output) = (Some(21), Some(2));
        assert_eq!(scanner.usage(), Usage { input, output });
        // The next event has another name, or none.
        assert_eq!(scanner.feed(b"data: {\"delta\":\"c\"}\n\n"), 1);
    }

    #[test]
    fn messages_have_tokens_of_text_of_thinking_and_of_calls() {
        let events = [
            (
                "message_start",
                r#"{"message":{"content":[],"usage":{"input_tokens":9,"output_tokens":0}}}"#,
            ),
            (
                "content_block_start",
                r#"{"content_block":{"type":"thinking","thinking":""}}"#,
            ),
            (
                "content_block_delta",
                r#"{"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
            ),
            (
                "content_block_delta",
                r#"{"delta":{"type":"text_delta","text":"a"}}"#,
            ),
            (
                "content_block_delta",
                r#"{"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}}"#,
            ),
            (
                "message_delta",
                r#"{"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}"#,
            ),
            ("message_stop", r#"{"type":"message_stop"}"#),
        ];
        let mut scanner = Scanner::new();
        let found: Vec<u64> = events
            .iter()
            .map(|(name, data)| scanner.feed(format!("event: {name}\ndata: {data}\n\n").as_bytes()))
            .collect();
        assert_eq!(found, [0, 0, 1, 1, 1, 0, 0]);
        let (input, output) = (Some(9), Some(3));
        assert_eq!(scanner.usage(), Usage { input, output });
    }

    #[test]
    fn an_event_that_is_called_an_error_is_one() {
        let mut scanner = Scanner::new();
        scanner.feed(b"event:error\ndata: {\"type\":\"error\",\"message\":\"out of memory\"}\n");
        assert!(!scanner.has_error());
        scanner.feed(b"\n");
        assert!(scanner.has_error());
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
