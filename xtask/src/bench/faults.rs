//! How many fault cases of a pipeline are played in a second. There is no peer for it but the aim itself.

use std::time::Duration;

use serde_json::Value;

use super::Setup;
use super::figure::{Aim, Figure};
use crate::process::Job;
use crate::project;
use crate::say::say;

const ONE_RUN_WITHIN: Duration = Duration::from_secs(120);
/// Some seconds' worth. Nearly all of them are crossed, a fault with a crash, as most of what a long exploration plays.
const CASES: u64 = 5_000;

/// `cdpipe test --faults` of the quickstart, on every core, as it counts itself: the time of starting it is not in it.
pub(crate) fn faults(setup: &Setup) -> Result<Vec<Figure>, String> {
    let file = project::root().join("pipelines").join("quickstart.cd").to_string_lossy().into_owned();
    let cases = CASES.to_string();
    let job = setup
        .cdpipe(&["test", "--faults", &file, "--cases", &cases, "--json", "--color=never"], ONE_RUN_WITHIN);
    played(&explored(&job)?)?;
    let samples: Vec<f64> = (0..setup.rounds).map(|_| rate(&explored(&job)?)).collect::<Result<_, _>>()?;
    Ok(vec![Figure {
        id: "faults",
        what: format!("fault cases of `cdpipe test --faults`, the quickstart, {CASES} cases, all cores"),
        unit: "cases/s",
        ours: samples,
        peer: None,
        aim: Aim::AtLeast(500.0),
    }])
}

/// What `cdpipe test --faults --json` says of its only file.
fn explored(job: &Job) -> Result<Value, String> {
    let output = job.must()?.output;
    let document: Value =
        serde_json::from_str(&output).map_err(|error| format!("`{}`: {error}", job.shown()))?;
    match document["files"].as_array().map(Vec::as_slice) {
        Some([file]) => Ok(file.clone()),
        _ => Err(format!("`{}` tells of no file, or of several", job.shown())),
    }
}

/// Shows that the cases were played: each came to an end, and some to one to which only a fault leads.
fn played(file: &Value) -> Result<(), String> {
    let ended = file["ended"].as_object().ok_or("it does not say how the cases ended")?;
    let all: u64 = ended.values().filter_map(Value::as_u64).sum();
    if file["cases"].as_u64() != Some(CASES) || all != CASES {
        return Err(format!("{CASES} cases were asked for, {} played, {all} ended", file["cases"]));
    }
    // So the tests of the quickstart end by themselves.
    let undisturbed = ["succeeded", "rolled_back"];
    let by_faults: u64 = ended
        .iter()
        .filter(|(end, _)| !undisturbed.contains(&end.as_str()))
        .filter_map(|(_, n)| n.as_u64())
        .sum();
    if by_faults == 0 {
        return Err("every case ends as without its fault: the faults do nothing".to_owned());
    }
    say(&format!(
        "{CASES} cases of {}; {by_faults} of them end as none does without a fault",
        file["possible"]
    ));
    Ok(())
}

fn rate(file: &Value) -> Result<f64, String> {
    file["cases_per_s"]
        .as_f64()
        .ok_or_else(|| "it does not say how many cases it played in a second".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{played, rate};
    use serde_json::json;

    #[test]
    fn an_exploration_that_did_less_is_no_figure() {
        let whole = json!({
            "cases": 5000, "possible": 47169, "cases_per_s": 1865,
            "ended": { "succeeded": 4000, "rollback_failed": 1000 },
        });
        assert_eq!(played(&whole), Ok(()));
        assert_eq!(rate(&whole), Ok(1865.0));

        let mut fewer = whole.clone();
        fewer["cases"] = json!(4999);
        assert!(played(&fewer).is_err());
        let mut unended = whole.clone();
        unended["ended"]["succeeded"] = json!(3999);
        assert!(played(&unended).is_err());
        let mut harmless = whole;
        harmless["ended"] = json!({ "succeeded": 3000, "rolled_back": 2000 });
        assert!(played(&harmless).is_err());
        assert!(rate(&json!({})).is_err());
    }
}
