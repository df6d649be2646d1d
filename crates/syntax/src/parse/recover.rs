//! Brackets without a partner. Where one is missing cannot be seen where the parser stops: a body without `}` swallows the rest of
//! the file. Indentation tells, and what could not follow. The bracket is supplied in a copy of the statement, which is then read
//! again, so that all the rest of it is read as it was meant.

use super::outline::{Event, Go, begins_file_statement, scan, survey};
use super::reader::{Place, Reading, Unbalanced, read, too_deep};
use crate::codes;
use crate::diagnostic::{Diagnostic, Edit};
use crate::span::{SourceId, Span};
use crate::tree::Entry;

/// So many brackets are supplied in one statement at most; after that its text is too far from a pipeline.
const MAX_REPAIRS: usize = 24;

/// So many places are tried for one opening bracket.
const MAX_TRIES: usize = 24;

/// Cuts a text before each line that begins a statement which stands only in a file, whether or not something is open there.
pub(super) fn segments(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut starts = vec![0];
    // A block string that is never closed would hide all that follows it.
    if survey(text).open_block.is_some() {
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if at > 0 && begins_file_statement(line) {
                starts.push(at);
            }
            at += line.len();
        }
    } else {
        scan(text, |event| {
            if let Event::Line(at) = event
                && at > 0
                && begins_file_statement(&text[at..])
            {
                starts.push(at);
            }
            Go::On
        });
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// A copy of a statement with brackets supplied.
struct Patched {
    text: String,
    inserted: Vec<usize>,
    source: SourceId,
    base: usize,
}

impl Patched {
    fn place(&self) -> Place<'_> {
        Place { source: self.source, base: self.base, inserted: &self.inserted }
    }

    /// The offset in the original of an offset in the copy.
    fn original(&self, at: usize) -> usize {
        at - self.inserted.partition_point(|inserted| *inserted < at)
    }

    fn span(&self, start: usize, end: usize) -> Span {
        Span::new(self.source, self.base + self.original(start), self.base + self.original(end))
    }

    fn insert(&mut self, at: usize, text: &str) {
        self.text.insert_str(at, text);
        for inserted in &mut self.inserted {
            if *inserted >= at {
                *inserted += text.len();
            }
        }
        self.inserted.extend(at..at + text.len());
        self.inserted.sort_unstable();
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline)
    }

    /// The end of the last code above `at`, comments left aside.
    fn content_before(&self, at: usize) -> usize {
        let mut end = self.text[..at].trim_end().len();
        while end > 0 {
            let start = self.line_start(end);
            let code = code_end(&self.text, start).min(end);
            if !self.text[start..code].trim().is_empty() {
                return code;
            }
            end = self.text[..start].trim_end().len();
        }
        self.text[..at].trim_end().len()
    }
}

/// What to do to the text.
#[derive(Clone, Copy)]
enum Change {
    /// Put this in.
    Supply(&'static str),
    /// Put this in place of the one byte that stands there.
    Replace(&'static str),
}

/// Where to supply a bracket, and what to say of it.
struct Repair {
    at: usize,
    change: Change,
    diagnostic: Diagnostic,
    /// Other messages about this range of the original only follow from it.
    explains: Span,
}

/// Reads one segment, supplying brackets. `budget` is how many bytes may still be parsed for repairs.
pub(super) fn read_segment(source: SourceId, base: usize, text: &str, budget: &mut usize) -> Reading {
    let whole = Span::new(source, base, base + text.len());
    if let Some(at) = survey(text).too_deep {
        let here = Span::new(source, base + at, base + at + 1);
        return Reading {
            entries: vec![Entry::Error(whole)],
            diagnostics: vec![too_deep(here)],
            ..Reading::default()
        };
    }
    let mut patched = Patched { text: text.to_owned(), inserted: Vec::new(), source, base };
    let mut reading = read(&patched.text, &patched.place());
    let mut said: Vec<(Diagnostic, Span)> = Vec::new();
    if let Some(repair) = block_opener(&patched).filter(|_| !reading.diagnostics.is_empty()) {
        supply(&mut patched, &mut reading, &mut said, repair, budget);
    }
    for _ in 0..MAX_REPAIRS {
        // An unclosed string may have swallowed brackets: what is open or stray then is not worth a word.
        if reading.unbalanced.is_empty() || reading.unclosed_string || patched.text.len() > *budget {
            break;
        }
        let Some(repair) = find_repair(&patched, &reading, budget) else { break };
        if !supply(&mut patched, &mut reading, &mut said, repair, budget) {
            break;
        }
    }
    if !reading.unclosed_string {
        // Brackets that could not be repaired: one message for the innermost is enough, the others follow from it.
        let left = reading.unbalanced.first().map(|what| plain(&patched, *what));
        reading.diagnostics.extend(left);
    }
    reading.unbalanced.clear();
    for (diagnostic, explains) in said {
        reading.diagnostics.retain(|other| {
            let at = other.primary.span.start;
            at < explains.start || at > explains.end || !follows_from_brackets(other)
        });
        reading.diagnostics.push(diagnostic);
    }
    if reading.unclosed_string {
        hold_back_after_strings(base, text, &mut reading.diagnostics);
    }
    first_on_each_line(base, text, &mut reading.diagnostics);
    reading
}

/// Applies a repair, if that makes things better.
fn supply(
    patched: &mut Patched,
    reading: &mut Reading,
    said: &mut Vec<(Diagnostic, Span)>,
    repair: Repair,
    budget: &mut usize,
) -> bool {
    let before = (patched.text.clone(), patched.inserted.clone());
    match repair.change {
        Change::Supply(supplied) => patched.insert(repair.at, supplied),
        Change::Replace(other) => patched.text.replace_range(repair.at..repair.at + 1, other),
    }
    *budget = budget.saturating_sub(patched.text.len());
    let after = read(&patched.text, &patched.place());
    let better = after.unbalanced.len() < reading.unbalanced.len() || weight(&after) < weight(reading);
    if better {
        said.push((repair.diagnostic, repair.explains));
        *reading = after;
    } else {
        (patched.text, patched.inserted) = before;
    }
    better
}

/// How bad a reading is.
fn weight(reading: &Reading) -> usize {
    reading.diagnostics.len() + 4 * reading.unbalanced.len() + 4 * usize::from(reading.unclosed_string)
}

/// Whether this may only be said because a bracket or a quote is missing.
fn follows_from_brackets(diagnostic: &Diagnostic) -> bool {
    [
        codes::UNEXPECTED.code,
        codes::MISSING_COMMA.code,
        codes::SEPARATOR.code,
        codes::MISSING_VALUE.code,
        codes::LIST_WITHOUT_BRACKETS.code,
        codes::COLON.code,
        codes::MAP_ENTRY.code,
        codes::EQUALS.code,
        codes::TIGHT_MINUS.code,
        codes::BAD_NAME.code,
        codes::RESERVED_NAME.code,
        codes::FOREIGN_OPERATOR.code,
        codes::BODY_OF_SETTING.code,
        codes::IF_PARTS.code,
    ]
    .contains(&diagnostic.code())
}

/// After an unclosed string, what is odd in its line, and in the lines up to the next that looks like an entry, only follows.
fn hold_back_after_strings(base: usize, text: &str, diagnostics: &mut Vec<Diagnostic>) {
    let mut windows = Vec::new();
    for diagnostic in diagnostics.iter().filter(|diagnostic| diagnostic.code() == codes::UNCLOSED_STRING.code)
    {
        let at = (diagnostic.primary.span.start as usize).saturating_sub(base).min(text.len());
        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let mut end = text[at..].find('\n').map_or(text.len(), |newline| at + newline + 1);
        while end < text.len() && !looks_like_entry(&text[end..], false) {
            end = text[end..].find('\n').map_or(text.len(), |newline| end + newline + 1);
        }
        windows.push(base + start..base + end);
    }
    diagnostics.retain(|diagnostic| {
        let at = diagnostic.primary.span.start as usize;
        let structure = diagnostic.code() == codes::MAP_ENTRY.code;
        !structure
            && (!follows_from_brackets(diagnostic) || !windows.iter().any(|window| window.contains(&at)))
    });
}

/// Of the messages that may follow from one another only the first in each line stays.
fn first_on_each_line(base: usize, text: &str, diagnostics: &mut Vec<Diagnostic>) {
    diagnostics.sort_by_key(|diagnostic| diagnostic.primary.span.start);
    let mut last_end = 0;
    diagnostics.retain(|diagnostic| {
        let at = (diagnostic.primary.span.start as usize).saturating_sub(base).min(text.len());
        let follows = follows_from_brackets(diagnostic);
        if follows && at < last_end {
            return false;
        }
        if follows || [codes::STRAY_BRACKET.code, codes::UNCLOSED_BRACKET.code].contains(&diagnostic.code()) {
            last_end = text[at..].find('\n').map_or(text.len() + 1, |newline| at + newline + 1);
        }
        true
    });
}

fn find_repair(patched: &Patched, reading: &Reading, budget: &mut usize) -> Option<Repair> {
    // Round and square brackets first: what they enclose is short, so where they end is nearly certain.
    let small = reading
        .unbalanced
        .iter()
        .filter_map(|what| match what {
            Unbalanced::Open { open, stop, sense } if patched.text.as_bytes().get(*open) != Some(&b'{') => {
                Some((*open, *stop, *sense))
            }
            _ => None,
        })
        .min();
    if let Some((open, stop, sense)) = small {
        // `[a, f b)]`: the wrong closer may be right, and its opener missing.
        if matches!(patched.text.as_bytes().get(stop), Some(b')' | b']'))
            && let Some((repair, 0)) = open_small(patched, stop, reading, budget)
        {
            return Some(repair);
        }
        return Some(close_small(patched, open, stop, sense, budget));
    }
    let stray = reading.unbalanced.iter().find_map(|what| match what {
        Unbalanced::Close { at } if patched.text.as_bytes().get(*at) != Some(&b'}') => Some(*at),
        _ => None,
    });
    if let Some(at) = stray
        && let Some((repair, _)) = open_small(patched, at, reading, budget)
    {
        return Some(repair);
    }
    braces(patched, budget)
}

/// A line that ends in two quotes, with a line further down that begins with three: the third is missing in the first.
fn block_opener(patched: &Patched) -> Option<Repair> {
    let text = patched.text.as_str();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let code = line.trim_end();
        let end = at + code.len();
        at += line.len();
        let Some(marks) = ["\"\"", "''"].into_iter().find(|marks| code.ends_with(marks)) else { continue };
        let quote = &marks[..1];
        if code[..code.len() - 2].ends_with(quote) || code.trim_start().len() == 2 {
            continue;
        }
        let three = quote.repeat(3);
        let own = indent(line);
        let closed = text[at..]
            .lines()
            .take_while(|line| {
                line.trim().is_empty() || indent(line) > own || line.trim_start().starts_with(&three)
            })
            .any(|line| line.trim_start().starts_with(&three));
        if closed {
            let shown = patched.span(end - 2, end);
            let diagnostic = Diagnostic::new(
                codes::UNCLOSED_STRING,
                shown,
                "a block of text opens with three quotes, not two",
            )
            .help(format!("write {three}"))
            .suggestion(
                "add the third quote",
                vec![Edit { span: shown.shrink_to_end(), replacement: quote.to_owned() }],
            );
            let text = if quote == "'" { "'" } else { "\"" };
            return Some(Repair { at: end, change: Change::Supply(text), diagnostic, explains: shown });
        }
    }
    None
}

/// Supplies the closer of the `(` or `[` at `open`.
fn close_small(
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

/// Whether a line looks like an entry or the end of a body. `argument` if `name = value` may as well be an argument.
fn looks_like_entry(line: &str, argument: bool) -> bool {
    let line = line.trim_start_matches([' ', '\t']);
    if line.starts_with('}') {
        return true;
    }
    let word = |text: &str| {
        text.find(|letter: char| !letter.is_ascii_alphanumeric() && !matches!(letter, '_' | '-' | '.'))
            .unwrap_or(text.len())
    };
    let first = word(line);
    if first == 0
        || !line.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
        || reserved(&line[..first])
    {
        return false;
    }
    let rest = &line[first..];
    let after = rest.trim_start_matches([' ', '\t']);
    if after.starts_with('=') && !after.starts_with("==") {
        return !argument;
    }
    if after.starts_with([':', '{']) {
        return true;
    }
    rest.len() != after.len()
        && !reserved(&after[..word(after)])
        && after
            .starts_with(|letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '"' | '\''))
}

fn reserved(word: &str) -> bool {
    matches!(word, "and" | "or" | "not" | "in" | "matches" | "if" | "then" | "else" | "true" | "false")
}

/// An open brace.
#[derive(Clone, Copy)]
struct Opener {
    at: usize,
    /// Start of its line.
    line: usize,
    /// Columns before the first word of its line.
    indent: usize,
}

fn indent(line: &str) -> usize {
    line.bytes()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .map(|byte| if byte == b'\t' { 4 } else { 1 })
        .sum()
}

/// What the indentation says of the braces.
enum Fault {
    /// The body opened there should have ended before this line.
    NotClosed(Opener, usize),
    /// This `}` has no `{`.
    NotOpened(usize),
}

/// Finds the first brace that is missing, by the indentation of the lines.
fn braces(patched: &Patched, budget: &mut usize) -> Option<Repair> {
    let text = patched.text.as_str();
    let mut opens = 0usize;
    let mut closes = 0usize;
    scan(text, |event| {
        match event {
            Event::Open(b'{', _) => opens += 1,
            Event::Close(b'}', _) => closes += 1,
            _ => {}
        }
        Go::On
    });
    let mut stack: Vec<Opener> = Vec::new();
    let mut small = 0usize;
    let mut line_start = 0;
    let mut line_indent = 0;
    let mut fault = None;
    scan(text, |event| {
        match event {
            Event::Line(at) => {
                let line = text[at..].split('\n').next().unwrap_or("");
                let content = line.trim();
                line_start = at;
                line_indent = indent(line);
                if content.is_empty() || content.starts_with('#') || small > 0 {
                    return Go::On;
                }
                let Some(top) = stack.last() else { return Go::On };
                let first = at + (line.len() - line.trim_start().len());
                if content.starts_with('}') {
                    if line_indent < top.indent && opens >= closes {
                        fault = Some(Fault::NotClosed(*top, at));
                    } else if line_indent > top.indent && closes > opens {
                        fault = Some(Fault::NotOpened(first));
                    }
                } else if line_indent <= top.indent && opens >= closes && !goes_on(content) {
                    fault = Some(Fault::NotClosed(*top, at));
                }
                if fault.is_some() {
                    return Go::Stop;
                }
            }
            Event::Open(b'{', at) => stack.push(Opener { at, line: line_start, indent: line_indent }),
            Event::Close(b'}', at) => {
                let top = stack.pop();
                // One that ends what an earlier line opened stands first on its line, or its own opener is missing.
                let inline = !text[line_start..at].trim_start_matches([' ', '\t', '}', ')', ']']).is_empty();
                if top.is_none_or(|top| inline && closes > opens && top.line < line_start) {
                    fault = Some(Fault::NotOpened(at));
                    return Go::Stop;
                }
            }
            Event::Open(..) => small += 1,
            Event::Close(..) => small = small.saturating_sub(1),
            _ => {}
        }
        Go::On
    });
    match fault {
        Some(Fault::NotClosed(opener, before)) => Some(close_brace(patched, opener, before)),
        Some(Fault::NotOpened(close)) => Some(open_brace(patched, close, budget)),
        None => {
            let opener = stack.last().copied()?;
            Some(close_brace(patched, opener, text.len()))
        }
    }
}

/// Whether a line goes on with what the line before began.
fn goes_on(content: &str) -> bool {
    content.starts_with(['{', '+', '*', '/', '<', '>', '=', '!', '-', ')', ']', '&', '|', '?', ':'])
        || ["and ", "or ", "in ", "matches ", "then ", "else "].iter().any(|word| content.starts_with(word))
}

/// Supplies a `}` before the line at `before`.
fn close_brace(patched: &Patched, opener: Opener, before: usize) -> Repair {
    let at_end = before == patched.text.len() && !patched.text.ends_with('\n');
    let point = patched.content_before(before);
    let shown = patched.span(point, point);
    let head = patched.text[opener.line..opener.at].trim().trim_end_matches('=').trim_end();
    let what =
        if head.is_empty() { "this `{`".to_owned() } else { format!("the body of `{}`", shorten(head)) };
    let mut edit = "\n".to_owned();
    edit.push_str(&" ".repeat(opener.indent));
    edit.push('}');
    let one_line = patched.line_end(opener.at) >= point;
    let replacement = if one_line { " }".to_owned() } else { edit };
    let diagnostic = Diagnostic::new(codes::UNCLOSED_BRACKET, shown, format!("{what} is never closed"))
        .label("expected `}` after this")
        .also(patched.span(opener.at, opener.at + 1), "this `{` is open")
        .help("close it with `}`; where it belongs is told from the indentation")
        .suggestion("add the `}`", vec![Edit { span: shown, replacement }]);
    Repair {
        at: before,
        change: Change::Supply(if at_end { "\n}\n" } else { "}\n" }),
        diagnostic,
        explains: shown,
    }
}

/// The `}` at `close` has no partner: supplies a `{` at the end of the line whose body it ends by its indentation, or where it
/// makes its own line readable.
fn open_brace(patched: &Patched, close: usize, budget: &mut usize) -> Repair {
    let text = patched.text.as_str();
    let shown = patched.span(close, close + 1);
    let line = patched.line_start(close);
    let first_on_line = text[line..close].trim().is_empty();
    let place = if first_on_line {
        line_without_brace(text, line).map(|start| head_end(text, start))
    } else {
        let places = tokens(text, line, close);
        // Nearer to the `}` is likelier: what stands before the `{` is the head.
        try_places(patched, "{", places.into_iter().rev(), budget).map(|(at, _)| at)
    };
    if let Some(at) = place {
        let end = patched.content_before(at);
        let point = patched.span(end, end);
        let what = shorten(text[patched.line_start(end)..end].trim());
        let diagnostic =
            Diagnostic::new(codes::STRAY_BRACKET, point, format!("expected `{{` after `{what}`"))
                .label("a `{` is missing here")
                .also(shown, "this `}` closes nothing")
                .help("a body opens with `{` on the line of its keyword")
                .suggestion("add the `{`", vec![Edit { span: point, replacement: " {".to_owned() }]);
        return Repair { at, change: Change::Supply("{"), diagnostic, explains: point };
    }
    let diagnostic = Diagnostic::new(codes::STRAY_BRACKET, shown, "this `}` closes nothing")
        .label("no `{` is open here")
        .help("delete it, or add the `{` that it was meant to close")
        .suggestion("delete it", vec![Edit { span: shown, replacement: String::new() }]);
    Repair { at: close, change: Change::Replace(" "), diagnostic, explains: shown }
}

/// The nearest line above `line` that is level with it and opens no body, with only deeper lines between.
fn line_without_brace(text: &str, line: usize) -> Option<usize> {
    let wanted = indent(&text[line..]);
    let mut lines: Vec<usize> = Vec::new();
    scan(&text[..line], |event| {
        if let Event::Line(at) = event
            && at < line
        {
            lines.push(at);
        }
        Go::On
    });
    for start in lines.into_iter().rev() {
        let content = text[start..].split('\n').next().unwrap_or("");
        let code = text[start..code_end(text, start)].trim();
        if code.is_empty() || indent(content) > wanted {
            continue;
        }
        let opens = indent(content) == wanted && !code.starts_with('}') && !code.ends_with(['{', '}']);
        return opens.then_some(start);
    }
    None
}

/// Where the head that begins at `start` ends: at the end of its line, or after the block that opens there.
fn head_end(text: &str, start: usize) -> usize {
    let end = code_end(text, start);
    let Some(marks) = ["\"\"\"", "'''"].into_iter().find(|marks| text[start..end].ends_with(marks)) else {
        return end;
    };
    let mut at = end;
    for line in text[end..].split_inclusive('\n') {
        let blank = line.len() - line.trim_start_matches([' ', '\t', '\r']).len();
        if at > end && line[blank..].starts_with(marks) {
            return at + blank + 3;
        }
        at += line.len();
    }
    end
}

/// The end of the code of the line at `start`, without a comment.
fn code_end(text: &str, start: usize) -> usize {
    let line = text[start..].split('\n').next().unwrap_or("");
    let mut end = line.len();
    for (at, _) in line.match_indices('#').take(64) {
        let mut open = false;
        scan(&line[..at], |event| {
            open |= matches!(event, Event::OpenString(_));
            Go::On
        });
        if !open {
            end = at;
            break;
        }
    }
    start + line[..end].trim_end().len()
}

/// Where tokens begin between two offsets, and where the lines between them end: places for an opening bracket.
fn tokens(text: &str, from: usize, to: usize) -> Vec<usize> {
    let bytes = text.as_bytes();
    let mut places = Vec::new();
    for at in from..to {
        let here = bytes[at];
        let before = if at == from { b'\n' } else { bytes[at - 1] };
        let begins = !here.is_ascii_whitespace()
            && (before.is_ascii_whitespace()
                || matches!(before, b'=' | b'(' | b'[' | b',')
                || matches!(here, b'"' | b'\''));
        let ends = here == b'\n' && !before.is_ascii_whitespace() && before != b',';
        if (begins || ends)
            && text.is_char_boundary(at)
            && !matches!(here, b'}' | b')' | b']' | b',' | b'=' | b'#')
        {
            places.push(at);
        }
    }
    places
}

/// Tries a bracket at each place; gives the place that leaves the least amiss, and how much that is, if it is less than before.
fn try_places(
    patched: &Patched,
    bracket: &str,
    places: impl Iterator<Item = usize>,
    budget: &mut usize,
) -> Option<(usize, usize)> {
    let mut best: Option<(usize, usize)> = None;
    for at in places.take(MAX_TRIES) {
        if patched.text.len() > *budget {
            break;
        }
        *budget = budget.saturating_sub(patched.text.len());
        let mut trial = patched.text.clone();
        trial.insert_str(at, bracket);
        let weight = weight(&read(&trial, &Place { source: patched.source, base: 0, inserted: &[] }));
        if best.is_none_or(|(_, least)| weight < least) {
            best = Some((at, weight));
        }
        if weight == 0 {
            break;
        }
    }
    best
}

/// The `)` or `]` at `close` has no partner: tries the places before it for one that makes the text readable. Also gives how much
/// is amiss with the bracket there.
fn open_small(
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

fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or("").trim_end();
    let cut: String = line.chars().take(40).collect();
    if cut.len() < text.len() { format!("{}…", cut.trim_end()) } else { cut }
}

/// What to say of a bracket that could not be repaired.
fn plain(patched: &Patched, what: Unbalanced) -> Diagnostic {
    let bracket = |at: usize| patched.text.as_bytes().get(at).map_or(' ', |byte| char::from(*byte));
    match what {
        Unbalanced::Open { open, .. } => {
            let name = bracket(open);
            let closer = match name {
                '(' => ')',
                '[' => ']',
                _ => '}',
            };
            Diagnostic::new(
                codes::UNCLOSED_BRACKET,
                patched.span(open, open + 1),
                format!("this `{name}` is never closed"),
            )
            .label("opened here")
            .help(format!("close it with `{closer}`"))
        }
        Unbalanced::Close { at } => {
            let name = bracket(at);
            Diagnostic::new(
                codes::STRAY_BRACKET,
                patched.span(at, at + 1),
                format!("this `{name}` closes nothing"),
            )
            .label("nothing is open here")
            .help("delete it, or add the bracket that it was meant to close")
        }
    }
}
