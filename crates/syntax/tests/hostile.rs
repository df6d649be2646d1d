//! No text makes the parser panic, hang or fill the memory, and each gets an answer that helps.

use cdpipe_syntax::testing::dump;
use cdpipe_syntax::{MAX_DIAGNOSTICS, Parsed, SourceId, format, parse};

mod corpus;

/// A small generator of numbers, so that every run tries the same texts.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).map_or(0, |number| number % bound.max(1))
    }
}

const BITS: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "${",
    "$${",
    "#",
    "//",
    "/*",
    "\n",
    "\r\n",
    ";",
    ",",
    "=",
    "==",
    ":",
    "and ",
    " not ",
    "if ",
    " then ",
    " else ",
    "in ",
    "matches ",
    "-",
    " - ",
    "5m",
    "5min",
    "%",
    "\\",
    "“",
    "é",
    "\u{a0}",
    "?",
    "stage x {",
];

/// A text changed in a few places.
fn mutate(text: &str, random: &mut Random) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    for _ in 0..=random.below(4) {
        let at = random.below(letters.len());
        match random.below(5) {
            0 => {
                letters.remove(at);
            }
            1 => {
                let bit: Vec<char> = BITS[random.below(BITS.len())].chars().collect();
                letters.splice(at..at, bit);
            }
            2 => {
                let to = (at + random.below(40)).min(letters.len());
                letters.drain(at..to);
            }
            3 => {
                let to = (at + random.below(60)).min(letters.len());
                let copy: Vec<char> = letters[at..to].to_vec();
                let into = random.below(letters.len());
                letters.splice(into..into, copy);
            }
            _ => {
                let other = random.below(letters.len());
                letters.swap(at, other);
            }
        }
        if letters.is_empty() {
            break;
        }
    }
    letters.into_iter().collect()
}

/// What holds for every text.
fn check(text: &str, parsed: &Parsed) {
    assert!(parsed.diagnostics.len() <= MAX_DIAGNOSTICS + 1);
    for diagnostic in &parsed.diagnostics {
        let edits = diagnostic.fix.iter().flat_map(|fix| fix.edits.iter().map(|edit| edit.span));
        let spans = [diagnostic.primary.span]
            .into_iter()
            .chain(diagnostic.secondary.iter().map(|label| label.span))
            .chain(edits);
        for span in spans {
            assert!(
                text.get(span.range()).is_some(),
                "{span:?} of {} cuts a letter or lies outside\n{text}",
                diagnostic.message
            );
        }
        assert!(
            !diagnostic.message.contains('\n') && !diagnostic.message.ends_with('.'),
            "{}",
            diagnostic.message
        );
    }
    // Whoever checks the tree goes by this: no error node without an error.
    let tree = dump(&parsed.file);
    let holes = tree.contains("(error)") || tree.contains("(not closed)");
    assert!(!holes || parsed.diagnostics.iter().any(|found| found.is_error()), "{tree}\n{text}");
    for span in &parsed.file.comments {
        assert!(text[span.range()].starts_with('#'), "{span:?}\n{text}");
    }
    for entry in &parsed.file.entries {
        assert!(text.get(entry.span().range()).is_some(), "{:?}\n{text}", entry.span());
    }
}

#[test]
fn thousands_of_mutants_give_a_tree_and_no_panic() {
    let mut random = Random(2026);
    let mut clean = 0;
    for (name, text) in corpus::files() {
        for _ in 0..150 {
            let mutant = mutate(&text, &mut random);
            let parsed = parse(SourceId(0), &mutant);
            check(&mutant, &parsed);
            match format(&mutant) {
                Ok(formatted) => {
                    clean += 1;
                    let again = parse(SourceId(0), &formatted);
                    assert_eq!(dump(&again.file), dump(&parsed.file), "{name}\n{mutant}\n----\n{formatted}");
                    assert_eq!(format(&formatted).as_ref(), Ok(&formatted), "{name}\n{mutant}");
                }
                Err(errors) => assert_eq!(errors, parsed.diagnostics),
            }
        }
    }
    assert!(clean > 50, "only {clean} mutants could be formatted");
}

/// The codes reported for a text.
fn shown(text: &str) -> Vec<&'static str> {
    let parsed = parse(SourceId(0), text);
    check(text, &parsed);
    parsed.diagnostics.iter().map(|found| found.code()).collect()
}

#[test]
fn a_hundred_thousand_open_brackets_give_one_clear_error() {
    for bracket in ["{", "[", "(", "x {\n", "x = [\n", "f(", "\"${", "${", "[{", "not (", "if (", "- ("] {
        let text = format!("x = {}", bracket.repeat(100_000));
        assert_eq!(shown(&text), ["CD0121"], "{bracket}");
    }
    // What stands in another statement is read all the same.
    let text = format!(
        "stage a {{\n  timeout = 5min\n}}\n\nstage b {{\n  x = {}\n}}\n\nstage c {{\n  y = 3apples\n}}\n",
        "[".repeat(500)
    );
    assert_eq!(shown(&text), ["CD0106", "CD0121", "CD0106"]);
}

#[test]
fn chains_are_bounded_too() {
    let chains = [
        "x = 1".to_owned() + &" + 1".repeat(100_000),
        "x = a".to_owned() + &".a".repeat(100_000),
        "x = a".to_owned() + &"[0]".repeat(100_000),
        "x = ".to_owned() + &"not ".repeat(10_000) + "a",
        "x = ".to_owned() + &"-".repeat(10_000) + "1",
        "x = ".to_owned() + &"if a then b else ".repeat(10_000) + "c",
        "x = ".to_owned() + &"if a\nthen b\nelse ".repeat(10_000) + "c",
        "x = ".to_owned() + &"if ".repeat(10_000) + "c",
        "x = ".to_owned() + &"if a then ".repeat(10_000) + "c",
        "when a".to_owned() + &" and a".repeat(5_000),
        "x = a".to_owned() + &"//a".repeat(100_000),
        "x a".to_owned() + &"/*a".repeat(100_000),
    ];
    for text in chains {
        let start: String = text.chars().take(30).collect();
        assert_eq!(shown(&text), ["CD0121"], "{start}");
    }
    // At the limit all is well, on the stack of a test, in a build without optimisation.
    assert_eq!(shown(&("x = 1".to_owned() + &" + 1".repeat(1_000))), Vec::<&str>::new());
    assert_eq!(shown(&format!("x = {}1{}", "[".repeat(60), "]".repeat(60))), Vec::<&str>::new());
    assert_eq!(shown(&format!("{}{}", "x {\n".repeat(63), "}\n".repeat(63))), Vec::<&str>::new());
}

#[test]
fn noise_ends_soon_with_a_bounded_answer() {
    let mut random = Random(7);
    let alphabet: Vec<char> =
        "abcdefgxyz0123456789 \n\t{}[]()\"'$#=:;,.+-*/<>!&|%\\@^~`é“\u{a0}".chars().collect();
    let noise: String = (0..3_000_000).map(|_| alphabet[random.below(alphabet.len())]).collect();
    let flat: String = noise.chars().filter(|letter| !matches!(letter, '{' | '[' | '(')).collect();
    let words = "foo bar baz ".repeat(400_000);
    let line = "x".repeat(5_000_000);
    for text in [noise, flat, words, line] {
        let parsed = parse(SourceId(0), &text);
        check(&text, &parsed);
        assert!(!parsed.diagnostics.is_empty() || text.starts_with("xxx") || text.starts_with("foo"));
    }
}

#[test]
fn odd_ends_and_starts() {
    for text in [
        "",
        "\u{feff}",
        "\u{feff}stage a {}",
        "\n",
        "\r\n",
        "#",
        "# c",
        "x",
        "x =",
        "x = ",
        "x {",
        "x = [",
        "x = (",
        "\"",
        "'",
        "\"\"\"",
        "'''",
        "x = \"${",
        "x = \"${a",
        "x = \"$",
        "x = \"\\",
        "x = \"\"\"\n",
        "x = '''\n'''",
        "}",
        ")",
        "]",
        ";",
        ",",
        "=",
        ":",
        ".",
        "-",
        "?",
        "x = a?",
        "x = if",
        "x = a.",
        "x = a[",
        "x = f(",
        "x: ",
        "x: list(",
        "x in",
        "x matches",
        "stage x for y in",
        "\u{0}",
        "x = “",
        "x = \"\"\"a\"\"\"",
        "/*",
        "//",
        "/* */ x",
        "x = 5 // c",
        "{",
        "{}",
        "{ }",
        "\r",
        "x\r= 1\r",
    ] {
        let parsed = parse(SourceId(0), text);
        check(text, &parsed);
        let cut: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        for at in cut {
            check(&text[..at], &parse(SourceId(0), &text[..at]));
        }
    }
}

#[test]
fn every_prefix_of_the_corpus_is_read() {
    for (_, text) in corpus::files() {
        // A step that is no multiple of anything in the text.
        for (at, _) in text.char_indices().step_by(17) {
            check(&text[..at], &parse(SourceId(0), &text[..at]));
        }
    }
}
