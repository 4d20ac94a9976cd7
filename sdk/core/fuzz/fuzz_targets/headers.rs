//! No headers make the readers of context panic, and what is read is read again when it was
//! written.
//!
//! The input is one header a line: its name, a colon and its value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omnitrace::Sampler;
use omnitrace::propagation::{Propagator, Propagators};

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let headers: Vec<(&str, &str)> = text.lines().filter_map(|l| l.split_once(':')).collect();
    let get = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    for format in [Propagator::TraceContext, Propagator::B3, Propagator::B3Multi] {
        let propagators = Propagators::new([format]);
        let read = propagators.extract(get);
        let Some(context) = read.decided(&Sampler::ALWAYS_ON) else {
            continue;
        };
        let mut written: Vec<(&'static str, String)> = Vec::new();
        let mut sent = read;
        sent.context = Some(context);
        propagators.inject(&sent, |name, value| written.push((name, value.to_owned())));
        let again = propagators.extract(|name| {
            written.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
        });
        let again = again.decided(&Sampler::ALWAYS_ON);
        assert_eq!(again.map(|c| (c.trace_id, c.span_id, c.is_sampled())),
            Some((context.trace_id, context.span_id, context.is_sampled())));
    }
});
