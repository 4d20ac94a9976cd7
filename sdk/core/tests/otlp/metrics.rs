//! The books as metrics, beside the spans.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use omnitrace::event::{FreeSpan, Parent};
use omnitrace::{Pipeline, SpanContext, clock, diagnostics};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::metrics::v1::{metric, number_data_point};

use super::*;
use crate::receiver::Receiver;

/// A pipeline whose books go to this receiver.
fn pipeline(receiver: &Receiver, protocol: &str, interval: &str) -> Pipeline {
    let (config, warnings) = settings(&[
        ("PROTOCOL", protocol),
        ("ENDPOINT", &receiver.url()),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", interval),
        ("OTEL_SERVICE_NAME", "metered"),
        ("OMNITRACE_LEGACY_LOG", "off"),
    ]);
    assert_eq!(warnings, Vec::<String>::new());
    Pipeline::start(config).unwrap()
}

fn record(pipeline: &Pipeline, flags: u8) {
    let parent = SpanContext {
        trace_id: TraceId::random(),
        span_id: SpanId::random(),
        flags,
    };
    let now = clock::now();
    let span = FreeSpan::new("s", now, now, SpanId::random(), Parent::Span(parent));
    assert!(pipeline.recorder().span(&span));
}

/// Every point: its metric's name, what is special of it, its value, and whether it only
/// grows.
fn points(request: &ExportMetricsServiceRequest) -> BTreeMap<String, (i64, bool)> {
    let [resource] = &request.resource_metrics[..] else {
        panic!("one resource");
    };
    let mut points = BTreeMap::new();
    for metric in &resource.scope_metrics[0].metrics {
        let Some(metric::Data::Sum(sum)) = &metric.data else {
            panic!("all are sums");
        };
        for point in &sum.data_points {
            assert!(point.start_time_unix_nano <= point.time_unix_nano);
            let mut name = metric.name.clone();
            for attribute in &point.attributes {
                let value = attribute.value.as_ref().unwrap().value.as_ref().unwrap();
                let any_value::Value::StringValue(value) = value else {
                    panic!("text");
                };
                if attribute.key != "otel.component.name" {
                    name = format!("{name} {value}");
                }
            }
            let Some(number_data_point::Value::AsInt(value)) = point.value else {
                panic!("an integer");
            };
            points.insert(name, (value, sum.is_monotonic));
        }
    }
    points
}

#[test]
fn the_last_books_of_a_process_go_out_as_metrics_in_every_protocol() {
    let exporters = [
        "otlp_http_span_exporter",
        "otlp_http_json_span_exporter",
        "otlp_grpc_span_exporter",
    ];
    for (protocol, exporter) in PROTOCOLS.into_iter().zip(exporters) {
        let receiver = Receiver::new([]);
        receiver.take_metrics();
        let pipeline = pipeline(&receiver, protocol, "3600000");
        for _ in 0..3 {
            record(&pipeline, 1);
        }
        record(&pipeline, 0);
        let stats = pipeline.shutdown(Duration::from_secs(10));
        assert_eq!((stats.exported, stats.unsampled), (3, 1), "{protocol}");

        let metrics = receiver.metrics();
        let [last] = &metrics[..] else {
            panic!("{protocol}: one report, at the end, not {}", metrics.len());
        };
        let exporter = |name: &str| format!("otel.sdk.exporter.span.{name} {exporter}");
        let processor = "batching_span_processor";
        let counters = [
            ("omnitrace.events".to_owned(), 3),
            ("omnitrace.events no_span".to_owned(), 0),
            ("omnitrace.events queue_full".to_owned(), 0),
            (exporter("exported"), 3),
            (format!("{} legacy_log", exporter("exported")), 0),
            (format!("otel.sdk.processor.span.processed {processor}"), 3),
            (
                format!("otel.sdk.processor.span.processed {processor} queue_full"),
                0,
            ),
            ("otel.sdk.span.started DROP".to_owned(), 1),
            ("otel.sdk.span.started RECORD_AND_SAMPLE".to_owned(), 3),
        ];
        let levels = [
            (exporter("inflight"), 0),
            (
                format!("otel.sdk.processor.span.queue.capacity {processor}"),
                1 << 20,
            ),
            (format!("otel.sdk.processor.span.queue.size {processor}"), 0),
        ];
        let counters = counters.map(|(name, value)| (name, (value, true)));
        let levels = levels.map(|(name, value)| (name, (value, false)));
        let expected: BTreeMap<_, _> = counters.into_iter().chain(levels).collect();
        assert_eq!(points(last), expected, "{protocol}");
        let resource = last.resource_metrics[0].resource.as_ref().unwrap();
        assert_eq!(resource.attributes[0].key, "service.name");
        assert_eq!(receiver.received().len(), 1, "{protocol}");
    }
}

#[test]
fn the_books_go_out_at_intervals() {
    let receiver = Receiver::new([]);
    receiver.take_metrics();
    let pipeline = pipeline(&receiver, "http/protobuf", "20");
    record(&pipeline, 1);
    let patience = Instant::now() + Duration::from_secs(30);
    while receiver.metrics().len() < 3 {
        assert!(Instant::now() < patience);
        std::thread::sleep(Duration::from_millis(5));
    }
    pipeline.shutdown(Duration::from_secs(10));
    let times = receiver.metrics().into_iter().map(|request| {
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let Some(metric::Data::Sum(sum)) = &metrics[0].data else {
            panic!("a sum");
        };
        let point = &sum.data_points[0];
        (point.start_time_unix_nano, point.time_unix_nano)
    });
    let (starts, times): (Vec<_>, Vec<_>) = times.unzip();
    assert!(times.is_sorted());
    assert!(starts.iter().all(|start| *start == starts[0]));
}

#[test]
fn a_collector_that_takes_no_metrics_gets_all_spans_and_is_complained_of_once() {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    diagnostics::route(|_, message: &str| {
        if message.contains("own metrics") {
            SAID.lock().unwrap().push(message.to_owned());
        }
    });
    let receiver = Receiver::new([]);
    let pipeline = pipeline(&receiver, "http/protobuf", "5");
    let patience = Instant::now() + Duration::from_secs(30);
    while SAID.lock().unwrap().is_empty() {
        assert!(Instant::now() < patience);
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(50));
    record(&pipeline, 1);
    let stats = pipeline.shutdown(Duration::from_secs(10));
    assert_eq!((stats.created, stats.exported), (1, 1));
    assert_eq!(
        *SAID.lock().unwrap(),
        [
            "omnitrace's own metrics are not taken (the endpoint answered HTTP status 404); if \
             there is nobody for metrics, unset OTEL_METRICS_EXPORTER"
        ]
    );
}
