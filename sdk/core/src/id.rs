//! Identity: the same request gives the same ids everywhere.
//!
//! Trace and span ids are XXH3 hashes, so proxy, prefill and decode node, and a
//! later import of their logs, agree without talking to each other.

use std::cell::RefCell;
use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// A W3C trace id, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(NonZeroU128);

/// A W3C span id, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    /// None for zero, which W3C forbids.
    pub fn new(value: u128) -> Option<Self> {
        NonZeroU128::new(value).map(Self)
    }

    /// The trace id of a request that came without a `traceparent`, from its
    /// canonical id ([`canonical_request_id`]).
    pub fn of_request(canonical: &str) -> Self {
        Self(NonZeroU128::new(xxh3_128(canonical.as_bytes())).unwrap_or(NonZeroU128::MIN))
    }

    /// The trace id of an engine's steps in a window of time: the engine is a process
    /// of a node, the window a number.
    pub(crate) fn of_engine(node: &str, pid: u32, window: u64) -> Self {
        // No request id has a NUL.
        Self::of_request(&format!("engine\0{node}\0{pid}\0{window}"))
    }

    /// From exactly 32 lower-case hexadecimal digits that are not all zero.
    pub fn parse(hex: &[u8]) -> Option<Self> {
        (hex.len() == 32)
            .then(|| parse_hex(hex))
            .flatten()
            .and_then(Self::new)
    }

    /// As an integer, most significant byte first.
    pub fn value(self) -> u128 {
        self.0.get()
    }
}

impl SpanId {
    /// None for zero, which W3C forbids.
    pub fn new(value: u64) -> Option<Self> {
        NonZeroU64::new(value).map(Self)
    }

    /// From exactly 16 lower-case hexadecimal digits that are not all zero.
    pub fn parse(hex: &[u8]) -> Option<Self> {
        let value = (hex.len() == 16).then(|| parse_hex(hex)).flatten()?;
        Self::new(value as u64)
    }

    /// As an integer, most significant byte first.
    pub fn value(self) -> u64 {
        self.0.get()
    }
}

thread_local! {
    /// This thread's random numbers, and the process they were seeded in.
    static RANDOM: RefCell<Option<(u64, SmallRng)>> = const { RefCell::new(None) };
}

/// Forks between the first process of this program and this one.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// To be called in a forked child: its numbers must not be its parent's.
pub(crate) fn restart_random() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A random number from this thread's generator, seeded by the system.
#[inline]
fn random<T>(draw: impl FnOnce(&mut SmallRng) -> T) -> T {
    let forks = FORKS.load(Ordering::Relaxed);
    RANDOM.with_borrow_mut(|state| {
        if state.as_ref().is_none_or(|(seeded, _)| *seeded != forks) {
            *state = None;
        }
        draw(
            &mut state
                .get_or_insert_with(|| (forks, SmallRng::from_os_rng()))
                .1,
        )
    })
}

impl TraceId {
    /// One that no other trace has.
    pub fn random() -> Self {
        random(|rng| NonZeroU128::new(rng.random())).map_or(Self(NonZeroU128::MIN), Self)
    }
}

/// Ids of the first span of a new trace.
#[inline]
pub fn random_root() -> (TraceId, SpanId) {
    let (trace, span) = random(|rng| (rng.random(), rng.random()));
    (
        TraceId::new(trace).unwrap_or(TraceId(NonZeroU128::MIN)),
        SpanId::new(span).unwrap_or(SpanId(NonZeroU64::MIN)),
    )
}

impl SpanId {
    /// One that no other span has.
    #[inline]
    pub fn random() -> Self {
        random(|rng| NonZeroU64::new(rng.random())).map_or(Self(NonZeroU64::MIN), Self)
    }
}

/// What tells a phase's span from every other span.
#[derive(Debug, Clone, Copy)]
pub struct PhaseKey<'a> {
    /// The trace.
    pub trace_id: TraceId,
    /// Canonical request id: a client may send one context with many requests.
    pub request_id: &'a str,
    /// The caller's span, where a context came with the request.
    pub remote_parent: Option<SpanId>,
    /// When the request entered, in nanoseconds since 1970, for a role to which a
    /// client may send the same id again; else 0.
    pub entered: u64,
    /// The phase's role.
    pub role: &'a str,
    /// The node that it happens on.
    pub node: &'a str,
    /// The phase's name in the vocabulary.
    pub phase: &'a str,
    /// Which try of the phase, from 0.
    pub occurrence: u16,
}

impl PhaseKey<'_> {
    /// The id of the phase's span, the same wherever it is derived.
    pub fn span_id(&self) -> SpanId {
        self.span_id_with(&mut SpanIds::default())
    }

    /// The same, in memory that is there.
    pub fn span_id_with(&self, ids: &mut SpanIds) -> SpanId {
        ids.begin(self).of(self.phase, self.occurrence)
    }
}

/// Span ids of one visit's phases: hashes of texts that differ only at their ends.
/// Its memory is for the next visit's.
#[derive(Default)]
pub struct SpanIds {
    text: Vec<u8>,
    common: usize,
}

impl SpanIds {
    /// Begins with another visit; `phase` and `occurrence` of the key do not matter.
    pub(crate) fn begin(&mut self, key: &PhaseKey<'_>) -> &mut Self {
        let mut numbers = [0; 32];
        let (trace_id, rest) = numbers.split_at_mut(16);
        let (parent, entered) = rest.split_at_mut(8);
        trace_id.copy_from_slice(&key.trace_id.value().to_be_bytes());
        parent.copy_from_slice(&key.remote_parent.map_or(0, SpanId::value).to_be_bytes());
        entered.copy_from_slice(&key.entered.to_be_bytes());
        let text = &mut self.text;
        text.clear();
        text.extend_from_slice(&numbers);
        for part in [key.request_id, key.role, key.node] {
            text.extend_from_slice(part.as_bytes());
            text.push(0);
        }
        self.common = text.len();
        self
    }

    /// The id of a phase's span.
    pub(crate) fn of(&mut self, phase: &str, occurrence: u16) -> SpanId {
        self.text.truncate(self.common);
        self.text.extend_from_slice(phase.as_bytes());
        self.text.push(0);
        self.text.extend_from_slice(&occurrence.to_be_bytes());
        SpanId(NonZeroU64::new(xxh3_64(&self.text)).unwrap_or(NonZeroU64::MIN))
    }
}

fn parse_hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |value, digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(nibble))
    })
}

/// The hexadecimal digits of a number, in lower case: all of them at once, for formatting would
/// take longer than all the rest of a `traceparent`.
pub fn hex(value: u64) -> [u8; 16] {
    /// A byte that comes again and again.
    const fn all(byte: u8) -> u128 {
        u128::from_ne_bytes([byte; 16])
    }
    const HALVES: [(u32, u128); 4] = [
        (32, 0x00000000_ffffffff_00000000_ffffffff),
        (16, 0x0000ffff_0000ffff_0000ffff_0000ffff),
        (8, 0x00ff00ff_00ff00ff_00ff00ff_00ff00ff),
        (4, all(0x0f)),
    ];
    let mut digits = u128::from(value);
    // The halves move apart, then theirs, until each byte has one digit.
    for (by, mask) in HALVES {
        digits = (digits | digits << by) & mask;
    }
    let letters = (digits + all(6)) >> 4 & all(1);
    (digits + all(b'0') + letters * u128::from(b'a' - b'9' - 1)).to_be_bytes()
}

/// Digits as text.
pub(crate) fn text(digits: &[u8]) -> &str {
    std::str::from_utf8(digits).unwrap_or_default()
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value();
        let digits = [(value >> 64) as u64, value as u64].map(hex);
        f.write_str(text(digits.as_flattened()))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(text(&hex(self.value())))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The part of a request id that proxy, API server and engine share.
///
/// Takes off `chatcmpl-` or `cmpl-`, the `<i>_` that vLLM puts before it for
/// n > 1, and what vLLM appends (`-<i>` for completions, `-<8 hex>` inside the
/// engine) where that is beyond doubt: after a UUID or 32 hexadecimal digits.
/// A client's own id such as `job-deadbeef` keeps its end. Case is kept.
pub fn canonical_request_id(id: &str) -> &str {
    // A client may send what a server has answered it: then it has two prefixes.
    let mut id = id;
    while let Some(shorter) = without_prefix(id) {
        id = shorter;
    }
    id
}

/// The id without one prefix and what belongs to it; None if there is none.
fn without_prefix(id: &str) -> Option<&str> {
    let digits = id.bytes().take_while(u8::is_ascii_digit).count();
    let unnumbered = match id[digits..].strip_prefix('_') {
        Some(rest) if digits > 0 => rest,
        _ => id,
    };
    let (base, is_completion) = match unnumbered.strip_prefix("chatcmpl-") {
        Some(base) => (base, false),
        None => (unnumbered.strip_prefix("cmpl-")?, true),
    };
    if base.is_empty() {
        return None;
    }
    if !is_appended_to(base.as_bytes(), is_completion) {
        return Some(base);
    }
    let Some(unique) = unique_part(base) else {
        return Some(base);
    };
    let appended = |text: &str, is_ours: fn(&[u8]) -> bool| {
        let at = unique + text[unique..].rfind('-')?;
        is_ours(&text.as_bytes()[at + 1..]).then_some(at)
    };
    let mut kept = base;
    kept = appended(kept, is_random).map_or(kept, |at| &kept[..at]);
    if is_completion {
        kept = appended(kept, is_index).map_or(kept, |at| &kept[..at]);
    }
    Some(kept)
}

/// Length of a leading UUID or run of 32 hexadecimal digits.
fn unique_part(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let hex = |range: &[u8]| range.iter().all(u8::is_ascii_hexdigit);
    let uuid = bytes.get(..36).is_some_and(|b| {
        b.split(|c| *c == b'-')
            .map(<[u8]>::len)
            .eq([8, 4, 4, 4, 12])
            && b.split(|c| *c == b'-').all(hex)
    });
    if uuid {
        return Some(36);
    }
    bytes.get(..32).is_some_and(hex).then_some(32)
}

/// Whether its end looks like what vLLM appends; nearly always the lengths say no.
fn is_appended_to(base: &[u8], is_completion: bool) -> bool {
    let last = |len: usize| {
        let (rest, last) = base.split_at_checked(base.len().checked_sub(len)?)?;
        rest.ends_with(b"-").then_some(last)
    };
    last(8).is_some_and(is_random) || is_completion && (1..6).filter_map(last).any(is_index)
}

fn is_index(text: &[u8]) -> bool {
    (1..6).contains(&text.len()) && text.iter().all(u8::is_ascii_digit)
}

fn is_random(text: &[u8]) -> bool {
    text.len() == 8 && text.iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "38a4f1c0-5b1e-4c52-9c0d-0123456789ab";

    #[test]
    fn every_form_that_vllm_makes_of_an_id_is_the_same_request() {
        for form in [
            UUID.to_owned(),
            format!("chatcmpl-{UUID}"),
            format!("chatcmpl-{UUID}-1a2b3c4d"),
            format!("3_chatcmpl-{UUID}-1a2b3c4d"),
            format!("cmpl-{UUID}-0"),
            format!("cmpl-{UUID}-0-1a2b3c4d"),
        ] {
            assert_eq!(canonical_request_id(&form), UUID, "{form}");
        }
    }

    #[test]
    fn a_clients_own_id_keeps_what_only_looks_like_a_suffix() {
        for (form, canonical) in [
            ("job-deadbeef", "job-deadbeef"),
            ("chatcmpl-job-deadbeef", "job-deadbeef"),
            ("chatcmpl-", "chatcmpl-"),
            ("7_job", "7_job"),
            ("chatcmpl-chatcmpl-x", "x"),
            ("Case Kept \"x\"", "Case Kept \"x\""),
            (
                "chatcmpl-38A4F1C05B1E4C529C0D0123456789AB-0011aaBB",
                "38A4F1C05B1E4C529C0D0123456789AB",
            ),
        ] {
            assert_eq!(canonical_request_id(form), canonical);
        }
        // What a client has put there itself is the same at the proxy, which sees
        // the bare id, and on the nodes.
        for own in [format!("{UUID}-1"), "x".to_owned(), format!("{UUID}-2-3")] {
            for form in [
                own.clone(),
                format!("chatcmpl-{own}"),
                format!("chatcmpl-chatcmpl-{own}"),
                format!("cmpl-{UUID}-0").replace(UUID, &own),
            ] {
                let expected = if form == "cmpl-x-0" { "x-0" } else { &own };
                assert_eq!(canonical_request_id(&form), expected, "{form}");
            }
        }
    }

    // Ids are a contract between versions and with stored traces: these never change.
    #[test]
    fn derived_ids_are_frozen() {
        let trace = TraceId::of_request(UUID);
        assert_eq!(trace.to_string(), "ed1510ce5ffcb7754dc60e681b580ab8");
        let key = PhaseKey {
            trace_id: trace,
            request_id: UUID,
            remote_parent: None,
            entered: 1_795_334_645_577_302_011,
            role: "proxy",
            node: "10.0.0.1",
            phase: "P running",
            occurrence: 0,
        };
        let call = key.span_id();
        let again = PhaseKey {
            occurrence: 1,
            ..key
        }
        .span_id();
        let below = PhaseKey {
            remote_parent: Some(call),
            entered: 0,
            role: "prefill",
            node: "10.0.0.2",
            phase: "Prefill",
            ..key
        };
        assert_eq!(
            (
                call.to_string(),
                again.to_string(),
                below.span_id().to_string()
            ),
            (
                "2b61fa6d7815e534".into(),
                "036590311a5c23ae".into(),
                "81c0021b202489d9".into()
            )
        );
    }

    #[test]
    fn an_id_is_written_in_lower_case_and_at_its_full_length() {
        for value in [1, 0x0123_4567_89ab_cdef, 0xf9a0_0a9f_0000_0010, u64::MAX] {
            let id = SpanId::new(value).unwrap();
            assert_eq!(id.to_string(), format!("{value:016x}"));
            let value = u128::from(value) << 64 | 0xfedc_ba98_7654_3210;
            let id = TraceId::new(value).unwrap();
            assert_eq!(id.to_string(), format!("{value:032x}"));
        }
    }

    #[test]
    fn zero_upper_case_and_wrong_lengths_are_no_ids() {
        assert_eq!(TraceId::parse(&[b'0'; 32]), None);
        assert_eq!(SpanId::parse(b"00000000000000AB"), None);
        assert_eq!(SpanId::parse(b"ab"), None);
        assert_eq!(
            SpanId::parse(b"00000000000000ab").map(SpanId::value),
            Some(0xab)
        );
    }
}
