//! `omnitrace.init`, `flush`, `shutdown`, `stats`, and what a fork needs.

use std::collections::HashMap;
use std::time::Duration;

use omnitrace::Config;
use omnitrace::config::variable;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};

use crate::attributes::text;
use crate::process;

/// Keyword of `init` → the variable that it stands in for.
const OVERRIDES: [(&str, &str); 34] = [
    ("service_name", "OTEL_SERVICE_NAME"),
    ("role", "ROLE"),
    ("endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ("traces_endpoint", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    ("protocol", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ("headers", "OTEL_EXPORTER_OTLP_HEADERS"),
    ("compression", "OTEL_EXPORTER_OTLP_COMPRESSION"),
    ("timeout", "OTEL_EXPORTER_OTLP_TIMEOUT"),
    ("insecure", "OTEL_EXPORTER_OTLP_INSECURE"),
    ("certificate", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
    (
        "client_certificate",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    ),
    ("client_key", "OTEL_EXPORTER_OTLP_CLIENT_KEY"),
    ("exporter", "OTEL_TRACES_EXPORTER"),
    ("metrics_exporter", "OTEL_METRICS_EXPORTER"),
    ("metric_export_interval", "OTEL_METRIC_EXPORT_INTERVAL"),
    ("sampler", "OTEL_TRACES_SAMPLER"),
    ("sampler_arg", "OTEL_TRACES_SAMPLER_ARG"),
    ("propagators", "OTEL_PROPAGATORS"),
    ("resource_attributes", "OTEL_RESOURCE_ATTRIBUTES"),
    ("attribute_count_limit", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
    (
        "attribute_value_length_limit",
        "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    ),
    ("event_count_limit", "OTEL_SPAN_EVENT_COUNT_LIMIT"),
    ("link_count_limit", "OTEL_SPAN_LINK_COUNT_LIMIT"),
    (
        "event_attribute_count_limit",
        "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    ),
    (
        "link_attribute_count_limit",
        "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    ),
    ("schedule_delay", "OTEL_BSP_SCHEDULE_DELAY"),
    ("export_timeout", "OTEL_BSP_EXPORT_TIMEOUT"),
    ("max_export_batch_size", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
    ("max_queue_size", "OTEL_BSP_MAX_QUEUE_SIZE"),
    ("memory_limit_mib", "OMNITRACE_MEMORY_LIMIT_MIB"),
    ("legacy_log", "OMNITRACE_LEGACY_LOG"),
    ("legacy_log_directory", "TRACE_OUTPUT_DIRECTORY"),
    ("log_level", "OTEL_LOG_LEVEL"),
    ("disabled", "OTEL_SDK_DISABLED"),
];
/// Of these, the ones given in seconds that the variable takes in milliseconds.
const SECONDS: [&str; 4] = [
    "timeout",
    "metric_export_interval",
    "schedule_delay",
    "export_timeout",
];

/// Sets this process up; what is not given comes from the environment.
#[pyfunction]
#[pyo3(signature = (**overrides))]
pub(crate) fn init(py: Python<'_>, overrides: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    let mut given: HashMap<&str, String> = HashMap::new();
    for (key, value) in overrides.into_iter().flatten() {
        let key = text(&key).into_owned();
        let Some((_, variable)) = OVERRIDES.iter().find(|(name, _)| *name == key) else {
            let names: Vec<&str> = OVERRIDES.iter().map(|(name, _)| *name).collect();
            return Err(PyTypeError::new_err(format!(
                "init() got an unexpected keyword argument '{key}'; it takes {}",
                names.join(", ")
            )));
        };
        if value.is_none() {
            continue;
        }
        given.insert(variable, override_text(&key, &value)?);
    }
    let (config, warnings) = Config::from_vars(|name| {
        // A variable for traces alone does not outweigh the argument for all signals.
        let general = name.replacen("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_", 1);
        match given.get(name) {
            Some(value) => Some(value.clone()),
            None if given.contains_key(general.as_str()) => None,
            None => variable(name),
        }
    });
    // A wrong argument is a mistake in the calling code; a wrong variable is not.
    let ours = |warning: &&String| {
        given.keys().any(|variable| {
            let rest = warning.strip_prefix(variable);
            rest.is_some_and(|rest| rest.starts_with(['=', ':']))
        })
    };
    if let Some(warning) = warnings.iter().find(ours) {
        // What is used instead does not matter: nothing is.
        let mistake = warning.rsplit_once(": ").map_or(&**warning, |(m, _)| m);
        return Err(PyValueError::new_err(format!(
            "init(): {}",
            by_keyword(mistake)
        )));
    }
    process::configure(py, config);
    warnings
        .iter()
        .for_each(|w| tracing::warn!(target: "omnitrace", "{w}"));
    Ok(())
}

/// A message with each variable named as `init` names it.
fn by_keyword(message: &str) -> String {
    let mut names = OVERRIDES;
    // Some begin with the whole name of another.
    names.sort_by_key(|(_, variable)| std::cmp::Reverse(variable.len()));
    let message = message.to_owned();
    names.iter().fold(message, |message, (keyword, variable)| {
        // `ROLE` alone is part of other words.
        match *variable {
            "ROLE" => message,
            _ => message.replace(variable, keyword),
        }
    })
}

fn override_text(key: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    if SECONDS.contains(&key) {
        let seconds: f64 = value
            .extract()
            .map_err(|_| PyTypeError::new_err(format!("{key} must be a number of seconds")))?;
        if !(0.0..=1e9).contains(&seconds) {
            return Err(PyValueError::new_err(format!(
                "{key} must be 0 or more seconds"
            )));
        }
        return Ok(format!("{}", (seconds * 1000.0).round() as u64));
    }
    if let Ok(mapping) = value.cast::<PyMapping>() {
        let mut pairs = Vec::new();
        for item in mapping.items()?.iter() {
            let (key, value) = (item.get_item(0)?, item.get_item(1)?);
            pairs.push(format!("{}={}", text(&key), percent_encode(&text(&value))));
        }
        return Ok(pairs.join(","));
    }
    Ok(text(value).into_owned())
}

/// Protects what separates pairs in the variable's text, and blanks at the ends.
fn percent_encode(text: &str) -> String {
    text.replace('%', "%25")
        .replace(',', "%2C")
        .replace(' ', "%20")
}

/// Waits until everything recorded so far is exported or in the legacy log.
#[pyfunction]
#[pyo3(signature = (timeout=5.0))]
pub(crate) fn flush(py: Python<'_>, timeout: f64) -> bool {
    process::flush(py, seconds(timeout))
}

/// Delivers what there is and stops recording.
#[pyfunction]
#[pyo3(signature = (timeout=2.0))]
pub(crate) fn shutdown(py: Python<'_>, timeout: f64) {
    process::end(py, seconds(timeout));
}

/// A year is as good as for ever; what is no number of seconds is no time at all.
fn seconds(timeout: f64) -> Duration {
    Duration::try_from_secs_f64(timeout.min(365.0 * 86_400.0)).unwrap_or(Duration::ZERO)
}

/// The books of this process.
#[pyfunction]
pub(crate) fn stats(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let stats = process::stats();
    let dropped = PyDict::new(py);
    for (reason, count) in &stats.dropped {
        dropped.set_item(reason, count)?;
    }
    let books = PyDict::new(py);
    books.set_item("created", stats.created)?;
    books.set_item("exported", stats.exported)?;
    books.set_item("in_flight", stats.in_flight)?;
    books.set_item("logged", stats.logged)?;
    books.set_item("dropped", dropped)?;
    books.set_item("events", stats.events)?;
    books.set_item("events_lost", stats.events_lost)?;
    books.set_item("events_loose", stats.events_loose)?;
    books.set_item("unsampled", stats.unsampled)?;
    books.set_item("contradictory", stats.contradictory)?;
    books.set_item("open_requests", stats.open_requests)?;
    books.set_item("last_error", stats.last_error)?;
    Ok(books)
}

/// Called by a thread that is about to fork.
#[pyfunction]
#[pyo3(name = "_before_fork")]
pub(crate) fn before_fork(py: Python<'_>) {
    process::before_fork(py);
}

/// Called by the same thread after it, whether there is a child or not.
#[pyfunction]
#[pyo3(name = "_after_fork_in_parent")]
pub(crate) fn after_fork_in_parent(py: Python<'_>) {
    process::after_fork_in_parent(py);
}

/// Called in a forked child before anything else runs there.
#[pyfunction]
#[pyo3(name = "_after_fork_in_child")]
pub(crate) fn after_fork_in_child() {
    process::forget_parent();
}
