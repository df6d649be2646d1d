//! Strings: escapes, `${…}` and the dedenting of blocks.

use super::{MAX_DEPTH, Reader, Rule, range, too_deep};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::parse::matched::{Pair, Pairs};
use crate::tree::{Expr, ExprKind, Quote, StrLit, StrPart};

impl<'t> Reader<'t, '_> {
    /// Any of the four kinds of string.
    pub(super) fn string(&mut self, pair: Pair<'t>) -> StrLit {
        let (start, end) = range(&pair);
        let rule = pair.as_rule();
        let inner = pair.into_inner();
        match rule {
            Rule::single => self.single(start, end, inner),
            Rule::block_single => self.block(start, end, Quote::BlockSingle, inner),
            Rule::block_double => self.block(start, end, Quote::BlockDouble, inner),
            _ => self.double(start, end, inner),
        }
    }

    fn single(&mut self, start: usize, end: usize, inner: Pairs<'t>) -> StrLit {
        let mut parts = Vec::with_capacity(1);
        let mut closed = true;
        for pair in inner {
            if pair.as_rule() == Rule::unclosed {
                closed = false;
            } else if !pair.as_str().is_empty() {
                let span = self.span_of(&pair);
                parts.push(StrPart::Text { value: pair.as_str().to_owned(), span });
            }
        }
        if !closed {
            self.unclosed_string(start, end, "'");
        }
        StrLit { quote: Quote::Single, parts, span: self.span(start, end) }
    }

    fn double(&mut self, start: usize, end: usize, inner: Pairs<'t>) -> StrLit {
        let mut parts = Vec::with_capacity(inner.room());
        let mut closed = true;
        for pair in inner {
            match pair.as_rule() {
                Rule::unclosed => closed = false,
                Rule::interp => parts.push(self.interp(pair)),
                _ => {
                    let (from, to) = range(&pair);
                    if from < to {
                        let value = self.unescape(start, end, from, to);
                        parts.push(StrPart::Text { value, span: self.span(from, to) });
                    }
                }
            }
        }
        if !closed || self.slice(start, end).contains('\n') {
            self.unclosed_string(start, end, "\"");
        }
        StrLit { quote: Quote::Double, parts, span: self.span(start, end) }
    }

    /// The text between two offsets inside the double-quoted string at `start..end`, its escapes resolved.
    fn unescape(&mut self, start: usize, end: usize, from: usize, to: usize) -> String {
        let raw = self.slice(from, to);
        if !raw.contains(['\\', '$']) {
            return raw.to_owned();
        }
        let mut value = String::with_capacity(raw.len());
        let mut rest = raw;
        while let Some(at) = rest.find(['\\', '$']) {
            value.push_str(&rest[..at]);
            let here = from + (raw.len() - rest.len()) + at;
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("$${") {
                value.push_str("${");
                rest = after;
                continue;
            }
            if let Some(after) = rest.strip_prefix('$') {
                value.push('$');
                rest = after;
                continue;
            }
            let mut letters = rest[1..].chars();
            let escaped = letters.next();
            let mut after = letters.as_str();
            match escaped {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('r') => value.push('\r'),
                Some('"') => value.push('"'),
                Some('\\') => value.push('\\'),
                Some('u') => {
                    match unicode(after) {
                        Some((letter, rest)) => {
                            value.push(letter);
                            after = rest;
                        }
                        None => {
                            let diagnostic = self
                            .diagnostic(codes::BAD_ESCAPE, here, here + 2, "`\\u` is not followed by a character number")
                            .help("write the Unicode number in hexadecimal and in braces, as in `\\u{2713}`");
                            self.report(diagnostic);
                        }
                    }
                }
                Some(other) => {
                    let diagnostic = self.bad_escape(start, end, here, other);
                    self.report(diagnostic);
                    value.push(other);
                }
                None => value.push('\\'),
            }
            rest = after;
        }
        value.push_str(rest);
        value
    }

    fn bad_escape(&self, start: usize, end: usize, here: usize, other: char) -> Diagnostic {
        let width = 1 + other.len_utf8();
        let diagnostic = self
            .diagnostic(codes::BAD_ESCAPE, here, here + width, format!("`\\{other}` is not an escape"))
            .help("the escapes are \\\" \\\\ \\n \\t \\r and \\u{…}; a literal backslash is `\\\\`");
        match other {
            '\'' => diagnostic.fix("leave the backslash out", vec![self.edit(here, here + 1, "")]),
            '$' if self.byte(here + 2) == Some(b'{') => {
                diagnostic.suggestion("write `$${` for a literal `${`", vec![self.edit(here, here + 1, "$")])
            }
            '$' => diagnostic
                .fix("leave the backslash out: `$` alone is literal", vec![self.edit(here, here + 1, "")]),
            _ => {
                let inside = self.slice(start + 1, end.saturating_sub(1));
                let plain =
                    !inside.contains(['\'', '\n']) && !inside.contains("${") && !inside.contains("\\\"");
                if plain && !inside.contains("\\\\") && self.byte(start) == Some(b'"') && end > start + 1 {
                    diagnostic.suggestion(
                        "use single quotes, in which a backslash is literal",
                        vec![self.edit(start, start + 1, "'"), self.edit(end - 1, end, "'")],
                    )
                } else {
                    diagnostic.suggestion("double the backslash", vec![self.edit(here, here, "\\")])
                }
            }
        }
    }

    fn unclosed_string(&mut self, start: usize, end: usize, quote: &str) {
        let line = self.slice(start, end).lines().next().unwrap_or("");
        let shown = start + line.trim_end().len();
        let inside = line.trim_start_matches(quote).trim();
        let mut diagnostic = self.diagnostic(
            codes::UNCLOSED_STRING,
            start,
            shown.max(start + quote.len()),
            "this string is not closed on its line",
        );
        diagnostic = if inside.is_empty() {
            // The last quote of the line opens a string: the one before it in the line is more likely what is missing.
            diagnostic.label("nothing follows this quote").help(format!(
                "put a {quote} where the text begins, or close this string before the end of the line"
            ))
        } else {
            diagnostic.label("opened here").help(format!(
                "close it with {quote}; text over several lines is written as a block between {quote}{quote}{quote} and {quote}{quote}{quote}"
            ))
        };
        self.report_unclosed_string(diagnostic);
    }

    /// `${expr}`.
    fn interp(&mut self, pair: Pair<'t>) -> StrPart {
        let (start, end) = range(&pair);
        let span = self.span(start, end);
        if self.depth >= MAX_DEPTH {
            self.breaks(too_deep(span.shrink_to_start()));
            return StrPart::Interp { expr: Expr { kind: ExprKind::Error, span }, span };
        }
        self.depth += 1;
        let mut inner = pair.into_inner();
        let mut expr = None;
        let mut junk = None;
        let mut closed = true;
        while let Some(pair) = self.next(&mut inner) {
            match pair.as_rule() {
                Rule::expr => expr = Some(self.expr(pair)),
                Rule::interp_junk => junk = Some(range(&pair)),
                _ => closed = false,
            }
        }
        self.depth -= 1;
        let bad = if !closed {
            let bad = self.diagnostic(codes::BAD_INTERPOLATION, start, start + 2, "this `${` is not closed");
            Some(bad.help("close it with `}`; for a literal `${` write `$${`"))
        } else if let Some((from, to)) = junk {
            Some(self.bad_interp(start, end, from, to, expr.as_ref()))
        } else if expr.is_none() {
            let bad = self.diagnostic(
                codes::BAD_INTERPOLATION,
                start,
                end,
                "there is nothing between `${` and `}`",
            );
            Some(bad.help("name a value, as in `${version}`; for a literal `${` write `$${`"))
        } else {
            None
        };
        let good = bad.is_none();
        if let Some(bad) = bad {
            self.report(bad);
        }
        let expr = match expr {
            Some(expr) if good => expr,
            _ => Expr { kind: ExprKind::Error, span },
        };
        StrPart::Interp { expr, span }
    }

    fn bad_interp(
        &self,
        start: usize,
        end: usize,
        from: usize,
        to: usize,
        expr: Option<&Expr>,
    ) -> Diagnostic {
        let junk = self.slice(from, to).trim_end();
        let to = from + junk.len();
        let name = match expr.map(|expr| &expr.kind) {
            Some(ExprKind::Name(name)) => Some(name.text.as_str()),
            _ => None,
        };
        let shell =
            junk.starts_with([':', '#', '%', '/', '^', ',', '@', '!', '*', '?', '+', '=']) || expr.is_none();
        if !shell {
            return self
                .diagnostic(
                    codes::BAD_INTERPOLATION,
                    from,
                    to,
                    format!("unexpected {} in `${{…}}`", self.found(from)),
                )
                .help("between `${` and `}` stands one expression of cdpipe");
        }
        let whole = self.slice(start, end);
        let plain = match name {
            Some(name) => format!("; for a variable of the shell alone write `${name}`"),
            None => String::new(),
        };
        self.diagnostic(
            codes::BAD_INTERPOLATION,
            start,
            end,
            format!("`{whole}` is shell syntax, not an expression of cdpipe"),
        )
        .label("cdpipe fills in `${…}` itself")
        .help(format!("to leave it to the shell, write `${whole}`{plain}"))
        .suggestion("leave it to the shell", vec![self.edit(start, start, "$")])
    }

    /// A block between three quotes: what all its lines have in common as indentation is taken away, and so are the line breaks
    /// after the opening and before the closing quotes.
    fn block(&mut self, start: usize, end: usize, quote: Quote, inner: Pairs<'t>) -> StrLit {
        let marks = if quote == Quote::BlockDouble { "\"\"\"" } else { "'''" };
        let span = self.span(start, end);
        let mut pieces = Vec::new();
        let mut closed = true;
        for pair in inner {
            match pair.as_rule() {
                Rule::unclosed => closed = false,
                Rule::block_close | Rule::raw_close => {}
                Rule::interp => pieces.push(Piece::Interp(self.interp(pair))),
                Rule::one_line_double | Rule::one_line_single => {
                    return self.one_line_block(start, end, quote, &pair);
                }
                _ => {
                    let (from, to) = range(&pair);
                    pieces.push(Piece::Text(from, to));
                }
            }
        }
        if !closed {
            let content =
                start + self.slice(start, end).find('\n').map_or(end - start, |newline| newline + 1);
            if self.lost_close(start, content, end, marks, usize::MAX) {
                return StrLit { quote, parts: Vec::new(), span };
            }
            let diagnostic = self
                .diagnostic(
                    codes::UNCLOSED_STRING,
                    start,
                    start + 3,
                    format!("this {marks} block is not closed"),
                )
                .label("opened here")
                .help(format!("end it with {marks} as the first thing on a line"));
            self.report_unclosed_string(diagnostic);
            return StrLit { quote, parts: Vec::new(), span };
        }
        // The opening line has to be empty: its rest would be text whose indentation nobody can say.
        let Some(first_newline) = self.slice(start, end).find('\n') else {
            return StrLit { quote, parts: Vec::new(), span };
        };
        let content = start + first_newline + 1;
        if !self.slice(start + 3, content).trim().is_empty() {
            let diagnostic = self
                .diagnostic(
                    codes::BLOCK_STRING,
                    start,
                    content - 1,
                    format!("text follows {marks} on the same line"),
                )
                .help(format!(
                    "{marks} opens a block as the last thing on its line; the text begins on the next"
                ));
            self.report(diagnostic);
        }
        let close_line = start + self.slice(start, end).rfind('\n').unwrap_or(0);
        let line_start = self.slice(0, start).rfind('\n').map_or(0, |at| at + 1);
        let open_indent = indent_of(self.slice(line_start, start)).len();
        self.lost_close(start, content, close_line, marks, open_indent);
        if close_line < content {
            return StrLit { quote, parts: Vec::new(), span };
        }
        let indent = common_indent(self.slice(content, close_line));
        let mut parts = Vec::new();
        let mut at_line_start = true;
        for piece in pieces {
            match piece {
                Piece::Interp(part) => {
                    at_line_start = false;
                    parts.push(part);
                }
                Piece::Text(from, to) => {
                    let (from, to) = (from.max(content), to.min(close_line));
                    if from < to {
                        let value = self.dedent(from, to, indent, at_line_start, quote);
                        at_line_start = false;
                        if !value.is_empty() {
                            parts.push(StrPart::Text { value, span: self.span(from, to) });
                        }
                    }
                }
            }
        }
        StrLit { quote, parts, span }
    }

    fn one_line_block(&mut self, start: usize, end: usize, quote: Quote, text: &Pair<'t>) -> StrLit {
        let marks = self.slice(start, start + 3);
        let one = &marks[..1];
        let inside = text.as_str();
        let diagnostic = self
            .diagnostic(codes::BLOCK_STRING, start, end, format!("a {marks} block cannot stand on one line"))
            .help(format!("write a string on one line between {one} and {one}"));
        let diagnostic = if inside.contains([one.chars().next().unwrap_or('"'), '\\']) {
            diagnostic
        } else {
            diagnostic.fix(
                "use single quotation marks",
                vec![self.edit(start, start + 3, one), self.edit(end - 3, end, one)],
            )
        };
        self.report(diagnostic);
        let (from, to) = range(text);
        let parts = vec![StrPart::Text { value: inside.to_owned(), span: self.span(from, to) }];
        StrLit { quote, parts, span: self.span(start, end) }
    }

    /// A line of a block that begins with two quotes, at most `indent` from the left: the third is
    /// missing, and the block has swallowed what follows up to the end of another.
    fn lost_close(
        &mut self,
        start: usize,
        content: usize,
        close_line: usize,
        marks: &str,
        indent: usize,
    ) -> bool {
        let mut at = content;
        for line in self.slice(content, close_line).split_inclusive('\n') {
            let text = line.trim();
            if text
                .strip_prefix(&marks[..2])
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '}']))
                && indent_of(line).len() <= indent
            {
                let from = at + indent_of(line).len();
                let diagnostic = self
                    .diagnostic(
                        codes::UNCLOSED_STRING,
                        from,
                        from + 2,
                        format!("this does not close the {marks} block"),
                    )
                    .also(self.span(start, start + 3), "the block opens here")
                    .help(format!("write {marks} with three quotes"))
                    .suggestion("add the third quote", vec![self.edit(from, from, &marks[..1])]);
                self.report_unclosed_string(diagnostic);
                return true;
            }
            at += line.len();
        }
        false
    }

    /// The text between two offsets of a block, without `indent` at the start of its lines, with `\n` as line end.
    fn dedent(&self, from: usize, to: usize, indent: &str, at_line_start: bool, quote: Quote) -> String {
        let mut value = String::new();
        let mut lines = self.slice(from, to).split('\n').enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            if number > 0 {
                value.push('\n');
            }
            let last = lines.peek().is_none();
            let line = line.strip_suffix('\r').unwrap_or(line);
            let line = if number == 0 && !at_line_start {
                line
            } else if line.trim().is_empty() && (!last || self.byte(to) == Some(b'\n')) {
                ""
            } else {
                line.strip_prefix(indent).unwrap_or(line)
            };
            if quote == Quote::BlockDouble {
                value.push_str(&line.replace("$${", "${"));
            } else {
                value.push_str(line);
            }
        }
        value
    }
}

enum Piece {
    Text(usize, usize),
    Interp(StrPart),
}

fn indent_of(line: &str) -> &str {
    &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
}

/// The longest run of blanks and tabs with which every line begins that is not blank.
pub(crate) fn common_indent(content: &str) -> &str {
    let mut common: Option<&str> = None;
    for line in content.split('\n').filter(|line| !line.trim().is_empty()) {
        let indent = indent_of(line);
        common = Some(match common {
            None => indent,
            Some(common) => {
                let same =
                    common.bytes().zip(indent.bytes()).take_while(|(left, right)| left == right).count();
                &common[..same]
            }
        });
    }
    common.unwrap_or("")
}

/// `{2713}…` as a character and the rest.
fn unicode(text: &str) -> Option<(char, &str)> {
    let (digits, rest) = text.strip_prefix('{')?.split_once('}')?;
    if digits.is_empty() || digits.len() > 6 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let letter = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
    Some((letter, rest))
}
