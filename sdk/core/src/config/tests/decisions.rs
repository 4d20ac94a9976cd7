//! Samplers, propagators and limits.

use super::*;

#[test]
fn propagators_are_a_list_each_once() {
    use Propagator::{B3, B3Multi, Baggage, TraceContext};
    let name = "OTEL_PROPAGATORS";
    for (value, expected) in [
        ("tracecontext", vec![TraceContext]),
        ("b3,tracecontext, B3", vec![B3, TraceContext]),
        ("b3multi,baggage", vec![B3Multi, Baggage]),
        ("none", vec![]),
        ("", vec![TraceContext, Baggage]),
    ] {
        let (config, warnings) = read(&[(name, value)]);
        assert_eq!(config.propagators, Propagators::new(expected), "{value}");
        assert_eq!(warnings, Vec::<String>::new());
    }
    let known = "is not one of tracecontext, baggage, b3, b3multi or none";
    let (config, warnings) = read(&[(name, "b3,xray")]);
    assert_eq!(config.propagators, Propagators::new([B3]));
    assert_eq!(warnings, [format!("{name}: \"xray\" {known}: left out")]);
    let (config, warnings) = read(&[(name, "xray")]);
    assert_eq!(config.propagators, Propagators::default());
    assert_eq!(
        warnings,
        [format!("{name}: \"xray\" {known}: tracecontext,baggage")]
    );
}

#[test]
fn the_samplers_have_opentelemetrys_names() {
    let (name, argument) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
    let quarter = Sampler::trace_id_ratio(0.25).unwrap();
    for (value, given, expected) in [
        ("always_on", "", Sampler::ALWAYS_ON),
        ("always_off", "", Sampler::ALWAYS_OFF),
        ("traceidratio", "0.25", quarter),
        (
            "parentbased_always_on",
            "",
            Sampler::ALWAYS_ON.parent_based(),
        ),
        (
            "parentbased_always_off",
            "",
            Sampler::ALWAYS_OFF.parent_based(),
        ),
        ("parentbased_traceidratio", "0.25", quarter.parent_based()),
        ("traceidratio", "", Sampler::ALWAYS_ON),
    ] {
        let (config, warnings) = read(&[(name, value), (argument, given)]);
        assert_eq!((config.sampler, warnings), (expected, vec![]), "{value}");
    }
    for ratio in ["1.5", "-0.5", "half", "nan"] {
        let (config, warnings) = read(&[(name, "traceidratio"), (argument, ratio)]);
        assert_eq!(config.sampler, Sampler::ALWAYS_ON);
        let said = format!("{argument}=\"{ratio}\" is not a ratio from 0 to 1: 1");
        assert_eq!(warnings, [said]);
    }
    let (config, warnings) = read(&[(argument, "0.1")]);
    assert_eq!(config.sampler, Sampler::default());
    let said = format!("{argument}=\"0.1\" has no effect unless {name} is a traceidratio: ignored");
    assert_eq!(warnings, [said]);
    // The argument of a sampler that we do not know is that sampler's.
    let (_, warnings) = read(&[(name, "xray"), (argument, "endpoint=x")]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn a_spans_own_limits_go_before_the_general_ones() {
    let (config, _) = read(&[
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "10"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "20"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "30"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "40"),
    ]);
    let expected = Limits {
        attributes: 20,
        attribute_length: Some(40),
        event_attributes: 10,
        link_attributes: 10,
        other_length: Some(30),
        ..Limits::default()
    };
    assert_eq!(config.limits, expected);
    let (config, warnings) = read(&[
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "30"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "all"),
    ]);
    assert_eq!(config.limits.attribute_length, Some(30));
    assert_eq!(
        warnings,
        ["OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT=\"all\" is not a whole number: 30"]
    );
}
