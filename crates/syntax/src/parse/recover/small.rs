//! Where a round or square bracket is missing: what it encloses is short, and ends where something follows that cannot belong to it.

use super::{
    Change, MAX_TRIES, Patched, Repair, code_end, indent, looks_like_entry, tokens, try_places, weight,
};
use crate::codes;
use crate::diagnostic::{Diagnostic, Edit};
use crate::parse::outline::{Event, Go, scan};
use crate::parse::reader::{Place, Reading, read};

/// Supplies the closer of the `(` or `[` at `open`.
pub(super) fn close_small(
    patched: &Patched,
    open: usize,
    stop: usize,
    sense: Option<usize>,
    budget: &mut usize,
) -> Repair {
    let text = patched.text.as_str();
    let bracket = text.as_bytes()[open];
    let (name, closer, closer_and_line) = if bracket == b'(' { ("(", ")", ")\n") } else { ("[", "]", "]\n") };
    let opener_line = patched.line_end(open);
    let code = text[open..code_end(text, patched.line_start(open)).max(open + 1)].trim_end();
    let goes_on = code.ends_with([',', '(', '[', '{', '=', '+', '-', '*', '/', '<', '>'])
        || [" and", " or", " not", " in", " matches", " then", " else"]
            .iter()
            .any(|word| code.ends_with(word));
    // Places, the most likely first; a place at the start of a line takes a newline of its own with it.
    let mut places: Vec<usize> = Vec::new();
    places.extend(sense.filter(|sense| *sense <= opener_line));
    if !goes_on && opener_line < stop {
        places.push(opener_line + 1);
    }
    places.extend(next_entry(text, open + 1, stop, bracket));
    places.extend(dedented(text, open, stop));
    places.extend(sense);
    places.push(stop);
    // Before each comma of the line, for `[a, b = 1` and `f(a, g {`.
    let line = &text[open + 1..opener_line.min(stop).max(open + 1)];
    places.extend(line.match_indices(',').map(|(at, _)| open + 1 + at).take(MAX_TRIES));
    let mut best: Option<(usize, usize)> = None;
    for at in places {
        if patched.text.len() > *budget {
            best = best.or(Some((usize::MAX, at)));
            break;
        }
        *budget = budget.saturating_sub(patched.text.len());
        let supplied = if at == patched.line_start(at) { closer_and_line } else { closer };
        let mut trial = patched.text.clone();
        trial.insert_str(at, supplied);
        let weight = weight(&read(&trial, &Place { source: patched.source, base: 0, inserted: &[] }));
        if best.is_none_or(|(least, _)| weight < least) {
            best = Some((weight, at));
        }
        if weight == 0 {
            break;
        }
    }
    if let Some(repair) = wrong_closer(patched, open, stop, best.map_or(usize::MAX, |(weight, _)| weight)) {
        return repair;
    }
    let at = best.map_or(stop, |(_, at)| at);
    let supplied = if at == patched.line_start(at) { closer_and_line } else { closer };
    let point = if supplied.len() == 1 { at } else { patched.content_before(at) };
    let shown = patched.span(point, point);
    let mut diagnostic =
        Diagnostic::new(codes::UNCLOSED_BRACKET, shown, format!("this `{name}` is never closed"))
            .label(format!("expected `{closer}`"))
            .also(patched.span(open, open + 1), format!("this `{name}` is open"))
            .help(format!("close it with `{closer}`"));
    diagnostic = diagnostic.suggestion(
        format!("add the `{closer}`"),
        vec![Edit { span: shown, replacement: closer.to_owned() }],
    );
    let explains = patched.span(open, patched.line_end(point));
    Repair { at, change: Change::Supply(supplied), diagnostic, explains }
}

/// `(a]`: the closer at `stop` is of the other kind, and nothing is open that it could close.
fn wrong_closer(patched: &Patched, open: usize, stop: usize, supplying: usize) -> Option<Repair> {
    let wrong = patched.text.as_bytes().get(stop).copied().filter(|byte| matches!(byte, b')' | b']'))?;
    let (name, closer) = if patched.text.as_bytes()[open] == b'(' { ("(", ")") } else { ("[", "]") };
    let mut trial = patched.text.clone();
    trial.replace_range(stop..stop + 1, closer);
    let left = weight(&read(&trial, &Place { source: patched.source, base: 0, inserted: &[] }));
    let shown = patched.span(stop, stop + 1);
    let message = format!("this `{name}` is closed with `{}`", char::from(wrong));
    let diagnostic = Diagnostic::new(codes::UNCLOSED_BRACKET, shown, message)
        .label(format!("expected `{closer}`"))
        .also(patched.span(open, open + 1), format!("this `{name}` is open"))
        .help(format!("close it with `{closer}`"))
        .suggestion(format!("write `{closer}`"), vec![Edit { span: shown, replacement: closer.to_owned() }]);
    let explains = patched.span(open, patched.line_end(stop));
    (left < supplying).then_some(Repair { at: stop, change: Change::Replace(closer), diagnostic, explains })
}

/// The first line after that of the opener which is level with it or left of it.
fn dedented(text: &str, open: usize, stop: usize) -> Option<usize> {
    let line_start = text[..open].rfind('\n').map_or(0, |newline| newline + 1);
    let own = indent(&text[line_start..]);
    let mut at = text[open..stop].find('\n').map(|newline| open + newline + 1)?;
    while at < stop {
        let line = text[at..].split('\n').next().unwrap_or("");
        if !line.trim().is_empty() && indent(line) <= own {
            return Some(at);
        }
        at += line.len() + 1;
    }
    None
}

/// The first line between two offsets that begins an entry, or ends a body, so that no bracket can go on over it.
fn next_entry(text: &str, from: usize, to: usize, bracket: u8) -> Option<usize> {
    let mut depth = 0usize;
    let mut found = None;
    scan(&text[from..to], |event| {
        match event {
            Event::Open(..) => depth += 1,
            Event::Close(..) => depth = depth.saturating_sub(1),
            Event::Line(at) if at > 0 && depth == 0 => {
                let before = text[..from + at].trim_end();
                let inside = before.ends_with([',', '(', '[']);
                if looks_like_entry(&text[from + at..], bracket == b'(' && inside) {
                    found = Some(from + at);
                    return Go::Stop;
                }
            }
            _ => {}
        }
        Go::On
    });
    found
}

/// The `)` or `]` at `close` has no partner: tries the places before it for one that makes the text readable. Also gives how much
/// is amiss with the bracket there.
pub(super) fn open_small(
    patched: &Patched,
    close: usize,
    reading: &Reading,
    budget: &mut usize,
) -> Option<(Repair, usize)> {
    let text = patched.text.as_str();
    let (opener, closer) = if text.as_bytes()[close] == b')' { ("(", ")") } else { ("[", "]") };
    let mut from = patched.line_start(close);
    // Over the lines before it that go on, and the one that they go on from.
    let mut above = from;
    while above > 0 && close - above < 4_000 {
        let start = patched.line_start(above - 1);
        let code = text[start..code_end(text, start)].trim();
        above = start;
        if code.is_empty() {
            continue;
        }
        let alone = from == patched.line_start(close) && text[from..close].trim().is_empty();
        if !alone && !code.ends_with(',') {
            if from < patched.line_start(close) || code.ends_with('=') {
                from = start;
            }
            break;
        }
        from = start;
    }
    let shown = patched.span(close, close + 1);
    let mut places = tokens(text, from, close);
    if from < patched.line_start(close) {
        // A call or list over several lines opens at the end of its first.
        let end = code_end(text, from);
        places.retain(|place| *place != end);
        places.insert(0, end);
    } else {
        places.reverse();
        // In one line the outermost place that works is the likeliest for a list, the innermost for a call.
        if opener == "[" {
            places.reverse();
        }
    }
    let (at, left) = try_places(patched, opener, places.into_iter(), budget)
        .filter(|(_, left)| *left < weight(reading))?;
    let point = patched.span(at, at);
    let explains = patched.span(from, patched.line_end(close));
    let diagnostic =
        Diagnostic::new(codes::STRAY_BRACKET, point, format!("a `{opener}` seems to be missing here"))
            .label(format!("expected `{opener}`"))
            .also(shown, format!("this `{closer}` closes nothing"))
            .help(format!("add the `{opener}`, or delete the `{closer}`"))
            .suggestion(
                format!("add the `{opener}`"),
                vec![Edit { span: point, replacement: opener.to_owned() }],
            );
    Some((Repair { at, change: Change::Supply(opener), diagnostic, explains }, left))
}
