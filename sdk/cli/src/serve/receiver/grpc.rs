//! OTLP/gRPC.

use std::future::Future;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::serve::ServeError;
use crate::serve::endpoint::Endpoint;
use crate::serve::store::Store;

struct Receiver {
    store: Arc<Store>,
}

/// Serves the trace service until `stopped`.
pub(in crate::serve) async fn serve(
    endpoint: Endpoint,
    store: Arc<Store>,
    stopped: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let service = TraceServiceServer::new(Receiver { store })
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(super::MAX_REQUEST);
    let incoming = TcpIncoming::from(endpoint.listener).with_nodelay(Some(true));
    Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stopped)
        .await?;
    Ok(())
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || super::accept(&store, request.into_inner()))
            .await
            .map(Response::new)
            .map_err(|_| Status::internal("the request could not be converted"))
    }
}
