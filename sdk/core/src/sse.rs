//! Finds the tokens in a streamed answer: server-sent events with content.
//!
//! A token is an event whose JSON has a non-empty `content`, `text`,
//! `reasoning_content` or `reasoning` text: not a read, not the role chunk, not
//! a comment, not the usage chunk, not `[DONE]`. The scanner keeps constant
//! memory and survives any split of the bytes.

/// Keys whose non-empty text makes an event a token.
const CONTENT_KEYS: [&[u8]; 6] = [
    b"content",
    b"text",
    b"reasoning_content",
    b"reasoning",
    b"arguments",
    b"refusal",
];
/// Longest key that is told apart.
const MAX_KEY: usize = 24;

/// What a stream has shown so far.
#[derive(Debug, Default)]
pub struct Scanner {
    line: LineState,
    json: JsonState,
    event_has_content: bool,
    tokens: u64,
    done: bool,
    usage: Usage,
}

/// Token counts of the last event that had them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// `prompt_tokens`.
    pub input: Option<u64>,
    /// `completion_tokens`.
    pub output: Option<u64>,
}

/// Where in a line the scanner is.
#[derive(Debug, Default, PartialEq, Eq)]
enum LineState {
    /// At a line's first byte.
    #[default]
    Start,
    /// After a carriage return: a line feed belongs to the same line end.
    AfterReturn,
    /// This many bytes of `data:` have matched.
    Field(u8),
    /// After `data:`; a blank may follow.
    DataStart,
    /// In the data; this many bytes of `[DONE]` have matched, or 255 for none.
    Data(u8),
    /// In a line that is not data.
    Other,
}

const DATA: &[u8] = b"data:";
const DONE: &[u8] = b"[DONE]";
const NOT_DONE: u8 = 255;

/// Just enough of JSON to see keys and whether their text is empty.
#[derive(Debug, Default)]
struct JsonState {
    in_string: bool,
    escaped: bool,
    /// The string just read, or being read, while it is short enough to be a key.
    text: [u8; MAX_KEY],
    len: usize,
    /// The last whole string, if it may be a key.
    key: Key,
    /// The key before the value being read.
    pending: Key,
    number: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Key {
    #[default]
    None,
    Content,
    PromptTokens,
    CompletionTokens,
}

impl Scanner {
    /// A scanner at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at the next bytes; returns how many tokens ended in them.
    pub fn feed(&mut self, bytes: &[u8]) -> u64 {
        let before = self.tokens;
        for byte in bytes {
            self.byte(*byte);
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

    /// Token counts that the server gave.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    fn byte(&mut self, byte: u8) {
        if self.line == LineState::AfterReturn {
            self.line = LineState::Start;
            if byte == b'\n' {
                return;
            }
        }
        if byte == b'\n' || byte == b'\r' {
            self.line_end();
            self.line = if byte == b'\r' {
                LineState::AfterReturn
            } else {
                LineState::Start
            };
            return;
        }
        self.line = match self.line {
            LineState::Start if byte == DATA[0] => LineState::Field(1),
            LineState::Field(n) if DATA.get(usize::from(n)) == Some(&byte) => {
                if usize::from(n) + 1 == DATA.len() {
                    LineState::DataStart
                } else {
                    LineState::Field(n + 1)
                }
            }
            LineState::DataStart if byte == b' ' => LineState::Data(0),
            LineState::DataStart => self.data(byte, 0),
            LineState::Data(matched) => self.data(byte, matched),
            LineState::Start | LineState::Field(_) | LineState::AfterReturn | LineState::Other => {
                LineState::Other
            }
        };
    }

    fn data(&mut self, byte: u8, matched: u8) -> LineState {
        self.json_byte(byte);
        match DONE.get(usize::from(matched)) {
            Some(expected) if *expected == byte => LineState::Data(matched + 1),
            // Blanks after it do not make it another word.
            None if matched != NOT_DONE && byte == b' ' => LineState::Data(matched),
            _ => LineState::Data(NOT_DONE),
        }
    }

    fn line_end(&mut self) {
        match self.line {
            // An empty line ends the event.
            LineState::Start | LineState::AfterReturn => {
                self.tokens += u64::from(std::mem::take(&mut self.event_has_content));
                self.json = JsonState::default();
            }
            LineState::Data(matched) if usize::from(matched) == DONE.len() => self.done = true,
            // A line end within the data stands between two JSON tokens.
            LineState::Data(_) => self.json_byte(b' '),
            _ => {}
        }
    }

    fn json_byte(&mut self, byte: u8) {
        let json = &mut self.json;
        if json.in_string {
            if !json.escaped && byte == b'"' {
                json.in_string = false;
                json.key = key_of(&json.text[..json.len.min(MAX_KEY)], json.len);
                json.pending = Key::None;
                return;
            }
            json.escaped = !json.escaped && byte == b'\\';
            if json.pending == Key::Content {
                self.event_has_content = true;
            }
            if let Some(slot) = json.text.get_mut(json.len) {
                *slot = byte;
            }
            json.len = json.len.saturating_add(1);
            return;
        }
        match byte {
            b'"' => {
                json.in_string = true;
                json.len = 0;
                json.escaped = false;
            }
            b':' => json.pending = std::mem::take(&mut json.key),
            b'0'..=b'9' if json.pending != Key::None => {
                let digit = u64::from(byte - b'0');
                let number = json
                    .number
                    .unwrap_or(0)
                    .saturating_mul(10)
                    .saturating_add(digit);
                json.number = Some(number);
            }
            b' ' | b'\t' => {}
            _ => {
                if let Some(number) = json.number.take() {
                    match json.pending {
                        Key::PromptTokens => self.usage.input = Some(number),
                        Key::CompletionTokens => self.usage.output = Some(number),
                        _ => {}
                    }
                }
                json.pending = Key::None;
                json.key = Key::None;
            }
        }
    }
}

fn key_of(text: &[u8], len: usize) -> Key {
    match text {
        _ if len > MAX_KEY => Key::None,
        b"prompt_tokens" => Key::PromptTokens,
        b"completion_tokens" => Key::CompletionTokens,
        _ if CONTENT_KEYS.contains(&text) => Key::Content,
        _ => Key::None,
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
        assert!(scanner.is_done());
        assert_eq!(
            scanner.usage(),
            Usage {
                input: Some(12),
                output: Some(3)
            }
        );
    }

    #[test]
    fn any_split_of_the_bytes_gives_the_same() {
        let bytes = STREAM.as_bytes();
        for first in 0..bytes.len() {
            let mut scanner = Scanner::new();
            scanner.feed(&bytes[..first]);
            scanner.feed(&bytes[first..]);
            assert_eq!(
                (scanner.tokens(), scanner.is_done()),
                (3, true),
                "split at {first}"
            );
        }
        let mut scanner = Scanner::new();
        bytes.iter().for_each(|b| _ = scanner.feed(&[*b]));
        assert_eq!((scanner.tokens(), scanner.usage().output), (3, Some(3)));
    }

    #[test]
    fn a_token_counts_when_its_event_is_whole() {
        let mut scanner = Scanner::new();
        assert_eq!(scanner.feed(b"data: {\"content\":\"x\"}\n"), 0);
        assert_eq!(scanner.feed(b"\n"), 1);
        assert_eq!(scanner.feed(b"data: [DONE"), 0);
        assert!(!scanner.is_done());
    }
}
