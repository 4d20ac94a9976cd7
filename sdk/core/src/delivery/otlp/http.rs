//! OTLP over HTTP: exactly the headers and the compression that are configured.

use std::io::Write as _;
use std::sync::Arc;

use flate2::write::GzEncoder;
use opentelemetry_http::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use rustls::RootCertStore;

use crate::config::ExporterConfig;

use super::{ExportError, ExporterError, Nobody, Taken, USER_AGENT, answer, retryable};

/// Content types of the two kinds of bodies.
pub(super) const PROTOBUF: &str = "application/x-protobuf";
pub(super) const JSON: &str = "application/json";

/// Posts bodies of one kind to one endpoint.
#[derive(Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    endpoint: String,
    headers: HeaderMap,
    gzip: bool,
    nobody: Nobody,
}

impl Http {
    pub(super) fn new(
        config: &ExporterConfig,
        content_type: &'static str,
    ) -> Result<Self, ExporterError> {
        let client = client(config)?;
        let mut headers = configured(config);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if config.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        // A URL that is none is an error now and not with every batch.
        client.post(&config.endpoint).build()?;
        Ok(Self {
            client,
            endpoint: config.endpoint.clone(),
            headers,
            gzip: config.gzip,
            nobody: Nobody::new(config),
        })
    }

    /// One attempt. `body` is a whole request, not compressed.
    pub(super) async fn send(&self, body: Bytes) -> Result<Taken, ExportError> {
        let body = if self.gzip { compress(&body) } else { body };
        let request = self
            .client
            .post(&self.endpoint)
            .headers(self.headers.clone())
            .body(body);
        let failed = |error: reqwest::Error| retryable(self.nobody.explain(&error));
        let response = request.send().await.map_err(failed)?;
        answer::read(response).await.map_err(failed)?
    }
}

/// The headers that the user wants. [`Config`](crate::Config) has left out what is none.
pub(super) fn configured(config: &ExporterConfig) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        match (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value),
        ) {
            (Ok(name), Ok(value)) => _ = headers.insert(name, value),
            _ => tracing::warn!("OTLP header \"{name}\" is not a valid HTTP header: left out"),
        }
    }
    headers
}

fn compress(body: &[u8]) -> Bytes {
    let mut gzip = GzEncoder::new(
        Vec::with_capacity(body.len() / 4),
        flate2::Compression::fast(),
    );
    // Writing to memory cannot fail.
    let _ = gzip.write_all(body);
    gzip.finish().unwrap_or_default().into()
}

fn client(config: &ExporterConfig) -> Result<reqwest::Client, ExporterError> {
    // The machine's authorities are some hundred files: read where they are needed.
    let roots = if config.is_encrypted() {
        config.tls.roots()?
    } else {
        Arc::new(RootCertStore::empty())
    };
    let mut tls = config.tls.client_config(roots)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut client = reqwest::Client::builder()
        .timeout(config.timeout)
        .user_agent(USER_AGENT)
        .tls_backend_preconfigured(tls)
        // A collector is an internal address: proxies of the environment would
        // see the traces.
        .no_proxy()
        // A redirected POST becomes a GET: nothing would be delivered.
        .redirect(reqwest::redirect::Policy::none());
    if let Some(socket) = &config.socket {
        client = client.unix_socket(socket.as_path());
    }
    Ok(client.build()?)
}
