//! What the documentation says is so: its pipelines are accepted, and its list of commands is that of the binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

/// The fenced blocks of a page that are marked with this word, in order.
fn fenced(page: &str, word: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in page.lines() {
        match &mut open {
            None if line == format!("```{word}") => open = Some(String::new()),
            None => {}
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// What `cdpipe check --strict` says of a text: its exit code and all it printed.
fn check(text: &str) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shop.cd");
    std::fs::write(&path, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cdpipe"))
        .args(["check", "--strict", "shop.cd"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

#[test]
fn the_snippets_of_the_tour_are_one_pipeline() {
    let page = std::fs::read_to_string(docs("tour.md")).unwrap();
    let blocks = fenced(&page, "cd");
    assert!(blocks.len() >= 10, "the snippets are gone: {}", blocks.len());
    let (code, said) = check(&blocks.join("\n"));
    assert_eq!(code, 0, "{said}");
    for block in &blocks {
        let formatted = cdpipe_syntax::format(block).unwrap();
        assert_eq!(&formatted, block, "the tour is laid out as `cdpipe fmt` would");
    }
}

#[test]
fn pipelines_of_the_other_pages_are_accepted_too() {
    let page = std::fs::read_to_string(docs("operations.md")).unwrap();
    for block in fenced(&page, "cd") {
        let (code, said) = check(&block);
        assert_eq!(code, 0, "{said}\n{block}");
    }
}

#[test]
fn operations_names_every_command_that_the_binary_has() {
    let page = std::fs::read_to_string(docs("operations.md")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cdpipe")).arg("help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.trim().is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| *word != "help")
        .collect();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands {
        assert!(
            page.contains(&format!("`cdpipe {command}")),
            "docs/operations.md does not tell of `cdpipe {command}`"
        );
    }
}

/// `UPDATE_PAGES=1 cargo test -p cdpipe --test docs` writes it.
#[test]
fn the_page_of_the_command_lines_errors_is_that_of_the_codes() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_cdpipe")).args(["docs", "command-line-errors"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let path = docs("command-line-errors.md");
    if std::env::var_os("UPDATE_PAGES").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(text.contains("CD0001"));
    assert_eq!(
        std::fs::read_to_string(&path).unwrap_or_default(),
        text,
        "write it again with UPDATE_PAGES=1"
    );
}

/// A table for each target, a row for each strategy, a column for each router, and below them the sentences that cells point to.
fn support_table() -> String {
    use cdpipe_model::capability::{DRIVEN_ROUTERS, DRIVEN_TARGETS, Support, router, support};
    use cdpipe_model::strategy::StrategyKind;
    use std::fmt::Write as _;
    let mut table = String::new();
    let mut notes: Vec<&str> = Vec::new();
    for target in DRIVEN_TARGETS {
        let routers = DRIVEN_ROUTERS.iter().filter(|kind| router(**kind).targets.contains(target));
        let columns: Vec<_> = routers.map(|kind| Some(*kind)).chain([None]).collect();
        let heads = columns
            .iter()
            .map(|kind| kind.map_or("no traffic".to_owned(), |kind| format!("`{}`", kind.as_str())));
        writeln!(table, "| `{}` | {} |", target.as_str(), heads.collect::<Vec<_>>().join(" | ")).unwrap();
        writeln!(table, "|---{}|", "|---".repeat(columns.len())).unwrap();
        for strategy in StrategyKind::ALL {
            let cells = columns.iter().map(|traffic| {
                let (word, why) = match support(strategy, *target, *traffic) {
                    Support::Exact => return "exact".to_owned(),
                    Support::Approximate(why) => ("nearly", why),
                    Support::Refused(why) => ("refused", why),
                };
                let number = notes.iter().position(|note| *note == why).unwrap_or_else(|| {
                    notes.push(why);
                    notes.len() - 1
                });
                format!("{word} ({})", number + 1)
            });
            writeln!(table, "| `{}` | {} |", strategy.as_str(), cells.collect::<Vec<_>>().join(" | "))
                .unwrap();
        }
        table.push('\n');
    }
    for (number, note) in notes.iter().enumerate() {
        writeln!(table, "{}. {note}", number + 1).unwrap();
    }
    table.push_str("\n| router | shares | headers | cookies | stays by cookie | stays by address | sees the drain | counts requests | preview |\n");
    table.push_str("|---|---|---|---|---|---|---|---|---|\n");
    for kind in DRIVEN_ROUTERS {
        let can = router(*kind);
        let cells = [
            can.weights,
            can.header_rules,
            can.cookie_rules,
            can.sticky_cookie,
            can.sticky_client_address,
            can.observes_drain,
            can.counts_requests,
            can.preview,
        ]
        .map(|can| if can { "yes" } else { "no" });
        writeln!(table, "| `{}` | {} |", kind.as_str(), cells.join(" | ")).unwrap();
    }
    table
}

#[test]
fn the_table_of_guarantees_is_that_of_the_capabilities() {
    let path = docs("guarantees.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- support: begin").unwrap();
    let (first_line, rest) = rest.split_once('\n').unwrap();
    let (_, after) = rest.split_once("<!-- support: end").unwrap();
    let made =
        format!("{before}<!-- support: begin{first_line}\n\n{}\n<!-- support: end{after}", support_table());
    if std::env::var_os("UPDATE_PAGES").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap();
    assert_eq!(page, made, "write it again with UPDATE_PAGES=1");
}

#[test]
fn each_test_that_the_guarantees_name_is_there() {
    let page = std::fs::read_to_string(docs("guarantees.md")).unwrap();
    let named: Vec<(&str, &str)> =
        page.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs: ")).collect();
    assert!(named.len() > 30, "the names are gone: {named:?}");
    for (file, test) in named {
        let path = docs("..").join(format!("{file}.rs"));
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(source.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
    }
}

#[test]
fn the_tests_of_the_example_pipelines_and_of_the_tour_pass() {
    let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    let page = std::fs::read_to_string(docs("tour.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tour = dir.path().join("tour.cd");
    std::fs::write(&tour, fenced(&page, "cd").join("\n")).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_cdpipe")).arg("test").args([&pipelines, &tour]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("a bad canary goes back"), "{said}");
    assert!(said.contains("quickstart-rollback.cd"), "{said}");
}
