//! What variables mean; one table for those that stand alone.

mod decisions;
mod exporter;

use std::collections::BTreeMap;

use super::*;

const HERE: (&str, &str) = ("OTEL_RESOURCE_ATTRIBUTES", "host.ip=10.1.2.3");

fn read(vars: &[(&str, &str)]) -> (Config, Vec<String>) {
    let vars: BTreeMap<&str, &str> = [HERE].iter().chain(vars).copied().collect();
    Config::from_vars(|name| vars.get(name).map(|value| (*value).to_owned()))
}

/// What the settings are, and nothing else that `Debug` shows of them.
fn shown(config: &Config) -> String {
    let config = Config {
        // Large, and not from any variable.
        vocabulary: Vocabulary::omni_vllm(),
        ..config.clone()
    };
    format!("{config:?}")
}

#[test]
fn nothing_set_means_the_documented_defaults() {
    let (config, warnings) = read(&[]);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(
        config.exporter,
        Some(ExporterConfig {
            endpoint: "http://localhost:4318/v1/traces".into(),
            socket: None,
            protocol: Protocol::HttpProtobuf,
            headers: vec![],
            gzip: false,
            timeout: Duration::from_secs(10),
            tls: Tls::default(),
        })
    );
    assert_eq!(
        (config.node.as_str(), config.service_name().as_str()),
        ("10.1.2.3", "vllm-serve")
    );
    assert_eq!(config.legacy_log, LegacyLogMode::Fallback);
    assert_eq!(config.sampler, Sampler::ALWAYS_ON.parent_based());
    assert_eq!(config.propagators, Propagators::default());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.log_level, LevelFilter::INFO);
    assert_eq!((config.console, config.disabled), (ConsoleMode::Off, false));
    assert_eq!(
        (config.schedule_delay, config.export_timeout),
        (Duration::from_secs(5), Duration::from_secs(30))
    );
    assert_eq!(
        (config.max_batch, config.max_waiting_spans),
        (4096, 1 << 20)
    );
    assert_eq!(
        (config.max_waiting_bytes, config.legacy_log_max_bytes),
        (32 << 20, 256 << 20)
    );
    assert_eq!(
        config.legacy_log_directory,
        PathBuf::from("/tmp/trace_output_directory")
    );
}

/// One row of the table in the documentation.
struct Row {
    variable: &'static str,
    right: &'static str,
    /// What the right value changes.
    means: fn(&mut Config),
    wrong: &'static str,
    /// What is said of the wrong value.
    said: &'static str,
}

fn exporter_of(config: &mut Config) -> &mut ExporterConfig {
    config.exporter.as_mut().unwrap()
}

fn table() -> Vec<Row> {
    fn row(
        variable: &'static str,
        (right, wrong): (&'static str, &'static str),
        said: &'static str,
        means: fn(&mut Config),
    ) -> Row {
        Row {
            variable,
            right,
            means,
            wrong,
            said,
        }
    }
    vec![
        row(
            "OTEL_SDK_DISABLED",
            ("TRUE", "1"),
            "is neither true nor false: false",
            |c| {
                c.disabled = true;
            },
        ),
        row(
            "OTEL_LOG_LEVEL",
            ("Error", "loud"),
            "is not one of none, error, warn, info, debug or trace: info",
            |c| c.log_level = LevelFilter::ERROR,
        ),
        row(
            "OTEL_TRACES_SAMPLER",
            ("always_off", "jaeger_remote"),
            "is not one of always_on, always_off, traceidratio, parentbased_always_on, \
             parentbased_always_off or parentbased_traceidratio: parentbased_always_on",
            |c| c.sampler = Sampler::ALWAYS_OFF,
        ),
        row(
            "OTEL_BSP_SCHEDULE_DELAY",
            ("0", "-1"),
            "is not a whole number: 5000",
            |c| {
                c.schedule_delay = Duration::ZERO;
            },
        ),
        row(
            "OTEL_BSP_EXPORT_TIMEOUT",
            ("1500", "5s"),
            "is not a whole number: 30000",
            |c| {
                c.export_timeout = Duration::from_millis(1500);
            },
        ),
        row(
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            ("512", "0"),
            "is not a whole number above 0: 4096",
            |c| c.max_batch = 512,
        ),
        row(
            "OTEL_BSP_MAX_QUEUE_SIZE",
            ("5000", "many"),
            "is not a whole number above 0: 1048576",
            |c| c.max_waiting_spans = 5000,
        ),
        row(
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
            ("0", "x"),
            "is not a whole number: 128",
            |c| {
                c.limits.attributes = 0;
            },
        ),
        row(
            "OTEL_ATTRIBUTE_COUNT_LIMIT",
            ("7", "1.5"),
            "is not a whole number: 128",
            |c| {
                c.limits.attributes = 7;
                c.limits.event_attributes = 7;
                c.limits.link_attributes = 7;
            },
        ),
        row(
            "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            ("100", "none"),
            "is not a whole number: no limit",
            |c| c.limits.attribute_length = Some(100),
        ),
        row(
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            ("0", "-5"),
            "is not a whole number: no limit",
            |c| {
                c.limits.attribute_length = Some(0);
                c.limits.other_length = Some(0);
            },
        ),
        row(
            "OTEL_SPAN_EVENT_COUNT_LIMIT",
            ("1", "x"),
            "is not a whole number: 128",
            |c| {
                c.limits.events = 1;
            },
        ),
        row(
            "OTEL_SPAN_LINK_COUNT_LIMIT",
            ("2", "x"),
            "is not a whole number: 128",
            |c| {
                c.limits.links = 2;
            },
        ),
        row(
            "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
            ("3", "x"),
            "is not a whole number: 128",
            |c| {
                c.limits.event_attributes = 3;
            },
        ),
        row(
            "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
            ("4", "x"),
            "is not a whole number: 128",
            |c| {
                c.limits.link_attributes = 4;
            },
        ),
        row(
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            ("HTTP/JSON", "smtp"),
            "is not one of http/protobuf, http/json or grpc: http/protobuf",
            |c| exporter_of(c).protocol = Protocol::HttpJson,
        ),
        row(
            "OTEL_EXPORTER_OTLP_COMPRESSION",
            ("gzip", "zstd"),
            "is not one of gzip or none: none",
            |c| exporter_of(c).gzip = true,
        ),
        row(
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            ("300", "soon"),
            "is not a whole number: 10000",
            |c| {
                exporter_of(c).timeout = Duration::from_millis(300);
            },
        ),
        row(
            "OTEL_METRICS_EXPORTER",
            ("OTLP", "prometheus"),
            "is not one of none or otlp: none",
            |c| {
                c.metrics = Some(MetricsConfig {
                    exporter: ExporterConfig {
                        endpoint: "http://localhost:4318/v1/metrics".to_owned(),
                        ..exporter_of(c).clone()
                    },
                    interval: Duration::from_secs(60),
                });
            },
        ),
        row(
            "OMNITRACE_LEGACY_LOG",
            ("always", "sometimes"),
            "is not one of off, fallback or always: fallback",
            |c| c.legacy_log = LegacyLogMode::Always,
        ),
        row(
            "OMNITRACE_LEGACY_LOG_MAX_MIB",
            ("1", "0"),
            "is not a whole number above 0: 256",
            |c| c.legacy_log_max_bytes = 1 << 20,
        ),
        row(
            "OMNITRACE_MEMORY_LIMIT_MIB",
            ("2", "64MiB"),
            "is not a whole number above 0: 64",
            |c| c.max_waiting_bytes = 1 << 20,
        ),
    ]
}

#[test]
fn each_variable_counts_if_right_warns_if_wrong_and_is_unset_if_empty() {
    let (default, _) = read(&[]);
    for row in table() {
        let (config, warnings) = read(&[(row.variable, row.right)]);
        let mut expected = default.clone();
        (row.means)(&mut expected);
        assert_ne!(shown(&expected), shown(&default), "{}", row.variable);
        assert_eq!(shown(&config), shown(&expected), "{}", row.variable);
        assert_eq!(warnings, Vec::<String>::new(), "{}", row.variable);

        let (config, warnings) = read(&[(row.variable, row.wrong)]);
        assert_eq!(shown(&config), shown(&default), "{}", row.variable);
        let said = format!("{}=\"{}\" {}", row.variable, row.wrong, row.said);
        assert_eq!(warnings, [said]);

        for empty in ["", "  "] {
            let (config, warnings) = read(&[(row.variable, empty)]);
            assert_eq!(shown(&config), shown(&default), "{}", row.variable);
            assert_eq!(warnings, Vec::<String>::new(), "{}", row.variable);
        }
    }
}

#[test]
fn a_timeout_of_0_is_no_limit() {
    let (config, warnings) = read(&[
        ("OTEL_BSP_EXPORT_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
    ]);
    let days = |limit: Duration| limit.as_secs() / 86_400;
    assert_eq!(days(config.export_timeout), 24);
    assert_eq!(days(config.exporter.unwrap().timeout), 24);
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn a_batch_is_never_more_than_what_may_wait() {
    let (batch, queue) = ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_MAX_QUEUE_SIZE");
    let (config, warnings) = read(&[(queue, "2048")]);
    assert_eq!((config.max_batch, warnings), (2048, vec![]));
    let (config, warnings) = read(&[(queue, "2048"), (batch, "3000")]);
    assert_eq!(config.max_batch, 2048);
    assert_eq!(
        warnings,
        [format!(
            "{batch}=\"3000\" is more than {queue}, the spans that may wait: 2048"
        )]
    );
}

#[test]
fn a_configuration_file_is_said_not_to_count() {
    let (_, warnings) = read(&[("OTEL_CONFIG_FILE", "/etc/otel.yaml")]);
    assert_eq!(
        warnings,
        [
            "OTEL_CONFIG_FILE=\"/etc/otel.yaml\" is a configuration file, which omnitrace does not \
          read: the other variables count"
        ]
    );
}

#[test]
fn the_service_and_the_node_come_from_the_resource_too() {
    let (config, warnings) = read(&[(
        "OTEL_RESOURCE_ATTRIBUTES",
        "service.name=a%20b,host.ip=10.0.0.9,x=1,alone,=y",
    )]);
    assert_eq!(
        (config.service_name(), config.node.as_str()),
        ("a b".to_owned(), "10.0.0.9")
    );
    assert_eq!(config.resource, [Attribute::new("x", "1")]);
    assert_eq!(
        warnings,
        ["\"alone\"", "\"=y\""]
            .map(|what| format!("OTEL_RESOURCE_ATTRIBUTES: {what} is not key=value: ignored"))
    );
    let (config, _) = read(&[
        ("OTEL_SERVICE_NAME", "own"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other"),
        ("ROLE", "prefill"),
    ]);
    assert_eq!(config.service_name(), "own");
    let (config, _) = read(&[("ROLE", "prefill")]);
    assert_eq!(config.service_name(), "vllm-prefill");
}

#[test]
fn text_that_is_not_utf8_is_a_wrong_value_and_not_none() {
    use std::os::unix::ffi::OsStrExt as _;
    let wrong = std::ffi::OsStr::from_bytes(b"\xff")
        .to_string_lossy()
        .into_owned();
    let (_, warnings) = read(&[("OTEL_SDK_DISABLED", &wrong)]);
    assert_eq!(
        warnings,
        ["OTEL_SDK_DISABLED=\"\u{fffd}\" is neither true nor false: false"]
    );
}

#[test]
fn every_variable_that_is_read_is_in_the_documented_table() {
    let table = include_str!("../../../../../py-bindings/README.md");
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let asked = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let (config, _) = Config::from_vars(|name| {
        asked.borrow_mut().insert(name.to_owned());
        (name == "OTEL_METRICS_EXPORTER").then(|| "otlp".to_owned())
    });
    assert!(config.exporter.is_some() && config.metrics.is_some());
    for name in asked.into_inner() {
        // Of these there is one row for all names.
        let own = ["TRACES", "METRICS"]
            .iter()
            .find_map(|signal| name.strip_prefix(&format!("OTEL_EXPORTER_OTLP_{signal}_")));
        let name = match own {
            Some(rest) if rest != "ENDPOINT" => format!("OTEL_EXPORTER_OTLP_{rest}"),
            _ => name,
        };
        let first = |row: &&&str| {
            row.split('|')
                .nth(1)
                .is_some_and(|c| c.contains(&format!("`{name}`")))
        };
        assert_eq!(rows.iter().filter(first).count(), 1, "{name}");
    }
}
