//! The matcher that `build/` makes from `grammar/cdpipe.pest`: one method for each rule. What stands here is what those methods
//! are made of. It matches what pest would match, and says so in the same way, as a flat list of nodes (`super::matched`).

use super::matched::{Matched, Node};

/// Rules that nest may be under way this often at once. A bracket takes up to seven of them, and brackets nest 64 deep; what
/// goes beyond is a row of things that nest without a bracket.
const MAX_RULES: usize = 1024;

/// Matches a text of less than 4 GiB; None if it nests too deep, for any other text is a file of the grammar.
pub(super) fn matched(text: &str) -> Option<Matched<'_>> {
    // In a pipeline stands a match in about every eighth byte.
    let nodes = Vec::with_capacity(text.len() / 8 + 8);
    let mut matcher = Matcher { text, bytes: text.as_bytes(), at: 0, nodes, rules: 0, too_deep: false };
    let matched = matcher.file_::<true>() && !matcher.too_deep;
    matched.then_some(Matched { text, nodes: matcher.nodes })
}

/// A set of characters.
struct CharSet {
    /// For each first byte of a character: 0 no, 1 yes, 2 the ranges say.
    table: [u8; 256],
    /// Code points, both ends included, ascending.
    ranges: &'static [(u32, u32)],
}

impl CharSet {
    #[cold]
    fn has(&self, letter: char) -> bool {
        let code = u32::from(letter);
        let after = self.ranges.partition_point(|(first, _)| *first <= code);
        after.checked_sub(1).and_then(|at| self.ranges.get(at)).is_some_and(|(_, last)| code <= *last)
    }
}

/// Where a choice began, to go back to.
#[derive(Clone, Copy)]
struct Mark {
    at: usize,
    nodes: usize,
}

struct Matcher<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    nodes: Vec<Node>,
    /// Rules under way that nest.
    rules: usize,
    too_deep: bool,
}

impl Matcher<'_> {
    /// The next byte, 256 at the end.
    #[inline(always)]
    fn next_byte(&self) -> usize {
        self.bytes.get(self.at).map_or(256, |byte| usize::from(*byte))
    }

    #[inline(always)]
    fn mark(&self) -> Mark {
        Mark { at: self.at, nodes: self.nodes.len() }
    }

    #[inline(always)]
    fn back(&mut self, mark: Mark) {
        self.at = mark.at;
        self.nodes.truncate(mark.nodes);
    }

    #[inline(always)]
    fn open(&mut self, rule: Rule) -> usize {
        let open = self.nodes.len();
        self.nodes.push(Node { rule, start: self.at as u32, end: self.at as u32, inside: 0 });
        open
    }

    #[inline(always)]
    fn close(&mut self, open: usize) {
        let inside = (self.nodes.len() - open - 1) as u32;
        if let Some(node) = self.nodes.get_mut(open) {
            node.end = self.at as u32;
            node.inside = inside;
        }
    }

    /// Begins a rule that nests.
    #[inline(always)]
    fn descend(&mut self) -> bool {
        if self.rules >= MAX_RULES {
            self.too_deep = true;
        }
        // Nothing that nests matches any more then, so it is over soon.
        if self.too_deep {
            return false;
        }
        self.rules += 1;
        true
    }

    #[inline(always)]
    fn ascend(&mut self) {
        self.rules -= 1;
    }

    /// How long the character of the set is that stands here, 0 for none.
    #[inline(always)]
    fn length(&self, set: &CharSet) -> usize {
        let Some(byte) = self.bytes.get(self.at) else { return 0 };
        match set.table[usize::from(*byte)] {
            0 => 0,
            1 if *byte < 128 => 1,
            kind => self.length_beyond_ascii(set, kind),
        }
    }

    #[cold]
    fn length_beyond_ascii(&self, set: &CharSet, kind: u8) -> usize {
        let letter = self.text.get(self.at..).and_then(|rest| rest.chars().next());
        letter.filter(|letter| kind == 1 || set.has(*letter)).map_or(0, char::len_utf8)
    }

    #[inline(always)]
    fn looking_at(&self, set: &CharSet) -> bool {
        self.length(set) > 0
    }

    /// One character of the set.
    #[inline(always)]
    fn one(&mut self, set: &CharSet) -> bool {
        let length = self.length(set);
        self.at += length;
        length > 0
    }

    /// As many characters of the set as there are.
    #[inline(always)]
    fn run(&mut self, set: &CharSet) -> bool {
        loop {
            while self.bytes.get(self.at).is_some_and(|byte| set.table[usize::from(*byte)] == 1) {
                self.at += 1;
            }
            let length = self.length(set);
            if length == 0 {
                return true;
            }
            self.at += length;
        }
    }

    /// This text.
    #[inline(always)]
    fn text(&mut self, text: &str) -> bool {
        let found = self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(text.as_bytes()));
        if found {
            self.at += text.len();
        }
        found
    }

    fn at_start(&self) -> bool {
        self.at == 0
    }

    fn end<const E: bool>(&mut self) -> bool {
        let end = self.at == self.bytes.len();
        if E && end {
            let open = self.open(Rule::EOI);
            self.close(open);
        }
        end
    }
}

#[allow(
    clippy::all,
    clippy::nursery,
    clippy::pedantic,
    non_camel_case_types,
    unused_parens,
    unused_braces,
    unused_must_use,
    dead_code,
    reason = "made from the grammar by build/; rules have the names that the grammar gives them"
)]
mod generated {
    use super::{CharSet, Matcher};

    include!(concat!(env!("OUT_DIR"), "/grammar.rs"));
}

pub(crate) use generated::Rule;
