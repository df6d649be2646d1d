//! What it means that a machine is away. The first call that meets it fails and names it, so that a deploy never goes on silently with
//! fewer machines; from then on this process does without it, so that the way back works with the rest. A lock that is taken anew asks
//! for all of them again.

use crate::ssh::is_away;
use cdpipe_model::Fault;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a machine that was just found away is not tried again: each try may take seconds.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(15);

/// Which machines are known to be away.
#[derive(Debug, Default)]
pub(crate) struct Outages {
    known: Mutex<BTreeMap<usize, Outage>>,
}

#[derive(Debug, Clone)]
struct Outage {
    fault: Fault,
    tried: Instant,
    /// Whether a call has failed because of it.
    told: bool,
}

impl Outages {
    /// Why not to try this machine now, if it was found away a moment ago.
    pub(crate) fn still(&self, machine: usize) -> Option<Fault> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(&machine)
            .filter(|outage| outage.tried.elapsed() < TRY_AGAIN_AFTER)
            .map(|outage| outage.fault.clone())
    }

    /// Notes what came of trying a machine.
    pub(crate) fn note<T>(&self, machine: usize, result: &Result<T, Fault>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Err(fault) if is_away(fault) => {
                let told = known.get(&machine).is_some_and(|outage| outage.told);
                let tried = match known.get(&machine) {
                    // Told from memory: it was not tried.
                    Some(outage) if outage.fault == *fault && outage.tried.elapsed() < TRY_AGAIN_AFTER => {
                        outage.tried
                    }
                    _ => Instant::now(),
                };
                known.insert(machine, Outage { fault: fault.clone(), tried, told });
            }
            _ => {
                known.remove(&machine);
            }
        }
    }

    /// Forgets all, and tries each again.
    pub(crate) fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether this machine is away and nobody was told yet; from now on somebody was.
    fn is_news(&self, machine: usize) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_mut(&machine).is_some_and(|outage| !std::mem::replace(&mut outage.told, true))
    }

    /// The answers of the machines that are there; `names` are those of all.
    ///
    /// # Errors
    /// What a machine that is there says is in the way; that one is away which nobody was told of; that all are.
    pub(crate) fn those_there<T>(
        &self,
        names: &[String],
        answers: Vec<(usize, Result<T, Fault>)>,
    ) -> Result<Vec<(usize, T)>, Fault> {
        let mut there = Vec::new();
        let mut away = Vec::new();
        let mut failed = Vec::new();
        for (machine, answer) in answers {
            match answer {
                Ok(answer) => there.push((machine, answer)),
                Err(fault) if is_away(&fault) => away.push((machine, fault)),
                Err(fault) => failed.push((machine, fault)),
            }
        }
        // All of them are told now, not one with each call.
        let news: Vec<&(usize, Fault)> = away.iter().filter(|(machine, _)| self.is_news(*machine)).collect();
        let others = |fault: Fault, but: usize| {
            if names.len() < 2 {
                return fault;
            }
            let mut lines: Vec<(usize, String)> = Vec::new();
            lines.extend(there.iter().map(|(machine, _)| (*machine, format!("{}: done", names[*machine]))));
            let bad = away.iter().chain(&failed).filter(|(machine, _)| *machine != but);
            lines.extend(
                bad.map(|(machine, fault)| (*machine, format!("{}: {}", names[*machine], fault.message))),
            );
            lines.sort();
            fault.details(lines.into_iter().map(|(_, line)| line).take(60))
        };
        if let Some((machine, fault)) = failed.first() {
            let message = format!("{}: {}", names[*machine], fault.message);
            return Err(others(Fault { message, ..fault.clone() }, *machine));
        }
        if let Some((machine, fault)) = news.first() {
            let names: Vec<&str> = news.iter().map(|(machine, _)| names[*machine].as_str()).collect();
            let fault = others(fault.clone(), *machine);
            return Err(fault.details([format!(
                "from here on without {}: what runs there goes on, and goes with the next deploy once it is back",
                names.join(", ")
            )]));
        }
        match (there.is_empty(), away.first()) {
            (true, Some((machine, fault))) => Err(others(fault.clone(), *machine)),
            _ => Ok(there),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> Result<u8, Fault> {
        Err(Fault::new("ssh-unreachable", "web-2 can't be reached").transient())
    }

    #[test]
    fn the_first_call_names_the_machine_and_the_next_goes_on_without_it() {
        let outages = Outages::default();
        let names = ["web-1".to_owned(), "web-2".to_owned()];
        let ask = |second: Result<u8, Fault>| {
            outages.note(1, &second);
            outages.those_there(&names, vec![(0, Ok(1)), (1, second)])
        };
        let fault = ask(away()).unwrap_err();
        assert_eq!((fault.kind.as_str(), fault.transient), ("ssh-unreachable", true));
        assert_eq!(fault.details[0], "web-1: done");
        assert!(fault.details[1].starts_with("from here on without web-2:"), "{fault:?}");
        assert_eq!(ask(away()).unwrap(), [(0, 1)]);
        // It is back, and gone once more.
        assert_eq!(ask(Ok(2)).unwrap(), [(0, 1), (1, 2)]);
        assert!(ask(away()).is_err());
        assert!(outages.still(1).is_some());
        outages.forget();
        assert!(outages.still(1).is_none());
    }

    #[test]
    fn without_any_machine_nothing_works() {
        let outages = Outages::default();
        let names = ["web-1".to_owned(), "web-2".to_owned()];
        for _ in 0..2 {
            let answer = away();
            outages.note(0, &answer);
            outages.note(1, &answer);
            assert!(outages.those_there(&names, vec![(0, answer), (1, away())]).is_err());
        }
    }

    #[test]
    fn what_a_machine_says_counts_more_than_one_that_is_away() {
        let outages = Outages::default();
        let names = ["web-1".to_owned(), "web-2".to_owned()];
        let bad: Result<u8, Fault> = Err(Fault::new("not-ready", "0 of 1 are ready"));
        outages.note(1, &away());
        let fault = outages.those_there(&names, vec![(0, bad), (1, away())]).unwrap_err();
        assert_eq!(fault.message, "web-1: 0 of 1 are ready");
        assert_eq!(fault.details, ["web-2: web-2 can't be reached"]);
    }
}
