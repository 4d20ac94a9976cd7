//! The books as OTLP metrics, under the names of OpenTelemetry's conventions for an
//! SDK's own metrics (`otel.sdk.*`, semantic conventions 1.37, development).

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;

use crate::value::{Attribute, Value};

use super::Stats;

/// What describes every point.
#[derive(Debug, Clone)]
pub(crate) struct Component {
    pub(crate) resource: Vec<Attribute>,
    /// `otel.component.type` of the exporter, such as `otlp_http_span_exporter`.
    pub(crate) exporter: &'static str,
    /// Spans that may wait.
    pub(crate) capacity: u64,
    /// Nanoseconds since 1970.
    pub(crate) started: u64,
}

/// The books as of `now`, in nanoseconds since 1970. `on_wire` spans of those in flight
/// wait for an answer.
pub(crate) fn request(
    stats: &Stats,
    on_wire: u64,
    of: &Component,
    now: u64,
) -> ExportMetricsServiceRequest {
    let points = Points { of, now };
    let metrics = vec![
        points.counter(
            "otel.sdk.span.started",
            "Spans made, and spans not made because their trace is not sampled; counted at \
             their end.",
            SPANS,
            points.started(stats),
        ),
        points.counter(
            "otel.sdk.processor.span.processed",
            "Spans that have come out of the queue; with error.type those that have not.",
            SPANS,
            points.processed(stats),
        ),
        points.level(
            "otel.sdk.processor.span.queue.size",
            "Spans that wait for a Collector.",
            stats.in_flight.saturating_sub(on_wire),
            PROCESSOR,
        ),
        points.level(
            "otel.sdk.processor.span.queue.capacity",
            "Spans that may wait for a Collector.",
            of.capacity,
            PROCESSOR,
        ),
        points.level(
            "otel.sdk.exporter.span.inflight",
            "Spans on the wire.",
            on_wire,
            of.exporter,
        ),
        points.counter(
            "otel.sdk.exporter.span.exported",
            "Spans that a Collector has taken; with error.type those that none has.",
            SPANS,
            points.exported(stats),
        ),
        points.counter(
            "omnitrace.events",
            "Actions and spans recorded; with error.type those lost or part of no span.",
            "{event}",
            points.events(stats),
        ),
    ];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: of.resource.iter().filter_map(key_value).collect(),
                ..Default::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: "omnitrace".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..Default::default()
                }),
                metrics,
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

/// Unit of most.
const SPANS: &str = "{span}";
/// `otel.component.type` of what queues and batches spans.
const PROCESSOR: &str = "batching_span_processor";
/// Why a span never came out of the queue: the conventions' own word.
const QUEUE_FULL: &str = "queue_full";

/// A value with its attributes.
type Point = (u64, Vec<Attribute>);

struct Points<'a> {
    of: &'a Component,
    now: u64,
}

/// The attributes of what a part of omnitrace counts; there is one of each in a process.
fn component(kind: &str) -> Vec<Attribute> {
    vec![
        Attribute::new("otel.component.type", kind),
        Attribute::new("otel.component.name", format!("{kind}/0").as_str()),
    ]
}

/// The same of what has failed.
fn failed(kind: &str, why: &str) -> Vec<Attribute> {
    let mut attributes = component(kind);
    attributes.push(Attribute::new("error.type", why));
    attributes
}

impl Points<'_> {
    fn started(&self, stats: &Stats) -> Vec<Point> {
        let result = |text: &str| vec![Attribute::new("otel.span.sampling_result", text)];
        vec![
            (stats.created, result("RECORD_AND_SAMPLE")),
            (stats.unsampled, result("DROP")),
        ]
    }

    fn processed(&self, stats: &Stats) -> Vec<Point> {
        let lost = stats.dropped.get(QUEUE_FULL).copied().unwrap_or(0);
        vec![
            (stats.created - lost, component(PROCESSOR)),
            (lost, failed(PROCESSOR, QUEUE_FULL)),
        ]
    }

    fn exported(&self, stats: &Stats) -> Vec<Point> {
        let kind = self.of.exporter;
        let mut points = vec![
            (stats.exported, component(kind)),
            (stats.logged, failed(kind, "legacy_log")),
        ];
        let dropped = stats.dropped.iter().filter(|(why, _)| **why != QUEUE_FULL);
        points.extend(dropped.map(|(why, count)| (*count, failed(kind, why))));
        points
    }

    fn events(&self, stats: &Stats) -> Vec<Point> {
        let failed = |why: &str| vec![Attribute::new("error.type", why)];
        vec![
            (stats.events, vec![]),
            (stats.events_lost, failed(QUEUE_FULL)),
            (stats.events_loose, failed("no_span")),
        ]
    }

    /// What only grows.
    fn counter(&self, name: &str, description: &str, unit: &str, points: Vec<Point>) -> Metric {
        self.sum(name, description, unit, points, true)
    }

    /// What goes up and down.
    fn level(&self, name: &str, description: &str, value: u64, kind: &str) -> Metric {
        let points = vec![(value, component(kind))];
        self.sum(name, description, SPANS, points, false)
    }

    fn sum(
        &self,
        name: &str,
        description: &str,
        unit: &str,
        points: Vec<Point>,
        monotonic: bool,
    ) -> Metric {
        let point = |(value, attributes): Point| NumberDataPoint {
            attributes: attributes.iter().filter_map(key_value).collect(),
            start_time_unix_nano: self.of.started,
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsInt(value as i64)),
            ..Default::default()
        };
        Metric {
            name: name.to_owned(),
            description: description.to_owned(),
            unit: unit.to_owned(),
            data: Some(metric::Data::Sum(Sum {
                data_points: points.into_iter().map(point).collect(),
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
                is_monotonic: monotonic,
            })),
            ..Default::default()
        }
    }
}

/// None for an array, which no attribute here is.
fn key_value(attribute: &Attribute) -> Option<KeyValue> {
    let value = match &attribute.value {
        Value::Str(text) => any_value::Value::StringValue(Arc::clone(text).to_string()),
        Value::I64(n) => any_value::Value::IntValue(*n),
        Value::F64(n) => any_value::Value::DoubleValue(*n),
        Value::Bool(b) => any_value::Value::BoolValue(*b),
        Value::Array(_) => return None,
    };
    Some(KeyValue {
        key: attribute.key.to_string(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    })
}
