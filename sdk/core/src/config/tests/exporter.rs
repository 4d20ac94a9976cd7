//! Endpoints, headers, and where spans go.

use super::*;

#[test]
fn the_variable_for_traces_wins_over_the_one_for_all_signals() {
    for (name, general, own) in [
        ("PROTOCOL", "http/json", "http/protobuf"),
        ("COMPRESSION", "gzip", "none"),
        ("HEADERS", "a=1", ""),
        ("TIMEOUT", "1", "10000"),
    ] {
        let general = (&*format!("OTEL_EXPORTER_OTLP_{name}"), general);
        let own = (&*format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), own);
        let (config, warnings) = read(&[general, own]);
        let (default, _) = read(&[]);
        assert_eq!(warnings, Vec::<String>::new());
        if own.1.is_empty() {
            let headers = [("a".to_owned(), "1".to_owned())];
            assert_eq!(config.exporter.unwrap().headers, headers);
        } else {
            assert_eq!(config.exporter, default.exporter, "{name}");
        }
    }
    let (_, warnings) = read(&[("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "x")]);
    assert_eq!(
        warnings,
        ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT=\"x\" is not a whole number: 10000"]
    );
}

#[test]
fn a_base_endpoint_gets_the_path_and_a_traces_endpoint_is_used_as_it_is() {
    let endpoint = |vars: &[(&str, &str)]| {
        let (config, warnings) = read(vars);
        (config.exporter.map(|e| e.endpoint), warnings)
    };
    let (base, traces) = (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    );
    let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let insecure = ("OTEL_EXPORTER_OTLP_INSECURE", "true");
    for (vars, expected) in [
        (vec![(base, "http://c:1/")], "http://c:1/v1/traces"),
        (vec![(base, "https://c:1/x")], "https://c:1/x/v1/traces"),
        (
            vec![(base, "http://c:1"), (traces, "http://t:2/x")],
            "http://t:2/x",
        ),
        (vec![grpc], "http://localhost:4317"),
        (vec![grpc, (base, "http://c:1")], "http://c:1"),
        (vec![grpc, (base, "https://c:1/")], "https://c:1"),
        (vec![grpc, (traces, "HTTPS://c:1")], "HTTPS://c:1"),
        // Without a scheme it is encrypted unless told.
        (vec![grpc, (base, "c:4317")], "https://c:4317"),
        (vec![grpc, insecure, (base, "c:4317")], "http://c:4317"),
        (
            vec![grpc, insecure, (base, "[::1]:4317")],
            "http://[::1]:4317",
        ),
        (vec![grpc, insecure, (base, "http://c:1")], "http://c:1"),
    ] {
        let expected = (Some(expected.to_owned()), vec![]);
        assert_eq!(endpoint(&vars), expected, "{vars:?}");
    }
    let (url, warnings) = endpoint(&[("OTEL_EXPORTER_OTLP_INSECURE", "1")]);
    assert_eq!(url.as_deref(), Some("http://localhost:4318/v1/traces"));
    assert_eq!(
        warnings,
        ["OTEL_EXPORTER_OTLP_INSECURE=\"1\" is neither true nor false: false"]
    );
    let (_, warnings) = endpoint(&[insecure, (base, "https://c")]);
    assert_eq!(
        warnings,
        ["OTEL_EXPORTER_OTLP_INSECURE=\"true\" has no effect on https://c: its scheme counts"]
    );
    let (url, warnings) = endpoint(&[grpc, insecure, (base, "https://c:1/v1/traces")]);
    assert_eq!(url.as_deref(), Some("https://c:1"));
    assert_eq!(
        warnings,
        [
            "OTEL_EXPORTER_OTLP_INSECURE=\"true\" has no effect on https://c:1/v1/traces: its \
             scheme counts",
            "OTEL_EXPORTER_OTLP_ENDPOINT=\"https://c:1/v1/traces\" has a path, which gRPC has no \
             use for: left out",
        ]
    );
}

#[test]
fn an_endpoint_that_is_none_exports_nothing_and_says_so() {
    let nothing = "nothing is exported, spans go to the legacy log";
    for (protocol, given, reason) in [
        (
            "http/protobuf",
            "localhost:4318",
            "does not begin with http:// or https:// and a host",
        ),
        (
            "http/protobuf",
            "nonsense",
            "is not a URL (relative URL without a base)",
        ),
        (
            "http/json",
            "http:/c",
            "does not begin with http:// or https:// and a host",
        ),
        (
            "grpc",
            "unix:///socket",
            "does not begin with http:// or https:// and a host",
        ),
        (
            "grpc",
            "a b",
            "is not a URL (invalid international domain name)",
        ),
    ] {
        let (config, warnings) = read(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", given),
        ]);
        assert_eq!(config.exporter, None, "{given}");
        let said = format!("OTEL_EXPORTER_OTLP_ENDPOINT=\"{given}\" {reason}: {nothing}");
        assert_eq!(warnings, [said]);
    }
}

#[test]
fn headers_are_pairs_and_what_is_none_is_named_without_its_text() {
    let variable = "OTEL_EXPORTER_OTLP_HEADERS";
    let (config, warnings) = read(&[(
        variable,
        "a=b%20c, D = e=f ,secret,=x,b d=1,v=\u{1},Content-Type=x,grpc-timeout=1S,,k=%2c",
    )]);
    assert_eq!(
        config.exporter.unwrap().headers,
        [("a", "b c"), ("D", "e=f"), ("k", ",")].map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
    let said = [
        "entry 3 is not key=value",
        "entry 4 is not key=value",
        "\"b d\" is not an HTTP header",
        "\"v\" is not an HTTP header",
        "\"Content-Type\" is for the exporter to say",
        "\"grpc-timeout\" is for the exporter to say",
    ];
    assert_eq!(
        warnings,
        said.map(|what| format!("{variable}: {what}: ignored"))
    );
}

#[test]
fn spans_go_where_the_list_of_exporters_says() {
    use ConsoleMode::{Alone, Beside, Off};
    let name = "OTEL_TRACES_EXPORTER";
    let known = "is not one of otlp, console or none";
    for (value, otlp, console, said) in [
        ("otlp", true, Off, vec![]),
        ("console", false, Alone, vec![]),
        ("Console, OTLP,console", true, Beside, vec![]),
        ("none", false, Off, vec![]),
        (
            "none,console",
            false,
            Alone,
            vec!["\"none\" stands beside others: left out".to_owned()],
        ),
        (
            "zipkin",
            true,
            Off,
            vec![format!("\"zipkin\" {known}: otlp")],
        ),
        (
            "console,zipkin",
            false,
            Alone,
            vec![format!("\"zipkin\" {known}: left out")],
        ),
        (",", true, Off, vec![]),
    ] {
        let (config, warnings) = read(&[(name, value)]);
        let said: Vec<_> = said.iter().map(|what| format!("{name}: {what}")).collect();
        assert_eq!(
            (config.exporter.is_some(), config.console, warnings),
            (otlp, console, said),
            "{value}"
        );
    }
    // What is not used is not read.
    let (_, warnings) = read(&[
        (name, "console"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense"),
    ]);
    assert_eq!(warnings, Vec::<String>::new());
}
