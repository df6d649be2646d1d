//! Whatever parses can be formatted, the result parses too, and formatting it again changes nothing. What does not parse
//! is refused.
#![no_main]

use cdpipe_syntax::{Diagnostic, SourceId, format, parse};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(bytes) else { return Corpus::Reject };
    let parsed = parse(SourceId(0), text);
    let broken = parsed.diagnostics.iter().any(Diagnostic::is_error);
    match format(text) {
        Err(_) => assert!(broken, "a text that parses was not formatted"),
        Ok(once) => {
            assert!(!broken, "a text that does not parse was formatted");
            match format(&once) {
                Ok(twice) => assert!(once == twice, "not idempotent:\n{once}\n--- then\n{twice}"),
                Err(diagnostics) => panic!("formatting made it unreadable: {diagnostics:#?}\n{once}"),
            }
            let after = parse(SourceId(0), &once).file;
            assert!(
                after.comments.len() == parsed.file.comments.len(),
                "a comment was lost or made:\n{once}"
            );
            assert!(after.entries.len() == parsed.file.entries.len(), "an entry was lost or made:\n{once}");
        }
    }
    Corpus::Keep
});
