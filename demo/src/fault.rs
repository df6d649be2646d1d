//! The ways in which a release of the shop can be asked to go bad.

use crate::durations;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is wrong with this release; the default is nothing.
///
/// Written as a list: `errors=9%,after=3s`, `latency=300ms`, `never-healthy`, `crash-after=5s`, `slow-start=2s`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    /// Share of user requests that end in a real 500, in hundredths of a percent (0 to 10,000).
    pub errors_per_10k: u32,
    /// How much later each user request is answered.
    pub latency: Duration,
    /// How long after the start errors and latency set in.
    pub after: Duration,
    /// `/health` never says 200.
    pub never_healthy: bool,
    /// How long after the start the process ends, cutting what is in flight.
    pub crash_after: Option<Duration>,
    /// How long after the start `/health` and every user path say 503.
    pub slow_start: Duration,
}

/// A `FAULT` that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FaultError {
    /// The word before `=` is none of ours.
    #[error(
        "unknown fault `{0}`; expected a list of errors=9%, latency=300ms, after=3s, never-healthy, \
         crash-after=5s, slow-start=2s"
    )]
    Unknown(String),
    /// The value of a known fault cannot be read.
    #[error("fault `{name}`: {reason}")]
    Value {
        /// The fault's name.
        name: String,
        /// What was expected and found.
        reason: String,
    },
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut fault = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let wrong = |reason| FaultError::Value { name: name.to_owned(), reason };
            let duration = || durations::parse(value).map_err(wrong);
            match name {
                "errors" => fault.errors_per_10k = percent_per_10k(value).map_err(wrong)?,
                "latency" => fault.latency = duration()?,
                "after" => fault.after = duration()?,
                "crash-after" => fault.crash_after = Some(duration()?),
                "slow-start" => fault.slow_start = duration()?,
                "never-healthy" if value.is_empty() => fault.never_healthy = true,
                "never-healthy" => return Err(wrong(format!("takes no value, found `{value}`"))),
                _ => return Err(FaultError::Unknown(name.to_owned())),
            }
        }
        Ok(fault)
    }
}

fn percent_per_10k(text: &str) -> Result<u32, String> {
    let share = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    match share {
        // The cast is exact: the value is within 0 and 10,000.
        Some(share) if (0.0..=100.0).contains(&share) => Ok((share * 100.0).round() as u32),
        _ => Err(format!("expected a share such as 9% or 0.5%, found `{text}`")),
    }
}

/// Chooses which requests fail.
///
/// The failures are spread evenly instead of drawn at random: a window of a few seconds then holds the share that was
/// asked for, so what the quickstart shows does not depend on luck.
#[derive(Debug)]
pub struct ErrorSpread {
    per_10k: u64,
    seen: AtomicU64,
}

impl ErrorSpread {
    /// A spread in which `per_10k` of 10,000 requests fail.
    pub fn new(per_10k: u32) -> Self {
        Self { per_10k: u64::from(per_10k.min(10_000)), seen: AtomicU64::new(0) }
    }

    /// Counts one request and says whether it is one of those that fail.
    pub fn next_fails(&self) -> bool {
        let before = self.seen.fetch_add(1, Ordering::Relaxed) % 10_000;
        (before + 1) * self.per_10k / 10_000 > before * self.per_10k / 10_000
    }
}

#[cfg(test)]
mod tests {
    use super::{ErrorSpread, Fault};
    use std::time::Duration;

    #[test]
    fn reads_every_fault() {
        let fault: Fault =
            "errors=9%, after=3s,latency=300ms,never-healthy,crash-after=5s,slow-start=2s".parse().unwrap();
        let expected = Fault {
            errors_per_10k: 900,
            latency: Duration::from_millis(300),
            after: Duration::from_secs(3),
            never_healthy: true,
            crash_after: Some(Duration::from_secs(5)),
            slow_start: Duration::from_secs(2),
        };
        assert_eq!(fault, expected);
        assert_eq!("".parse(), Ok(Fault::default()));
        assert_eq!("errors=0.25%".parse::<Fault>().unwrap().errors_per_10k, 25);
    }

    #[test]
    fn says_what_it_cannot_read() {
        let said: Vec<String> =
            ["erors=9%", "errors=9", "errors=101%", "errors=NaN%", "latency=", "never-healthy=1"]
                .iter()
                .map(|text| text.parse::<Fault>().unwrap_err().to_string())
                .collect();
        assert_eq!(
            said.join("\n"),
            "unknown fault `erors`; expected a list of errors=9%, latency=300ms, after=3s, never-healthy, \
             crash-after=5s, slow-start=2s\n\
             fault `errors`: expected a share such as 9% or 0.5%, found `9`\n\
             fault `errors`: expected a share such as 9% or 0.5%, found `101%`\n\
             fault `errors`: expected a share such as 9% or 0.5%, found `NaN%`\n\
             fault `latency`: expected a duration such as 300ms, 3s or 2m, found ``\n\
             fault `never-healthy`: takes no value, found `1`"
        );
    }

    #[test]
    fn the_share_of_failures_is_exact_and_even() {
        for per_10k in [0, 1, 25, 900, 3_333, 10_000] {
            let spread = ErrorSpread::new(per_10k);
            let failed: Vec<bool> = (0..20_000).map(|_| spread.next_fails()).collect();
            assert_eq!(failed.iter().filter(|fails| **fails).count(), 2 * per_10k as usize);
            let widest = failed.chunks(1_000).map(|c| c.iter().filter(|f| **f).count()).max().unwrap();
            assert!(widest <= per_10k as usize / 10 + 1, "{widest} failures in one window at {per_10k}");
        }
    }
}
