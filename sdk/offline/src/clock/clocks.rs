//! The clocks of the requests of a log.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{Local, Offset, TimeZone};
use omnitrace::Vocabulary;
use omnitrace::span::{Source, Span};
use omnitrace::vocabulary::ActionId;

use super::{Boots, Host, HostInfo, LogClock, Mode, Repair, Samples, nest};
use crate::ingest::Origin;

/// The role of lines that name none; only they have times since boot.
const PROXY: &str = "proxy";

/// What is known of the clocks of a log: first of each boot, then, when all requests have
/// been sampled, of each host.
///
/// ```text
/// let mut clocks = Clocks::new(vocabulary, mode, log_clocks, origins);
/// each request, in any order, on any thread:  clocks.wall(time), clocks.sample(…, samples)
/// clocks.solve(samples)
/// each event:  clocks.put_right(source, time), a request's spans:  clocks.settle(spans, …)
/// ```
#[derive(Debug, Default)]
pub struct Clocks {
    mode: Mode,
    boots: Boots,
    /// By the number of a source.
    numbered: Vec<Host>,
    infos: Vec<HostInfo>,
    repair: Repair,
}

impl Clocks {
    /// From what the files say of their proxies' clocks, for events of these sources, which
    /// are known by their numbers then.
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        mode: Mode,
        logs: &[LogClock],
        origins: &[Origin<Box<str>>],
    ) -> Self {
        let boots = match mode {
            Mode::Auto => Boots::solve(logs, &zone_here),
            Mode::AsIs => Boots::as_is(),
        };
        let mut clocks = Self {
            mode,
            boots,
            ..Self::default()
        };
        let is_only_log = origins.iter().filter(|o| !o.log.is_empty()).count() < 2;
        let mut names: HashMap<String, Host> = HashMap::new();
        for origin in origins {
            // Where the proxy's time zone was guessed, the other hosts know better.
            let is_guess = *origin.role == *PROXY && !clocks.boots.are_sure();
            let role = vocabulary.role_named(&origin.role);
            let rank = role.filter(|_| !is_guess).map_or(u16::MAX, |role| role.0);
            let name = host_name(origin, is_only_log);
            let next = Host(clocks.infos.len() as u32);
            let host = *names.entry(name.clone()).or_insert(next);
            match clocks.infos.get_mut(host.0 as usize) {
                Some(info) => info.rank = info.rank.min(rank),
                None => clocks.infos.push(HostInfo { name, rank }),
            }
            clocks.numbered.push(host);
        }
        clocks
    }

    /// The wall clock's time of what [`LogClock::time`] gave.
    pub fn wall(&self, kept: u64) -> u64 {
        self.boots.wall(kept)
    }

    /// Whether times that [`Clocks::wall`] gives may be hours off: somebody's time zone was
    /// guessed.
    pub fn may_be_hours_off(&self) -> bool {
        !self.boots.are_sure()
    }

    /// Takes a request as evidence of how the hosts' wall clocks differ: its actions, each
    /// with its source's number and its time.
    pub fn sample(
        &self,
        vocabulary: &Vocabulary,
        actions: impl IntoIterator<Item = (ActionId, usize, u64)>,
        samples: &mut Samples,
    ) {
        if self.mode == Mode::AsIs {
            return;
        }
        let actions = actions
            .into_iter()
            .filter_map(|(action, source, time)| Some((action, *self.numbered.get(source)?, time)));
        samples.request(vocabulary, actions);
    }

    /// To be called when all requests have been sampled.
    pub fn solve(&mut self, samples: Samples) {
        self.repair = samples.solve(std::mem::take(&mut self.infos));
    }

    /// Whether [`Clocks::put_right`] changes any time, and so perhaps their order.
    pub(crate) fn move_times(&self) -> bool {
        self.repair.moves()
    }

    /// Brings a time of the wall clock of a source, which is known by its number, onto the
    /// one clock of all.
    pub(crate) fn put_right(&self, source: usize, time: u64) -> u64 {
        match self.numbered.get(source) {
            Some(host) if self.repair.moves() => self.repair.time(*host, time),
            _ => time,
        }
    }

    /// Marks the spans of one trace that were moved, and cuts each to its parent. `number`
    /// is asked for the number of a span's source.
    pub(crate) fn settle(
        &self,
        spans: &mut [Span],
        number: &dyn Fn(&Arc<Source>) -> Option<usize>,
    ) {
        if self.mode == Mode::AsIs {
            return;
        }
        if self.repair.moves() {
            for span in spans.iter_mut() {
                let host = number(&span.source).and_then(|n| self.numbered.get(n));
                if let Some(host) = host {
                    self.repair.tag(*host, span);
                }
            }
        }
        nest(spans);
    }

    /// What a person should know, a line each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.boots.notes();
        notes.extend(self.repair.notes());
        notes
    }
}

/// A host is known by its address; one without by the role that it has, and a proxy by its
/// log where there are several.
fn host_name(origin: &Origin<Box<str>>, is_only_log: bool) -> String {
    if !origin.node.is_empty() {
        return origin.node.to_string();
    }
    if origin.log.is_empty() || is_only_log {
        return format!("the {}", origin.role);
    }
    format!("the {} of {}", origin.role, origin.log)
}

/// This machine's difference to UTC at a local time, both in seconds.
fn zone_here(local: i64) -> i64 {
    let Some(naive) = chrono::DateTime::from_timestamp(local, 0) else {
        return 0;
    };
    let here = Local.from_local_datetime(&naive.naive_utc()).earliest();
    here.map_or(0, |here| i64::from(here.offset().fix().local_minus_utc()))
}
