//! Metrics to a Collector: few and small, so they are messages of a library.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use prost::Message as _;

use crate::config::{ExporterConfig, Protocol};

use super::grpc::{self, Grpc};
use super::http::{self, Http};
use super::{ExportError, ExporterError, Taken, retryable};

/// Sends metrics to one endpoint.
pub(crate) struct MetricsExporter {
    transport: Transport,
    timeout: Duration,
}

enum Transport {
    Protobuf(Http),
    Json(Http),
    Grpc(Box<Grpc>),
}

impl MetricsExporter {
    /// To be called on the runtime that will export.
    pub(crate) fn new(config: &ExporterConfig) -> Result<Self, ExporterError> {
        let transport = match config.protocol {
            Protocol::HttpProtobuf => Transport::Protobuf(Http::new(config, http::PROTOBUF)?),
            Protocol::HttpJson => Transport::Json(Http::new(config, http::JSON)?),
            Protocol::Grpc => Transport::Grpc(Box::new(Grpc::new(config, grpc::METRICS)?)),
        };
        Ok(Self {
            transport,
            timeout: config.timeout,
        })
    }

    /// One attempt.
    pub(crate) async fn export(
        &self,
        request: &ExportMetricsServiceRequest,
    ) -> Result<Taken, ExportError> {
        let attempt = tokio::time::timeout(self.timeout, self.attempt(request));
        attempt
            .await
            .unwrap_or_else(|_| Err(retryable(format!("no answer within {:?}", self.timeout))))
    }

    /// An answer has the shape of that to spans: the number of points that are rejected,
    /// and why.
    async fn attempt(&self, request: &ExportMetricsServiceRequest) -> Result<Taken, ExportError> {
        match &self.transport {
            Transport::Protobuf(http) => http.send(request.encode_to_vec().into()).await,
            Transport::Json(http) => match serde_json::to_vec(request) {
                Ok(body) => http.send(body.into()).await,
                Err(error) => Err(ExportError::Refused {
                    reason: error.to_string(),
                }),
            },
            Transport::Grpc(grpc) => grpc.send(request.encode_to_vec().into()).await,
        }
    }
}
