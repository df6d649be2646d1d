//! Sets of characters.

/// A set of characters as ranges of code points: both ends belong to it, ascending, never touching each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct CharSet(Vec<(u32, u32)>);

const LAST: u32 = char::MAX as u32;

impl CharSet {
    /// Every character.
    pub(crate) fn all() -> Self {
        Self(vec![(0, LAST)])
    }

    /// The characters from `first` to `last`.
    pub(crate) fn range(first: char, last: char) -> Self {
        Self(vec![(u32::from(first), u32::from(last))])
    }

    /// The characters of which this is true.
    pub(crate) fn of(belongs: impl Fn(char) -> bool) -> Self {
        let belongs = |code: &u32| char::from_u32(*code).is_some_and(&belongs);
        Self::joined((0..=LAST).filter(belongs).map(|code| (code, code)))
    }

    /// What is in one of both.
    pub(crate) fn or(&self, other: &Self) -> Self {
        let mut ranges: Vec<(u32, u32)> = self.0.iter().chain(&other.0).copied().collect();
        ranges.sort_unstable();
        Self::joined(ranges.into_iter())
    }

    /// What is in `self` and not in `other`.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for &(first, last) in &self.0 {
            let mut from = first;
            for &(start, end) in &other.0 {
                if end < from || start > last {
                    continue;
                }
                if start > from {
                    left.push((from, start - 1));
                }
                from = end + 1;
            }
            if from <= last {
                left.push((from, last));
            }
        }
        Self(left)
    }

    pub(crate) fn has(&self, code: u32) -> bool {
        self.0.iter().any(|&(first, last)| first <= code && code <= last)
    }

    /// The ranges beyond ASCII.
    pub(crate) fn beyond_ascii(&self) -> Vec<(u32, u32)> {
        let ascii = Self(vec![(0, 127)]);
        self.without(&ascii).0
    }

    /// Whether every character beyond ASCII is in it.
    pub(crate) fn has_all_beyond_ascii(&self) -> bool {
        self.beyond_ascii() == [(128, LAST)]
    }

    /// Joins ascending ranges that touch or overlap.
    fn joined(ranges: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut all: Vec<(u32, u32)> = Vec::new();
        for (first, last) in ranges {
            match all.last_mut() {
                Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => all.push((first, last)),
            }
        }
        Self(all)
    }
}
