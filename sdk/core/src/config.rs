//! Settings of one process, from the environment and from the host program.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};

use crate::node;
use crate::value::{Attribute, Value};
use crate::vocabulary::Vocabulary;

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
    /// The protocol with OpenTelemetry's name (`http/protobuf`, `http/json`, `grpc`).
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "http/protobuf" => Some(Self::HttpProtobuf),
            "http/json" => Some(Self::HttpJson),
            "grpc" => Some(Self::Grpc),
            _ => None,
        }
    }
}

/// When the legacy log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyLogMode {
    /// Never.
    Off,
    /// For what no Collector takes.
    Fallback,
    /// For every event.
    Always,
}

impl LegacyLogMode {
    /// The mode of that name: `off`, `fallback`, `always`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "off" => Some(Self::Off),
            "fallback" => Some(Self::Fallback),
            "always" => Some(Self::Always),
            _ => None,
        }
    }
}

/// Where and how to export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExporterConfig {
    /// Full URL: for HTTP with its path, for gRPC without.
    pub endpoint: String,
    /// Wire protocol.
    pub protocol: Protocol,
    /// Headers of each request.
    pub headers: Vec<(String, String)>,
    /// Compress with gzip.
    pub gzip: bool,
    /// Longest time for one request.
    pub timeout: Duration,
}

/// Settings of one process.
#[derive(Debug, Clone)]
pub struct Config {
    /// `proxy`, `prefill`, `decode`, or what ROLE says.
    pub role: String,
    /// This node's address, as `host.ip` and in the legacy log.
    pub node: String,
    /// `service.name`.
    pub service_name: String,
    /// Other resource attributes.
    pub resource: Vec<Attribute>,
    /// None: nothing is exported.
    pub exporter: Option<ExporterConfig>,
    /// Longest time a span waits for its batch to fill.
    pub schedule_delay: Duration,
    /// Longest time a span waits for a Collector, retries included, before it
    /// goes to the legacy log.
    pub export_timeout: Duration,
    /// Most spans in one request.
    pub max_batch: usize,
    /// Most spans that wait for a Collector.
    pub max_waiting_spans: usize,
    /// Most bytes of spans that wait for a Collector.
    pub max_waiting_bytes: usize,
    /// Room for records of each recording thread, in bytes.
    pub queue_bytes: usize,
    /// When the legacy log is written.
    pub legacy_log: LegacyLogMode,
    /// Its directory.
    pub legacy_log_directory: PathBuf,
    /// Size at which the next file is begun, in bytes.
    pub legacy_log_max_bytes: u64,
    /// Actions and phases.
    pub vocabulary: Arc<Vocabulary>,
    /// Record nothing at all.
    pub disabled: bool,
}

/// OpenTelemetry variables that a user may set and this version does not honour.
const NOT_YET: [&str; 8] = [
    "OTEL_TRACES_SAMPLER",
    "OTEL_PROPAGATORS",
    "OTEL_CONFIG_FILE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
];

/// Default directory of the legacy log, the old tools' own.
const LEGACY_LOG_DIRECTORY: &str = "/tmp/trace_output_directory";

impl Config {
    /// Settings from the process environment; the second value says in words
    /// what was wrong and what is used instead.
    pub fn from_env() -> (Self, Vec<String>) {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// Settings from any source of variables.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut env = Env {
            get: &get,
            warnings: Vec::new(),
        };
        for name in NOT_YET {
            if env.text(name).is_some() {
                env.warnings
                    .push(format!("{name} is set but this version does not honour it"));
            }
        }
        let role = env.text("ROLE").unwrap_or_else(|| "serve".to_owned());
        let mut resource = env.resource_attributes();
        let node = resource
            .iter()
            .position(|a| &*a.key == "host.ip")
            .and_then(|at| match resource.remove(at).value {
                Value::Str(ip) => Some(ip.to_string()),
                _ => None,
            })
            .unwrap_or_else(node::local_ip);
        let named = resource.iter().position(|a| &*a.key == "service.name");
        let from_resource = named.and_then(|at| match resource.remove(at).value {
            Value::Str(name) => Some(name.to_string()),
            _ => None,
        });
        let service_name = env
            .text("OTEL_SERVICE_NAME")
            .or(from_resource)
            .unwrap_or_default();
        let mode = env.choice("OMNITRACE_LEGACY_LOG", "off, fallback or always", |name| {
            LegacyLogMode::named(name)
        });
        let config = Self {
            role,
            node,
            service_name,
            resource,
            exporter: env.exporter(),
            schedule_delay: env.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000),
            export_timeout: env.millis("OTEL_BSP_EXPORT_TIMEOUT", 30_000),
            max_batch: env.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 4096).max(1) as usize,
            max_waiting_spans: env.number("OTEL_BSP_MAX_QUEUE_SIZE", 1 << 20).max(1) as usize,
            max_waiting_bytes: env.number("OMNITRACE_MEMORY_LIMIT_MIB", 64).max(1) as usize
                * (1 << 20),
            // At 100,000 spans a second, the last 100 ms of one thread.
            queue_bytes: 4 << 20,
            legacy_log: mode.unwrap_or(LegacyLogMode::Fallback),
            legacy_log_directory: env
                .text("TRACE_OUTPUT_DIRECTORY")
                .unwrap_or_else(|| LEGACY_LOG_DIRECTORY.to_owned())
                .into(),
            legacy_log_max_bytes: env.number("OMNITRACE_LEGACY_LOG_MAX_MIB", 256).max(1)
                * (1 << 20),
            vocabulary: Vocabulary::omni_vllm(),
            disabled: env.flag("OTEL_SDK_DISABLED"),
        };
        (config, env.warnings)
    }

    /// Sets one resource attribute, those with a meaning of their own included.
    pub fn set_resource(&mut self, key: &str, value: &str) {
        match key {
            "service.name" => self.service_name = value.to_owned(),
            "host.ip" => self.node = value.to_owned(),
            _ => crate::value::set_attribute(&mut self.resource, key, value.into()),
        }
    }

    /// `service.name`: what was set, else the role's own.
    pub fn service_name(&self) -> String {
        if !self.service_name.is_empty() {
            return self.service_name.clone();
        }
        self.vocabulary.role_named(&self.role).map_or_else(
            || format!("vllm-{}", self.role),
            |role| self.vocabulary.role(role).service.to_string(),
        )
    }
}

struct Env<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    warnings: Vec<String>,
}

impl Env<'_> {
    /// A variable's text; empty is unset, as OpenTelemetry has it.
    fn text(&self, name: &str) -> Option<String> {
        (self.get)(name)
            .map(|v| v.trim().to_owned())
            .filter(|v| !v.is_empty())
    }

    /// The variable for traces, else the one for all signals.
    fn otlp(&self, name: &str) -> Option<(String, String)> {
        [
            format!("OTEL_EXPORTER_OTLP_TRACES_{name}"),
            format!("OTEL_EXPORTER_OTLP_{name}"),
        ]
        .into_iter()
        .find_map(|variable| self.text(&variable).map(|value| (variable, value)))
    }

    fn flag(&mut self, name: &str) -> bool {
        match self.text(name) {
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(value) if !value.eq_ignore_ascii_case("false") => {
                self.warnings.push(format!(
                    "{name}=\"{value}\" is neither true nor false: false"
                ));
                false
            }
            _ => false,
        }
    }

    fn number(&mut self, name: &str, default: u64) -> u64 {
        let Some(value) = self.text(name) else {
            return default;
        };
        value.parse().unwrap_or_else(|_| {
            self.warnings.push(format!(
                "{name}=\"{value}\" is not a whole number: {default}"
            ));
            default
        })
    }

    fn millis(&mut self, name: &str, default: u64) -> Duration {
        Duration::from_millis(self.number(name, default))
    }

    fn choice<T>(
        &mut self,
        name: &str,
        allowed: &str,
        named: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.text(name)?;
        let choice = named(&value);
        if choice.is_none() {
            self.warnings.push(format!(
                "{name}=\"{value}\" is not one of {allowed}: ignored"
            ));
        }
        choice
    }

    /// `key=value,key=value` with percent-encoded values.
    fn pairs(&mut self, name: &str, text: &str) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some((key, value)) if !key.trim().is_empty() => {
                    pairs.push((key.trim().to_owned(), percent_decode(value.trim())));
                }
                _ => self
                    .warnings
                    .push(format!("{name}: \"{pair}\" is not key=value: ignored")),
            }
        }
        pairs
    }

    fn resource_attributes(&mut self) -> Vec<Attribute> {
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        let text = self.text(name).unwrap_or_default();
        let pairs = self.pairs(name, &text);
        pairs
            .into_iter()
            .map(|(key, value)| Attribute::new(key, &*value))
            .collect()
    }

    fn exporter(&mut self) -> Option<ExporterConfig> {
        match self.text("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return None,
            Some(other) => self.warnings.push(format!(
                "OTEL_TRACES_EXPORTER=\"{other}\" is not one of otlp or none: otlp"
            )),
        }
        let protocol = self.otlp("PROTOCOL").and_then(|(variable, value)| {
            let protocol = Protocol::named(&value);
            if protocol.is_none() {
                self.warnings.push(format!(
                    "{variable}=\"{value}\" is not one of http/protobuf, http/json or grpc: http/protobuf"
                ));
            }
            protocol
        });
        let protocol = protocol.unwrap_or(Protocol::HttpProtobuf);
        let endpoint = match self.text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Some(endpoint) => endpoint,
            None => base_endpoint(self.text("OTEL_EXPORTER_OTLP_ENDPOINT"), protocol),
        };
        if let Err(reason) = check_endpoint(&endpoint) {
            self.warnings.push(format!(
                "OTLP endpoint \"{endpoint}\" {reason}: nothing is exported"
            ));
            return None;
        }
        let gzip = match self.otlp("COMPRESSION") {
            None => false,
            Some((_, value)) if value == "none" => false,
            Some((_, value)) if value == "gzip" => true,
            Some((variable, value)) => {
                self.warnings
                    .push(format!("{variable}=\"{value}\" is not gzip or none: none"));
                false
            }
        };
        let timeout = self
            .otlp("TIMEOUT")
            .map_or("OTEL_EXPORTER_OTLP_TIMEOUT".into(), |(v, _)| v);
        let (variable, text) = self.otlp("HEADERS").unwrap_or_default();
        let mut headers = self.pairs(&variable, &text);
        headers.retain(|(name, value)| {
            let valid = name.parse::<HeaderName>().is_ok() && value.parse::<HeaderValue>().is_ok();
            if !valid {
                self.warnings.push(format!(
                    "{variable}: \"{name}\" is not an HTTP header: ignored"
                ));
            }
            valid
        });
        Some(ExporterConfig {
            endpoint,
            protocol,
            headers,
            gzip,
            timeout: self.millis(&timeout, 10_000),
        })
    }
}

/// The traces endpoint that follows from a base endpoint, as the OTLP exporter
/// specification builds it.
pub fn base_endpoint(base: Option<String>, protocol: Protocol) -> String {
    match (base, protocol) {
        (Some(base), Protocol::Grpc) => base,
        (None, Protocol::Grpc) => "http://localhost:4317".to_owned(),
        (base, _) => {
            let base = base.unwrap_or_else(|| "http://localhost:4318".to_owned());
            format!("{}/v1/traces", base.trim_end_matches('/'))
        }
    }
}

/// Whether an endpoint is a URL that can be exported to.
pub fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(endpoint).map_err(|e| format!("is not a URL ({e})"))?;
    // The parser also takes "http:/host".
    let begins = |scheme| {
        endpoint
            .get(..str::len(scheme))
            .is_some_and(|s| s.eq_ignore_ascii_case(scheme))
    };
    if !(begins("http://") || begins("https://")) || url.host_str().is_none() {
        return Err("does not begin with http:// or https:// and a host".to_owned());
    }
    Ok(())
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[at], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> (Config, Vec<String>) {
        Config::from_vars(|name| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn nothing_set_means_opentelemetrys_defaults() {
        let (config, warnings) = read(&[("OTEL_RESOURCE_ATTRIBUTES", "host.ip=10.1.2.3")]);
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(
            config.exporter,
            Some(ExporterConfig {
                endpoint: "http://localhost:4318/v1/traces".into(),
                protocol: Protocol::HttpProtobuf,
                headers: vec![],
                gzip: false,
                timeout: Duration::from_secs(10),
            })
        );
        assert_eq!(
            (config.node.as_str(), config.service_name().as_str()),
            ("10.1.2.3", "vllm-serve")
        );
        assert_eq!(config.legacy_log, LegacyLogMode::Fallback);
    }

    #[test]
    fn the_traces_variable_wins_and_is_used_as_it_is() {
        let (config, _) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://base:1/"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:2/x"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%20c, d=e"),
            ("ROLE", "prefill"),
        ]);
        let exporter = config.exporter.clone().unwrap();
        assert_eq!(exporter.endpoint, "http://traces:2/x");
        assert_eq!(
            exporter.headers,
            [("a".into(), "b c".into()), ("d".into(), "e".into())]
        );
        assert_eq!(config.service_name(), "vllm-prefill");
    }

    #[test]
    fn wrong_values_are_named_and_replaced() {
        let (config, warnings) = read(&[
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
            ("OMNITRACE_LEGACY_LOG", "sometimes"),
            ("OTEL_TRACES_SAMPLER", "always_off"),
        ]);
        assert_eq!(config.schedule_delay, Duration::from_secs(5));
        assert_eq!(config.exporter, None);
        assert_eq!(
            warnings,
            [
                "OTEL_TRACES_SAMPLER is set but this version does not honour it",
                "OMNITRACE_LEGACY_LOG=\"sometimes\" is not one of off, fallback or always: ignored",
                "OTEL_EXPORTER_OTLP_PROTOCOL=\"carrier-pigeon\" is not one of http/protobuf, http/json or grpc: http/protobuf",
                "OTLP endpoint \"localhost:4318/v1/traces\" does not begin with http:// or https:// and a host: nothing is exported",
                "OTEL_BSP_SCHEDULE_DELAY=\"soon\" is not a whole number: 5000",
            ]
        );
    }
}
