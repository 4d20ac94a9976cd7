//! The statistics for a person: tables whose columns stand in line.

use std::io::{self, Write};

use omnitrace_offline::statistics::{OnPath, Request, RowMillis, Stop, Summary};

/// Phases of a request's critical path that are shown.
const SHOWN: usize = 3;

pub(super) fn write(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{} requests, {} complete, {} counted (the first and the last {} are left out)",
        summary.requests, summary.complete, summary.counted, summary.skipped_at_each_end
    )?;
    let mut latencies = Table::new(&["Latency, ms", "role"], &NUMBERS);
    if summary.counted > 0 {
        latencies.row(
            ["whole request".into(), String::new()],
            numbers(&summary.whole),
        );
    }
    for latency in &summary.latencies {
        let head = [latency.name.clone(), latency.role.clone()];
        latencies.row(head, numbers(&latency.numbers));
    }
    latencies.write(out)?;
    let columns: Vec<&str> = ["path"].iter().chain(&NUMBERS).copied().collect();
    let mut phases = Table::new(
        &["Phase, ms (path: share of the critical path)", "role"],
        &columns,
    );
    for phase in &summary.phases {
        let name = format!("{}{}", "  ".repeat(phase.depth), phase.name);
        let path = format!("{:.1}%", phase.critical_path * 100.0);
        let values = std::iter::once(path).chain(numbers(&phase.numbers));
        phases.row([name, phase.role.clone()], values);
    }
    phases.write(out)?;
    let mut nodes = Table::new(&["Phase on a node, ms", "node"], &NUMBERS);
    for phase in summary.phases.iter().filter(|p| p.nodes.len() > 1) {
        for on in &phase.nodes {
            let node = format!("{} {}", phase.role, on.node);
            nodes.row(
                [phase.name.clone(), node.trim_end().into()],
                numbers(&on.numbers),
            );
        }
    }
    nodes.write(out)?;
    let mut calls = Table::new(&["Between nodes, ms", "from", "to"], &NUMBERS);
    for call in &summary.calls {
        let head = [call.what.clone(), call.from.clone(), call.to.clone()];
        calls.row(head, numbers(&call.numbers));
    }
    calls.write(out)?;
    throughput(summary, out)?;
    requests("Slowest requests", &summary.slowest, out)?;
    requests("Requests asked for", &summary.chosen, out)?;
    stops("Incomplete requests stop after", &summary.incomplete, out)?;
    stops("Requests without", &summary.partial, out)?;
    stops(
        "Phases that would end before they begin",
        &summary.contradictory,
        out,
    )
}

const NUMBERS: [&str; 8] = ["count", "avg", "min", "max", "p50", "p90", "p95", "p99"];

fn numbers(of: &RowMillis) -> impl Iterator<Item = String> + use<> {
    let values = [
        of.avg_ms, of.min_ms, of.max_ms, of.p50_ms, of.p90_ms, of.p95_ms, of.p99_ms,
    ];
    std::iter::once(of.count.to_string()).chain(values.into_iter().map(millis))
}

fn millis(value: f64) -> String {
    format!("{value:.3}")
}

fn throughput(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    let Some(first) = summary.throughput.first() else {
        return Ok(());
    };
    let head = format!("Throughput, from {}", date(first.time));
    let columns = ["started", "finished", "finished/s", "avg ms", "avg TTFT ms"];
    let mut table = Table::new(&[&head], &columns);
    let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), millis);
    for step in &summary.throughput {
        let at = step.time - first.time;
        table.row(
            [format!("{at:.1} s to {:.1} s", at + step.seconds)],
            [
                step.started.to_string(),
                step.finished.to_string(),
                format!("{:.2}", step.finished_per_second),
                optional(step.avg_ms),
                optional(step.avg_ttft_ms),
            ],
        );
    }
    table.write(out)
}

fn date(seconds: f64) -> String {
    omnitrace_offline::clock::date((seconds * 1e9) as i64) + " UTC"
}

fn requests(title: &str, requests: &[Request], out: &mut impl Write) -> io::Result<()> {
    let why = "slow because of (own ms, average)";
    let mut table = Table::new(&[title, "trace", why], &["ms", "TTFT ms"]);
    let part = |p: &OnPath| format!("{} ({:.3}, {:.3})", p.phase, p.ms, p.avg_ms);
    for request in requests {
        // The first exceeds the average by the most; what exceeds it not at all says nothing.
        let path = request.path.iter().take(SHOWN);
        let slow: Vec<String> = path.filter(|p| p.ms > p.avg_ms).map(part).collect();
        table.row(
            [
                request.id.clone(),
                request.trace_id.clone(),
                slow.join(", "),
            ],
            [
                millis(request.duration_ms),
                request.ttft_ms.map_or_else(|| "-".to_owned(), millis),
            ],
        );
    }
    table.write(out)
}

fn stops(title: &str, stops: &[Stop], out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(&[title, "for example"], &["count"]);
    for stop in stops {
        table.row(
            [stop.at.clone(), stop.example.clone()],
            [stop.count.to_string()],
        );
    }
    table.write(out)
}

/// Text columns to the left, numbers to the right.
struct Table {
    texts: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(texts: &[&str], numbers: &[&str]) -> Self {
        let head = texts.iter().chain(numbers).map(|t| (*t).to_owned());
        Self {
            texts: texts.len(),
            rows: vec![head.collect()],
        }
    }

    fn row<const N: usize>(
        &mut self,
        texts: [String; N],
        numbers: impl IntoIterator<Item = String>,
    ) {
        self.rows.push(texts.into_iter().chain(numbers).collect());
    }

    /// Nothing where there is nothing under the head.
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        if self.rows.len() < 2 {
            return Ok(());
        }
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        writeln!(out)?;
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                if column < self.texts {
                    line += &format!("{gap}{cell:<width$}");
                } else {
                    line += &format!("{gap}{cell:>width$}");
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
