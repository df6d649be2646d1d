//! What the grammar matched, as a list that can be held against that of another parser.

use crate::parse::matches;

/// One match of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Name of the rule in the grammar.
    pub rule: String,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// How many matches it is inside of.
    pub depth: usize,
}

/// All matches in a text, each before those inside of it; None if it nests too deep.
pub fn matched(text: &str) -> Option<Vec<Match>> {
    let mut all = Vec::new();
    let rules = matches(text)?;
    // Ends of the matches that the next one may be inside of, as numbers in the list.
    let mut around: Vec<usize> = Vec::new();
    for (number, (rule, range, inside)) in rules.into_iter().enumerate() {
        while around.last().is_some_and(|end| *end <= number) {
            around.pop();
        }
        all.push(Match { rule, start: range.start, end: range.end, depth: around.len() });
        around.push(number + 1 + inside);
    }
    Some(all)
}
