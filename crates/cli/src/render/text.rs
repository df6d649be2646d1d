//! For people: the source with the places marked, drawn by miette. Coloured and with lines on a terminal, plain ASCII elsewhere.

use super::{Found, word};
use crate::ui::Look;
use cdpipe_check::{Source, Sources};
use cdpipe_syntax::{Diagnostic, Label, Severity, SourceId};
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, SourceSpan, SpanContents};
use std::fmt;
use std::ops::Range;

/// More than that nobody reads; the rest is counted.
const MAX_SHOWN: usize = 100;

/// Lines longer than this are shown cut, so that one generated line does not fill the screen.
const MAX_LINE_CHARS: usize = 400;
/// How much of such a line is shown before the place that is marked, in bytes.
const CUT_BEFORE_BYTES: usize = 60;
/// How much of such a line is shown from the place that is marked on, in bytes.
const CUT_AFTER_BYTES: usize = 60;

/// Every diagnostic with its source, at most a hundred of them.
pub(crate) fn render(found: &[Found<'_>], look: Look) -> String {
    let mut text = String::new();
    let mut shown = 0;
    let mut left = 0;
    for Found { sources, diagnostics } in found {
        for diagnostic in diagnostics {
            if shown == MAX_SHOWN {
                left += 1;
                continue;
            }
            shown += 1;
            let view = View { sources, diagnostic, source: diagnostic.primary.span.source };
            let mut one = String::new();
            // Writing to a String fails only if a span lies outside its source; the message is then still told.
            if handler(diagnostic, look).render_report(&mut one, &view).is_err() {
                one = format!("{}: {}", diagnostic.code(), diagnostic.message);
            }
            for line in one.trim_matches('\n').lines() {
                push_line(&mut text, line.trim_end());
            }
            text.push('\n');
        }
    }
    if left > 0 {
        text.push_str(&format!("... and {left} more; `--format short` lists them all\n\n"));
    }
    text
}

/// The handler for one diagnostic: its code stands where miette would put a cross.
fn handler(diagnostic: &Diagnostic, look: Look) -> GraphicalReportHandler {
    let mut theme = match (look.unicode, look.color) {
        (true, true) => GraphicalTheme::unicode(),
        (true, false) => GraphicalTheme::unicode_nocolor(),
        (false, true) => GraphicalTheme::ascii(),
        (false, false) => GraphicalTheme::none(),
    };
    let tag = format!("{}[{}]:", word(diagnostic.severity), diagnostic.code());
    theme.characters.error.clone_from(&tag);
    theme.characters.warning.clone_from(&tag);
    theme.characters.advice = tag;
    GraphicalReportHandler::new_themed(theme)
        .with_width(look.width)
        .with_context_lines(1)
        .with_links(false)
        .with_urls(false)
        .tab_width(4)
        .without_syntax_highlighting()
}

/// A diagnostic as miette wants it, showing the labels that lie in one source. Those in other sources follow as related ones.
struct View<'a> {
    sources: &'a Sources,
    diagnostic: &'a Diagnostic,
    source: SourceId,
}

impl View<'_> {
    fn labels_here(&self) -> impl Iterator<Item = (&Label, bool)> {
        std::iter::once((&self.diagnostic.primary, true))
            .chain(self.diagnostic.secondary.iter().map(|label| (label, false)))
            .filter(|(label, _)| label.span.source == self.source)
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.diagnostic, f)
    }
}

impl fmt::Display for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diagnostic.message)
    }
}

impl std::error::Error for View<'_> {}

impl miette::Diagnostic for View<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.diagnostic.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
            Severity::Advice => miette::Severity::Advice,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        // A change that only a person may choose, and that the help says already, is not said twice.
        let said = |title: &str| self.diagnostic.help.as_ref().is_some_and(|help| help.contains(title));
        let fix = self.diagnostic.fix.as_ref().filter(|fix| fix.safe || !said(&fix.title)).map(|fix| {
            if fix.safe { format!("`--fix` will {}", fix.title) } else { format!("you could {}", fix.title) }
        });
        // Other files that the diagnostic points into: named here, because one drawing shows one file.
        let mut lines: Vec<String> = Vec::new();
        lines.extend(self.diagnostic.help.clone());
        lines.extend(fix);
        for label in &self.diagnostic.secondary {
            if label.span.source != self.source {
                let (path, start, _) = super::place(self.sources, label.span);
                lines.push(format!("{path}:{}:{}: {}", start.line, start.col, label.text));
            }
        }
        (!lines.is_empty()).then(|| Box::new(lines.join("\n")) as Box<dyn fmt::Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels_here().map(|(label, primary)| {
            let text = (!label.text.is_empty()).then(|| label.text.clone());
            let range = label.span.range();
            let shown = self.sources.get(self.source).and_then(|source| cut_line(source, range.start));
            let end = shown.map_or(range.end, |shown| range.end.min(shown.end));
            let span = SourceSpan::from((range.start, end.saturating_sub(range.start)));
            if primary {
                LabeledSpan::new_primary_with_span(text, span)
            } else {
                LabeledSpan::new_with_span(text, span)
            }
        })))
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(self)
    }
}

impl miette::SourceCode for View<'_> {
    /// Finds the lines by the index instead of from the top of the file, so that many diagnostics of a long file stay cheap.
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        context_before: usize,
        context_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let source = self.sources.get(self.source).ok_or(MietteError::OutOfBounds)?;
        let lines = &source.lines;
        let start = span.offset().min(source.text.len());
        let end = (span.offset() + span.len()).min(source.text.len());
        let first = lines.line(start).saturating_sub(context_before);
        // The last line of the span: one that ends with a newline does not reach into the next line.
        let last_at = if end > start { end - 1 } else { end };
        let last = (lines.line(last_at) + context_after).min(lines.line_count().saturating_sub(1));
        // Without context miette wants the place itself: it is what the head of the drawing names.
        let place = context_before == 0 && context_after == 0;
        let from = if place { start } else { lines.line_start(first) };
        let column =
            if place { lines.line_col(&source.text, start).col.saturating_sub(1) as usize } else { 0 };
        let to = if last + 1 < lines.line_count() { lines.line_start(last + 1) } else { source.text.len() };
        let window = source.text.get(from..to).ok_or(MietteError::OutOfBounds)?;
        // Of the window, not of the file: by it miette tells places that stand together from those that are drawn apart.
        let line_count = last + 1 - first;
        // A context line that is enormous is left out; of a marked line that is, the part around the mark is shown.
        let (from, window, first) = match cut_line(source, start) {
            Some(cut) if !place => {
                (cut.start, source.text.get(cut).ok_or(MietteError::OutOfBounds)?, lines.line(start))
            }
            _ => trim_window(window, from, first, start, end),
        };
        Ok(Box::new(miette::MietteSpanContents::new_named(
            crate::files::show(&source.path).to_owned(),
            window.as_bytes(),
            (from, window.len()).into(),
            first,
            column,
            line_count,
        )))
    }
}

/// Writes a line, without the middle of one that is longer than anyone wants to see: a span can hold such lines between
/// its ends.
fn push_line(text: &mut String, line: &str) {
    match line.char_indices().nth(2 * MAX_LINE_CHARS) {
        None => text.push_str(line),
        Some(_) => {
            text.extend(line.chars().take(MAX_LINE_CHARS));
            text.push_str(" ...");
        }
    }
    text.push('\n');
}

/// Where the line of this place is shown cut, if it is too long to be shown whole.
fn cut_line(source: &Source, at: usize) -> Option<Range<usize>> {
    let (text, lines) = (&source.text, &source.lines);
    let at = at.min(text.len());
    let line = lines.line(at);
    let line_start = lines.line_start(line);
    let line_end = if line + 1 < lines.line_count() { lines.line_start(line + 1) } else { text.len() };
    if line_end - line_start <= MAX_LINE_CHARS {
        return None;
    }
    let (mut from, mut to) = (at.saturating_sub(CUT_BEFORE_BYTES), (at + CUT_AFTER_BYTES).min(line_end));
    while !text.is_char_boundary(from) {
        from -= 1;
    }
    while !text.is_char_boundary(to) {
        to += 1;
    }
    Some(from.max(line_start)..to)
}

/// Drops context lines before and after the marked ones if they are longer than anyone wants to see.
fn trim_window(window: &str, from: usize, first: usize, start: usize, end: usize) -> (usize, &str, usize) {
    let (mut from, mut window, mut first) = (from, window, first);
    while let Some(at) = window.find('\n') {
        let line_end = from + at + 1;
        if line_end <= start && at > MAX_LINE_CHARS {
            window = &window[at + 1..];
            from = line_end;
            first += 1;
        } else {
            break;
        }
    }
    if let Some(at) = window.trim_end_matches('\n').rfind('\n')
        && from + at >= end
        && window.len() - at > MAX_LINE_CHARS
    {
        window = &window[..=at];
    }
    (from, window, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut sources = Sources::default();
        let id = sources.add("long.cd", text);
        let parsed = cdpipe_syntax::parse(id, text);
        let look = Look { color: false, unicode: false, terminal: false, width: 80 };
        render(&[Found { sources: &sources, diagnostics: parsed.diagnostics.iter().collect() }], look)
    }

    #[test]
    fn a_line_of_a_megabyte_is_shown_around_the_mark_only() {
        let text = shown(&"{".repeat(1_000_000));
        let (head, rest) = text.split_once('\n').unwrap();
        assert_eq!(head, "  error[CD0121]: this nests deeper than 64 levels");
        assert!(rest.starts_with("   ,-[long.cd:1:65]\n 1 | {{{{"), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        let mark = lines.iter().position(|line| line.contains("one level too many")).unwrap();
        assert_eq!(lines[mark - 1].find('|'), Some(5 + CUT_BEFORE_BYTES), "{text}");
        assert!(lines.iter().all(|line| line.len() < 150), "{text}");
    }

    #[test]
    fn long_lines_of_wide_characters_are_cut_between_characters() {
        for filler in ["é", "日", "🦀", "\t", "\"é\" "] {
            for before in 0..5 {
                let text = format!(
                    "{}{} stage = = \"{}\n",
                    "x".repeat(before),
                    filler.repeat(400),
                    filler.repeat(400)
                );
                let shown = shown(&text);
                assert!(shown.contains("error[") && shown.len() < 40_000, "{shown}");
                assert!(shown.lines().all(|line| line.chars().count() <= 2 * MAX_LINE_CHARS + 4), "{shown}");
            }
        }
    }
}
