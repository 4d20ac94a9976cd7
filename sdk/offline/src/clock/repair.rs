//! Times on one clock.

use omnitrace::span::Span;
use omnitrace::value::Attribute;

use super::graph::Course;
use super::report::Nanos;
use super::samples::{Host, HostInfo};

/// Seconds that were added to a span's times to bring them onto the reference's clock.
pub const OFFSET: &str = "omnitrace.clock.offset";
/// Seconds by which that may be wrong, either way.
pub const UNCERTAINTY: &str = "omnitrace.clock.uncertainty";

/// Which clock shows what.
#[derive(Debug, Default)]
pub struct Repair {
    hosts: Vec<HostInfo>,
    courses: Vec<Course>,
}

/// What a clock was found to be ahead of the reference's by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Nanoseconds; negative for a clock that is behind.
    pub ahead: i64,
    /// Nanoseconds; none where messages went one way only, and nothing bounds it.
    pub uncertainty: Option<u64>,
}

impl Repair {
    pub(super) fn new(hosts: Vec<HostInfo>, courses: Vec<Course>) -> Self {
        Self { hosts, courses }
    }

    fn course(&self, host: Host) -> Option<&Course> {
        self.courses.get(host.0 as usize)
    }

    /// Whether any clock is moved.
    pub fn moves(&self) -> bool {
        self.courses.iter().any(|c| c.moved)
    }

    /// The reference's time when `host`'s clock shows `time`; nanoseconds since 1970.
    /// Never turns the order of one host's times round.
    pub fn time(&self, host: Host, time: u64) -> u64 {
        self.course(host).map_or(time, |c| c.time(time))
    }

    /// What `host`'s clock is ahead by at a time of the reference's; none for a host
    /// that no message connects with another.
    pub fn estimate(&self, host: Host, time: u64) -> Option<Estimate> {
        let course = self.course(host).filter(|c| c.reference.is_some())?;
        let uncertainty = course.uncertainty(time);
        Some(Estimate {
            ahead: course.offset(time),
            uncertainty: uncertainty.is_finite().then(|| uncertainty.ceil() as u64),
        })
    }

    /// The host whose clock `host`'s is measured by; none for a host that no message
    /// connects with another.
    pub fn reference(&self, host: Host) -> Option<Host> {
        let reference = self.course(host)?.reference?;
        Some(Host(u32::try_from(reference).ok()?))
    }

    /// Says on a span of `host` what its times were moved by, if they were.
    pub fn tag(&self, host: Host, span: &mut Span) {
        let Some(course) = self.course(host).filter(|c| c.moved) else {
            return;
        };
        let ahead = course.offset(span.start);
        span.attributes
            .push(Attribute::new(OFFSET, -ahead as f64 / 1e9));
        let uncertainty = course.uncertainty(span.start);
        if uncertainty.is_finite() {
            span.attributes
                .push(Attribute::new(UNCERTAINTY, uncertainty / 1e9));
        }
    }

    /// What a person should know, a line for each clock that is moved or odd.
    pub fn notes(&self) -> Vec<String> {
        let name = |at: usize| self.hosts.get(at).map_or("", |h| h.name.as_str());
        let mut notes = Vec::new();
        for (at, course) in self.courses.iter().enumerate() {
            let Some(reference) = course.reference else {
                continue;
            };
            let (ahead, usual, worst) = course.summary();
            if course.moved {
                let way = if ahead < 0 { "behind" } else { "ahead of" };
                let drift = course
                    .drift()
                    .map(|d| format!(", drifting by {:.1} ppm", d * 1e6));
                let worst = (worst > 1.5 * usual).then(|| format!(", at worst {}", Nanos(worst)));
                notes.push(format!(
                    "the clock of {} is {} {way} that of {}{} (± {}{}): its times are moved onto the latter",
                    name(at),
                    Nanos(ahead as f64),
                    name(reference),
                    drift.unwrap_or_default(),
                    Nanos(usual),
                    worst.unwrap_or_default(),
                ));
            }
            if course.contradictory > 0 && at != reference {
                notes.push(format!(
                    "messages to or from {} arrived before they were sent, whatever its clock: was it set while it ran?",
                    name(at)
                ));
            }
        }
        for (at, _) in self.hosts.iter().enumerate() {
            let agreeing: Vec<&Course> = self
                .courses
                .iter()
                .enumerate()
                .filter(|(other, c)| *other != at && c.reference == Some(at) && !c.moved)
                .map(|(_, c)| c)
                .collect();
            let worst = agreeing.iter().map(|c| c.summary().1).fold(0.0, f64::max);
            let clocks = match agreeing.len() {
                0 => continue,
                1 => "1 clock agrees".to_owned(),
                n => format!("{n} clocks agree"),
            };
            notes.push(format!(
                "{clocks} with that of {}, as far as the messages tell (± {}): left as they are",
                name(at),
                Nanos(worst)
            ));
        }
        notes
    }
}
