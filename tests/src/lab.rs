//! What a test needs from the machine beyond a Rust toolchain.

use std::io::Write as _;

/// Says, past libtest's capture, that a test cannot run here and why; the summary of `cargo xtask test` counts such
/// lines. With `CI` set a machine must have everything, so there it is an error.
///
/// # Errors
/// The same sentence, when `CI` is set.
pub fn skip(test: &str, needs: &str) -> Result<(), String> {
    if std::env::var_os("CI").is_some() {
        return Err(format!("{test} needs {needs}, which a CI run must have"));
    }
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: needs {needs}");
    Ok(())
}
