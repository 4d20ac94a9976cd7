//! The W3C trace context that travels with a request.

use crate::id::{SpanId, TraceId, hex, text};

/// Length of a version 00 `traceparent` in bytes.
const TRACEPARENT_LEN: usize = 55;

/// Trace id, span id and flags of one span, as `traceparent` carries them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that made the call.
    pub span_id: SpanId,
    /// W3C trace flags; bit 0 is "sampled".
    pub flags: u8,
}

impl SpanContext {
    /// Flag bit: the caller records this trace.
    pub const SAMPLED: u8 = 0x01;

    /// Reads a `traceparent` header value; blanks around it are allowed, as in
    /// any HTTP field.
    ///
    /// Version 00 must match to the last byte; of a higher version the first 55
    /// bytes count (W3C Trace Context, section 3.2.4). Anything else is None.
    pub fn parse(traceparent: &[u8]) -> Option<Self> {
        let text = traceparent.trim_ascii();
        let head = text.get(..TRACEPARENT_LEN)?;
        let version = hex_byte(&head[..2])?;
        let longer_is_fine = version > 0 && matches!(text.get(TRACEPARENT_LEN), Some(b'-'));
        if version == 0xff || (text.len() > TRACEPARENT_LEN && !longer_is_fine) {
            return None;
        }
        if head[2] != b'-' || head[35] != b'-' || head[52] != b'-' {
            return None;
        }
        Some(Self {
            trace_id: TraceId::parse(&head[3..35])?,
            span_id: SpanId::parse(&head[36..52])?,
            flags: hex_byte(&head[53..55])?,
        })
    }

    /// Whether the caller records this trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & Self::SAMPLED != 0
    }

    /// The version 00 header value, 55 characters.
    pub fn traceparent(&self) -> String {
        text(&self.traceparent_bytes()).to_owned()
    }

    /// The same, all of it ASCII.
    pub(crate) fn traceparent_bytes(&self) -> [u8; TRACEPARENT_LEN] {
        let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let trace_id = self.trace_id.value();
        value[3..19].copy_from_slice(&hex((trace_id >> 64) as u64));
        value[19..35].copy_from_slice(&hex(trace_id as u64));
        value[36..52].copy_from_slice(&hex(self.span_id.value()));
        value[53..].copy_from_slice(&hex(self.flags.into())[14..]);
        value
    }
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    match digits {
        [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_header_survives_the_round_trip() {
        let context = SpanContext::parse(VALID.as_bytes()).unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.traceparent(), VALID);
        assert_eq!(
            SpanContext::parse(format!(" {VALID}\t").as_bytes()),
            Some(context)
        );
    }

    #[test]
    fn a_higher_version_is_read_by_its_first_55_bytes() {
        let context = SpanContext::parse(VALID.as_bytes());
        assert_eq!(
            SpanContext::parse(VALID.replacen("00", "cc", 1).as_bytes()),
            context
        );
        let longer = format!("{}-what-the-future-brings", VALID.replacen("00", "cc", 1));
        assert_eq!(SpanContext::parse(longer.as_bytes()), context);
    }

    #[test]
    fn malformed_headers_are_none() {
        for bad in [
            "",
            "00",
            &VALID.to_uppercase(),
            &VALID[..54],
            &format!("{VALID}-extra"),
            &VALID.replacen("00", "ff", 1),
            &format!("{}x", VALID.replacen("00", "cc", 1)),
            &VALID.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert_eq!(SpanContext::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
