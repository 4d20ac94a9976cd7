//! When the books go out as metrics, and what is said where nobody takes them.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;

use crate::clock;
use crate::config::{Config, Protocol};
use crate::delivery::Stats;
use crate::delivery::otlp::{ExportError, Taken};
use crate::delivery::own_metrics::{self, Component};
use crate::value::Attribute;

pub(super) struct Reporter {
    component: Component,
    interval: Duration,
    due: Instant,
    is_failing: bool,
}

impl Reporter {
    /// None: it is not asked for.
    pub(super) fn new(config: &Config, resource: &[Attribute]) -> Option<Self> {
        let interval = config.metrics.as_ref()?.interval;
        let exporter = match config.exporter.as_ref()?.protocol {
            Protocol::HttpProtobuf => "otlp_http_span_exporter",
            Protocol::HttpJson => "otlp_http_json_span_exporter",
            Protocol::Grpc => "otlp_grpc_span_exporter",
        };
        Some(Self {
            component: Component {
                resource: resource.to_vec(),
                exporter,
                capacity: config.max_waiting_spans as u64,
                started: clock::now(),
            },
            interval,
            due: Instant::now() + interval,
            is_failing: false,
        })
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// The books; the next ones are due an interval later.
    pub(super) fn request(&mut self, stats: &Stats, on_wire: u64) -> ExportMetricsServiceRequest {
        let now = Instant::now();
        while self.due <= now {
            self.due += self.interval;
        }
        own_metrics::request(stats, on_wire, &self.component, clock::now())
    }

    /// Metrics that are not taken are not tried again: the next ones say all that they
    /// said.
    pub(super) fn settle(&mut self, outcome: Result<Taken, ExportError>) {
        let error = match outcome {
            Ok(taken) if taken.rejected > 0 => Some(taken.reason),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        let was_failing = std::mem::replace(&mut self.is_failing, error.is_some());
        if let (Some(error), false) = (error, was_failing) {
            tracing::warn!(
                "omnitrace's own metrics are not taken ({error}); if there is nobody for \
                 metrics, unset OTEL_METRICS_EXPORTER"
            );
        }
    }
}
