//! One line of nginx's error log, for who sees Omni Proxy write it.
//!
//! ```text
//! 2026/11/22 08:06:47 [info] 24904#0: *1 <<<Action: Finish P running; Timestamp:1109.185195; RequestID:my_req while sending to client, client: 10.0.0.9, …, upstream: "http://10.0.0.2:8000/v1", host: "proxy"
//! 2026/11/22 08:06:47 [info] 24905#0: <<<Action: Enter state D scheduled; Timestamp:1109.185505; RequestID:my_req
//! ```
//! Unlike [`super::parse_line`], which reads any file of any age, this one takes a line only where
//! nginx itself has put it: a client that sends the marker in a URI or a header makes no action.
//! It allocates nothing, for it runs inside the proxy, at every line that nginx writes.

use memchr::{memchr, memmem};

use super::line::parse_seconds;

/// Longest request id that Omni Proxy writes, in bytes: it cuts longer ones.
pub const MAX_PROXY_ID: usize = 36;

/// What a line says, as far as it concerns us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyLine<'a> {
    /// nginx's number of the client's connection; none where the line belongs to no request.
    pub connection: Option<u64>,
    /// The message.
    pub says: ProxySays<'a>,
}

/// What Omni Proxy's modules write into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxySays<'a> {
    /// A moment of a request.
    Action(ProxyAction<'a>),
    /// The `traceparent` that it has made up for a request without one.
    MadeContext(&'a [u8]),
    /// The request goes to the prefill node of this index.
    PrefillNode(u32),
    /// The request, which is over, was on the decode node of this index.
    DecodeNode(u32),
}

/// A moment of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyAction<'a> {
    /// Its name.
    pub name: &'a str,
    /// Nanoseconds, since boot or since 1970: versions differ, and so do actions of one version.
    pub stamp: u64,
    /// The id and what may be glued to it, see [`ProxyAction::ids`].
    id: &'a [u8],
    /// The rest, nginx's own.
    trailer: &'a [u8],
}

/// Reads one line, with or without its line end. None: it does not concern us.
#[inline]
pub fn parse_proxy_line(line: &[u8]) -> Option<ProxyLine<'_>> {
    let (connection, message) = message(line)?;
    let says = match message {
        [b'<', b'<', b'<', rest @ ..] => ProxySays::Action(action(rest)?),
        [b'*', b'*', b'*', b'*', rest @ ..] => ProxySays::MadeContext(made_context(rest)?),
        [b'[', b'P', rest @ ..] => ProxySays::PrefillNode(prefill_node(rest)?),
        [b'[', b'D', rest @ ..] => ProxySays::DecodeNode(decode_node(rest)?),
        _ => return None,
    };
    Some(ProxyLine { connection, says })
}

impl<'a> ProxyAction<'a> {
    /// What may be the request id, the longest first: nginx glues what it is doing to it
    /// (` while reading upstream`), and an id may contain such words itself.
    pub fn ids(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let whole = self.id;
        // nginx says only of a request what it is doing.
        let glued = memmem::rfind(whole, b" while ").filter(|_| !self.trailer.is_empty());
        let fits = |id: &&[u8]| (1..=MAX_PROXY_ID).contains(&id.len());
        [Some(whole), glued.map(|at| &whole[..at])]
            .into_iter()
            .flatten()
            .filter(fits)
    }

    /// Host and port of the node that the request is at, where nginx says it.
    pub fn upstream(&self) -> Option<&'a str> {
        const KEY: &[u8] = b", upstream: \"";
        let at = memmem::find(self.trailer, KEY)? + KEY.len();
        let text = &self.trailer[at..];
        let text = &text[..memchr(b'"', text)?];
        // Of a proxy_pass nginx has a URL.
        let address = match memmem::find(text, b"://") {
            Some(at) => &text[at + 3..],
            None => text,
        };
        let end = memchr(b'/', address).unwrap_or(address.len());
        std::str::from_utf8(&address[..end])
            .ok()
            .filter(|address| !address.is_empty())
    }
}

/// The connection's number and the message of a line that nginx has written.
#[inline]
fn message(line: &[u8]) -> Option<(Option<u64>, &[u8])> {
    const TIME: usize = "1970/01/01 00:00:00".len();
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let rest = line.get(TIME..)?.strip_prefix(b" [")?;
    let level = rest.iter().take(8).position(|b| *b == b']')?;
    let rest = rest[level..].strip_prefix(b"] ")?;
    let (_, rest) = number(rest)?;
    let (_, rest) = number(rest.strip_prefix(b"#")?)?;
    let rest = rest.strip_prefix(b": ")?;
    match rest.strip_prefix(b"*").and_then(number) {
        Some((connection, rest)) => Some((Some(connection), rest.strip_prefix(b" ")?)),
        None => Some((None, rest)),
    }
}

/// A number and what follows it.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, rest) = text.split_at(digits);
    let number = number.iter().try_fold(0u64, |n, digit| {
        n.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    });
    Some((number.filter(|_| digits > 0)?, rest))
}

fn action(text: &[u8]) -> Option<ProxyAction<'_>> {
    let (name, rest) = split(text.strip_prefix(b"Action: ")?, b"; Timestamp:")?;
    let (stamp, rest) = split(rest, b"; RequestID:")?;
    let end = memmem::find(rest, b", client: ").unwrap_or(rest.len());
    let (id, trailer) = rest.split_at(end);
    Some(ProxyAction {
        name: std::str::from_utf8(name).ok()?,
        stamp: parse_seconds(stamp)?,
        id,
        trailer,
    })
}

fn made_context(text: &[u8]) -> Option<&[u8]> {
    const TRACEPARENT: usize = 55;
    let rest = text.strip_prefix(b"Action: Inject Traceparent****; Timestamp:")?;
    split(rest, b"; trace_headers:")?.1.get(..TRACEPARENT)
}

fn prefill_node(text: &[u8]) -> Option<u32> {
    let (_, rest) = number(text.strip_prefix(b"refill-")?)?;
    index(rest.strip_prefix(b"] Submit to:")?)
}

fn decode_node(text: &[u8]) -> Option<u32> {
    let (_, rest) = number(text.strip_prefix(b"ecode-")?)?;
    index(rest.strip_prefix(b"]: Done from ")?)
}

fn index(text: &[u8]) -> Option<u32> {
    number(text)?.0.try_into().ok()
}

fn split<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memmem::find(text, separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

#[cfg(test)]
mod tests;
