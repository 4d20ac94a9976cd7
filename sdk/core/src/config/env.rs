//! Variables and what OpenTelemetry lets them say: empty is unset, only "true" is
//! true, and what cannot be used is named once and replaced by the default.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use super::exporter::Signal;

/// A timeout of 0 means none (OpenTelemetry specification, "Environment Variables",
/// "Timeout"); these are 24 days.
const NO_LIMIT: Duration = Duration::from_millis(i32::MAX as u64);

/// A variable of this process; bytes that are not UTF-8 are replaced, so that a wrong
/// value is not taken for none.
pub fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Reads variables from anywhere and keeps what is to be said about them.
pub(super) struct Env<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Env<'a> {
    pub(super) fn new(get: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            get,
            warnings: Vec::new(),
        }
    }

    /// A variable's text; empty is unset.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        (self.get)(name)
            .map(|v| v.trim().to_owned())
            .filter(|v| !v.is_empty())
    }

    /// The signal's own variable, else the one for all signals, with its name.
    pub(super) fn otlp(&self, signal: Signal, name: &str) -> Option<(String, String)> {
        [
            format!("OTEL_EXPORTER_OTLP_{}_{name}", signal.word()),
            format!("OTEL_EXPORTER_OTLP_{name}"),
        ]
        .into_iter()
        .find_map(|variable| self.text(&variable).map(|value| (variable, value)))
    }

    /// Says what is wrong with a value and what is used `instead`.
    pub(super) fn wrong(&mut self, name: &str, value: &str, what: &str, instead: impl Display) {
        self.say(format!("{name}=\"{value}\" {what}: {instead}"));
    }

    /// What more than one signal reads is said once.
    pub(super) fn say(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        match self.text(name) {
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(value) if !value.eq_ignore_ascii_case("false") => {
                self.wrong(name, &value, "is neither true nor false", false);
                false
            }
            _ => false,
        }
    }

    /// A value that `FromStr` reads and `holds` allows.
    pub(super) fn parsed<T: FromStr + Display>(
        &mut self,
        name: &str,
        what: &str,
        default: T,
        holds: impl Fn(&T) -> bool,
    ) -> T {
        let Some(value) = self.text(name) else {
            return default;
        };
        match value.parse().ok().filter(holds) {
            Some(parsed) => parsed,
            None => {
                self.wrong(name, &value, what, &default);
                default
            }
        }
    }

    pub(super) fn number(&mut self, name: &str, default: u64) -> u64 {
        self.parsed(name, "is not a whole number", default, |_| true)
    }

    pub(super) fn positive(&mut self, name: &str, default: u64) -> u64 {
        self.parsed(name, "is not a whole number above 0", default, |n| *n > 0)
    }

    /// The same for what is counted in memory.
    pub(super) fn count(&mut self, name: &str, default: usize) -> usize {
        let count = self.positive(name, default as u64);
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    pub(super) fn millis(&mut self, name: &str, default: u64) -> Duration {
        Duration::from_millis(self.number(name, default)).min(NO_LIMIT)
    }

    /// Milliseconds that something may last; 0 is no limit.
    pub(super) fn timeout(&mut self, name: &str, default: u64) -> Duration {
        let timeout = self.millis(name, default);
        if timeout.is_zero() { NO_LIMIT } else { timeout }
    }

    /// One of a few words, in any case.
    pub(super) fn choice<T: Copy + PartialEq>(
        &mut self,
        name: &str,
        choices: &[(&str, T)],
        default: T,
    ) -> T {
        let Some(value) = self.text(name) else {
            return default;
        };
        if let Some(choice) = named(choices, &value) {
            return choice;
        }
        let instead = choices.iter().find(|(_, choice)| *choice == default);
        let what = format!(
            "is not one of {}",
            words(choices.iter().map(|(word, _)| *word))
        );
        self.wrong(name, &value, &what, instead.map_or("", |(word, _)| word));
        default
    }

    /// Several of a few words, separated by commas, in any case; `none` alone is none.
    pub(super) fn list<T: Copy>(
        &mut self,
        name: &str,
        choices: &[(&str, T)],
        default: &[T],
        default_text: &str,
    ) -> Vec<T> {
        let Some(value) = self.text(name) else {
            return default.to_vec();
        };
        let given: Vec<&str> = value.split(',').map(str::trim).collect();
        if let [only] = given[..]
            && only.eq_ignore_ascii_case("none")
        {
            return Vec::new();
        }
        let known = given.iter().filter_map(|word| named(choices, word));
        let known: Vec<T> = known.collect();
        let instead = match known.is_empty() {
            true => default_text,
            false => "left out",
        };
        let allowed = words(choices.iter().map(|(word, _)| *word).chain(["none"]));
        for word in given.iter().filter(|w| !w.is_empty()) {
            if word.eq_ignore_ascii_case("none") {
                self.warnings
                    .push(format!("{name}: \"none\" stands beside others: left out"));
            } else if named(choices, word).is_none() {
                self.warnings.push(format!(
                    "{name}: \"{word}\" is not one of {allowed}: {instead}"
                ));
            }
        }
        if known.is_empty() {
            default.to_vec()
        } else {
            known
        }
    }

    /// `key=value,key=value` with percent-encoded values. What is no such pair is named
    /// by `name_of`, given its place from 1 and its text.
    pub(super) fn pairs(
        &mut self,
        variable: &str,
        text: &str,
        name_of: impl Fn(usize, &str) -> String,
    ) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        let entries = text.split(',').map(str::trim).enumerate();
        for (at, pair) in entries.filter(|(_, pair)| !pair.is_empty()) {
            match pair.split_once('=') {
                Some((key, value)) if !key.trim().is_empty() => {
                    pairs.push((key.trim().to_owned(), percent_decode(value.trim())));
                }
                _ => self.warnings.push(format!(
                    "{variable}: {} is not key=value: ignored",
                    name_of(at + 1, pair)
                )),
            }
        }
        pairs
    }
}

fn named<T: Copy>(choices: &[(&str, T)], word: &str) -> Option<T> {
    let found = choices.iter().find(|(w, _)| w.eq_ignore_ascii_case(word));
    found.map(|(_, choice)| *choice)
}

/// "a, b or c".
fn words<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
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
