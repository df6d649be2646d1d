//! Whatever the text is, `check` ends, without a panic and with positions that lie in it; and what it lets through can be planned or
//! is refused in words.

use cdpipe_check::{Checked, Inputs, check, plan};
use std::collections::BTreeMap;

const GOOD: &str = include_str!("good/pipelines.md");

fn load(path: &str) -> Result<String, String> {
    if path == "lib.cd" {
        Ok("service extra { command = [\"./extra\"] }\n".to_owned())
    } else {
        Err("none".to_owned())
    }
}

/// The pipelines of the good ones.
fn pipelines() -> Vec<&'static str> {
    GOOD.split("```cd").skip(1).filter_map(|rest| rest.split_once('\n')?.1.split("\n```").next()).collect()
}

fn sound(text: &str) -> Checked {
    let checked = check("x.cd", text, &load);
    for diagnostic in &checked.diagnostics {
        for span in std::iter::once(diagnostic.primary.span)
            .chain(diagnostic.secondary.iter().map(|label| label.span))
        {
            let source = checked.sources.get(span.source).map_or("", |source| &source.text);
            assert!(source.get(span.range()).is_some(), "{} at {span:?} in\n{text}", diagnostic.code());
        }
        assert!(!diagnostic.message.is_empty());
        for edit in diagnostic.fix.iter().flat_map(|fix| &fix.edits) {
            assert!(text.get(edit.span.range()).is_some() || edit.span.source.0 > 0, "{}", diagnostic.code());
        }
    }
    assert_eq!(checked.program.is_some(), !checked.has_errors(), "{text}");
    if checked.program.is_some() {
        let inputs = Inputs {
            set: BTreeMap::from([("version".to_owned(), "v1.2.3".to_owned())]),
            ..Inputs::default()
        };
        match plan(&checked, &inputs) {
            Ok(plan) => {
                for node in &plan.nodes {
                    assert!(node.needs.iter().all(|need| plan.node(need.node).is_some()));
                }
            }
            Err(found) => assert!(!found.is_empty(), "{text}"),
        }
    }
    checked
}

/// A small generator, so that each run tries the same.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(sides.max(1)).unwrap_or(1)).unwrap_or(0)
    }
}

#[test]
fn pipelines_with_tokens_dropped_doubled_and_swapped() {
    let mut dice = Dice(0x5eed_cafe);
    for text in pipelines() {
        let mut tokens: Vec<&str> = Vec::new();
        let mut start = 0;
        for (at, c) in text.char_indices() {
            if !c.is_alphanumeric() && c != '_' {
                if start < at {
                    tokens.push(&text[start..at]);
                }
                tokens.push(&text[at..at + c.len_utf8()]);
                start = at + c.len_utf8();
            }
        }
        for _ in 0..12 {
            let mut mutant = tokens.clone();
            for _ in 0..=dice.roll(3) {
                let (at, other) = (dice.roll(mutant.len()), dice.roll(mutant.len()));
                match dice.roll(4) {
                    0 => {
                        mutant.remove(at);
                    }
                    1 => mutant.insert(at, mutant[other]),
                    2 => mutant.swap(at, other),
                    _ => {
                        mutant[at] =
                            ["0", "-1", "\"\"", "true", "9999999999", "%", "${", "needs", "x.y", "[]"]
                                [dice.roll(10)]
                    }
                }
            }
            sound(&mutant.concat());
        }
    }
}

#[test]
fn every_prefix_of_the_tour() {
    let text = pipelines()[0];
    for (at, _) in text.char_indices().filter(|(at, _)| at % 97 == 0) {
        sound(&text[..at]);
    }
}

#[test]
fn texts_that_grow_by_naming_each_other_are_refused() {
    use std::fmt::Write as _;
    let mut text = String::from("param p0: string = \"0123456789\"\n");
    for level in 1..40 {
        let before = level - 1;
        let _ = writeln!(text, "param p{level}: string = \"${{p{before}}}${{p{before}}}${{p{before}}}\"");
    }
    text.push_str("stage x { run \"echo ${p39}\" }\n");
    let checked = check("x.cd", &text, &load);
    let found = plan(&checked, &Inputs::default()).expect_err("far too long");
    assert!(found.iter().any(|found| found.code() == "CD0307"), "{found:?}");

    let mut services = String::from("environment here { target local }\n");
    for level in 0..40 {
        let value = if level == 0 {
            "0123456789".to_owned()
        } else {
            format!("${{s{0}.version}}${{s{0}.version}}${{s{0}.version}}", level - 1)
        };
        let _ = writeln!(services, "service s{level} {{ command = [\"./s\"], version = \"{value}\" }}");
    }
    services.push_str("stage x { run \"echo ${s39.version}\" }\n");
    let checked = check("x.cd", &services, &load);
    assert!(plan(&checked, &Inputs::default()).is_err());
}

#[test]
fn a_long_circle_is_told_whole_but_short() {
    use std::fmt::Write as _;
    let mut text = String::new();
    for at in 0..2_000 {
        let _ = writeln!(text, "stage s{at} {{ needs = [s{}]; run \"x\" }}", (at + 1) % 2_000);
    }
    let checked = sound(&text);
    let circle: Vec<_> = checked.diagnostics.iter().filter(|found| found.code() == "CD0504").collect();
    assert_eq!(circle.len(), 1);
    assert!(circle[0].message.len() < 400, "{}", circle[0].message);
}

#[test]
fn the_same_pipeline_and_inputs_give_the_same_plan() {
    let text = pipelines()[0];
    let inputs =
        Inputs { set: BTreeMap::from([("version".to_owned(), "v1.2.3".to_owned())]), ..Inputs::default() };
    let other =
        Inputs { set: BTreeMap::from([("version".to_owned(), "v1.2.4".to_owned())]), ..Inputs::default() };
    let once = plan(&sound(text), &inputs).expect("a plan");
    let twice = plan(&sound(text), &inputs).expect("a plan");
    assert_eq!(once, twice);
    assert!(once.hash.starts_with("sha256:") && once.hash.len() == 71);
    assert_ne!(once.hash, plan(&sound(text), &other).expect("a plan").hash);
    assert_ne!(once.hash, plan(&sound(&format!("{text}\n# changed\n")), &inputs).expect("a plan").hash);
}
