//! What a proxy's log lines say of the time at which they were written.

use memchr::memmem;

pub(super) const SECOND: i64 = 1_000_000_000;
/// Every zone's difference to UTC is a multiple of this, in seconds.
pub(super) const ZONE_STEP: i64 = 900;
/// Later ones are no dates of a log, and differences of times fit 64 bits up to here.
const LAST_YEAR: i64 = 2100;
/// Bytes of `2026/11/22 08:05:36`.
const DATE: usize = 19;

/// The second at which a line was written, by the date in front of it: seconds since
/// 1970 if the writer's clock had shown UTC. nginx (`2026/11/22 08:05:36 [info]`) and
/// Python (`2026-11-22 08:05:36,577 - `) are known; something may stand before nginx's.
pub(super) fn written(line: &[u8]) -> Option<i64> {
    date(line).or_else(|| {
        let head = &line[..line.len().min(200)];
        let level = memmem::find(head, b" [")?;
        date(&line[level.checked_sub(DATE)?..])
    })
}

fn date(text: &[u8]) -> Option<i64> {
    let text = text.get(..DATE)?;
    let separators = [text[4], text[7], text[10], text[13], text[16]];
    if !matches!(&separators, b"// ::" | b"-- ::") {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = &text[from..to];
        let all = digits.iter().all(u8::is_ascii_digit);
        all.then(|| {
            digits
                .iter()
                .fold(0i64, |n, d| n * 10 + i64::from(d - b'0'))
        })
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1970..=LAST_YEAR).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
    {
        return None;
    }
    Some(days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// Days since 1970-01-01 in the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March here, so that the leap day is a year's last.
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year
        - 719_468
}

/// The zone, in its steps, of which this is the difference of prefix and wall clock.
pub(super) fn zone(difference: i64) -> Option<i64> {
    let steps = (difference + ZONE_STEP * SECOND / 2).div_euclid(ZONE_STEP * SECOND);
    let rest = difference - steps * ZONE_STEP * SECOND;
    (rest.abs() < 120 * SECOND && steps.abs() <= 60).then_some(steps)
}

/// Of a line of Omni Proxy's access log: wall clock minus monotonic clock at the end of
/// its request, in nanoseconds, with the millisecond's cut-off digits missing.
pub(super) fn ended(line: &[u8]) -> Option<i64> {
    let rest = line.strip_prefix(b"{time:\"")?;
    let time = nanos(&rest[..memchr::memchr(b'"', rest)?])?;
    let received = nanos(field(line, b",rcved:\"")?)?;
    // Requests that were never finished have a negative number here.
    let latency = nanos(field(line, b",latency:\"")?)?;
    let offset = time.checked_sub(received)?.checked_sub(latency)?;
    (0..1 << 62).contains(&offset).then_some(offset)
}

fn field<'a>(line: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let rest = &line[memmem::find(line, key)? + key.len()..];
    Some(&rest[..memchr::memchr(b'"', rest)?])
}

/// Nanoseconds in a decimal number of seconds without a sign.
fn nanos(text: &[u8]) -> Option<i64> {
    let (whole, fraction) = match memchr::memchr(b'.', text) {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &b""[..]),
    };
    let digits = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    if whole.is_empty()
        || whole.len() > 10
        || fraction.len() > 9
        || !digits(whole)
        || !digits(fraction)
    {
        return None;
    }
    let number = |text: &[u8]| text.iter().fold(0i64, |n, d| n * 10 + i64::from(d - b'0'));
    let scale = 10i64.pow(9 - u32::try_from(fraction.len()).ok()?);
    number(whole)
        .checked_mul(SECOND)?
        .checked_add(number(fraction) * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_nginx_and_python_are_read_wherever_a_shipper_put_them() {
        let at = Some(1_795_334_736);
        assert_eq!(written(b"2026/11/22 08:05:36 [info] 7#7: *1 <<<Action"), at);
        assert_eq!(written(b"2026-11-22 08:05:36,577 - <<<Action"), at);
        assert_eq!(
            written(b"web-1 stderr F 2026/11/22 08:05:36 [info] 7#7: <<<Action"),
            at
        );
        assert_eq!(written(b"2024-02-29 00:00:00,0"), Some(1_709_164_800));
        for odd in [
            "",
            "<<<Action: x",
            "2026/11/22",
            "1969/12/31 23:59:59 [info]",
            "9999/12/31 23:59:59 [info]",
            "2026/13/22 08:05:36 [info]",
            "2026/11/22 08:75:36 [info]",
            "2026/1x/22 08:05:36 [info]",
            "2026-11-22T08:05:36 [info]",
        ] {
            assert_eq!(written(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn an_access_line_gives_the_offset_at_the_end_of_its_request() {
        let line = |rcved: &str, latency: &str| {
            format!(
                "{{time:\"1795334807.454\",request_id:\"a\",rcved:\"{rcved}\",cont_rcved:\"0.000006\",latency:\"{latency}\"}}"
            )
        };
        assert_eq!(
            ended(line("1109.181528", "0.053816").as_bytes()),
            Some(1_795_333_698_218_656_000)
        );
        assert_eq!(ended(line("1109.181528", "-1042.151485").as_bytes()), None);
        assert_eq!(ended(line("", "").as_bytes()), None);
        assert_eq!(ended(b"{time:\"1795334807.454\"}"), None);
        assert_eq!(ended(b"GET / 200"), None);
    }
}
