//! Where spans go, and how.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};

use super::ConsoleMode;
use super::env::Env;
use super::tls::{Tls, TlsError};

/// How spans travel to the Collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over HTTP with protobuf bodies.
    HttpProtobuf,
    /// OTLP over HTTP with JSON bodies.
    HttpJson,
    /// OTLP over gRPC.
    Grpc,
}

impl Protocol {
    const NAMES: [(&'static str, Self); 3] = [
        ("http/protobuf", Self::HttpProtobuf),
        ("http/json", Self::HttpJson),
        ("grpc", Self::Grpc),
    ];

    /// The protocol with OpenTelemetry's name (`http/protobuf`, `http/json`, `grpc`).
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(n, _)| *n == name);
        found.map(|(_, protocol)| *protocol)
    }

    /// OpenTelemetry's name of it.
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, protocol)| *protocol == self);
        found.map_or("", |(name, _)| name)
    }
}

/// Where and how to export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExporterConfig {
    /// Full URL: for HTTP with its path, for gRPC without.
    pub endpoint: String,
    /// A socket of the file system that is connected to in place of the endpoint's host.
    pub socket: Option<PathBuf>,
    /// Wire protocol.
    pub protocol: Protocol,
    /// Headers of each request.
    pub headers: Vec<(String, String)>,
    /// Compress with gzip.
    pub gzip: bool,
    /// Longest time for one request.
    pub timeout: Duration,
    /// For an endpoint that begins with `https://`.
    pub tls: Tls,
}

impl ExporterConfig {
    /// Whether the way to the endpoint is encrypted.
    pub fn is_encrypted(&self) -> bool {
        begins_with(&self.endpoint, "https://")
    }
}

/// Where the books go as metrics, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Where and how.
    pub exporter: ExporterConfig,
    /// Time from one export to the next.
    pub interval: Duration,
}

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    /// As it stands in the names of variables.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// Of a base endpoint over HTTP.
    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }

    /// What becomes of what cannot be exported because of a wrong setting.
    fn not_exported(self) -> &'static str {
        match self {
            Self::Traces => "nothing is exported, spans go to the legacy log",
            Self::Metrics => "no metrics are exported",
        }
    }
}

/// A place that spans go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Otlp,
    Console,
}

/// Headers that nobody may set.
const OUR_OWN: [&str; 8] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
];

/// The exporter for a Collector, if there is to be one, and whether spans are written to
/// the console.
pub(super) fn read(env: &mut Env<'_>) -> (Option<ExporterConfig>, ConsoleMode) {
    let choices = [("otlp", Target::Otlp), ("console", Target::Console)];
    let targets = env.list("OTEL_TRACES_EXPORTER", &choices, &[Target::Otlp], "otlp");
    let wants_otlp = targets.contains(&Target::Otlp);
    let console = match targets.contains(&Target::Console) {
        false => ConsoleMode::Off,
        true if wants_otlp => ConsoleMode::Beside,
        true => ConsoleMode::Alone,
    };
    let exporter = wants_otlp.then(|| otlp(env, Signal::Traces)).flatten();
    (exporter, console)
}

/// Where the books go as metrics, if they do: along the way of the spans, so that there
/// must be one.
pub(super) fn read_metrics(env: &mut Env<'_>, spans_go: bool) -> Option<MetricsConfig> {
    let name = "OTEL_METRICS_EXPORTER";
    // Not OpenTelemetry's default: most Collectors for traces take no metrics.
    let wanted = env.choice(name, &[("none", false), ("otlp", true)], false);
    let interval = env.positive("OTEL_METRIC_EXPORT_INTERVAL", 60_000);
    if !wanted {
        return None;
    }
    if !spans_go {
        let what = "has no effect where no spans go to a Collector";
        env.wrong(name, "otlp", what, "none");
        return None;
    }
    otlp(env, Signal::Metrics).map(|exporter| MetricsConfig {
        exporter,
        interval: Duration::from_millis(interval),
    })
}

fn otlp(env: &mut Env<'_>, signal: Signal) -> Option<ExporterConfig> {
    let default = Protocol::HttpProtobuf;
    let protocol = choice(env, signal, "PROTOCOL", &Protocol::NAMES, default);
    let endpoint = endpoint(env, signal, protocol);
    let compressions = [("gzip", true), ("none", false)];
    let gzip = choice(env, signal, "COMPRESSION", &compressions, false);
    let timeout = env.timeout(&name_of(env, signal, "TIMEOUT"), 10_000);
    let headers = headers(env, signal);
    let mut config = ExporterConfig {
        endpoint: endpoint?,
        socket: None,
        protocol,
        headers,
        gzip,
        timeout,
        tls: Tls::default(),
    };
    let files = ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"];
    let files = files.map(|name| env.otlp(signal, name));
    if config.is_encrypted() {
        config.tls = tls(env, signal, &files)?;
    } else {
        for (variable, file) in files.into_iter().flatten() {
            let what = format!("has no effect on {}", config.endpoint);
            env.wrong(&variable, &file, &what, "the connection is not encrypted");
        }
    }
    Some(config)
}

/// The variable that says it: the signal's own, else the one for all signals.
fn name_of(env: &Env<'_>, signal: Signal, name: &str) -> String {
    let set = env.otlp(signal, name).map(|(variable, _)| variable);
    set.unwrap_or_else(|| format!("OTEL_EXPORTER_OTLP_{name}"))
}

fn choice<T: Copy + PartialEq>(
    env: &mut Env<'_>,
    signal: Signal,
    name: &str,
    choices: &[(&str, T)],
    default: T,
) -> T {
    let variable = name_of(env, signal, name);
    env.choice(&variable, choices, default)
}

/// The full URL; none if what was given cannot be one.
fn endpoint(env: &mut Env<'_>, signal: Signal, protocol: Protocol) -> Option<String> {
    let insecure = name_of(env, signal, "INSECURE");
    let plain = env.flag(&insecure);
    let Some((variable, given)) = env.otlp(signal, "ENDPOINT") else {
        return Some(base_endpoint(None, signal, protocol));
    };
    let variable = &*variable;
    let mut url = given.clone();
    if protocol == Protocol::Grpc && !given.contains("://") {
        url = format!("{}{given}", if plain { "http://" } else { "https://" });
    } else if plain && begins_with(&given, "https://") {
        let what = format!("has no effect on {given}");
        env.wrong(&insecure, "true", &what, "its scheme counts");
    }
    if let Err(reason) = check_endpoint(&url) {
        env.wrong(variable, &given, &reason, signal.not_exported());
        return None;
    }
    match protocol {
        Protocol::Grpc => {
            let (whole, path) = split_path(&url);
            if !path.is_empty() && path != "/" {
                let what = "has a path, which gRPC has no use for";
                env.wrong(variable, &given, what, "left out");
            }
            Some(whole.to_owned())
        }
        _ if variable != "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(url),
        _ => Some(base_endpoint(Some(url), signal, protocol)),
    }
}

/// A URL with a scheme up to its path, and the path.
fn split_path(url: &str) -> (&str, &str) {
    let host = url.find("://").map_or(0, |at| at + 3);
    let path = url[host..].find(['/', '?', '#']);
    url.split_at(path.map_or(url.len(), |at| host + at))
}

fn headers(env: &mut Env<'_>, signal: Signal) -> Vec<(String, String)> {
    let Some((variable, text)) = env.otlp(signal, "HEADERS") else {
        return Vec::new();
    };
    // Its text may be a password.
    let mut headers = env.pairs(&variable, &text, |at, _| format!("entry {at}"));
    headers.retain(|(name, value)| {
        let valid = name.parse::<HeaderName>().is_ok() && value.parse::<HeaderValue>().is_ok();
        let what = match (valid, is_reserved_header(name)) {
            (false, _) => "is not an HTTP header",
            (true, true) => "is for the exporter to say",
            (true, false) => return true,
        };
        env.say(format!("{variable}: \"{name}\" {what}: ignored"));
        false
    });
    headers
}

/// The files of trusted certificates, of ours and of its key, each with its variable. None:
/// one cannot be used.
fn tls(env: &mut Env<'_>, signal: Signal, files: &[Option<(String, String)>; 3]) -> Option<Tls> {
    let instead = signal.not_exported();
    let mut tls = Tls::default();
    let mut good = true;
    let [trusted, certificate, key] = files;
    let mut results = Vec::new();
    if let Some((_, file)) = trusted {
        results.push(tls.trust(Path::new(file)));
    }
    match (certificate, key) {
        (Some((_, certificate)), Some((_, key))) => {
            results.push(tls.identify(Path::new(certificate), Path::new(key)));
        }
        (None, None) => {}
        (Some((variable, file)), None) => {
            good = false;
            let what = "needs the certificate's key in OTEL_EXPORTER_OTLP_CLIENT_KEY too";
            env.wrong(variable, file, what, instead);
        }
        (None, Some((variable, file))) => {
            good = false;
            let what = "needs the key's certificate in OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE too";
            env.wrong(variable, file, what, instead);
        }
    }
    for error in results.into_iter().filter_map(Result::err) {
        good = false;
        let (named, cure) = match &error {
            TlsError::Trusted(_) => (trusted, "it must name a PEM file of trusted certificates"),
            TlsError::Certificate(_) => (certificate, "it must name a PEM file of our certificate"),
            TlsError::Key(_) => (key, "it must name a PEM file of our certificate's key"),
        };
        if let Some((variable, file)) = named {
            env.wrong(variable, file, &format!("{error}; {cure}"), instead);
        }
    }
    good.then_some(tls)
}

/// The signal's endpoint that follows from a base endpoint, as the OTLP exporter
/// specification builds it.
fn base_endpoint(base: Option<String>, signal: Signal, protocol: Protocol) -> String {
    match (base, protocol) {
        (Some(base), Protocol::Grpc) => base,
        (None, Protocol::Grpc) => "http://localhost:4317".to_owned(),
        (base, _) => {
            let base = base.unwrap_or_else(|| "http://localhost:4318".to_owned());
            format!("{}{}", base.trim_end_matches('/'), signal.path())
        }
    }
}

/// Whether an endpoint is a URL that can be exported to.
pub fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(endpoint).map_err(|e| format!("is not a URL ({e})"))?;
    // The parser also takes "http:/host".
    let scheme = begins_with(endpoint, "http://") || begins_with(endpoint, "https://");
    if !scheme || url.host_str().is_none() {
        return Err("does not begin with http:// or https:// and a host".to_owned());
    }
    Ok(())
}

/// Whether a header says what is in the body or how it is carried, which is for the
/// exporter to say.
pub fn is_reserved_header(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    OUR_OWN.contains(&&*lower) || lower.starts_with("grpc-")
}

fn begins_with(text: &str, scheme: &str) -> bool {
    let head = text.get(..scheme.len());
    head.is_some_and(|head| head.eq_ignore_ascii_case(scheme))
}
