//! Weekly windows in local time.

use cdpipe_model::service::Freeze;

const WEEK_MINUTES: u32 = 7 * 24 * 60;

/// Whether the moment lies in one of the windows. A zone that is not known counts as UTC; `check` refuses such a zone.
pub(crate) fn any_open(windows: &[Freeze], at_ms: u64) -> bool {
    windows.iter().any(|window| is_open(window, at_ms))
}

fn is_open(window: &Freeze, at_ms: u64) -> bool {
    let Ok(timestamp) = jiff::Timestamp::from_millisecond(i64::try_from(at_ms).unwrap_or(i64::MAX)) else {
        return false;
    };
    let zone = jiff::tz::TimeZone::get(&window.zone).unwrap_or(jiff::tz::TimeZone::UTC);
    let local = timestamp.to_zoned(zone);
    let day = u32::try_from(local.weekday().to_monday_zero_offset()).unwrap_or(0);
    let minute = u32::try_from(local.hour()).unwrap_or(0) * 60 + u32::try_from(local.minute()).unwrap_or(0);
    let now = day * 24 * 60 + minute;
    let (from, to) = (window.from_minute_of_week % WEEK_MINUTES, window.to_minute_of_week % WEEK_MINUTES);
    if from < to { (from..to).contains(&now) } else { now >= from || now < to }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freeze(from: (u32, u32), to: (u32, u32)) -> Freeze {
        Freeze {
            text: String::new(),
            from_minute_of_week: from.0 * 1440 + from.1,
            to_minute_of_week: to.0 * 1440 + to.1,
            zone: "Europe/Madrid".to_owned(),
        }
    }

    fn at(text: &str) -> u64 {
        let zoned: jiff::Zoned = text.parse().unwrap();
        zoned.timestamp().as_millisecond().unsigned_abs()
    }

    #[test]
    fn a_freeze_over_the_weekend_follows_local_time() {
        // Friday 16:00 to Monday 08:00, which turns the week.
        let window = freeze((4, 16 * 60), (0, 8 * 60));
        for (moment, open) in [
            ("2026-11-20T15:59[Europe/Madrid]", false),
            ("2026-11-20T16:00[Europe/Madrid]", true),
            ("2026-11-22T12:00[Europe/Madrid]", true),
            ("2026-11-23T07:59[Europe/Madrid]", true),
            ("2026-11-23T08:00[Europe/Madrid]", false),
            // Summer time: 16:30 in Madrid is 14:30 UTC.
            ("2026-07-03T14:30[UTC]", true),
            ("2026-07-03T13:30[UTC]", false),
        ] {
            assert_eq!(is_open(&window, at(moment)), open, "{moment}");
        }
    }
}
