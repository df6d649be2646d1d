//! Any text parses without a panic, and whatever the parser says points into the text, at whole characters.
#![no_main]

use cdpipe_syntax::{Diagnostic, SourceId, Span, parse};
use libfuzzer_sys::{Corpus, fuzz_target};

const SOURCE: SourceId = SourceId(7);

fuzz_target!(|bytes: &[u8]| -> Corpus {
    // Bytes that are no UTF-8 are refused where files are read, before the parser.
    let Ok(text) = std::str::from_utf8(bytes) else { return Corpus::Reject };
    let parsed = parse(SOURCE, text);
    inside(text, parsed.file.span);
    for entry in &parsed.file.entries {
        inside(text, entry.span());
    }
    parsed.diagnostics.iter().for_each(|diagnostic| sound(text, diagnostic));
    assert!(parsed == parse(SOURCE, text), "the same text was read in two ways");
    Corpus::Keep
});

fn sound(text: &str, diagnostic: &Diagnostic) {
    inside(text, diagnostic.primary.span);
    diagnostic.secondary.iter().for_each(|label| inside(text, label.span));
    for edit in diagnostic.fix.iter().flat_map(|fix| &fix.edits) {
        inside(text, edit.span);
    }
}

fn inside(text: &str, span: Span) {
    assert!(
        span.source == SOURCE && text.get(span.range()).is_some(),
        "{span:?} is not in a text of {} bytes",
        text.len()
    );
}
