//! What a line says, as the parser finds it and as the plainest reading of it does. The fuzz
//! target `proxy_line` holds the two against each other too.

use super::{ProxyLine, ProxySays, parse_proxy_line};

/// What a line is found to say, with all that its methods find.
#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    Nothing,
    Action {
        connection: Option<u64>,
        name: String,
        stamp: u64,
        ids: Vec<Vec<u8>>,
        upstream: Option<String>,
    },
    MadeContext(Option<u64>, Vec<u8>),
    PrefillNode(Option<u64>, u32),
    DecodeNode(Option<u64>, u32),
}

pub(crate) fn found(line: &[u8]) -> Found {
    let Some(ProxyLine { connection, says }) = parse_proxy_line(line) else {
        return Found::Nothing;
    };
    match says {
        ProxySays::Action(action) => Found::Action {
            connection,
            name: action.name.to_owned(),
            stamp: action.stamp,
            ids: action.ids().map(<[u8]>::to_vec).collect(),
            upstream: action.upstream().map(str::to_owned),
        },
        ProxySays::MadeContext(context) => Found::MadeContext(connection, context.to_vec()),
        ProxySays::PrefillNode(index) => Found::PrefillNode(connection, index),
        ProxySays::DecodeNode(index) => Found::DecodeNode(connection, index),
    }
}

/// The same by the plainest means: text is cut at what stands between its parts.
pub(crate) mod naive {
    use super::Found;

    pub(crate) fn found(line: &[u8]) -> Found {
        try_found(line).unwrap_or(Found::Nothing)
    }

    fn try_found(line: &[u8]) -> Option<Found> {
        // One character for each byte.
        let text: String = line.iter().map(|b| char::from(*b)).collect();
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let (_, text) = text.split_at_checked(text.char_indices().nth(19)?.0)?;
        let (level, text) = text.strip_prefix(" [")?.split_once("] ")?;
        if level.chars().count() > 7 || level.contains(']') {
            return None;
        }
        let (pid, text) = text.split_once('#')?;
        let (tid, text) = text.split_once(": ")?;
        number(pid)?;
        number(tid)?;
        let numbered = text.strip_prefix('*').map(|text| {
            let end = text
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len());
            (number(&text[..end]), &text[end..])
        });
        let (connection, message) = match numbered {
            Some((Some(connection), rest)) => (Some(connection), rest.strip_prefix(' ')?),
            _ => (None, text),
        };
        if let Some(rest) = message.strip_prefix("<<<Action: ") {
            return action(connection, rest);
        }
        if let Some(rest) = message.strip_prefix("****Action: Inject Traceparent****; Timestamp:") {
            let (_, value) = rest.split_once("; trace_headers:")?;
            let value = bytes(value);
            return Some(Found::MadeContext(connection, value.get(..55)?.to_vec()));
        }
        if let Some(rest) = message.strip_prefix("[Prefill-") {
            let (slot, rest) = rest.split_once("] Submit to:")?;
            number(slot)?;
            return Some(Found::PrefillNode(connection, leading(rest)?));
        }
        let (slot, rest) = message
            .strip_prefix("[Decode-")?
            .split_once("]: Done from ")?;
        number(slot)?;
        Some(Found::DecodeNode(connection, leading(rest)?))
    }

    fn action(connection: Option<u64>, text: &str) -> Option<Found> {
        let (name, rest) = text.split_once("; Timestamp:")?;
        let (stamp, rest) = rest.split_once("; RequestID:")?;
        let (id, trailer) = match rest.find(", client: ") {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (whole, fraction) = stamp.split_once('.').unwrap_or((stamp, ""));
        if !(1..=10).contains(&whole.len())
            || !(whole.to_owned() + fraction)
                .chars()
                .all(|c| c.is_ascii_digit())
        {
            return None;
        }
        let nanos: String = format!("{fraction:0<9}").chars().take(9).collect();
        let stamp = number(whole)? * 1_000_000_000 + number(&nanos)?;
        let mut ids = vec![id];
        if let (Some((cut, _)), false) = (id.rsplit_once(" while "), trailer.is_empty()) {
            ids.push(cut);
        }
        let ids = ids
            .into_iter()
            .map(bytes)
            .filter(|id| !id.is_empty() && id.len() <= 36);
        let upstream = trailer.split_once(", upstream: \"").and_then(|(_, rest)| {
            let (text, _) = rest.split_once('"')?;
            let address = text.split_once("://").map_or(text, |(_, address)| address);
            let address = address.split('/').next().unwrap_or_default();
            String::from_utf8(bytes(address))
                .ok()
                .filter(|a| !a.is_empty())
        });
        Some(Found::Action {
            connection,
            name: String::from_utf8(bytes(name)).ok()?,
            stamp,
            ids: ids.collect(),
            upstream,
        })
    }

    fn bytes(text: &str) -> Vec<u8> {
        text.chars().map(|c| c as u8).collect()
    }

    fn number(digits: &str) -> Option<u64> {
        let plain = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
        digits.parse().ok().filter(|_| plain)
    }

    fn leading(text: &str) -> Option<u32> {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        number(&text[..end])?.try_into().ok()
    }
}
