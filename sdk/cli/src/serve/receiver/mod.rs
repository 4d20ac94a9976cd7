//! OTLP in: the same request by gRPC and by HTTP, into the same store.

pub(super) mod grpc;
pub(super) mod http;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};

use super::store::Store;

/// The largest request taken, before and after decompression. Exporters stay
/// below it.
pub(super) const MAX_REQUEST: usize = 64 << 20;

/// Puts the spans of `request` into `store` and tells the sender what was wrong
/// with the rest. Converts, so it belongs on a thread that may block.
fn accept(store: &Store, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse {
    let rejected = store.add(request);
    let partial_success = (rejected > 0).then(|| ExportTracePartialSuccess {
        rejected_spans: i64::try_from(rejected).unwrap_or(i64::MAX),
        error_message: "a trace id has 16 bytes and a span id 8, not all of them zero".to_owned(),
    });
    ExportTraceServiceResponse { partial_success }
}
