//! Times `cdpipe_check::check` inside one process: what is left is reading, parsing and checking, without starting a
//! program. `cargo xtask bench check` builds and runs it; the other side of the comparison is ../actionlint.
//!
//! Usage: check-inprocess FILE ROUNDS. Prints one line for each round: nanoseconds of the whole, and, measured on its own
//! after that, of the parsing in it.

use std::time::Instant;

fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, rounds] = args.as_slice() else { return Err("usage: check-inprocess FILE ROUNDS".to_owned()) };
    let rounds: u32 = rounds.parse().map_err(|error| format!("{rounds}: {error}"))?;
    for _ in 0..rounds {
        let begin = Instant::now();
        let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        let checked =
            cdpipe_check::check(file, &text, &|path| Err(format!("{path}: this bench reads one file only")));
        let took = begin.elapsed();
        if checked.has_errors() {
            return Err(format!(
                "found a mistake in a pipeline that has none: {:?}",
                checked.diagnostics.first()
            ));
        }
        let begin = Instant::now();
        let parsed = cdpipe_syntax::parse(cdpipe_syntax::SourceId(0), &text);
        let parsing = begin.elapsed();
        if parsed.file.entries.is_empty() {
            return Err("nothing was parsed".to_owned());
        }
        println!("{} {}", took.as_nanos(), parsing.as_nanos());
    }
    Ok(())
}
