//! What `/api/traces` is asked for: parsed as Jaeger parses it, and matched.

use std::time::Duration;

use omnitrace_offline::jaeger::model::{KeyValue, Process, Span};

/// The number of traces in an answer unless `limit` says otherwise; what the
/// UI's own search form starts with.
const DEFAULT_LIMIT: usize = 20;

/// The pairs of a query string, in order; a name may come more than once.
#[derive(Debug, Clone, Default)]
pub(super) struct Params(pub(super) Vec<(String, String)>);

impl Params {
    /// The first value of `name` that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).find(|value| !value.is_empty())
    }

    /// Every value of `name`.
    pub(super) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let pairs = self.0.iter();
        pairs.filter_map(move |(key, value)| (key == name).then_some(value.as_str()))
    }

    /// The value of `name` as a number.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| format!("parameter '{name}' has to be a whole number, not '{text}'"))
        };
        self.get(name).map(parse).transpose()
    }

    fn duration(&self, name: &str) -> Result<Option<Duration>, String> {
        let parse = |text: &str| {
            parse_duration(text).ok_or_else(|| {
                format!("parameter '{name}' has to be a duration such as 1.5ms, not '{text}'")
            })
        };
        self.get(name).map(parse).transpose()
    }
}

/// Which traces to find: those with one span that meets every condition.
#[derive(Debug, PartialEq)]
pub(super) struct Search {
    /// The service; all of them where it is `None`.
    pub(super) service: Option<String>,
    /// The number of traces wanted, the newest ones.
    pub(super) limit: usize,
    operation: Option<String>,
    /// Microseconds since 1970, both included.
    start: u64,
    end: u64,
    min_duration: Duration,
    max_duration: Duration,
    tags: Vec<(String, String)>,
}

impl Search {
    /// Reads the parameters of a search made at `now`, in microseconds since 1970.
    pub(super) fn parse(params: &Params, now: u64) -> Result<Self, String> {
        let end = params.number("end")?.unwrap_or(u64::MAX);
        let start = match params.number("start")? {
            Some(start) => start,
            // The UI sends `start` too, and may send "custom" here.
            None => match params.get("lookback").and_then(parse_duration) {
                Some(lookback) => end.min(now).saturating_sub(micros(lookback)),
                None => 0,
            },
        };
        let limit = match params.number("limit")? {
            None => DEFAULT_LIMIT,
            Some(0) => return Err("parameter 'limit' has to be at least 1".to_owned()),
            Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let min_duration = params.duration("minDuration")?.unwrap_or(Duration::ZERO);
        let max_duration = params.duration("maxDuration")?.unwrap_or(Duration::MAX);
        if max_duration < min_duration {
            return Err("'maxDuration' should be greater than 'minDuration'".to_owned());
        }
        Ok(Self {
            service: params.get("service").map(str::to_owned),
            limit,
            operation: params.get("operation").map(str::to_owned),
            start,
            end,
            min_duration,
            max_duration,
            tags: parse_tags(params)?,
        })
    }

    /// Whether this span, made by `process`, meets every condition.
    pub(super) fn matches(&self, process: &Process, span: &Span) -> bool {
        let duration = Duration::from_micros(span.duration);
        (self.start..=self.end).contains(&span.start_time)
            && (self.min_duration..=self.max_duration).contains(&duration)
            && self
                .service
                .as_ref()
                .is_none_or(|name| *name == process.service_name)
            && self
                .operation
                .as_ref()
                .is_none_or(|name| *name == span.operation_name)
            && self.tags.iter().all(|(key, value)| {
                let equal = |tag: &KeyValue| tag.key == *key && tag.value.text() == value.as_str();
                span.tags.iter().any(equal)
                    || process.tags.iter().any(equal)
                    || span.logs.iter().flat_map(|log| &log.fields).any(equal)
            })
    }
}

/// `tags={"key":"value"}` as the UI sends it, and Jaeger's older `tag=key:value`.
fn parse_tags(params: &Params) -> Result<Vec<(String, String)>, String> {
    let mut tags = Vec::new();
    for tag in params.all("tag").filter(|tag| !tag.is_empty()) {
        let (key, value) = tag
            .split_once(':')
            .ok_or_else(|| format!("parameter 'tag' has to be key:value, not '{tag}'"))?;
        tags.push((key.to_owned(), value.to_owned()));
    }
    for json in params.all("tags").filter(|json| !json.is_empty()) {
        let map: serde_json::Map<_, _> = serde_json::from_str(json)
            .map_err(|error| format!("parameter 'tags' has to be a JSON object: {error}"))?;
        tags.extend(map.into_iter().map(|(key, value)| match value {
            serde_json::Value::String(text) => (key, text),
            other => (key, other.to_string()),
        }));
    }
    Ok(tags)
}

/// A duration as Go writes it (`1h2m3.5s`, `100us`), and in days (`2d`), which
/// the UI's lookback has.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                // The micro sign and the Greek letter.
                "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use omnitrace_offline::jaeger::model::Log;

    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Params(pairs.iter().map(own).collect())
    }

    const ANY: Search = Search {
        service: None,
        limit: 20,
        operation: None,
        start: 0,
        end: u64::MAX,
        min_duration: Duration::ZERO,
        max_duration: Duration::MAX,
        tags: Vec::new(),
    };

    #[test]
    fn the_uis_whole_search_form_is_understood() {
        let form = params(&[
            ("service", "omni-proxy"),
            ("operation", "P running"),
            ("start", "1000"),
            ("end", "2000"),
            ("limit", "5"),
            ("lookback", "custom"),
            ("minDuration", "1.5ms"),
            ("maxDuration", "1m2s"),
            ("tag", "a:b:c"),
            ("tags", r#"{"error":"true","n":4}"#),
        ]);
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            Search::parse(&form, 9),
            Ok(Search {
                service: Some("omni-proxy".into()),
                limit: 5,
                operation: Some("P running".into()),
                start: 1000,
                end: 2000,
                min_duration: Duration::from_micros(1500),
                max_duration: Duration::from_secs(62),
                tags: vec![tag("a", "b:c"), tag("error", "true"), tag("n", "4")],
            })
        );
    }

    #[test]
    fn an_empty_form_means_the_newest_twenty_of_all_time_and_lookback_counts_from_now() {
        assert_eq!(Search::parse(&params(&[("operation", "")]), 9), Ok(ANY));
        let now = 10 * 86_400_000_000;
        for (lookback, start) in [("2d", 8 * 86_400_000_000), ("1h", now - 3_600_000_000)] {
            assert_eq!(
                Search::parse(&params(&[("lookback", lookback)]), now),
                Ok(Search { start, ..ANY })
            );
        }
    }

    #[test]
    fn a_bad_parameter_is_named() {
        for (name, value, message) in [
            ("limit", "0", "parameter 'limit' has to be at least 1"),
            (
                "limit",
                "x",
                "parameter 'limit' has to be a whole number, not 'x'",
            ),
            (
                "minDuration",
                "5",
                "parameter 'minDuration' has to be a duration such as 1.5ms, not '5'",
            ),
            ("tag", "a", "parameter 'tag' has to be key:value, not 'a'"),
            (
                "tags",
                "a",
                "parameter 'tags' has to be a JSON object: expected value at line 1 column 1",
            ),
        ] {
            assert_eq!(
                Search::parse(&params(&[(name, value)]), 0),
                Err(message.to_owned())
            );
        }
        assert_eq!(
            Search::parse(&params(&[("minDuration", "2s"), ("maxDuration", "1s")]), 0),
            Err("'maxDuration' should be greater than 'minDuration'".to_owned())
        );
    }

    #[test]
    fn one_span_has_to_meet_every_condition() {
        let process = Process {
            service_name: "omni-proxy".into(),
            tags: vec![KeyValue::string("host.ip", "10.0.0.1")],
        };
        let span = Span {
            operation_name: "P running".into(),
            start_time: 1000,
            duration: 50,
            tags: vec![KeyValue::bool("error", true)],
            logs: vec![Log {
                timestamp: 1001,
                fields: vec![KeyValue::int64("n", 4)],
            }],
            ..Span::default()
        };
        let matches = |name, value| {
            Search::parse(&params(&[(name, value)]), 0)
                .unwrap()
                .matches(&process, &span)
        };
        for (name, meets, misses) in [
            ("service", "omni-proxy", "omni"),
            ("operation", "P running", "P"),
            ("start", "1000", "1001"),
            ("end", "1000", "999"),
            ("minDuration", "50us", "51us"),
            ("maxDuration", "50\u{b5}s", "49999ns"),
            ("tag", "error:true", "error:false"),
            ("tag", "host.ip:10.0.0.1", "host.ip:10.0.0.2"),
            (
                "tags",
                r#"{"n":"4","error":"true"}"#,
                r#"{"n":"5","error":"true"}"#,
            ),
        ] {
            assert!(matches(name, meets), "{name}={meets}");
            assert!(!matches(name, misses), "{name}={misses}");
        }
    }
}
