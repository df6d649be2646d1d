//! The matcher that is made from the grammar matches the same rules at the same places as the parser that pest makes from it.
#![no_main]

use cdpipe_syntax::testing::{Match, matched};
use libfuzzer_sys::{Corpus, fuzz_target};
use pest::Parser;
use pest::iterators::Pairs;

#[derive(pest_derive::Parser)]
#[grammar = "../grammar/cdpipe.pest"]
struct Reference;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(bytes) else { return Corpus::Reject };
    // Each has its own limit to how deep a text may nest.
    let (Some(ours), Ok(pairs)) = (matched(text), Reference::parse(Rule::file, text)) else {
        return Corpus::Keep;
    };
    let mut theirs = Vec::new();
    flatten(pairs, 0, &mut theirs);
    assert!(ours == theirs, "{ours:#?}\n--- and pest\n{theirs:#?}");
    Corpus::Keep
});

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
