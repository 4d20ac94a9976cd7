use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::id::{SpanId, TraceId};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

type Headers = BTreeMap<&'static str, String>;

fn extract<'a>(formats: &[Propagator], headers: &'a [(&str, &str)]) -> Propagated<'a> {
    Propagators::new(formats.iter().copied()).extract(|name| {
        let found = headers.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| *value)
    })
}

fn inject(formats: &[Propagator], propagated: &Propagated<'_>) -> Headers {
    let mut headers = Headers::new();
    Propagators::new(formats.iter().copied()).inject(propagated, |name, value| {
        assert!(headers.insert(name, value.to_owned()).is_none(), "{name}");
    });
    headers
}

fn context(flags: u8) -> SpanContext {
    SpanContext {
        trace_id: TraceId::parse(TRACE.as_bytes()).unwrap(),
        span_id: SpanId::parse(SPAN.as_bytes()).unwrap(),
        flags,
    }
}

/// What B3 headers alone say.
fn read_b3(format: Propagator, headers: &[(&str, &str)]) -> Propagated<'static> {
    let read = extract(&[format], headers);
    assert_eq!((read.tracestate, read.baggage), (None, None));
    Propagated {
        context: read.context,
        deferred: read.deferred,
        debug: read.debug,
        ..Propagated::default()
    }
}

fn b3(flags: u8, deferred: bool, debug: bool) -> Propagated<'static> {
    Propagated {
        context: Some(context(flags)),
        deferred,
        debug,
        ..Propagated::default()
    }
}

#[test]
fn trace_context_and_baggage_pass_through_as_they_came() {
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let headers = [
        ("traceparent", traceparent.as_str()),
        ("tracestate", "a=1, b=2"),
        ("baggage", "user=Am%C3%A9lie; p=1 , x=y"),
        ("b3", "0"),
    ];
    let default = [Propagator::TraceContext, Propagator::Baggage];
    assert_eq!(Propagators::new(default), Propagators::default());
    let propagated = extract(&default, &headers);
    assert_eq!(
        propagated,
        Propagated {
            context: Some(context(1)),
            tracestate: Some("a=1, b=2"),
            baggage: Some("user=Am%C3%A9lie; p=1 , x=y"),
            ..Propagated::default()
        }
    );
    let written = headers[..3].iter().map(|(n, v)| (*n, (*v).to_owned()));
    assert_eq!(inject(&default, &propagated), written.collect::<Headers>());
}

#[test]
fn a_state_without_a_valid_parent_is_nobodys() {
    let headers = [
        ("traceparent", "00-0-0-01"),
        ("tracestate", "a=1"),
        ("baggage", "k=v"),
    ];
    let propagated = extract(&[Propagator::TraceContext, Propagator::Baggage], &headers);
    let baggage = Some("k=v");
    assert_eq!(
        propagated,
        Propagated {
            baggage,
            ..Propagated::default()
        }
    );
    let written = inject(
        &[Propagator::TraceContext, Propagator::Baggage],
        &propagated,
    );
    assert_eq!(written, Headers::from([("baggage", "k=v".to_owned())]));
}

#[test]
fn what_is_not_asked_for_is_neither_read_nor_written() {
    let headers = [
        ("traceparent", &*format!("00-{TRACE}-{SPAN}-01")),
        ("baggage", "k=v"),
        ("b3", &*format!("{TRACE}-{SPAN}-1")),
    ];
    assert_eq!(extract(&[], &headers), Propagated::default());
    assert_eq!(
        extract(&[Propagator::Baggage], &headers).context,
        None,
        "baggage alone"
    );
    assert_eq!(extract(&[Propagator::B3], &headers), b3(1, false, false));
    assert_eq!(inject(&[], &b3(1, false, false)), Headers::new());
}

#[test]
fn of_two_valid_contexts_the_later_formats_counts() {
    let headers = [
        ("traceparent", &*format!("00-{TRACE}-{SPAN}-00")),
        ("tracestate", "a=1"),
        ("b3", &*format!("{TRACE}-{SPAN}-1")),
    ];
    let (w3c, zipkin) = (Propagator::TraceContext, Propagator::B3);
    assert_eq!(extract(&[w3c, zipkin], &headers), b3(1, false, false));
    assert_eq!(
        extract(&[zipkin, w3c], &headers),
        Propagated {
            context: Some(context(0)),
            tracestate: Some("a=1"),
            ..Propagated::default()
        }
    );
    // One that is not valid takes nothing away.
    let headers = [headers[0], ("b3", "rubbish")];
    assert_eq!(extract(&[w3c, zipkin], &headers).context, Some(context(0)));
}

#[test]
fn b3_is_read_in_one_header() {
    let read = |value: &str| read_b3(Propagator::B3, &[("b3", value)]);
    let ids = format!("{TRACE}-{SPAN}");
    for (value, expected) in [
        (ids.clone(), b3(0, true, false)),
        (format!("{ids}-0"), b3(0, false, false)),
        (format!("{ids}-1"), b3(1, false, false)),
        (format!(" {ids}-d "), b3(1, false, true)),
        (format!("{ids}-1-05e3ac9a4f6e3b90"), b3(1, false, false)),
    ] {
        assert_eq!(read(&value), expected, "{value}");
    }
    let short = read(&format!("{}-{SPAN}-1", &TRACE[16..]));
    assert_eq!(
        short.context.map(|c| c.trace_id.to_string()),
        Some(format!("{:0>32}", &TRACE[16..]))
    );
    for bad in [
        "",
        "0",
        "1",
        "d",
        TRACE,
        &format!("{TRACE}-"),
        &format!("{}-{SPAN}", "0".repeat(32)),
        &format!("{TRACE}-{}", "0".repeat(16)),
        &format!("{}-{SPAN}", &TRACE[1..]),
        &format!("{ids}-2"),
        &format!("{ids}-1-short"),
        &format!("{ids}-1-{SPAN}-more"),
        &ids.to_uppercase(),
    ] {
        assert_eq!(read(bad), Propagated::default(), "{bad}");
    }
}

#[test]
fn b3_is_read_in_several_headers_unless_there_is_the_one() {
    let ids = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
    let read = |more: &[(&'static str, &'static str)]| {
        read_b3(Propagator::B3Multi, &[&ids, more].concat())
    };
    assert_eq!(read(&[]), b3(0, true, false));
    assert_eq!(read(&[("x-b3-sampled", "1")]), b3(1, false, false));
    assert_eq!(read(&[("x-b3-sampled", "true")]), b3(1, false, false));
    assert_eq!(read(&[("x-b3-sampled", "0")]), b3(0, false, false));
    assert_eq!(read(&[("x-b3-flags", "1")]), b3(1, false, true));
    assert_eq!(
        read(&[("x-b3-flags", "0"), ("x-b3-sampled", "false")]),
        b3(0, false, false)
    );
    assert_eq!(read(&[("x-b3-sampled", "maybe")]), Propagated::default());
    assert_eq!(
        extract(&[Propagator::B3Multi], &ids[..1]),
        Propagated::default()
    );
    let single = "00000000000000000000000000000001-0000000000000002-0";
    let both = read(&[("b3", single), ("x-b3-sampled", "1")]);
    assert_eq!(both.context.map(|c| c.trace_id.value()), Some(1));
    // One that cannot be read does not hide the others.
    assert_eq!(
        read(&[("b3", "0"), ("x-b3-sampled", "1")]),
        b3(1, false, false)
    );
}

#[test]
fn b3_is_written_single_or_multiple_as_asked() {
    let text = |pairs: &[(&'static str, &str)]| -> Headers {
        pairs.iter().map(|(n, v)| (*n, (*v).to_owned())).collect()
    };
    for (propagated, state, flag) in [
        (b3(1, false, false), "1", ("x-b3-sampled", "1")),
        (b3(0, false, false), "0", ("x-b3-sampled", "0")),
        (b3(1, false, true), "d", ("x-b3-flags", "1")),
    ] {
        assert_eq!(
            inject(&[Propagator::B3], &propagated),
            text(&[("b3", &format!("{TRACE}-{SPAN}-{state}"))])
        );
        assert_eq!(
            inject(&[Propagator::B3Multi], &propagated),
            text(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), flag])
        );
    }
}

#[test]
fn the_sampler_decides_what_the_caller_has_not() {
    let off = Sampler::ALWAYS_OFF;
    let decided = |propagated: Propagated<'_>, sampler: Sampler| {
        propagated.decided(&sampler).map(|context| context.flags)
    };
    // A decision of the caller's counts for a sampler that asks the parent.
    assert_eq!(decided(b3(1, false, false), off.parent_based()), Some(1));
    assert_eq!(decided(b3(1, false, false), off), Some(0));
    // Where it was left to us there is no parent to ask.
    assert_eq!(decided(b3(0, true, false), off.parent_based()), Some(0));
    assert_eq!(decided(b3(0, true, false), Sampler::default()), Some(1));
    // Debug is an order.
    assert_eq!(decided(b3(1, false, true), off), Some(1));
    assert_eq!(decided(Propagated::default(), Sampler::default()), None);
}

#[test]
fn every_header_that_is_read_or_written_is_a_field_of_its_format() {
    let all = [
        Propagator::TraceContext,
        Propagator::Baggage,
        Propagator::B3,
        Propagator::B3Multi,
    ];
    for formats in [&all[..], &all[..2], &all[2..3], &all[3..], &[]] {
        let propagators = Propagators::new(formats.iter().copied());
        let fields = propagators.fields();
        let asked = std::cell::RefCell::new(Vec::new());
        propagators.extract(|name| {
            asked.borrow_mut().push(name.to_owned());
            // With these the others are asked for too.
            match name {
                "traceparent" => Some("00-00000000000000000000000000000001-0000000000000001-01"),
                "x-b3-traceid" => Some(TRACE),
                _ => None,
            }
        });
        let asked = asked.into_inner();
        let mut written = Vec::new();
        for debug in [false, true] {
            let propagated = Propagated {
                tracestate: Some("a=1"),
                baggage: Some("k=v"),
                ..b3(1, false, debug)
            };
            written.extend(inject(formats, &propagated).into_keys());
        }
        for field in fields {
            assert!(asked.iter().any(|name| name == field), "{field}");
        }
        for name in asked.iter().map(String::as_str).chain(written) {
            assert!(fields.contains(&name), "{name}");
        }
        let mut each = fields.to_vec();
        each.sort_unstable();
        each.dedup();
        assert_eq!(each.len(), fields.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_b3_writes_it_reads_again(
        trace_id in any::<u128>().prop_filter_map("zero", TraceId::new),
        span_id in any::<u64>().prop_filter_map("zero", SpanId::new),
        sampled in any::<bool>(),
        debug in any::<bool>(),
        multiple in any::<bool>(),
    ) {
        let propagated = Propagated {
            context: Some(SpanContext { trace_id, span_id, flags: u8::from(sampled || debug) }),
            debug,
            ..Propagated::default()
        };
        let format = if multiple { Propagator::B3Multi } else { Propagator::B3 };
        let headers = inject(&[format], &propagated);
        let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        // Both formats read both kinds.
        prop_assert_eq!(extract(&[Propagator::B3], &headers), propagated);
        prop_assert_eq!(extract(&[Propagator::B3Multi], &headers), propagated);
    }

    #[test]
    fn no_header_makes_b3_panic_or_invent_a_context(value in ".{0,80}", sampled in ".{0,5}") {
        let headers = [
            ("b3", value.as_str()),
            ("x-b3-traceid", value.as_str()),
            ("x-b3-spanid", value.as_str()),
            ("x-b3-sampled", sampled.as_str()),
        ];
        let propagated = extract(&[Propagator::B3], &headers);
        if let Some(context) = propagated.context {
            prop_assert!(value.contains(&context.span_id.to_string()));
        }
    }
}
