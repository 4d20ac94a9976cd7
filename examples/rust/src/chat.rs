//! One chat request.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt as _;
use reqwest::Url;
use serde_json::{Value, json};
use tracing::{error, info, info_span};

use crate::knowledge::documents_for;
use crate::trace;

/// The service that answers.
#[derive(Clone)]
pub(crate) struct Upstream {
    client: reqwest::Client,
    completions: Url,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the body has no \"messages\" whose last one has text as its \"content\"")]
    NoQuestion,
    #[error("the service that answers cannot be reached: {0}")]
    Upstream(#[from] reqwest::Error),
}

impl Upstream {
    pub(crate) fn new(base: &Url) -> Result<Self, Box<dyn std::error::Error>> {
        Ok(Self {
            client: reqwest::Client::builder().build()?,
            completions: base.join("/v1/chat/completions")?,
        })
    }
}

/// `POST /v1/chat/completions`
pub(crate) async fn complete(
    State(upstream): State<Upstream>,
    headers: HeaderMap,
    Json(mut chat): Json<Value>,
) -> Result<Response, Failure> {
    let question = question(&chat).ok_or(Failure::NoQuestion)?;
    let documents = documents_for(question);
    info_span!("write prompt").in_scope(|| add(&mut chat, &documents));

    let mut request = upstream
        .client
        .post(upstream.completions)
        .header(header::CONTENT_TYPE, "application/json")
        .body(chat.to_string());
    // The same request has the same id everywhere.
    if let Some(id) = headers.get("x-request-id") {
        request = request.header("x-request-id", id);
    }
    let (head, answer) = trace::call(&upstream.client, request.build()?).await?;
    let mut is_first = true;
    let answer = answer.inspect_ok(move |_| {
        if std::mem::take(&mut is_first) {
            info!("the answer begins");
        }
    });
    let mut response = Response::new(Body::from_stream(answer));
    *response.status_mut() = head.status;
    if let Some(content_type) = head.headers.get(header::CONTENT_TYPE) {
        let content_type = content_type.clone();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
    }
    Ok(response)
}

/// What is asked last.
fn question(chat: &Value) -> Option<&str> {
    chat.get("messages")?
        .as_array()?
        .last()?
        .get("content")?
        .as_str()
}

/// Puts what is known in front.
fn add(chat: &mut Value, documents: &[&str]) {
    let messages = chat.get_mut("messages").and_then(Value::as_array_mut);
    if let Some(messages) = messages.filter(|_| !documents.is_empty()) {
        let known = json!({"role": "system", "content": documents.join("\n")});
        messages.insert(0, known);
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NoQuestion => StatusCode::BAD_REQUEST,
            Self::Upstream(_) => {
                error!(error = %self);
                StatusCode::BAD_GATEWAY
            }
        };
        let message = json!({"error": {"message": self.to_string(), "code": status.as_u16()}});
        (status, Json(message)).into_response()
    }
}
