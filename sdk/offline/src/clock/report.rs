//! Clocks in words.

use std::fmt;

/// A length of time, to three digits.
pub(super) struct Nanos(pub(super) f64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let magnitude = self.0.abs();
        if magnitude.is_infinite() {
            return f.write_str("any time");
        }
        let (value, unit) = match magnitude {
            m if m < 1e6 => (m / 1e3, "µs"),
            m if m < 1e9 => (m / 1e6, "ms"),
            m => (m / 1e9, "s"),
        };
        let decimals = match value {
            v if v < 10.0 => 2,
            v if v < 100.0 => 1,
            _ => 0,
        };
        write!(f, "{value:.decimals$} {unit}")
    }
}

/// Date and time to the microsecond, UTC, of nanoseconds since 1970.
pub fn date(nanos: i64) -> String {
    let (seconds, rest) = (
        nanos.div_euclid(1_000_000_000),
        nanos.rem_euclid(1_000_000_000),
    );
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in cycles of 400 years.
    let day = day + 719_468;
    let of_cycle = day.rem_euclid(146_097);
    let year = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + day.div_euclid(146_097) * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day_of_month:02} {:02}:{:02}:{:02}.{:06}",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        rest / 1_000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_dates_are_gregorian() {
        let all = [81_400.0, 310.0, -49_953_000.0, 5.2e9, f64::INFINITY];
        assert_eq!(
            all.map(|n| Nanos(n).to_string()),
            ["81.4 µs", "0.31 µs", "50.0 ms", "5.20 s", "any time"]
        );
        assert_eq!(
            date(1_795_334_736_859_215_000),
            "2026-11-22 08:05:36.859215"
        );
        assert_eq!(
            date(1_709_164_800_000_000_000),
            "2024-02-29 00:00:00.000000"
        );
        assert_eq!(date(-1_000), "1969-12-31 23:59:59.999999");
    }
}
