//! The matcher that is made from the grammar matches what the parser matches that pest makes from it: the same rules at the same
//! places, on the corpus, on its prefixes and mutants, on the texts of the message tests, and on random tokens.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test reads texts and ends with what it found; pest makes an enum of the rules"
)]

use cdpipe_syntax::testing::{Match, matched};
use pest::Parser;
use pest::iterators::Pairs;
use proptest::prelude::*;

mod corpus;

#[derive(pest_derive::Parser)]
#[grammar = "../../grammar/cdpipe.pest"]
struct Reference;

fn flatten(pairs: Pairs<'_, Rule>, depth: usize, all: &mut Vec<Match>) {
    for pair in pairs {
        let span = pair.as_span();
        all.push(Match {
            rule: format!("{:?}", pair.as_rule()),
            start: span.start(),
            end: span.end(),
            depth,
        });
        flatten(pair.into_inner(), depth + 1, all);
    }
}

/// Holds both against each other. (No text here nests so deep that either of them gives up.)
#[track_caller]
fn compare(text: &str) {
    let ours = matched(text).expect("does not nest too deep");
    let pairs = Reference::parse(Rule::file, text).expect("the grammar matches every text");
    let mut theirs = Vec::new();
    flatten(pairs, 0, &mut theirs);
    if ours == theirs {
        return;
    }
    let at = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
    let at = at.unwrap_or(ours.len().min(theirs.len()));
    panic!("after {at} matches, ours is {:?} and theirs {:?} in\n{text}", ours.get(at), theirs.get(at));
}

#[test]
fn the_corpus_and_every_text_of_the_tests() {
    for (_, text) in corpus::files() {
        assert!(matched(&text).is_some_and(|all| all.len() > 10));
        compare(&text);
    }
    for folder in ["tests/messages", "../check/tests/messages", "../../docs", "../../docs/errors"] {
        let files = std::fs::read_dir(folder).expect(folder).map(|file| file.expect(folder).path());
        // Not only the pipelines in them: Markdown is as good a text as any.
        for file in files.filter(|file| file.extension().is_some_and(|kind| kind == "md" || kind == "cd")) {
            let text = std::fs::read_to_string(file).expect(folder);
            compare(&text);
            text.split("```").for_each(compare);
        }
    }
}

#[test]
fn every_prefix_of_the_corpus() {
    for (_, text) in corpus::files() {
        for (at, _) in text.char_indices().step_by(13) {
            compare(&text[..at]);
        }
    }
}

#[test]
fn characters_of_all_of_unicode_in_a_name_a_string_and_alone() {
    // All of the alphabets and signs, and some of the many of East Asia.
    let letters: Vec<char> = ('\0'..='\u{31ff}').chain(('\u{3200}'..=char::MAX).step_by(61)).collect();
    for block in letters.chunks(64) {
        let line = |letter: &char| format!("a{letter}b = \"{letter}\"\n{letter} 1{letter}\n");
        compare(&block.iter().map(line).collect::<String>());
    }
}

/// Tokens that mean something to the grammar, whole and in pieces.
const TOKENS: [&str; 92] = [
    "a",
    "b-c",
    "stage",
    "for",
    "for x in y",
    "in",
    "matches",
    "if",
    "then",
    "else",
    "and",
    "or",
    "not",
    "true",
    "false",
    "é",
    "d-",
    "_",
    "1",
    "10%",
    "5m",
    ".5",
    "1.2.3",
    "3é",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\"x\"",
    "'x'",
    "\"a${b}\"",
    "${",
    "$${",
    "$",
    "\\",
    "\\\"",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "{ ",
    " }",
    "f(",
    "a[",
    "a.",
    ".",
    "..",
    ",",
    ";",
    ":",
    "://",
    ":=",
    "=",
    "==",
    "===",
    "=>",
    "=~",
    "+=",
    "+",
    "-",
    "->",
    "*",
    "**",
    "/",
    "//",
    "/*",
    "*/",
    "<",
    "<=",
    "<>",
    ">",
    ">>",
    "!",
    "!=",
    "!~",
    "!==",
    "&&",
    "||",
    "&",
    "|",
    "^",
    "%",
    "??",
    "?",
    "? a : b",
    "@",
    "#",
    "# c",
    "“q”",
    "`q`",
];
const BLANKS: [&str; 8] = ["", "", "", " ", " ", "\n", "\n  ", "\r\n\t"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 700, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_tokens(picked in prop::collection::vec((0..TOKENS.len(), 0..BLANKS.len()), 0..60)) {
        let text: String = picked.iter().flat_map(|&(token, blank)| [TOKENS[token], BLANKS[blank]]).collect();
        compare(&text);
    }

    #[test]
    fn mutants_of_the_corpus(
        file in 0..100usize, cuts in prop::collection::vec((0..10_000usize, 0..40usize, 0..TOKENS.len()), 1..5)
    ) {
        let files = corpus::files();
        let (_, text) = &files[file % files.len()];
        let mut letters: Vec<char> = text.chars().collect();
        for (at, length, token) in cuts {
            let at = at % letters.len().max(1);
            let end = (at + length).min(letters.len());
            letters.splice(at..end, TOKENS[token].chars());
        }
        compare(&letters.into_iter().collect::<String>());
    }
}
