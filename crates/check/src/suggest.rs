//! "Did you mean": the nearest known word, by edit distance.

/// The candidate that was most likely meant; `None` if none is near.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = word.to_lowercase().chars().take(64).collect();
    let limit = match wanted.len() {
        0..=2 => 1,
        3..=5 => 2,
        _ => 3,
    };
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let other: Vec<char> = candidate.to_lowercase().chars().take(64).collect();
        if wanted.len().abs_diff(other.len()) > limit {
            continue;
        }
        let found = distance(&wanted, &other);
        // A short word that shares nothing with the candidate is not a slip of it.
        let near = found <= limit && found < wanted.len().max(other.len());
        if near && best.is_none_or(|(least, _)| found < least) {
            best = Some((found, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Optimal string alignment: insertions, deletions, replacements, and swaps of neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(x != y);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

/// "a, b or c", each in backticks; at most `most` of them.
pub(crate) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>, most: usize) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    if words.len() > most {
        return format!("{}, …", words[..most].join(", "));
    }
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        Some((last, _)) => last.clone(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let words = ["stage", "gate", "service", "replicas", "timeout"];
        assert_eq!(nearest("stgae", words), Some("stage"));
        assert_eq!(nearest("replcas", words), Some("replicas"));
        assert_eq!(nearest("Timeout", words), Some("timeout"));
        assert_eq!(nearest("xy", words), None);
        assert_eq!(nearest("banana", words), None);
    }
}
