//! Everything that the checker can say, each with a code, a title, an explanation and an example. The error pages and `explain`
//! are made from here. A number is never used again for something else.

use cdpipe_syntax::CodeInfo;

/// A table of codes: a static for each, and all of them in order.
macro_rules! codes {
    ($( $name:ident = $code:literal $severity:ident $title:literal;
        $explanation:literal
        bad $bad:literal
        good $good:literal )*) => {
        $(
            pub(crate) static $name: cdpipe_syntax::CodeInfo = cdpipe_syntax::CodeInfo {
                code: $code,
                title: $title,
                severity: cdpipe_syntax::Severity::$severity,
                explanation: $explanation,
                bad: $bad,
                good: $good,
            };
        )*
        /// All of this file.
        pub(super) static ALL: &[&cdpipe_syntax::CodeInfo] = &[$(&$name),*];
    };
}

pub(crate) mod graph;
pub(crate) mod lints;
pub(crate) mod metrics;
pub(crate) mod names;
pub(crate) mod security;
pub(crate) mod strategies;
pub(crate) mod types;
pub(crate) mod values;

/// Every code there is, the syntax's first, in order of number.
pub fn codes() -> Vec<&'static CodeInfo> {
    let mut all: Vec<&'static CodeInfo> = cdpipe_syntax::codes().to_vec();
    for part in [
        names::ALL,
        types::ALL,
        values::ALL,
        graph::ALL,
        strategies::ALL,
        metrics::ALL,
        security::ALL,
        lints::ALL,
    ] {
        all.extend(part);
    }
    all.sort_by_key(|info| info.code);
    all
}
