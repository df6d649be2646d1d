//! From a path to a checked pipeline: reads the file and what it uses, and hands both to `check`.

use crate::failure::Failure;
use crate::files;
use cdpipe_check::Checked;
use std::path::Path;

/// Reads and checks one pipeline with all that it uses.
pub(crate) fn load(path: &str) -> Result<Checked, Failure> {
    let text = files::read(path)?;
    Ok(check_text(path, &text))
}

/// Checks a text as if it stood at `path`. Files that it uses are read from the disk.
pub(crate) fn check_text(path: &str, text: &str) -> Checked {
    cdpipe_check::check(path, text, &|used| {
        if Path::new(used).is_dir() {
            return Err("it is a directory".to_owned());
        }
        files::read(used).map_err(|failure| failure.message)
    })
}
