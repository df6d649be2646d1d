//! Entries that are none, or are written as another language would have them: what was meant by them.

use super::entry::{Before, Tail};
use super::expression::reserved_word;
use super::{Reader, Rule, describe, range};
use crate::codes;
use crate::diagnostic::{Diagnostic, Edit};
use crate::parse::matched::Pair;
use crate::span::Span;
use crate::tree::{BinaryOp, Entry, Expr, ExprKind, Ident, Key, KeyKind, Literal, Part, Setting, Statement};

impl<'t> Reader<'t, '_> {
    pub(super) fn odd_equals(&mut self, start: usize, end: usize) {
        let text = self.slice(start, end);
        let edits = vec![self.edit(start, end, "=")];
        let diagnostic = match text {
            "==" => self
                .diagnostic(codes::EQUALS, start, end, "`==` compares; a setting is written with `=`")
                .fix("set with `=`", edits),
            "+=" => self
                .diagnostic(codes::FOREIGN_OPERATOR, start, end, "`+=` is not an operator of cdpipe")
                .help("every setting is set once, with `=`; nothing is added to later"),
            _ => self
                .diagnostic(
                    codes::FOREIGN_OPERATOR,
                    start,
                    end,
                    format!("`{text}` is not an operator of cdpipe"),
                )
                .fix("set with `=`", edits),
        };
        self.report(diagnostic);
    }

    /// Something stands after the value of a setting, on the same line.
    pub(super) fn after_value(
        &mut self,
        setting: Setting,
        value_end: usize,
        extra: Pair<'t>,
        mut tail: Tail<'t>,
    ) -> Entry {
        let (from, to) = range(&extra);
        let end = tail.end;
        let value_is_word = matches!(setting.value.kind, ExprKind::Name(_) | ExprKind::Call(..));
        if extra.as_rule() == Rule::body {
            let key = Self::key_text(&setting.key.kind);
            let gap = self.slice(tail.key_end, value_end);
            let eq = tail.key_end + gap.find('=').unwrap_or(0);
            let after_eq = eq + 1 + self.slice(eq + 1, value_end).len()
                - self.slice(eq + 1, value_end).trim_start().len();
            let diagnostic = self
                .diagnostic(
                    codes::BODY_OF_SETTING,
                    from,
                    from + 1,
                    format!("the setting `{key}` cannot have a body"),
                )
                .also(setting.span, "`=` makes this a setting")
                .help("a statement has no `=`: `keyword part { … }`")
                .suggestion("leave the `=` out", vec![self.edit(tail.key_end, after_eq, " ")]);
            self.breaks(diagnostic);
            let body = self.body(extra);
            // Read on as the statement that it probably is, so that its body is checked too.
            if let KeyKind::Path(idents) = &setting.key.kind
                && let [keyword] = idents.as_slice()
                && value_is_word
            {
                let head = setting.span;
                return Entry::Statement(Statement {
                    keyword: keyword.clone(),
                    parts: vec![Part::Expr(setting.value)],
                    span: head.to(body.span),
                    body: Some(body),
                    head,
                });
            }
            return Entry::Setting(setting);
        }
        if self.broken {
            self.skip(extra, &mut tail);
            return Entry::Setting(setting);
        }
        let diagnostic = self.extra_part(&setting, value_end, &extra, from, to, end);
        self.breaks(diagnostic);
        self.skip(extra, &mut tail);
        Entry::Setting(setting)
    }

    pub(super) fn extra_part(
        &mut self,
        setting: &Setting,
        value_end: usize,
        extra: &Pair<'t>,
        from: usize,
        to: usize,
        end: usize,
    ) -> Diagnostic {
        let text = self.slice(from, to);
        if matches!(text, ")" | "]") {
            // Counted as unbalanced when what is left of the entry is skipped.
            self.broken = true;
            return self.unexpected(from, to);
        }
        // Text without quotes: what follows touches the value, or is a sign that no expression has.
        let touching = from == value_end;
        let sign = extra.as_rule() == Rule::type_part
            || (extra.as_rule() == Rule::stray && !text.starts_with(char::is_alphabetic));
        if sign
            && (touching || text.starts_with([':', '@', '\\', '$', '~', '/']))
            && odd_blank(text).is_none()
        {
            let value_start = end_to_start(setting.value.span, value_end);
            let raw = self.raw_word(value_start, end);
            let mut diagnostic = self
                .diagnostic(
                    codes::UNEXPECTED,
                    from,
                    from + first_len(text),
                    format!("unexpected {} in a value", self.found(from)),
                )
                .help("text with such signs is put in quotes");
            let whole = self.slice(value_start, raw);
            if !whole.contains(['"', '\'', '$', '\\']) && !whole.is_empty() {
                diagnostic = diagnostic.suggestion(
                    "put it in quotes",
                    vec![self.edit(value_start, raw, format!("\"{whole}\""))],
                );
            }
            return diagnostic;
        }
        let next_is_setting =
            extra.as_rule() == Rule::head_expr && self.slice(to, end).trim_start().starts_with('=');
        if next_is_setting {
            return self
                .diagnostic(
                    codes::SEPARATOR,
                    from,
                    to,
                    "two settings stand on one line with nothing between them",
                )
                .also(self.span(value_end, value_end), "the first one ends here")
                .help("end a setting with a new line, `;` or `,`")
                .fix("put a comma between them", vec![self.edit(value_end, value_end, ",")]);
        }
        if let Some(diagnostic) = self.invisible(from, to) {
            return diagnostic;
        }
        if let Some(word) = reserved_word(text) {
            return self
                .diagnostic(codes::UNEXPECTED, from, to, format!("unexpected `{word}` after this value"))
                .help("`if` begins a choice (`if c then a else b`); a step that is left out has `when = condition`");
        }
        let diagnostic = self
            .diagnostic(
                codes::SEPARATOR,
                from,
                to.min(from + 60),
                format!("expected the end of the line after this value, found {}", self.found(from)),
            )
            .also(self.span(value_end, value_end), "the value ends here");
        if extra.as_rule() == Rule::head_expr
            && matches!(setting.value.kind, ExprKind::Name(_) | ExprKind::Literal(_))
        {
            diagnostic.help("a value of several words is text and needs quotes; a second entry needs a new line, `;` or `,`")
        } else {
            diagnostic.help("end a setting with a new line, `;` or `,`")
        }
    }

    /// Where the text without blanks that begins at `start` ends, at most `end`.
    pub(super) fn raw_word(&self, start: usize, end: usize) -> usize {
        let rest = self.slice(start, end.max(start));
        let line = self.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
        let word = line.find([' ', '\t', ',', ';', '#', '{', '}']).unwrap_or(line.len());
        start + word.max(rest.len().min(word))
    }

    /// `key: …`, as YAML and JSON have it.
    pub(super) fn colon(&mut self, key: Key, colon: Pair<'t>, mut tail: Tail<'t>) -> Entry {
        let (from, _) = range(&colon);
        let ty = colon.into_inner().find(|pair| pair.as_rule() == Rule::type_);
        let key_text = Self::key_text(&key.kind);
        let mut diagnostic =
            self.diagnostic(codes::COLON, from, from + 1, "`:` does not set a value; `=` does");
        let next = self.next(&mut tail.pairs);
        let mut value = None;
        match (ty, next) {
            // `key: word`
            (Some(ty), None) => {
                let (ty_start, ty_end) = range(&ty);
                let name = Ident { text: ty.as_str().to_owned(), span: self.span(ty_start, ty_end) };
                let simple = ty.into_inner().count() == 1;
                diagnostic = diagnostic.fix("write `=`", vec![self.edit(tail.key_end, ty_start, " = ")]);
                value = simple.then_some(Expr { span: name.span, kind: ExprKind::Name(name) });
            }
            // `key: "value"`
            (None, Some(first)) if first.as_rule() == Rule::head_expr => {
                let first_start = range(&first).0;
                diagnostic = diagnostic.fix("write `=`", vec![self.edit(tail.key_end, first_start, " = ")]);
                self.report(diagnostic.clone());
                let expr = self.expr(first);
                if let Some(extra) = self.next(&mut tail.pairs) {
                    self.skip(extra, &mut tail);
                }
                let span = key.span.to(expr.span);
                return Entry::Setting(Setting { key, ty: None, value: expr, span });
            }
            // `key: {`
            (None, Some(first)) if first.as_rule() == Rule::body => {
                diagnostic = diagnostic
                    .help(format!("a body follows its keyword directly: `{key_text} {{ … }}`; a map is set with `{key_text} = {{ … }}`"))
                    .suggestion("leave the `:` out", vec![self.edit(from, from + 1, "")]);
                self.breaks(diagnostic);
                let body = self.body(first);
                let span = key.span.to(body.span);
                return match key.kind {
                    KeyKind::Path(mut idents) if idents.len() == 1 => {
                        let head = key.span;
                        Entry::Statement(Statement {
                            keyword: idents.remove(0),
                            parts: Vec::new(),
                            body: Some(body),
                            span,
                            head,
                        })
                    }
                    _ => Entry::Error(span),
                };
            }
            (None, None) => {
                diagnostic = diagnostic.help(format!(
                    "nesting is written with braces: `{key_text} {{ … }}`; a list is written `{key_text} = [a, b]`"
                ));
            }
            // `key: word more`, `key: word {`
            (_, Some(extra)) => {
                diagnostic =
                    diagnostic.help("a setting is written `key = value`; text of several words needs quotes");
                self.breaks(diagnostic.clone());
                self.skip(extra, &mut tail);
            }
        }
        self.breaks(diagnostic);
        match value {
            Some(value) => {
                let span = key.span.to(value.span);
                Entry::Setting(Setting { key, ty: None, value, span })
            }
            None => Entry::Error(self.span(tail.key_start, tail.end)),
        }
    }

    /// A line that begins with neither a name nor a string.
    pub(super) fn junk_entry(&mut self, pair: Pair<'t>) {
        let (start, end) = self.trimmed(&pair);
        let mut pairs = pair.into_inner();
        let Some(first) = self.next(&mut pairs) else { return };
        let (_, to) = range(&first);
        let text = self.text.get(start..).unwrap_or("");
        let line = text.lines().next().unwrap_or("");
        let rule = first.as_rule();
        let closer = matches!(self.byte(start), Some(b')' | b']'));
        if ["<<<<<<<", "=======", ">>>>>>>"].iter().any(|marker| line.starts_with(marker)) {
            let diagnostic = self
                .diagnostic(
                    codes::CONFLICT_MARKER,
                    start,
                    start + 7,
                    "this is a conflict marker of a version control system",
                )
                .help(
                    "decide which of the two versions is right, and delete the markers and the other version",
                );
            self.breaks(diagnostic);
        } else if line.starts_with("- ") {
            let diagnostic = self
                .diagnostic(codes::UNEXPECTED, start, start + 1, "unexpected `-` at the start of an entry")
                .help("a list is written in brackets: `[a, b]`; steps are statements of their own, such as `run \"…\"`");
            self.breaks(diagnostic);
        } else if rule == Rule::head_expr && !matches!(self.byte(start), Some(b'@' | b'%')) {
            let mut diagnostic = self
                .diagnostic(codes::UNEXPECTED, start, to, "a value alone does nothing")
                .help("a line begins with a keyword (`rollback when …`) or sets something (`key = value`)");
            if matches!(self.byte(start), Some(b'"' | b'\'')) || self.slice(start, to).is_empty() {
                diagnostic = diagnostic.help("put a keyword before it, such as `run`");
            }
            // Its inside may hold better news.
            let count = self.out.diagnostics.len();
            self.part(first, true, &mut Vec::new());
            if self.out.diagnostics.len() == count {
                self.breaks(diagnostic);
            }
            self.broken = true;
        } else if !closer {
            let diagnostic = self.unexpected(start, to);
            self.breaks(diagnostic);
        } else {
            self.part(first, true, &mut Vec::new());
        }
        let mut tail = Tail { key_start: start, key_end: start, pairs, end };
        if let Some(next) = self.next(&mut tail.pairs) {
            self.skip(next, &mut tail);
        }
    }

    /// A `{` that begins an entry: the body of the statement before it, if that has none.
    pub(super) fn orphan_body(&mut self, pair: Pair<'t>, before: Option<Before>, out: &mut Vec<Entry>) {
        let (start, _) = range(&pair);
        let Some(body_pair) = pair.into_inner().next() else { return };
        let gap = before.map(|before| (before, self.slice(before.end, start)));
        let close = gap.filter(|(before, gap)| before.bodiless && !gap.contains([';', ',']));
        let Some((before, gap)) = close else {
            let diagnostic = self
                .diagnostic(codes::UNEXPECTED, start, start + 1, "this `{` belongs to nothing")
                .help("a body follows a keyword on the same line, as in `stage build {`; a map stands after `=`");
            self.breaks(diagnostic);
            let body = self.body(body_pair);
            out.push(Entry::Error(body.span));
            return;
        };
        let diagnostic = self
            .diagnostic(codes::BRACE_ON_NEXT_LINE, start, start + 1, "this `{` stands on a line of its own")
            .help("a newline ends a statement, so its body opens on the line of its keyword");
        let diagnostic = if gap.trim().is_empty() {
            let blank = before.end;
            diagnostic
                .fix("move it up", vec![Edit { span: self.span(blank, start), replacement: " ".to_owned() }])
        } else {
            diagnostic
        };
        self.report(diagnostic);
        let body = self.body(body_pair);
        match out.last_mut() {
            Some(Entry::Statement(statement)) => {
                statement.span = statement.span.to(body.span);
                statement.body = Some(body);
            }
            _ => out.push(Entry::Error(body.span)),
        }
    }

    /// `needs = a, b`: the comma ended the setting, and `b` alone means nothing. Puts it into a list with the value before.
    pub(super) fn absorbed_by_list(
        &mut self,
        before: Option<Before>,
        start: usize,
        end: usize,
        entry: &Entry,
        in_body: bool,
        out: &mut [Entry],
    ) -> bool {
        let Some(Before { end: before_end, value: Some(value_start), .. }) = before else { return false };
        let gap = self.slice(before_end, start);
        if gap.trim_matches([' ', '\t']) != "," {
            return false;
        }
        let alone = match entry {
            Entry::Statement(statement) => statement.parts.is_empty() && statement.body.is_none(),
            Entry::Setting(_) => false,
            Entry::Error(_) => !self.slice(start, end).contains(['=', '{', ')', ']', '}']),
        };
        // In a body on one line `a = b, c` may well mean the statement `c`: that is the checker's to say.
        let statement = matches!(entry, Entry::Statement(_));
        let line = self.text.get(end..).and_then(|rest| rest.lines().next()).unwrap_or("");
        let closes = line.split('#').next().is_some_and(|line| line.contains('}'));
        if !alone || (statement && in_body && closes) {
            return false;
        }
        let Some(Entry::Setting(setting)) = out.last_mut() else { return false };
        if setting.value.kind == ExprKind::Error {
            return false;
        }
        let item_span = self.span(start, end);
        let item = match entry {
            Entry::Statement(statement) => {
                Expr { kind: ExprKind::Name(statement.keyword.clone()), span: item_span }
            }
            _ => Expr { kind: ExprKind::Error, span: item_span },
        };
        let first_time =
            setting.span.end == self.span(before_end, before_end).start && !self.continues_list(setting);
        let key = Self::key_text(&setting.key.kind);
        if first_time {
            // All values up to the end of the line.
            let rest = self.text.get(value_start..).unwrap_or("");
            let line = rest.lines().next().unwrap_or("");
            let stop = line.find(['#', ';', '}']).unwrap_or(line.len());
            let list_end = value_start + line[..stop].trim_end_matches([' ', '\t', '\r', ',']).len();
            let mut diagnostic = self
                .diagnostic(codes::LIST_WITHOUT_BRACKETS, before_end, start, "a comma ends the setting")
                .label(format!("`{key}` ends here"))
                .help(format!(
                    "a list is written in brackets: `{key} = [{}]`",
                    self.short(value_start, list_end)
                ));
            if list_end >= end {
                diagnostic = diagnostic.suggestion(
                    "put brackets around the list",
                    vec![self.edit(value_start, value_start, "["), self.edit(list_end, list_end, "]")],
                );
            }
            self.out.diagnostics.truncate(self.entry_mark);
            self.out.diagnostics.push(diagnostic);
            let old = std::mem::replace(&mut setting.value, Expr { kind: ExprKind::Error, span: item_span });
            let span = old.span.to(item_span);
            setting.value = Expr { kind: ExprKind::List(vec![old, item]), span };
        } else {
            self.out.diagnostics.truncate(self.entry_mark);
            if let ExprKind::List(items) = &mut setting.value.kind {
                items.push(item);
            }
            setting.value.span = setting.value.span.to(item_span);
        }
        setting.span = setting.span.to(item_span);
        true
    }

    /// Whether the value of this setting is a list that `absorbed_by_list` made: such a one does not begin with its bracket.
    pub(super) fn continues_list(&self, setting: &Setting) -> bool {
        match &setting.value.kind {
            ExprKind::List(items) => {
                items.first().is_some_and(|first| first.span.start == setting.value.span.start)
            }
            _ => false,
        }
    }

    /// `rollback when a = b`: reads the comparison that was meant.
    pub(super) fn equals_in_condition(&mut self, from: usize, pair: Pair<'t>, parts: &mut Vec<Part>) {
        let diagnostic = self
            .diagnostic(codes::EQUALS, from, from + 1, "`=` sets a value; a comparison is written `==`")
            .fix("compare with `==`", vec![self.edit(from, from + 1, "==")]);
        self.report(diagnostic);
        let mut read = Vec::new();
        self.part(pair, false, &mut read);
        let Some(Part::Value(right)) = read.pop() else { return };
        if let Some(Part::Expr(left)) = parts.pop() {
            let span = left.span.to(right.span);
            let at = self.span(from, from + 1);
            let kind = ExprKind::Binary(BinaryOp::Eq, at, Box::new(left), Box::new(right));
            parts.push(Part::Expr(Expr { kind, span }));
        }
    }

    /// A character that looks like nothing, or like a blank.
    pub(super) fn invisible(&self, start: usize, end: usize) -> Option<Diagnostic> {
        let text = self.slice(start, end);
        let letter = odd_blank(text)?;
        Some(
            self.diagnostic(codes::UNEXPECTED, start, end, format!("unexpected {}", describe(letter)))
                .help("it was probably copied from a web page or a document")
                .fix(
                    "replace it",
                    vec![self.edit(start, end, if letter.is_whitespace() { " " } else { "" })],
                ),
        )
    }

    /// The general message for something that belongs nowhere.
    pub(super) fn unexpected(&self, start: usize, end: usize) -> Diagnostic {
        let text = self.slice(start, end);
        if let Some(diagnostic) = self.invisible(start, end) {
            return diagnostic;
        }
        if let Some(word) = reserved_word(text) {
            return self.reserved(start, end, word);
        }
        let first = text.chars().next().unwrap_or(' ');
        let what =
            if first.is_alphanumeric() { format!("`{}`", self.short(start, end)) } else { describe(first) };
        let diagnostic = self.diagnostic(
            codes::UNEXPECTED,
            start,
            start + first_len(text).max(1),
            format!("unexpected {what}"),
        );
        diagnostic.help(match first {
            '$' => "`${…}` stands only inside of double-quoted strings; a value is named without `$`",
            '@' | '\\' | '~' | '/' | '%' | '*' | '^' => "text with such a sign is put in quotes",
            '!' => "write `not`, with a blank after it",
            ':' => "values are set with `=`; a type stands after the name of a parameter or metric",
            '=' => "one `=` sets, `==` asks; each stands between two values",
            '.' => "a field is written `base.name`, without blanks",
            '<' | '>' | '+' | '&' | '|' | '?' => "an operator stands between two values",
            '-' => {
                "a minus stands between two values with blanks on both sides, or touches the value it negates"
            }
            _ => "a line is either `key = value` or a keyword with what belongs to it",
        })
    }

    pub(super) fn reserved(&self, start: usize, end: usize, word: &str) -> Diagnostic {
        self.diagnostic(
            codes::RESERVED_NAME,
            start,
            end,
            format!("`{word}` is a word of the language and cannot be a name"),
        )
        .help(RESERVED_HELP)
    }

    pub(super) fn reserved_keyword(&self, start: usize, end: usize, word: &str) -> Diagnostic {
        let diagnostic =
            self.diagnostic(codes::RESERVED_NAME, start, end, format!("a line cannot begin with `{word}`"));
        match word {
            "if" => diagnostic.help("there is no `if` around steps: a stage has `when = condition`, a value is `if c then a else b`"),
            "else" | "then" => diagnostic.help("`then` and `else` belong to a value: `if condition then value else value`"),
            _ => diagnostic.help(RESERVED_HELP),
        }
    }
}

/// Whether a `=` after these parts was meant as a comparison: what stands before it is no name, or follows `when` or `expect`.
pub(super) fn is_condition(keyword: &Ident, parts: &[Part]) -> bool {
    let asks = |word: &str| matches!(word, "when" | "expect" | "unless" | "until");
    let Some(Part::Expr(last)) = parts.last() else { return false };
    let plain =
        matches!(last.kind, ExprKind::Name(_) | ExprKind::Str(_) | ExprKind::Literal(Literal::Bool(_)));
    !plain
        || keyword.text == "expect"
        || parts.iter().any(
            |part| matches!(part, Part::Expr(Expr { kind: ExprKind::Name(name), .. }) if asks(&name.text)),
        )
}

fn odd_blank(text: &str) -> Option<char> {
    let first = text.chars().next()?;
    let blank = first.is_whitespace() || matches!(first, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    blank.then_some(first)
}

fn first_len(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

/// The offset in the text that is read at which a value begins that ends at `end`.
fn end_to_start(span: Span, end: usize) -> usize {
    end.saturating_sub((span.end - span.start) as usize)
}

const RESERVED_HELP: &str = "choose another name; reserved are and or not in matches if then else true false";
