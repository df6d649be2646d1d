//! Makes the matcher from the grammar: `grammar/cdpipe.pest` goes in, Rust functions come out, one for each rule. pest reads
//! the grammar; the functions are ours, because those that pest makes count each call and can take each one back, which
//! costs several times what the matching does. They match what pest's would match: `tests/grammar.rs` holds both against each
//! other.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a build script is told by its environment what to do, reads and writes files, and speaks to cargo"
)]

mod charset;
mod emit;
mod first;
mod lower;

use std::path::Path;

const GRAMMAR: &str = "../../grammar/cdpipe.pest";

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed={GRAMMAR}");
    println!("cargo::rerun-if-changed=build");
    let root = std::env::var("CARGO_MANIFEST_DIR").map_err(|error| format!("CARGO_MANIFEST_DIR: {error}"))?;
    let out = std::env::var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?;
    let text = std::fs::read_to_string(Path::new(&root).join(GRAMMAR))
        .map_err(|error| format!("{GRAMMAR}: {error}"))?;
    let rules = lower::rules(&text).map_err(|error| format!("{GRAMMAR}: {error}"))?;
    std::fs::write(Path::new(&out).join("grammar.rs"), emit::matcher(&rules))
        .map_err(|error| format!("{out}: {error}"))
}
