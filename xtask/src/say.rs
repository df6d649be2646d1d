//! All that this program says to a person. One place, so that a closed pipe is never a panic.

use std::io::Write as _;
use std::time::Duration;

/// One line (or several) on standard output. A reader that went away is not an error worth failing for.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// One line (or several) on standard error.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A heading between two parts of a long output.
pub(crate) fn heading(text: &str) {
    say(&format!("\n== {text}"));
}

/// `0.4 s`, `12 s`, `3 min 05 s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else {
        let whole = time.as_secs();
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(Duration::from_millis(420)), "0.4 s");
        assert_eq!(duration(Duration::from_millis(59_600)), "60 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
    }
}
