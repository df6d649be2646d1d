//! What the formatter promises: the tree and the comments stay, and formatting twice is formatting once.

use cdpipe_syntax::testing::dump;
use cdpipe_syntax::{SourceId, format, parse};

mod corpus;

/// The comments of a text, in order.
fn comments(text: &str) -> Vec<String> {
    parse(SourceId(0), text)
        .file
        .comments
        .iter()
        .map(|span| text[span.range()].trim_end().to_owned())
        .collect()
}

/// Checks all promises for one text that parses.
#[allow(clippy::panic, reason = "a check of tests")]
fn check(name: &str, text: &str) -> String {
    let once = format(text).unwrap_or_else(|errors| panic!("{name} does not parse: {errors:?}"));
    let tree = dump(&parse(SourceId(0), text).file);
    let again = parse(SourceId(0), &once);
    assert_eq!(again.diagnostics, [], "{name}: the formatted text has errors:\n{once}");
    assert_eq!(dump(&again.file), tree, "{name}: the meaning changed:\n{once}");
    assert_eq!(comments(&once), comments(text), "{name}: comments changed:\n{once}");
    let twice = format(&once).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
    assert_eq!(twice, once, "{name}: formatting twice is not formatting once");
    once
}

#[test]
fn the_corpus_keeps_its_meaning_and_comments() {
    for (name, text) in corpus::files() {
        check(&name, &text);
    }
}
