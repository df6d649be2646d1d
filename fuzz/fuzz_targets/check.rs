//! Any text can be checked without a panic; what is said points into the text; what passes the check can be planned, or the
//! plan says what keeps it; and the same text is always judged the same.
#![no_main]

use cdpipe_check::{Checked, Inputs, check, plan};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(bytes) else { return Corpus::Reject };
    // A `use` finds a small good file, or nothing: both ways are to be walked.
    let loader = |path: &str| match path.len() % 2 {
        0 => Ok("strategy careful rolling { batch = 1 }\n".to_owned()),
        _ => Err("no such file".to_owned()),
    };
    let checked = check("fuzz.cd", text, &loader);
    sound(&checked);
    let again = check("fuzz.cd", text, &loader);
    assert!(checked.diagnostics == again.diagnostics, "the same text was judged in two ways");
    if !checked.has_errors() {
        let inputs = Inputs::default();
        match (plan(&checked, &inputs), plan(&again, &inputs)) {
            (Ok(first), Ok(second)) => assert!(first == second, "the same pipeline was planned in two ways"),
            (Err(why), Err(_)) => {
                assert!(
                    why.iter().any(|diagnostic| diagnostic.is_error()),
                    "no plan, and no reason: {why:?}"
                );
            }
            _ => panic!("the same pipeline was planned once and once not"),
        }
    }
    Corpus::Keep
});

fn sound(checked: &Checked) {
    for diagnostic in &checked.diagnostics {
        let labels = std::iter::once(&diagnostic.primary).chain(&diagnostic.secondary);
        let edits = diagnostic.fix.iter().flat_map(|fix| &fix.edits);
        for span in labels.map(|label| label.span).chain(edits.map(|edit| edit.span)) {
            let source = checked.sources.get(span.source);
            let inside = source.is_some_and(|source| source.text.get(span.range()).is_some());
            assert!(inside, "{span:?} of {} points nowhere", diagnostic.code());
        }
    }
}
