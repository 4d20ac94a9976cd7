//! The table: on the terminal, and in `target/bench` as JSON and Markdown.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::measure::Cost;

const TITLE: &str = "Recording from Rust: ns of CPU time per span with 6 attributes, or per action; \
    lost: at 100,000 records a second with the default queue; ×: of omnitrace's span on as many \
    threads, tracing-opentelemetry's of the layer's";

/// Crates whose version says what was compared.
const CRATES: [&str; 6] = [
    "fastrace",
    "omnitrace",
    "opentelemetry-otlp",
    "opentelemetry_sdk",
    "tracing",
    "tracing-opentelemetry",
];

/// Where and with what it was measured.
#[derive(Serialize)]
pub(crate) struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    rustc: String,
    versions: BTreeMap<String, String>,
}

impl Machine {
    pub(crate) fn this() -> Result<Self, Box<dyn Error>> {
        let rustc = Command::new("rustc").arg("--version").output()?;
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            date: chrono::Utc::now().format("%Y-%m-%d").to_string(),
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            rustc: String::from_utf8_lossy(&rustc.stdout).trim_end().to_owned(),
            versions: versions()?,
        })
    }

    fn line(&self) -> String {
        let versions: Vec<String> = self
            .versions
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        let Self {
            date,
            cpu,
            cores,
            rustc,
            ..
        } = self;
        format!(
            "{date}; {cpu}, {cores} cores; {rustc}; {}",
            versions.join(", ")
        )
    }
}

fn versions() -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let lock: toml::Table = std::fs::read_to_string(workspace().join("Cargo.lock"))?.parse()?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let versions = packages.into_iter().flatten().filter_map(|package| {
        let text = |key| Some(package.get(key)?.as_str()?.to_owned());
        Some((text("name")?, text("version")?))
    });
    Ok(versions
        .filter(|(name, _)| CRATES.contains(&name.as_str()))
        .collect())
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// One contestant's runs.
#[derive(Serialize)]
pub(crate) struct Row {
    name: String,
    caller_ns: f64,
    process_ns: f64,
    /// With its default queue.
    lost: f64,
    /// The row that the ratios are to.
    beside: &'static str,
    caller_ratio: f64,
    process_ratio: f64,
    rounds: Vec<Cost>,
    with_default_queue: Cost,
}

impl Row {
    pub(crate) fn new(
        name: &str,
        beside: &'static str,
        rounds: Vec<Cost>,
        with_default_queue: Cost,
    ) -> Self {
        Self {
            name: name.to_owned(),
            caller_ns: median(rounds.iter().map(|cost| cost.caller_ns)),
            process_ns: median(rounds.iter().map(|cost| cost.process_ns)),
            lost: with_default_queue.lost(),
            beside,
            caller_ratio: 1.0,
            process_ratio: 1.0,
            rounds,
            with_default_queue,
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// All rows, with what they were measured on.
#[derive(Serialize)]
pub(crate) struct Report {
    title: &'static str,
    machine: Machine,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(machine: Machine, mut rows: Vec<Row>) -> Self {
        let costs: BTreeMap<_, _> = rows
            .iter()
            .map(|row| (row.name.clone(), row.rounds.clone()))
            .collect();
        for row in &mut rows {
            let Some(ours) = costs.get(row.beside) else {
                continue;
            };
            let pairs = || row.rounds.iter().zip(ours);
            row.caller_ratio = median(pairs().map(|(cost, ours)| cost.caller_ns / ours.caller_ns));
            row.process_ratio =
                median(pairs().map(|(cost, ours)| cost.process_ns / ours.process_ns));
        }
        Self {
            title: TITLE,
            machine,
            rows,
        }
    }

    /// Prints the table and writes the files.
    pub(crate) fn publish(&self) -> Result<(), Box<dyn Error>> {
        for row in &self.rows {
            let lost: f64 = row.rounds.iter().map(Cost::lost).fold(0.0, f64::max);
            if lost > 0.0 {
                eprintln!(
                    "{} lost {:.1} % with a large queue too",
                    row.name,
                    lost * 100.0
                );
            }
        }
        let directory = workspace().join("target/bench");
        std::fs::create_dir_all(&directory)?;
        std::fs::write(
            directory.join("rust.json"),
            serde_json::to_string_pretty(self)?,
        )?;
        std::fs::write(directory.join("rust.md"), self.markdown()?)?;
        println!("{}", self.table()?);
        Ok(())
    }

    fn table(&self) -> Result<String, std::fmt::Error> {
        let mut text = format!("{}\n{}\n\n", self.title, self.machine.line());
        let head = ["", "caller", "process", "lost", "caller ×", "process ×"];
        for cells in std::iter::once(head.map(str::to_owned)).chain(self.rows.iter().map(cells)) {
            let [name, numbers @ ..] = cells;
            write!(text, "{name:29}")?;
            for number in numbers {
                write!(text, "{number:>11}")?;
            }
            text.push('\n');
        }
        Ok(text)
    }

    fn markdown(&self) -> Result<String, std::fmt::Error> {
        let mut text = format!("{}. {}.\n\n", self.title, self.machine.line());
        text.push_str("| | caller | process | lost | caller × | process × |\n");
        text.push_str("|---|---:|---:|---:|---:|---:|\n");
        for row in &self.rows {
            writeln!(text, "| {} |", cells(row).join(" | "))?;
        }
        Ok(text)
    }
}

fn cells(row: &Row) -> [String; 6] {
    [
        row.name.clone(),
        format!("{:.0}", row.caller_ns),
        format!("{:.0}", row.process_ns),
        percent(row.lost),
        format!("{:.1}", row.caller_ratio),
        format!("{:.1}", row.process_ratio),
    ]
}

fn percent(part: f64) -> String {
    match part {
        0.0 => "0".to_owned(),
        0.0..0.001 => "< 0.1 %".to_owned(),
        _ => format!("{:.1} %", part * 100.0),
    }
}
