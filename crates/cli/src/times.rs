//! Points in time as people read them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `2026-11-23 16:20:05`, in local time or in UTC (then with a `Z`).
pub(crate) fn absolute(at_ms: u64, utc: bool) -> String {
    let Some(timestamp) = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok())
    else {
        return "?".to_owned();
    };
    if utc {
        timestamp.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%SZ").to_string()
    } else {
        timestamp.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }
}

/// `3m05s ago`.
pub(crate) fn ago(at_ms: u64, now_ms: u64) -> String {
    format!("{} ago", cdpipe_report::words::elapsed(now_ms.saturating_sub(at_ms)))
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}
