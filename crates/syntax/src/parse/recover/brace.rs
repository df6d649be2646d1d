//! Where a `{` or `}` is missing, by the indentation of the lines.

use super::{Change, Patched, Repair, code_end, indent, shorten, tokens, try_places};
use crate::codes;
use crate::diagnostic::{Diagnostic, Edit};
use crate::parse::outline::{Event, Go, scan};

/// An open brace.
#[derive(Clone, Copy)]
struct Opener {
    at: usize,
    /// Start of its line.
    line: usize,
    /// Columns before the first word of its line.
    indent: usize,
}

/// What the indentation says of the braces.
enum Fault {
    /// The body opened there should have ended before this line.
    NotClosed(Opener, usize),
    /// This `}` has no `{`.
    NotOpened(usize),
}

/// Finds the first brace that is missing, by the indentation of the lines.
pub(super) fn braces(patched: &Patched, budget: &mut usize) -> Option<Repair> {
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
