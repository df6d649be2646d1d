//! The codes of everything that can be wrong with a text's shape: CD01xx.

use crate::diagnostic::CodeInfo;

/// Every code that [`crate::parse`] and [`crate::format`] can report, in order of number.
pub fn codes() -> &'static [&'static CodeInfo] {
    &[]
}
