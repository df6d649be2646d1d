//! The pages of the codes are true: each bad example shows its code and nothing worse, each good one is clean.

use cdpipe_check::{Checked, Inputs, check, codes, plan};
use cdpipe_syntax::Severity;
use std::collections::{BTreeMap, BTreeSet};

/// The files that examples bring in.
fn load(path: &str) -> Result<String, String> {
    match path {
        "services.cd" => Ok("service extra { command = [\"./extra\"] }\n".to_owned()),
        "stages.cd" => Ok("stage extra { run \"make\" }\n".to_owned()),
        _ => Err("no such file".to_owned()),
    }
}

fn checked(text: &str) -> Checked {
    check("example.cd", text, &load)
}

fn shown(checked: &Checked) -> BTreeSet<&'static str> {
    checked.diagnostics.iter().map(|found| found.code()).collect()
}

/// Codes that only inputs show, with the inputs that show them.
fn inputs_of(code: &str) -> Option<Inputs> {
    match code {
        "CD0401" => Some(Inputs::default()),
        "CD0402" => Some(Inputs {
            set: BTreeMap::from([("verison".to_owned(), "v2".to_owned())]),
            ..Inputs::default()
        }),
        _ => None,
    }
}

#[test]
fn each_bad_example_shows_its_code_and_each_good_one_is_clean() {
    let mut wrong = Vec::new();
    for info in codes() {
        if info.bad.is_empty() || info.code < "CD0200" {
            continue;
        }
        if let Some(inputs) = inputs_of(info.code) {
            let found = plan(&checked(info.bad), &inputs);
            let shown: BTreeSet<&str> = found.err().iter().flatten().map(|found| found.code()).collect();
            assert_eq!(shown, BTreeSet::from([info.code]));
            continue;
        }
        let bad = checked(info.bad);
        if shown(&bad) != BTreeSet::from([info.code]) {
            wrong.push(format!("{} bad: {:?}\n{}{:#?}", info.code, shown(&bad), info.bad, messages(&bad)));
        }
        let good = checked(info.good);
        if !good.diagnostics.is_empty() {
            wrong.push(format!(
                "{} good: {:?}\n{}{:#?}",
                info.code,
                shown(&good),
                info.good,
                messages(&good)
            ));
        }
        let worst = bad.diagnostics.iter().map(|found| found.severity).min();
        if worst == Some(Severity::Error) && bad.program.is_some() {
            wrong.push(format!("{} has a program in spite of an error", info.code));
        }
        // What is clean without inputs can be planned, if its parameters have defaults.
        if let Err(found) = plan(&good, &Inputs::default()) {
            wrong.push(format!("{} good does not plan: {found:#?}", info.code));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn messages(checked: &Checked) -> Vec<String> {
    checked.diagnostics.iter().map(|found| format!("{}: {}", found.code(), found.message)).collect()
}

#[test]
fn numbers_are_unique_and_ascend_and_pages_have_text() {
    let numbers: Vec<&str> = codes().iter().map(|info| info.code).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    for info in codes() {
        assert!(info.explanation.len() > 40, "{}", info.code);
        assert!(!info.title.ends_with('.'), "{}", info.code);
    }
}

#[test]
fn each_diagnostic_of_the_examples_says_what_to_do() {
    for info in codes().into_iter().filter(|info| info.code >= "CD0200") {
        for found in checked(info.bad).diagnostics {
            assert!(found.help.is_some(), "{}: {}", found.code(), found.message);
            assert!(!found.message.ends_with('.'), "{}: {}", found.code(), found.message);
        }
    }
}
