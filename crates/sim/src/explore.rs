//! Every case there is: each action failing, hanging and losing its answer, a crash at every write of the journal, and both crossed.
//!
//! Single faults and single crashes are all played. What is crossed may be more than anybody waits for; then a part of it is played that
//! is spread evenly and chosen by a seed.

use crate::case::{Case, Crash, Fault, FaultKind};
use crate::drive::{End, Ending, Simulator};
use crate::finding::{Finding, FindingKind};
use crate::given::Given;
use cdpipe_model::record::Record;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is explored.
pub struct Exploration {
    /// Runs to begin with, each with the name under which it is told of.
    pub scenarios: Vec<(String, Arc<Given>)>,
    /// At most so many cases, all scenarios together; single faults and crashes are played in any case.
    pub max_cases: u64,
    /// Which part of the crossed cases is played where not all can be.
    pub seed: u64,
    /// Threads that play.
    pub threads: usize,
}

/// What an exploration found.
#[derive(Debug)]
pub struct Explored {
    /// Cases that were played.
    pub cases: u64,
    /// Cases there are.
    pub possible: u64,
    /// How each scenario ends when nothing goes wrong.
    pub undisturbed: Vec<End>,
    /// How many cases ended how, `waiting` and `stuck` among the words.
    pub ends: BTreeMap<&'static str, u64>,
    /// What must not be, each with the shortest case that shows it.
    pub found: Vec<Found>,
}

/// A finding with the case that shows it best.
#[derive(Debug, Clone)]
pub struct Found {
    /// Index of the scenario.
    pub scenario: usize,
    /// The case.
    pub case: Case,
    /// What was seen.
    pub finding: Finding,
    /// Records of the journal until it was seen.
    pub length: usize,
    /// Cases in which it was seen.
    pub cases: u64,
}

type Key = (FindingKind, String);

/// What threads gather.
#[derive(Default)]
struct Gathered {
    cases: u64,
    ends: BTreeMap<&'static str, u64>,
    found: BTreeMap<Key, Found>,
}

impl Gathered {
    fn take(&mut self, scenario: usize, case: &Case, ending: &Ending) {
        self.cases += 1;
        *self.ends.entry(word(&ending.end)).or_default() += 1;
        for finding in &ending.findings {
            let seen = Found {
                scenario,
                case: case.clone(),
                finding: finding.clone(),
                length: finding.after,
                cases: 1,
            };
            self.merge(seen);
        }
    }

    fn merge(&mut self, seen: Found) {
        let key = (seen.finding.kind, seen.finding.place.clone());
        match self.found.get_mut(&key) {
            None => {
                self.found.insert(key, seen);
            }
            Some(known) => {
                let cases = known.cases + seen.cases;
                if rank(&seen) < rank(known) {
                    *known = seen;
                }
                known.cases = cases;
            }
        }
    }
}

/// The least that goes wrong, then the shortest way there, then the first.
fn rank(found: &Found) -> (usize, usize, usize, &Case) {
    (found.case.weight(), found.length, found.scenario, &found.case)
}

fn word(end: &End) -> &'static str {
    match end {
        End::Finished(outcome) => outcome.as_str(),
        End::Waiting(_) => "waiting",
        End::Stuck(_) => "stuck",
    }
}

/// What single cases tell about what can be crossed with them.
struct Single {
    scenario: usize,
    case: Case,
    /// Writes of the engine that was there last: where it can die.
    last_writes: u32,
}

/// Explores; `progress` is told now and then how many cases were played and how many will be.
///
/// # Errors
/// If the system has no room for a runtime or a thread.
pub fn explore(what: &Exploration, progress: &(dyn Fn(u64, u64) + Sync)) -> io::Result<Explored> {
    explore_with(what, progress, &Simulator::new)
}

pub(crate) fn explore_with(
    what: &Exploration,
    progress: &(dyn Fn(u64, u64) + Sync),
    simulator: &(dyn Fn() -> io::Result<Simulator> + Sync),
) -> io::Result<Explored> {
    let first = simulator()?;
    let mut gathered = Gathered::default();
    let mut undisturbed = Vec::new();
    let mut singles: Vec<(usize, Case)> = Vec::new();
    for (at, (_, given)) in what.scenarios.iter().enumerate() {
        let ending = first.play(given, &Case::default());
        gathered.take(at, &Case::default(), &ending);
        singles.extend(faults(&ending).into_iter().map(|case| (at, case)));
        singles.extend(crashes(&Case::default(), ending.last_writes).map(|case| (at, case)));
        undisturbed.push(ending.end);
    }
    drop(first);
    let known = singles.len() as u64;
    let played = play_all(what, simulator, &mut gathered, known, &|at| singles.get(at).cloned(), &|done| {
        progress(done, what.max_cases.max(known));
    })?;
    // Where a case ended without having come to its fault, there is nothing to cross.
    let bases: Vec<Single> = played;
    let mut starts = Vec::with_capacity(bases.len());
    let mut crossed: u64 = 0;
    for base in &bases {
        starts.push(crossed);
        crossed += 2 * u64::from(base.last_writes);
    }
    let room = what.max_cases.saturating_sub(gathered.cases).min(crossed);
    let stride = stride(crossed);
    let begin = if crossed == 0 { 0 } else { what.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % crossed };
    let before = gathered.cases;
    let nth = |at: usize| -> Option<(usize, Case)> {
        let at = at as u64;
        if at >= room {
            return None;
        }
        let index = if room == crossed {
            at
        } else {
            u64::try_from((u128::from(begin) + u128::from(at) * u128::from(stride)) % u128::from(crossed))
                .ok()?
        };
        let base_at = starts.partition_point(|start| *start <= index).checked_sub(1)?;
        let base = bases.get(base_at)?;
        let case =
            crashes(&base.case, base.last_writes).nth(usize::try_from(index - starts.get(base_at)?).ok()?)?;
        Some((base.scenario, case))
    };
    play_all(what, simulator, &mut gathered, room, &nth, &|done| progress(before + done, before + room))?;
    Ok(Explored {
        cases: gathered.cases,
        possible: before + crossed,
        undisturbed,
        ends: gathered.ends,
        found: gathered.found.into_values().collect(),
    })
}

/// A step through all indices that meets each once and no two neighbours soon.
fn stride(count: u64) -> u64 {
    fn gcd(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "any number near it will do"
    )]
    let golden = (count as f64 * 0.618_034) as u64;
    (golden.max(1)..).find(|step| gcd(*step, count.max(1)) == 1).unwrap_or(1)
}

/// Plays every case on all threads. Answers those that may be crossed with a further crash.
fn play_all(
    what: &Exploration,
    simulator: &(dyn Fn() -> io::Result<Simulator> + Sync),
    gathered: &mut Gathered,
    count: u64,
    nth: &(dyn Fn(usize) -> Option<(usize, Case)> + Sync),
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<Vec<Single>> {
    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(0);
    let singles: Mutex<Vec<(usize, Single)>> = Mutex::default();
    let worker = || -> io::Result<Gathered> {
        let simulator = simulator()?;
        let mut own = Gathered::default();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((scenario, case)) = nth(at) else { return Ok(own) };
            let Some((_, given)) = what.scenarios.get(scenario) else { return Ok(own) };
            let ending = simulator.play(given, &case);
            own.take(scenario, &case, &ending);
            let finished = done.fetch_add(1, Ordering::Relaxed) + 1;
            if finished.is_multiple_of(64) || finished == count {
                progress(finished);
            }
            if case.crashes.len() < 2 && (case.fault.is_none() || ending.struck) {
                let single = Single { scenario, case, last_writes: ending.last_writes };
                singles.lock().unwrap_or_else(PoisonError::into_inner).push((at, single));
            }
        }
    };
    let threads = what.threads.clamp(1, 64);
    let results: Vec<io::Result<Gathered>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let mut results = vec![worker()];
        results.extend(handles.into_iter().map(|handle| {
            handle.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the simulation panicked")))
        }));
        results
    });
    for result in results {
        let own = result?;
        gathered.cases += own.cases;
        for (word, count) in own.ends {
            *gathered.ends.entry(word).or_default() += count;
        }
        for found in own.found.into_values() {
            gathered.merge(found);
        }
    }
    let mut singles = singles.into_inner().unwrap_or_else(PoisonError::into_inner);
    singles.sort_by_key(|(at, _)| *at);
    Ok(singles.into_iter().map(|(_, single)| single).collect())
}

/// Every fault of every action that a run without faults does.
fn faults(undisturbed: &Ending) -> Vec<Case> {
    let mut cases = Vec::new();
    for (_, record) in &undisturbed.trace.records {
        let Record::Intent { action } = &**record else { continue };
        for kind in FaultKind::ALL {
            if kind.hits_reads() || action.kind.is_effect() {
                let fault = Some(Fault { action: action.id.0, kind });
                cases.push(Case { fault, crashes: Vec::new() });
            }
        }
    }
    cases
}

/// Every place at which the last engine of a case can die.
fn crashes(base: &Case, writes: u32) -> impl Iterator<Item = Case> + '_ {
    (0..writes).flat_map(move |write| {
        [false, true].map(|after| {
            let mut case = base.clone();
            case.crashes.push(Crash { write, after });
            case
        })
    })
}
