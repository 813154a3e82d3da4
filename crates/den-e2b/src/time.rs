//! Times as RFC 3339 has them. Microseconds since the epoch everywhere else.

use std::time::SystemTime;

use chrono::{DateTime, NaiveDateTime};

/// Microseconds of a second.
pub(crate) const SECOND: i64 = 1_000_000;

/// Microseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// `2026-11-22T16:00:00.123456Z`.
pub(crate) fn text(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).unwrap_or_default().format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Reads what [`text`] writes, with any fraction and any offset; without one, as UTC.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let with_offset = DateTime::parse_from_rfc3339(text).map(|at| at.timestamp_micros());
    let without =
        || NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").map(|at| at.and_utc().timestamp_micros());
    with_offset.or_else(|_| without()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back() {
        for (micros, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400 * SECOND + 5, "2000-02-29T00:00:00.000005Z"),
            (1_795_363_156 * SECOND, "2026-11-22T15:59:16.000000Z"),
        ] {
            assert_eq!(text(micros), expected);
            assert_eq!(parse(expected), Some(micros), "{expected}");
        }
        assert_eq!(parse("1970-01-01T01:00:00.5+01:00"), Some(500_000));
        assert_eq!(parse("1970-01-01T00:00:00"), Some(0));
        for bad in ["", "x", "1970-01-01", "1970-13-01T00:00:00Z", "1970-01-01T00:00:00.xZ", "1970-01-01T00:00Z"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
