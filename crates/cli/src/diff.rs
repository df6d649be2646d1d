//! What changed between two texts, as a unified diff.

use std::fmt::Write;

/// Lines around a change.
const CONTEXT: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line<'a> {
    Same(&'a str),
    Old(&'a str),
    New(&'a str),
}

/// A unified diff of `old` and `new`, or an empty text if they are equal.
pub(crate) fn unified(path: &str, old: &str, new: &str) -> String {
    if old == new {
        return String::new();
    }
    let lines = lines(old, new);
    let mut text = format!("--- {path}\n+++ {path}\n");
    let changed: Vec<usize> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !matches!(line, Line::Same(_)))
        .map(|(at, _)| at)
        .collect();
    let mut index = 0;
    while index < changed.len() {
        let mut last = index;
        while last + 1 < changed.len() && changed[last + 1] - changed[last] <= 2 * CONTEXT {
            last += 1;
        }
        let from = changed[index].saturating_sub(CONTEXT);
        let to = (changed[last] + CONTEXT + 1).min(lines.len());
        let count = |range: &[Line<'_>], old: bool| {
            range
                .iter()
                .filter(|line| !matches!((line, old), (Line::New(_), true) | (Line::Old(_), false)))
                .count()
        };
        let (old_from, new_from) = (count(&lines[..from], true), count(&lines[..from], false));
        let hunk = &lines[from..to];
        let (old_count, new_count) = (count(hunk, true), count(hunk, false));
        let start = |from: usize, count: usize| if count == 0 { from } else { from + 1 };
        let _ = writeln!(
            text,
            "@@ -{},{old_count} +{},{new_count} @@",
            start(old_from, old_count),
            start(new_from, new_count),
        );
        for line in hunk {
            let (sign, line) = match line {
                Line::Same(line) => (' ', line),
                Line::Old(line) => ('-', line),
                Line::New(line) => ('+', line),
            };
            let _ = write!(text, "{sign}{line}");
            if !line.ends_with('\n') {
                text.push_str("\n\\ No newline at end of file\n");
            }
        }
        index = last + 1;
    }
    text
}

/// The shortest edit by lines (Myers), after what both share at either end is set aside. Bounded: texts that differ in more
/// than a few thousand lines are shown as replaced.
fn lines<'a>(old: &'a str, new: &'a str) -> Vec<Line<'a>> {
    let a: Vec<&str> = old.split_inclusive('\n').collect();
    let b: Vec<&str> = new.split_inclusive('\n').collect();
    let head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let tail = a[head..].iter().rev().zip(b[head..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (a_mid, b_mid) = (&a[head..a.len() - tail], &b[head..b.len() - tail]);
    let mut result: Vec<Line<'a>> = a[..head].iter().map(|line| Line::Same(line)).collect();
    match shortest_edit(a_mid, b_mid) {
        Some(middle) => result.extend(middle),
        None => {
            result.extend(a_mid.iter().map(|line| Line::Old(line)));
            result.extend(b_mid.iter().map(|line| Line::New(line)));
        }
    }
    result.extend(a[a.len() - tail..].iter().map(|line| Line::Same(line)));
    result
}

/// Myers' greedy algorithm; `None` beyond `MAX_EDITS`, because its memory grows with their square.
fn shortest_edit<'a>(a: &[&'a str], b: &[&'a str]) -> Option<Vec<Line<'a>>> {
    const MAX_EDITS: usize = 2_000;
    let width = 2 * MAX_EDITS + 3;
    let offset = MAX_EDITS + 1;
    let mut furthest = vec![0usize; width];
    let mut trace: Vec<Vec<usize>> = Vec::new();
    for edits in 0..=MAX_EDITS.min(a.len() + b.len()) {
        trace.push(furthest[offset - edits - 1..=offset + edits + 1].to_vec());
        for step in 0..=edits {
            // Diagonal k = x - y runs from -edits to +edits in twos; `slot` is k shifted to be an index.
            let slot = offset + 2 * step - edits;
            let down = step == 0 || (step != edits && furthest[slot - 1] < furthest[slot + 1]);
            let mut x = if down { furthest[slot + 1] } else { furthest[slot - 1] + 1 };
            let Some(mut y) = (x + offset).checked_sub(slot) else { continue };
            while x < a.len() && y < b.len() && a[x] == b[y] {
                x += 1;
                y += 1;
            }
            furthest[slot] = x;
            if x >= a.len() && y >= b.len() {
                return Some(walk_back(a, b, &trace));
            }
        }
    }
    None
}

fn walk_back<'a>(a: &[&'a str], b: &[&'a str], trace: &[Vec<usize>]) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    let (mut x, mut y) = (a.len(), b.len());
    for (edits, furthest) in trace.iter().enumerate().rev() {
        // `furthest[0]` is diagonal -(edits + 1).
        let slot = x + edits + 1 - y;
        let first = x + edits == y;
        let last = x == y + edits;
        let down = first || (!last && furthest[slot - 1] < furthest[slot + 1]);
        let (from_x, from_slot) =
            if down { (furthest[slot + 1], slot + 1) } else { (furthest[slot - 1], slot - 1) };
        let from_y = (from_x + edits + 1).saturating_sub(from_slot);
        let (meet_x, meet_y) = if edits == 0 {
            (0, 0)
        } else if down {
            (from_x, from_y + 1)
        } else {
            (from_x + 1, from_y)
        };
        while x > meet_x && y > meet_y {
            x -= 1;
            y -= 1;
            lines.push(Line::Same(a[x]));
        }
        if edits > 0 {
            lines.push(if down { Line::New(b[from_y]) } else { Line::Old(a[from_x]) });
            (x, y) = (from_x, from_y);
        }
    }
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_change_is_shown_with_its_surroundings() {
        let diff = unified("a.cd", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\nfive\n6\n7\n8\n9\n10");
        assert_eq!(
            diff,
            "--- a.cd\n+++ a.cd\n@@ -2,8 +2,9 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n 9\n+10\n\\ No newline at end of file\n"
        );
        assert_eq!(unified("a.cd", "x\n", "x\n"), "");
    }

    proptest! {
        #[test]
        fn both_texts_can_be_read_back(a in "[ab\n]{0,30}", b in "[ab\n]{0,30}") {
            let lines = lines(&a, &b);
            let old: String = lines.iter().filter_map(|line| match line { Line::Same(l) | Line::Old(l) => Some(*l), Line::New(_) => None }).collect();
            let new: String = lines.iter().filter_map(|line| match line { Line::Same(l) | Line::New(l) => Some(*l), Line::Old(_) => None }).collect();
            prop_assert_eq!(old, a);
            prop_assert_eq!(new, b);
        }
    }
}
