//! What the grammar matched, as nodes in the order of the text, each before those inside of it. It is read through [`Pair`]
//! and [`Pairs`], which are named after those of pest and do what those do.

use super::grammar::Rule;

/// Lists of more than this many grow by themselves. (A list grown from nothing has room for four at least, and most have one.)
const MANY: usize = 32;

/// One match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) rule: Rule,
    /// Bytes of the text, `start..end`.
    pub(super) start: u32,
    pub(super) end: u32,
    /// How many of the nodes that follow are inside of this one.
    pub(super) inside: u32,
}

/// All matches in a text: one node for the file, and those inside of it.
#[derive(Debug)]
pub(super) struct Matched<'t> {
    pub(super) text: &'t str,
    pub(super) nodes: Vec<Node>,
}

impl Matched<'_> {
    /// The match of the whole text, alone in its row.
    pub(super) fn pairs(&self) -> Pairs<'_> {
        Pairs { text: self.text, nodes: &self.nodes }
    }
}

/// One match, with what is inside of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'m> {
    text: &'m str,
    node: Node,
    inside: &'m [Node],
}

impl<'m> Pair<'m> {
    pub(super) fn as_rule(&self) -> Rule {
        self.node.rule
    }

    /// Bytes of the text, start and end.
    pub(super) fn range(&self) -> (usize, usize) {
        (self.node.start as usize, self.node.end as usize)
    }

    pub(super) fn as_str(&self) -> &'m str {
        let (start, end) = self.range();
        self.text.get(start..end).unwrap_or("")
    }

    pub(super) fn into_inner(self) -> Pairs<'m> {
        Pairs { text: self.text, nodes: self.inside }
    }
}

/// Matches that follow one another on one level.
#[derive(Debug, Clone)]
pub(super) struct Pairs<'m> {
    text: &'m str,
    nodes: &'m [Node],
}

impl<'m> Pairs<'m> {
    /// What the next match is a match of.
    pub(super) fn peek(&self) -> Option<Rule> {
        self.nodes.first().map(|node| node.rule)
    }

    /// How many a list that is made from them may have to hold; where there are many, as many as are worth counting.
    pub(super) fn room(&self) -> usize {
        self.clone().take(MANY).count()
    }
}

impl<'m> Iterator for Pairs<'m> {
    type Item = Pair<'m>;

    fn next(&mut self) -> Option<Pair<'m>> {
        let (node, after) = self.nodes.split_first()?;
        let (inside, after) = after.split_at_checked(node.inside as usize)?;
        self.nodes = after;
        Some(Pair { text: self.text, node: *node, inside })
    }
}
