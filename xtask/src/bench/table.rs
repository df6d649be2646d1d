//! The measured table in docs/benchmarks.md: rows between two marks, one for each figure, replaced by id, so that a run of
//! one bench leaves the others as they were measured.

use std::path::Path;

use super::figure::Figure;
use crate::process;

const BEGIN: &str = "<!-- measured: begin (cargo xtask bench --write) -->";
const END: &str = "<!-- measured: end -->";
const HEAD: &str = "\
| figure | what | cdpipe | peer | ratio (lowest .. highest round) | aim | | measured |
|---|---|---|---|---|---|---|---|";

/// Puts figures into the table of `file`.
///
/// # Errors
/// The file cannot be read or written, or has no marks.
pub(crate) fn write(
    file: &Path,
    machine: &[(&'static str, String)],
    figures: &[Figure],
) -> Result<(), String> {
    let old = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let new = updated(&old, machine, figures).ok_or_else(|| {
        format!("{} has no lines `{BEGIN}` and `{END}`, so there is no table to write", file.display())
    })?;
    process::write_file(file, &new)
}

fn updated(old: &str, machine: &[(&'static str, String)], figures: &[Figure]) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (table, after) = rest.split_once(END)?;
    let fact =
        |name: &str| machine.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value.as_str());
    let measured = format!("{}, {}", fact("date"), fact("commit"));
    let mut rows: Vec<String> =
        table.lines().filter(|line| line.starts_with("| `")).map(|line| line.trim_end().to_owned()).collect();
    for figure in figures {
        let row = row(figure, &measured);
        let key = format!("| `{}` |", figure.id);
        match rows.iter_mut().find(|old| old.starts_with(&key)) {
            Some(old) => *old = row,
            None => rows.push(row),
        }
    }
    let facts: Vec<String> = machine
        .iter()
        .filter(|(name, _)| !matches!(*name, "date" | "commit"))
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    Some(format!(
        "{before}{BEGIN}\n\n{HEAD}\n{}\n\nLast run: {}.\n\n{END}{after}",
        rows.join("\n"),
        facts.join(" · ")
    ))
}

fn row(figure: &Figure, measured: &str) -> String {
    let peer = figure
        .peer
        .as_ref()
        .map_or_else(|| "none".to_owned(), |(name, samples)| format!("{name}: {}", figure.value(samples)));
    format!(
        "| `{}` | {} | {} | {peer} | {} | {} | {} | {measured} |",
        figure.id,
        figure.what,
        figure.value(&figure.ours),
        figure.shown_ratio(),
        figure.aim(),
        match figure.reached() {
            Some(true) => "reached",
            Some(false) => "**short**",
            None => "",
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::figure::Aim;
    use super::*;

    fn figure(id: &'static str, ours: f64) -> Figure {
        Figure {
            id,
            what: "a thing".to_owned(),
            unit: "ms",
            ours: vec![ours],
            peer: None,
            aim: Aim::AtMost(5.0),
        }
    }

    #[test]
    fn a_row_is_replaced_by_its_id_and_others_stay() {
        let machine = [("date", "today".to_owned()), ("cpu", "fast".to_owned())];
        let empty = format!("# Head\n\n{BEGIN}\n{END}\n\nTail\n");
        let first = updated(&empty, &machine, &[figure("a", 1.0), figure("b", 9.0)]).unwrap();
        let second = updated(&first, &machine, &[figure("a", 2.0)]).unwrap();
        assert!(second.starts_with("# Head\n\n<!--") && second.ends_with("-->\n\nTail\n"), "{second}");
        assert!(
            second.contains("| `a` | a thing | 2.00 ms | none |  | ≤ 5 ms | reached | today,  |\n"),
            "{second}"
        );
        assert!(
            second.contains("| `b` | a thing | 9.00 ms | none |  | ≤ 5 ms | **short** | today,  |\n"),
            "{second}"
        );
        assert!(second.contains("Last run: cpu: fast.\n"), "{second}");
        assert_eq!(second.matches(HEAD).count(), 1);
        assert_eq!(updated("no marks", &machine, &[]), None);
    }
}
