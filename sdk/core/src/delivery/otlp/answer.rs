//! What an endpoint's HTTP answer means (OTLP specification, "OTLP/HTTP Response").

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, RETRY_AFTER, SERVER};
use serde::Deserialize;

use super::http::{JSON, PROTOBUF};
use super::{ExportError, Taken};

/// An answer's body that we read; Collectors say little.
const LONGEST_BODY: usize = 1 << 20;
/// Characters of a body that no Collector has written, for a message.
const EXCERPT: usize = 60;

/// Reads the answer to its end. The outer error: it breaks off.
pub(super) async fn read(
    mut response: reqwest::Response,
) -> Result<Result<Taken, ExportError>, reqwest::Error> {
    let mut body = Vec::new();
    while body.len() < LONGEST_BODY
        && let Some(chunk) = response.chunk().await?
    {
        body.extend_from_slice(&chunk);
    }
    let status = response.status().as_u16();
    let headers = response.headers();
    Ok(match status {
        200..=299 => taken(headers, &body).ok_or_else(|| ExportError::Refused {
            reason: stranger(response.url().as_str(), status, headers, Some(&body)),
        }),
        _ => {
            let mut reason = format!("the endpoint answered HTTP status {status}");
            if let Some(message) = message(headers, &body) {
                // Writing to a String cannot fail.
                let _ = write!(reason, ": {message}");
            }
            Err(by_status(status, headers, reason))
        }
    })
}

/// Tells what may be tried again from what may not (OTLP specification, "Failures").
pub(super) fn by_status(status: u16, headers: &HeaderMap, reason: String) -> ExportError {
    match status {
        429 | 502 | 503 | 504 => ExportError::Retryable {
            reason,
            after: pause(headers),
        },
        _ => ExportError::Refused { reason },
    }
}

/// Says who answered in a Collector's place.
pub(super) fn stranger(
    endpoint: &str,
    status: u16,
    headers: &HeaderMap,
    body: Option<&[u8]>,
) -> String {
    let kind = text(headers, &CONTENT_TYPE).unwrap_or("no content type");
    let mut said =
        format!("{endpoint} is no OTLP endpoint: it answered HTTP status {status}, {kind}");
    if let Some(server) = text(headers, &SERVER) {
        let _ = write!(said, ", from {server}");
    }
    let start: String = String::from_utf8_lossy(body.unwrap_or_default())
        .split_whitespace()
        .flat_map(|word| word.chars().chain([' ']))
        .filter(|c| !c.is_control())
        .take(EXCERPT)
        .collect();
    if !start.trim().is_empty() {
        let _ = write!(said, ", that begins with \"{}\"", start.trim());
    }
    said
}

/// What a Collector says about a batch that it has taken; none if no Collector says it.
fn taken(headers: &HeaderMap, body: &[u8]) -> Option<Taken> {
    // Some answer protobuf in JSON; some leave out the type of an empty answer.
    match text(headers, &CONTENT_TYPE).map(media_type) {
        None if body.is_empty() => Some(Taken::default()),
        Some(JSON) => taken_json(body),
        None | Some(PROTOBUF) => {
            let answer = ExportTraceServiceResponse::decode(body).ok()?;
            Some(answer.into())
        }
        Some(_) => None,
    }
}

impl From<ExportTraceServiceResponse> for Taken {
    fn from(answer: ExportTraceServiceResponse) -> Self {
        let partial = answer.partial_success.unwrap_or_default();
        Self {
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            reason: partial.error_message,
        }
    }
}

/// The same in JSON, where 64-bit numbers are text and may be numbers (OTLP
/// specification, "JSON Protobuf Encoding").
fn taken_json(body: &[u8]) -> Option<Taken> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        partial_success: Option<Partial>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Partial {
        rejected_spans: Option<Number>,
        error_message: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Number(i64),
        Text(String),
    }
    if body.is_empty() {
        return Some(Taken::default());
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let partial = answer.partial_success.unwrap_or_default();
    let rejected = match partial.rejected_spans {
        None => 0,
        Some(Number::Number(n)) => n,
        Some(Number::Text(text)) => text.parse().ok()?,
    };
    Some(Taken {
        rejected: u64::try_from(rejected).unwrap_or(0),
        reason: partial.error_message.unwrap_or_default(),
    })
}

/// What a Collector says about a batch that it refuses: a `google.rpc.Status`.
fn message(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    let message = match text(headers, &CONTENT_TYPE).map(media_type)? {
        PROTOBUF => tonic_types::Status::decode(body).ok()?.message,
        JSON => serde_json::from_slice::<Status>(body).ok()?.message,
        _ => return None,
    };
    Some(message).filter(|message| !message.is_empty())
}

/// How long the endpoint asks to be left alone: seconds or a date, which is by its own
/// clock where it tells the time. None: it does not ask, or no longer.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, &RETRY_AFTER)?;
    let pause = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let now = text(headers, &DATE).and_then(|date| httpdate::parse_http_date(date).ok());
            let until = httpdate::parse_http_date(value).ok()?;
            until
                .duration_since(now.unwrap_or_else(SystemTime::now))
                .ok()?
        }
    };
    Some(pause).filter(|pause| !pause.is_zero())
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// A content type without its parameters.
fn media_type(value: &str) -> &str {
    value.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (n.clone(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_by_the_endpoints_own_clock() {
        const NOON: &str = "Sun, 22 Nov 2026 12:00:00 GMT";
        let seconds = |n| Some(Duration::from_secs(n));
        for (value, expected) in [
            ("7", seconds(7)),
            ("Sun, 22 Nov 2026 12:00:30 GMT", seconds(30)),
            ("Sunday, 22-Nov-26 12:00:31 GMT", seconds(31)),
            ("Sun Nov 22 12:00:32 2026", seconds(32)),
            // What is over is no reason to ask again without any pause.
            ("0", None),
            (NOON, None),
            ("Sun, 22 Nov 2026 11:59:59 GMT", None),
            ("soon", None),
            ("-1", None),
            ("99999999999999999999", None),
        ] {
            let headers = headers(&[(RETRY_AFTER, value), (DATE, NOON)]);
            assert_eq!(pause(&headers), expected, "{value}");
        }
        assert_eq!(pause(&headers(&[])), None);
    }

    #[test]
    fn a_date_without_the_endpoints_clock_is_by_ours() {
        let later = SystemTime::now() + Duration::from_secs(3600);
        let headers = headers(&[(RETRY_AFTER, &httpdate::fmt_http_date(later))]);
        let pause = pause(&headers).unwrap().as_secs();
        assert!((3000..=3600).contains(&pause), "{pause}");
    }
}
