use std::sync::Arc;

use super::super::log_clock::{RECEIVED, Register, START};
use super::*;

/// 2026-11-22 08:00:00 UTC.
const EIGHT: i64 = 1_795_334_400;

/// A host that was booted at this time, in microseconds since 1970, logging to one file.
struct Proxy {
    booted: i64,
    /// Hours that its prefixes are ahead of UTC; none where lines have no prefix.
    zone: Option<i64>,
    log: LogClock,
}

impl Proxy {
    fn new(register: &Arc<Register>, booted: i64, zone: Option<i64>) -> Self {
        Self {
            booted,
            zone,
            log: LogClock::new(Arc::clone(register)),
        }
    }

    /// Logs an action at a time of the wall clock, in microseconds; returns what is kept.
    fn line(&mut self, action: &str, id: &str, wall: i64) -> u64 {
        let stamp = if action == START {
            wall
        } else {
            wall - self.booted
        };
        let text = self.zone.map_or_else(String::new, |zone| {
            let local = report::date((wall + zone * 3_600_000_000) * 1_000);
            format!("{} [info] 7#7: ", local[..19].replace('-', "/"))
        });
        self.log
            .time(text.as_bytes(), action, id, stamp as u64 * 1_000)
    }

    /// A request that both clocks see, with this delay in between.
    fn pair(&mut self, id: &str, wall: i64, delay: i64) -> u64 {
        self.line(START, id, wall);
        self.line(RECEIVED, id, wall + delay)
    }
}

const BOOT: i64 = (EIGHT - 1_000) * 1_000_000 + 218_476;
const NOW: i64 = EIGHT * 1_000_000;

fn utc(_: i64) -> i64 {
    0
}

#[test]
fn the_least_delayed_pair_says_when_the_host_was_booted() {
    let register = Arc::default();
    let mut proxy = Proxy::new(&register, BOOT, Some(8));
    proxy.pair("a", NOW, 90);
    proxy.pair("b", NOW + 500_000, 20);
    let kept = proxy.pair("c", NOW + 700_000, 3_000);
    let other = proxy.line("Received all tokens", "c", NOW + 900_000);
    let boots = Boots::solve(&[proxy.log], &utc);
    assert_eq!(boots.wall(kept) as i64, (NOW + 703_000 - 20) * 1_000);
    assert_eq!(boots.wall(other) as i64, (NOW + 900_000 - 20) * 1_000);
    assert_eq!(
        boots.notes(),
        [
            "4 lines with times since boot: the proxy's host was booted at 2026-11-22 07:43:20.218456 UTC, ± 1.02 ms, from 3 requests whose start has both clocks"
        ]
    );
    assert_eq!(
        Boots::as_is().wall(kept) as i64,
        (NOW + 703_000 - BOOT) * 1_000
    );
}

#[test]
fn a_log_of_several_boots_and_of_the_old_wall_clock_is_read_as_each_was_meant() {
    let register = Arc::default();
    let mut proxy = Proxy::new(&register, BOOT, Some(-5));
    let old = proxy.line(START, "old", NOW);
    let first = proxy.pair("a", NOW + 1_000_000, 50);
    proxy.booted = NOW + 60_000_000;
    let second = proxy.pair("b", NOW + 90_000_000, 50);
    // Workers write in turns.
    proxy.booted = BOOT;
    let late = proxy.line("Received all tokens", "a", NOW + 2_000_000);
    let boots = Boots::solve(&[proxy.log], &utc);
    let micros = [old, first, second, late].map(|kept| boots.wall(kept) as i64 / 1_000 - NOW);
    assert_eq!(micros, [0, 1_000_000, 90_000_000, 1_999_950]);
    assert_eq!(boots.notes().len(), 2);
}

#[test]
fn without_pairs_the_prefixes_say_it_in_the_zone_that_other_lines_show() {
    let register = Arc::default();
    let mut proxy = Proxy::new(&register, BOOT, Some(8));
    let mut kept = Vec::new();
    for n in 0..2_000 {
        let wall = NOW + n * 7_001;
        kept.push((wall, proxy.line("Enter state P running", "a", wall)));
    }
    // Of vLLM, on another host in the same zone.
    let mut engine = LogClock::new(Arc::clone(&register));
    let line = b"2026-11-22 16:00:05,577 - <<<Action: ...";
    let time = (NOW as u64 + 5_577_000) * 1_000;
    assert_eq!(
        engine.time(line, "Prefill add waiting queue", "a", time),
        time
    );
    let boots = Boots::solve(&[proxy.log, engine], &utc);
    for (wall, kept) in kept {
        let error = boots.wall(kept) as i64 / 1_000 - wall;
        assert!(error.abs() < 1_000, "{error}");
    }
    assert!(!boots.are_sure());
    assert!(boots.notes()[0].ends_with(", taken for the time zone of the other logs"));
}

#[test]
fn parts_of_a_log_that_are_read_by_several_threads_agree_on_its_boot() {
    let register = Arc::default();
    let mut parts: Vec<Proxy> = (0..20)
        .map(|_| Proxy::new(&register, BOOT, Some(0)))
        .collect();
    let kept: Vec<u64> = (0..2_000)
        .map(|n| parts[n / 100].line("Time received", "a", NOW + n as i64 * 7_001))
        .collect();
    let logs: Vec<LogClock> = parts.into_iter().map(|p| p.log).collect();
    let boots = Boots::solve(&logs, &utc);
    let errors: Vec<i64> = (0..)
        .zip(kept)
        .map(|(n, kept)| boots.wall(kept) as i64 / 1_000 - NOW - n * 7_001)
        .collect();
    assert!(errors[0].abs() < 1_000, "{}", errors[0]);
    assert!(errors.iter().all(|e| *e == errors[0]), "{errors:?}");
    assert_eq!(boots.notes().len(), 1);
}

#[test]
fn without_any_zone_that_of_this_machine_is_taken_and_said_so() {
    let mut proxy = Proxy::new(&Arc::default(), BOOT, Some(8));
    let kept: Vec<u64> = (0..300)
        .map(|n| proxy.line("Time received", "a", NOW + n * 10_000))
        .collect();
    let boots = Boots::solve(&[proxy.log], &|_| 8 * 3_600);
    assert!((boots.wall(kept[5]) as i64 / 1_000 - NOW - 50_000).abs() < 10_000);
    assert!(boots.notes()[0].contains("this machine's time zone (set TZ for another)"));
}

#[test]
fn another_log_of_the_same_boot_knows_better() {
    let register = Arc::default();
    let mut with_pairs = Proxy::new(&register, BOOT, Some(8));
    with_pairs.pair("a", NOW, 0);
    let mut rotated = Proxy::new(&register, BOOT, Some(8));
    let kept = rotated.line("Time received", "b", NOW + 3_600_000_000);
    let mut other_host = Proxy::new(&register, BOOT - 500_000_000_000, Some(8));
    let other = other_host.pair("c", NOW, 0);
    let boots = Boots::solve(&[other_host.log, rotated.log, with_pairs.log], &utc);
    assert_eq!(boots.wall(kept) as i64, (NOW + 3_600_000_000) * 1_000);
    assert_eq!(boots.wall(other) as i64, NOW * 1_000);
}

#[test]
fn the_access_log_knows_both_clocks_to_the_millisecond() {
    let register = Arc::default();
    let mut errors = Proxy::new(&register, BOOT, Some(8));
    let kept = errors.line("Time received", "a", NOW + 123_456);
    let mut access = LogClock::new(Arc::clone(&register));
    for n in 0..5 {
        // The last one's connection was kept open for 70 s.
        let (ended, late) = (NOW + n * 1_000_300, if n == 4 { 70_000_000 } else { 0 });
        let millis = (ended + late) / 1_000;
        let micros = ended - BOOT;
        access.other(
            format!(
                "{{time:\"{}.{:03}\",request_id:\"a\",rcved:\"{}.{:06}\",latency:\"0.000000\"}}",
                millis / 1_000,
                millis % 1_000,
                micros / 1_000_000,
                micros % 1_000_000
            )
            .as_bytes(),
        );
    }
    let boots = Boots::solve(&[access, errors.log], &utc);
    let error = boots.wall(kept) as i64 / 1_000 - NOW - 123_456;
    assert!(error.abs() <= 500, "{error}");
    assert!(boots.notes()[0].ends_with("± 500 µs, from the proxy's access log"));
}

#[test]
fn lines_without_anything_are_left_in_1970_and_said_so() {
    let mut proxy = Proxy::new(&Arc::default(), BOOT, None);
    let kept = proxy.line("Time received", "a", NOW);
    let back = proxy.line("Time received", "a", NOW - 900_000_000);
    let boots = Boots::solve(&[proxy.log], &utc);
    assert_eq!(boots.wall(kept) as i64, (NOW - BOOT) * 1_000);
    assert_eq!(boots.wall(back) as i64, (NOW - BOOT - 900_000_000) * 1_000);
    assert_eq!(
        boots.notes(),
        [
            "2 lines have times since boot, and nothing says when that was: they stand in January 1970"
        ]
    );
}
