//! Windows of the week: `Fri 16:00 .. Mon 08:00 Europe/Madrid`, `Mon..Fri 09:00-17:00 UTC`.

use crate::suggest::nearest;
use cdpipe_model::service::Freeze;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MINUTES_OF_DAY: u32 = 24 * 60;
const MINUTES_OF_WEEK: u32 = 7 * MINUTES_OF_DAY;

/// Reads a window; one that names a time of several days gives one for each day.
///
/// # Errors
/// What is wrong with it, and what to write instead.
pub(crate) fn parse_window(text: &str) -> Result<Vec<Freeze>, (String, String)> {
    let form =
        || "write `Fri 16:00 .. Mon 08:00 Europe/Madrid` or `Mon..Fri 09:00-17:00 Europe/Madrid`".to_owned();
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let Some(zone) = words.pop() else { return Err(("the window is empty".to_owned(), form())) };
    if zone.contains(':') || day(zone).is_some() {
        return Err((
            "the window has no time zone".to_owned(),
            format!("put one at its end: `{text} Europe/Madrid`"),
        ));
    }
    if words.is_empty() {
        return Err(("the window can't be read".to_owned(), form()));
    }
    check_zone(zone)?;
    let window = |from: u32, to: u32| Freeze {
        text: text.to_owned(),
        from_minute_of_week: from % MINUTES_OF_WEEK,
        to_minute_of_week: to % MINUTES_OF_WEEK,
        zone: zone.to_owned(),
    };
    match words.as_slice() {
        [from_day, from_time, "..", to_day, to_time] => {
            let from = a_day(from_day)? * MINUTES_OF_DAY + time(from_time)?;
            let to = a_day(to_day)? * MINUTES_OF_DAY + time(to_time)?;
            if from == to {
                return Err(("the window ends where it starts".to_owned(), form()));
            }
            Ok(vec![window(from, to)])
        }
        [days, times] => {
            let days = some_days(days)?;
            let (from, to) = span_of_day(times)?;
            Ok(days
                .into_iter()
                .map(|day| window(day * MINUTES_OF_DAY + from, day * MINUTES_OF_DAY + to))
                .collect())
        }
        [times] => {
            let (from, to) = span_of_day(times)?;
            Ok((0..7).map(|day| window(day * MINUTES_OF_DAY + from, day * MINUTES_OF_DAY + to)).collect())
        }
        _ => Err(("the window can't be read".to_owned(), form())),
    }
}

fn check_zone(zone: &str) -> Result<(), (String, String)> {
    let zones = jiff::tz::TimeZoneDatabase::bundled();
    if zones.get(zone).is_ok() {
        return Ok(());
    }
    let names: Vec<String> = zones.available().map(|name| name.as_str().to_owned()).collect();
    let help = match nearest(zone, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "write an IANA name such as `Europe/Madrid`, `America/New_York` or `UTC`".to_owned(),
    };
    Err((format!("there is no time zone `{zone}`"), help))
}

fn day(text: &str) -> Option<u32> {
    let start = text.get(..3)?;
    let full = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    let at = DAYS.iter().position(|day| day.eq_ignore_ascii_case(start))?;
    (text.len() == 3 || full[at].eq_ignore_ascii_case(text)).then(|| u32::try_from(at).unwrap_or(0))
}

fn a_day(text: &str) -> Result<u32, (String, String)> {
    day(text).ok_or_else(|| {
        (format!("`{text}` is no day"), "the days are Mon, Tue, Wed, Thu, Fri, Sat and Sun".to_owned())
    })
}

fn some_days(text: &str) -> Result<Vec<u32>, (String, String)> {
    let mut days = Vec::new();
    for piece in text.split(',') {
        match piece.split_once("..").or_else(|| piece.split_once('-')) {
            Some((from, to)) => {
                let (from, to) = (a_day(from)?, a_day(to)?);
                let count = (to + 7 - from) % 7 + 1;
                days.extend((0..count).map(|step| (from + step) % 7));
            }
            None => days.push(a_day(piece)?),
        }
    }
    days.sort_unstable();
    days.dedup();
    Ok(days)
}

fn time(text: &str) -> Result<u32, (String, String)> {
    let wrong = || {
        (
            format!("`{text}` is no time of day"),
            "write hours and minutes: `09:00`, at most `24:00`".to_owned(),
        )
    };
    let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| (1..=2).contains(&text.len()).then(|| text.parse::<u32>().ok()).flatten();
    match (number(hours), number(minutes)) {
        (Some(hours), Some(minutes)) if minutes < 60 && hours * 60 + minutes <= MINUTES_OF_DAY => {
            Ok(hours * 60 + minutes)
        }
        _ => Err(wrong()),
    }
}

fn span_of_day(text: &str) -> Result<(u32, u32), (String, String)> {
    let (from, to) = text
        .split_once('-')
        .ok_or_else(|| (format!("`{text}` is no span of the day"), "write `09:00-17:00`".to_owned()))?;
    let (from, to) = (time(from)?, time(to)?);
    if from >= to {
        return Err((
            "the span ends before it starts".to_owned(),
            "a window over midnight is written with days: `Fri 22:00 .. Sat 06:00 ZONE`".to_owned(),
        ));
    }
    Ok((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read() {
        let freeze = &parse_window("Fri 16:00 .. Mon 08:00 Europe/Madrid").unwrap()[0];
        assert_eq!((freeze.from_minute_of_week, freeze.to_minute_of_week), (4 * 1440 + 960, 480));
        let days = parse_window("Mon..Fri 09:00-17:00 UTC").unwrap();
        assert_eq!(days.len(), 5);
        assert_eq!(
            (days[4].from_minute_of_week, days[4].to_minute_of_week),
            (4 * 1440 + 540, 4 * 1440 + 1020)
        );
        assert_eq!(parse_window("Sat,Sun 00:00-24:00 UTC").unwrap().len(), 2);
        // The end of Sunday is the start of Monday.
        assert_eq!(parse_window("Sun 00:00-24:00 UTC").unwrap()[0].to_minute_of_week, 0);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |text: &str| parse_window(text).unwrap_err();
        assert_eq!(wrong("Mon..Fri 09:00-17:00 Europe/Madird").1, "did you mean `Europe/Madrid`?");
        assert_eq!(wrong("Mon..Fri 09:00-17:00").0, "the window has no time zone");
        assert_eq!(wrong("Moo 09:00-17:00 UTC").0, "`Moo` is no day");
        assert_eq!(wrong("Mon 25:00-26:00 UTC").0, "`25:00` is no time of day");
        assert_eq!(wrong("Mon 17:00-09:00 UTC").0, "the span ends before it starts");
    }
}
