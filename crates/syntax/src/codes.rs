//! The codes of everything that can be wrong with a text's shape: CD01xx.

use crate::diagnostic::{CodeInfo, Severity};

macro_rules! codes {
    ($($name:ident $code:literal $title:literal;)*) => {
        $(pub(crate) static $name: &CodeInfo = &CodeInfo { code: $code, title: $title, severity: Severity::Error, explanation: "", bad: "", good: "" };)*
        static ALL: &[&CodeInfo] = &[$($name),*];
    };
}

codes! {
    UNEXPECTED "CD0101" "unexpected";
    MISSING_VALUE "CD0102" "missing value";
    UNCLOSED_BRACKET "CD0103" "unclosed bracket";
    STRAY_BRACKET "CD0104" "stray bracket";
    UNCLOSED_STRING "CD0105" "unclosed string";
    BAD_LITERAL "CD0106" "bad literal";
    BAD_ESCAPE "CD0107" "bad escape";
    BAD_INTERPOLATION "CD0108" "bad interpolation";
    FOREIGN_OPERATOR "CD0109" "foreign operator";
    EQUALS "CD0110" "equals";
    CHAINED "CD0111" "chained";
    MISSING_COMMA "CD0112" "missing comma";
    LIST_WITHOUT_BRACKETS "CD0113" "list without brackets";
    RESERVED_NAME "CD0114" "reserved name";
    BAD_NAME "CD0115" "bad name";
    TIGHT_MINUS "CD0116" "tight minus";
    FOREIGN_COMMENT "CD0117" "foreign comment";
    FOREIGN_QUOTES "CD0118" "foreign quotes";
    COLON "CD0119" "colon";
    BRACE_ON_NEXT_LINE "CD0120" "brace on next line";
    TOO_DEEP "CD0121" "too deep";
    TOO_LARGE "CD0122" "too large";
    NOT_UTF8 "CD0123" "not utf8";
    BLOCK_STRING "CD0124" "block string";
    MORE "CD0125" "more";
    BODY_OF_SETTING "CD0126" "body of setting";
    CONFLICT_MARKER "CD0127" "conflict marker";
    MAP_ENTRY "CD0128" "map entry";
    SEPARATOR "CD0129" "separator";
    IF_PARTS "CD0130" "if parts";
}

/// Every code that [`crate::parse`] and [`crate::format`] can report, in order of number.
pub fn codes() -> &'static [&'static CodeInfo] {
    ALL
}
