//! The books as OTLP metrics, under the names of OpenTelemetry's conventions for an
//! SDK's own metrics (`otel.sdk.*`, semantic conventions 1.37, development).

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value,
};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;

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

/// An `ExportMetricsServiceRequest` of the books at `now`, in nanoseconds since 1970.
pub(crate) fn request(stats: &Stats, of: &Component, now: u64) -> Vec<u8> {
    let points = Points { of, now };
    let metrics = vec![
        points.counter(
            "otel.sdk.span.started",
            "Spans made, and spans not made because their trace is not sampled.",
            vec![
                (
                    stats.created,
                    vec![("otel.span.sampling_result", "RECORD_AND_SAMPLE")],
                ),
                (stats.unsampled, vec![("otel.span.sampling_result", "DROP")]),
            ],
        ),
        points.counter(
            "otel.sdk.processor.span.processed",
            "Spans that have come out of the queue; with error.type those that have not.",
            points.processed(stats),
        ),
        points.level(
            "otel.sdk.processor.span.queue.size",
            "Spans that wait for a Collector.",
            stats.in_flight - stats.on_wire.min(stats.in_flight),
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
            stats.on_wire,
            of.exporter,
        ),
        points.counter(
            "otel.sdk.exporter.span.exported",
            "Spans that a Collector has taken; with error.type those that none has.",
            points.exported(stats),
        ),
        points.counter(
            "omnitrace.legacy_log.spans",
            "Spans that are in the legacy log instead.",
            vec![(stats.logged, vec![])],
        ),
        points.counter(
            "omnitrace.events",
            "Actions and spans recorded; with error.type those lost or part of no span.",
            vec![
                (stats.events, vec![]),
                (stats.events_lost, vec![("error.type", "queue_full")]),
                (stats.events_loose, vec![("error.type", "no_span")]),
            ],
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
    .encode_to_vec()
}

/// `otel.component.type` of what queues and batches spans.
const PROCESSOR: &str = "batching_span_processor";
/// Why a span never came out of the queue: the conventions' own word.
const QUEUE_FULL: &str = "queue_full";

/// A value with its attributes.
type Point = (u64, Vec<(&'static str, &'static str)>);

struct Points<'a> {
    of: &'a Component,
    now: u64,
}

impl Points<'_> {
    fn processed(&self, stats: &Stats) -> Vec<Point> {
        let lost = stats.dropped.get(QUEUE_FULL).copied().unwrap_or(0);
        let kind = ("otel.component.type", PROCESSOR);
        vec![
            (stats.created - lost, vec![kind]),
            (lost, vec![kind, ("error.type", QUEUE_FULL)]),
        ]
    }

    fn exported(&self, stats: &Stats) -> Vec<Point> {
        let kind = ("otel.component.type", self.of.exporter);
        let mut points = vec![
            (stats.exported, vec![kind]),
            (stats.logged, vec![kind, ("error.type", "legacy_log")]),
        ];
        let dropped = stats.dropped.iter().filter(|(why, _)| **why != QUEUE_FULL);
        points.extend(dropped.map(|(why, count)| (*count, vec![kind, ("error.type", *why)])));
        points
    }

    /// What only grows.
    fn counter(&self, name: &str, description: &str, points: Vec<Point>) -> Metric {
        self.sum(name, description, points, true)
    }

    /// What goes up and down.
    fn level(&self, name: &str, description: &str, value: u64, kind: &'static str) -> Metric {
        let points = vec![(value, vec![("otel.component.type", kind)])];
        self.sum(name, description, points, false)
    }

    fn sum(&self, name: &str, description: &str, points: Vec<Point>, monotonic: bool) -> Metric {
        let point = |(value, attributes): Point| NumberDataPoint {
            attributes: attributes
                .into_iter()
                .filter_map(|(key, value)| key_value(&Attribute::new(key, value)))
                .collect(),
            start_time_unix_nano: self.of.started,
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsInt(value as i64)),
            ..Default::default()
        };
        Metric {
            name: name.to_owned(),
            description: description.to_owned(),
            unit: "{span}".to_owned(),
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
