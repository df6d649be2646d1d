//! One bracket or quotation mark is deleted at a time, everywhere in the corpus: the message has to name the line, and there
//! must be no second one that only follows from the first.

use std::collections::BTreeMap;

use cdpipe_syntax::testing::strings;
use cdpipe_syntax::{LineIndex, SourceId, parse};

mod corpus;

/// What deletions of one kind of character led to.
#[derive(Default, Debug)]
struct Tally {
    /// Deletions after which the text is wrong. (One quote less can leave a text that means something else.)
    total: usize,
    /// The first message names the line of the deletion, or the end of the last line above that is not blank.
    line: usize,
    /// Nothing else is reported.
    alone: usize,
}

/// Offsets of brackets outside of strings and comments, and of the quotes around strings.
fn deletable(text: &str) -> Vec<usize> {
    let parsed = parse(SourceId(0), text);
    assert_eq!(parsed.diagnostics, [], "the corpus is clean");
    let mut inside = vec![false; text.len()];
    let mut quotes = Vec::new();
    for span in strings(&parsed.file) {
        inside[span.range()].fill(true);
        let quote = &text[span.range()];
        let width = if quote.starts_with("\"\"\"") || quote.starts_with("'''") { 3 } else { 1 };
        quotes.extend(span.start as usize..span.start as usize + width);
        quotes.extend(span.end as usize - width..span.end as usize);
    }
    for comment in &parsed.file.comments {
        inside[comment.range()].fill(true);
    }
    let brackets = text
        .char_indices()
        .filter(|(at, letter)| !inside[*at] && matches!(letter, '{' | '}' | '[' | ']' | '(' | ')'))
        .map(|(at, _)| at);
    let mut all: Vec<usize> = brackets.chain(quotes).collect();
    all.sort_unstable();
    all
}

#[test]
fn a_deleted_bracket_or_quote_is_found_on_its_line() {
    let mut tallies: BTreeMap<char, Tally> = BTreeMap::new();
    let mut bad = Vec::new();
    for (name, text) in corpus::files() {
        for at in deletable(&text) {
            let letter = text[at..].chars().next().expect("a character");
            let mut broken = text.clone();
            broken.remove(at);
            let parsed = parse(SourceId(0), &broken);
            let Some(first) = parsed.diagnostics.first() else { continue };
            let index = LineIndex::new(&broken);
            let line = index.line(at);
            let above = index.line(broken[..at].trim_end().len());
            // Where only a comment stands between, it may be named as well.
            let named = index.line(first.primary.span.start as usize);
            let tally = tallies.entry(letter).or_default();
            tally.total += 1;
            let right = named == line || named == above;
            let alone = parsed.diagnostics.len() == 1;
            tally.line += usize::from(right);
            tally.alone += usize::from(alone);
            if !right || !alone {
                let said: Vec<String> = parsed
                    .diagnostics
                    .iter()
                    .map(|diagnostic| {
                        let place = index.line_col(&broken, diagnostic.primary.span.start as usize);
                        format!("{}:{} {}", place.line, place.col, diagnostic.message)
                    })
                    .collect();
                bad.push(format!("{name}:{} without `{letter}`: {said:?}", line + 1));
            }
        }
    }
    println!("{tallies:#?}");
    for line in &bad {
        println!("{line}");
    }
    let rate = |part: usize, total: usize| part as f64 / total as f64;
    for (letter, tally) in &tallies {
        assert!(tally.total > 20, "{letter}: {tally:?}");
        assert!(rate(tally.line, tally.total) >= 0.97, "{letter}: {tally:?}");
        assert!(rate(tally.alone, tally.total) >= 0.95, "{letter}: {tally:?}");
    }
}
