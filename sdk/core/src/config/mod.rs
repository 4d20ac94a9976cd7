//! Settings of one process, from the environment and from the host program.
//!
//! Every variable, its default and what a wrong value does are in the table of
//! `py-bindings/README.md`.

mod env;
mod exporter;
pub mod limits;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::node;
use crate::propagation::{Propagator, Propagators};
use crate::sampler::Sampler;
use crate::value::{Attribute, Value};
use crate::vocabulary::Vocabulary;

use env::Env;
pub use env::variable;
pub use exporter::{ExporterConfig, MetricsConfig, Protocol, check_endpoint, is_reserved_header};
pub use limits::Limits;
pub use tls::{FileError, NobodyTrusted, Tls, TlsError};

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

/// Whether every span is written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleMode {
    /// No.
    Off,
    /// Yes, besides what becomes of it otherwise.
    Beside,
    /// Yes, and a span that has been written is delivered.
    Alone,
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
    /// None: nothing is sent to a Collector.
    pub exporter: Option<ExporterConfig>,
    /// None: the books are not exported as metrics.
    pub metrics: Option<MetricsConfig>,
    /// Whether every span is written to standard output.
    pub console: ConsoleMode,
    /// Decides where a trace begins whether it is recorded.
    pub sampler: Sampler,
    /// Formats in which context comes and goes.
    pub propagators: Propagators,
    /// How much of a span is kept.
    pub limits: Limits,
    /// Which of our own messages the host gets.
    pub log_level: LevelFilter,
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

/// Default directory of the legacy log, the old tools' own.
const LEGACY_LOG_DIRECTORY: &str = "/tmp/trace_output_directory";

const LEGACY_LOG_MODES: [(&str, LegacyLogMode); 3] = [
    ("off", LegacyLogMode::Off),
    ("fallback", LegacyLogMode::Fallback),
    ("always", LegacyLogMode::Always),
];

const PROPAGATORS: [(&str, Propagator); 4] = [
    ("tracecontext", Propagator::TraceContext),
    ("baggage", Propagator::Baggage),
    ("b3", Propagator::B3),
    ("b3multi", Propagator::B3Multi),
];

const LOG_LEVELS: [(&str, LevelFilter); 6] = [
    ("none", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

impl Config {
    /// Settings from the process environment; the second value says in words
    /// what was wrong and what is used instead.
    pub fn from_env() -> (Self, Vec<String>) {
        Self::from_vars(variable)
    }

    /// Settings from any source of variables.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut env = Env::new(&get);
        if let Some(file) = env.text("OTEL_CONFIG_FILE") {
            let what = "is a configuration file, which omnitrace does not read";
            env.wrong("OTEL_CONFIG_FILE", &file, what, "the other variables count");
        }
        let role = env.text("ROLE").unwrap_or_else(|| "serve".to_owned());
        let mut resource = resource_attributes(&mut env);
        let node = take_text(&mut resource, "host.ip").unwrap_or_else(node::local_ip);
        let from_resource = take_text(&mut resource, "service.name");
        let service_name = env.text("OTEL_SERVICE_NAME").or(from_resource);
        let (exporter, console) = exporter::read(&mut env);
        let metrics = exporter::read_metrics(&mut env, exporter.is_some());
        let (max_batch, max_waiting_spans) = sizes(&mut env);
        let config = Self {
            role,
            node,
            service_name: service_name.unwrap_or_default(),
            resource,
            exporter,
            metrics,
            console,
            sampler: sampler(&mut env),
            propagators: propagators(&mut env),
            limits: Limits::read(&mut env),
            log_level: env.choice("OTEL_LOG_LEVEL", &LOG_LEVELS, LevelFilter::INFO),
            schedule_delay: env.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000),
            export_timeout: env.timeout("OTEL_BSP_EXPORT_TIMEOUT", 30_000),
            max_batch,
            max_waiting_spans,
            max_waiting_bytes: env
                .count("OMNITRACE_MEMORY_LIMIT_MIB", 64)
                // The other half is for spans that become lines of the legacy log, and
                // what the heap keeps between them.
                .saturating_mul(1 << 19),
            // At 100,000 spans a second, the last 100 ms of one thread.
            queue_bytes: 4 << 20,
            legacy_log: env.choice(
                "OMNITRACE_LEGACY_LOG",
                &LEGACY_LOG_MODES,
                LegacyLogMode::Fallback,
            ),
            legacy_log_directory: env
                .text("TRACE_OUTPUT_DIRECTORY")
                .unwrap_or_else(|| LEGACY_LOG_DIRECTORY.to_owned())
                .into(),
            legacy_log_max_bytes: env
                .positive("OMNITRACE_LEGACY_LOG_MAX_MIB", 256)
                .saturating_mul(1 << 20),
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

/// Most spans in a request, and most that wait. The batch is larger than
/// OpenTelemetry's 512 unless told, because what a request costs besides its spans is
/// shared by them.
fn sizes(env: &mut Env<'_>) -> (usize, usize) {
    let (batch, queue) = ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_MAX_QUEUE_SIZE");
    let most = env.count(queue, 1 << 20);
    let size = env.count(batch, 4096);
    if size <= most {
        return (size, most);
    }
    if let Some(value) = env.text(batch) {
        let what = format!("is more than {queue}, the spans that may wait");
        env.wrong(batch, &value, &what, most);
    }
    (most, most)
}

fn sampler(env: &mut Env<'_>) -> Sampler {
    const NAME: &str = "OTEL_TRACES_SAMPLER";
    const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
    const DEFAULT: &str = "parentbased_always_on";
    let said_before = env.warnings.len();
    let name = env.choice(NAME, &Sampler::NAMES.map(|name| (name, name)), DEFAULT);
    let mut ratio = 1.0;
    if name.ends_with("traceidratio") {
        let is_ratio = |r: &f64| Sampler::named(name, *r).is_some();
        ratio = env.parsed(ARGUMENT, "is not a ratio from 0 to 1", ratio, is_ratio);
    } else if let Some(value) = env.text(ARGUMENT)
        // Where the sampler is unknown the argument may well belong to it.
        && env.warnings.len() == said_before
    {
        let what = format!("has no effect unless {NAME} is a traceidratio");
        env.wrong(ARGUMENT, &value, &what, "ignored");
    }
    Sampler::named(name, ratio).unwrap_or_default()
}

fn propagators(env: &mut Env<'_>) -> Propagators {
    let default = [Propagator::TraceContext, Propagator::Baggage];
    let text = "tracecontext,baggage";
    Propagators::new(env.list("OTEL_PROPAGATORS", &PROPAGATORS, &default, text))
}

fn resource_attributes(env: &mut Env<'_>) -> Vec<Attribute> {
    let name = "OTEL_RESOURCE_ATTRIBUTES";
    let text = env.text(name).unwrap_or_default();
    let pairs = env.pairs(name, &text, |_, pair| format!("\"{pair}\""));
    pairs
        .into_iter()
        .map(|(key, value)| Attribute::new(key, &*value))
        .collect()
}

/// Takes an attribute out that has a place of its own.
fn take_text(attributes: &mut Vec<Attribute>, key: &str) -> Option<String> {
    let at = attributes.iter().position(|a| &*a.key == key)?;
    match attributes.remove(at).value {
        Value::Str(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
