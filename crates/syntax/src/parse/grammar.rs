//! The parser that pest makes from `grammar/cdpipe.pest`, and nothing else.
#![allow(missing_docs, reason = "the rules are explained in the grammar")]

/// One type for all rules, so that `Rule` can be named.
#[derive(pest_derive::Parser)]
#[grammar = "../../grammar/cdpipe.pest"]
pub(super) struct Grammar;
