//! The order of texts that may be versions.

/// Versions (`v1.10.0`, `1.2.3-rc.1`) by the precedence rules of Semantic Versioning 2.0.0 §11; other texts by their characters.
pub(super) fn compare(a: &str, b: &str) -> std::cmp::Ordering {
    match (parse(a), parse(b)) {
        (Some(x), Some(y)) => x.cmp(&y),
        _ => a.cmp(b),
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum PreRelease {
    // Derived order is what the rules say: a pre-release precedes its release, numbers precede words.
    Identifiers(Vec<PreReleasePart>),
    None,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum PreReleasePart {
    Number(u64),
    Word(String),
}

fn parse(text: &str) -> Option<([u64; 3], PreRelease)> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let text = text.split_once('+').map_or(text, |(version, _build)| version);
    let (core, pre) = match text.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (text, None),
    };
    let mut numbers = [0; 3];
    let mut parts = core.split('.');
    for slot in &mut numbers {
        *slot = parts.next()?.parse().ok()?;
    }
    if parts.next().is_some() {
        return None;
    }
    let pre = match pre {
        None => PreRelease::None,
        Some(pre) => PreRelease::Identifiers(
            pre.split('.')
                .map(|part| match part.parse() {
                    Ok(number) => PreReleasePart::Number(number),
                    Err(_) => PreReleasePart::Word(part.to_owned()),
                })
                .collect(),
        ),
    };
    Some((numbers, pre))
}
