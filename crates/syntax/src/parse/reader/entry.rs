//! Entries: settings and statements, bodies, and what was meant by lines that are neither.

use super::expression::reserved_word;
use super::habit::is_condition;
use super::{MAX_DEPTH, Reader, Rule, Unbalanced, range, too_deep};
use crate::codes;
use crate::parse::matched::{Pair, Pairs};
use crate::tree::{Body, Entry, Expr, ExprKind, Ident, Key, KeyKind, Part, Setting, Statement, TypeExpr};

/// The entry before, as far as the next one depends on it.
#[derive(Clone, Copy)]
pub(super) struct Before {
    /// Where it ended in the text that is read.
    pub(super) end: usize,
    /// Where its value began, if it is a setting.
    pub(super) value: Option<usize>,
    /// Whether a `{` on the next line may be its body.
    pub(super) bodiless: bool,
}

/// The pairs of an entry after its key.
pub(super) struct Tail<'t> {
    pub(super) key_start: usize,
    pub(super) key_end: usize,
    pub(super) pairs: Pairs<'t>,
    pub(super) end: usize,
}

impl<'t> Reader<'t, '_> {
    /// The entries of a file (`in_body` false) or of a body. Says whether the body is closed.
    pub(super) fn entries(&mut self, mut pairs: Pairs<'t>, in_body: bool, out: &mut Vec<Entry>) -> bool {
        let mut closed = true;
        let mut before: Option<Before> = None;
        while let Some(pair) = self.next(&mut pairs) {
            let (start, end) = self.trimmed(&pair);
            let mut now = Before { end, value: None, bodiless: false };
            match pair.as_rule() {
                Rule::entry => {
                    let outer = self.enter();
                    let entry = self.entry(pair, &mut now);
                    if self.absorbed_by_list(before, start, end, &entry, in_body, out) {
                        now.value = before.and_then(|before| before.value);
                    } else {
                        out.push(entry);
                    }
                    self.leave(&outer);
                }
                Rule::junk_entry => {
                    let outer = self.enter();
                    if !self.absorbed_by_list(
                        before,
                        start,
                        end,
                        &Entry::Error(self.span(start, end)),
                        in_body,
                        out,
                    ) {
                        self.junk_entry(pair);
                        out.push(Entry::Error(self.span(start, end)));
                    } else {
                        now.value = before.and_then(|before| before.value);
                    }
                    self.leave(&outer);
                }
                Rule::orphan_body => {
                    let outer = self.enter();
                    self.orphan_body(pair, before, out);
                    self.leave(&outer);
                }
                Rule::stray_close => {
                    self.out.unbalanced.push(Unbalanced::Close { at: start });
                    out.push(Entry::Error(self.span(start, end)));
                }
                Rule::unclosed => closed = false,
                _ => {}
            }
            before = Some(now);
        }
        closed
    }

    /// The range of an entry without the blanks behind it, which the grammar takes so as to look for them only once.
    pub(super) fn trimmed(&self, pair: &Pair<'t>) -> (usize, usize) {
        let (start, end) = range(pair);
        (start, start + self.slice(start, end).trim_end_matches([' ', '\t', '\r']).len())
    }

    /// `{ … }`, as the body of a statement or as a map.
    pub(super) fn body(&mut self, pair: Pair<'t>) -> Body {
        let (start, end) = range(&pair);
        let span = self.span(start, end);
        if self.depth >= MAX_DEPTH {
            self.breaks(too_deep(span.shrink_to_start()));
            return Body { entries: Vec::new(), span, closed: true };
        }
        self.depth += 1;
        let inner = pair.into_inner();
        let mut entries = Vec::with_capacity(inner.room());
        let outer = self.enter();
        let closed = self.entries(inner, true, &mut entries);
        self.leave(&outer);
        self.depth -= 1;
        if !closed {
            self.out.unbalanced.push(Unbalanced::Open { open: start, stop: end, sense: None });
        }
        Body { entries, span, closed: closed && !self.is_supplied(end - 1) }
    }

    /// One entry that begins with a name or a string.
    fn entry(&mut self, pair: Pair<'t>, now: &mut Before) -> Entry {
        let (start, end) = self.trimmed(&pair);
        let mut pairs = pair.into_inner();
        let mut idents = Vec::with_capacity(1);
        let mut key_end = start;
        let mut string = None;
        while let Some(pair) = self.next_if(&mut pairs, |rule| {
            matches!(rule, Rule::name | Rule::double | Rule::single | Rule::block_double | Rule::block_single)
        }) {
            key_end = range(&pair).1;
            if pair.as_rule() == Rule::name {
                idents.push(self.ident(&pair));
            } else {
                string = Some(self.string(pair));
            }
        }
        let kind = match string {
            Some(string) => KeyKind::Str(string),
            None => KeyKind::Path(idents),
        };
        let key = Key { kind, span: self.span(start, key_end) };
        let ty = self.next_if(&mut pairs, |rule| rule == Rule::type_part);
        let eq = self.next_if(&mut pairs, |rule| rule == Rule::eq);
        let tail = Tail { key_start: start, key_end, pairs, end };
        match (eq, ty) {
            (Some(eq), ty) => self.setting(key, ty, &eq, tail, now),
            (None, Some(colon)) => self.colon(key, colon, tail),
            (None, None) => {
                let entry = self.statement(key, tail);
                now.bodiless = matches!(&entry, Entry::Statement(statement) if statement.body.is_none());
                entry
            }
        }
    }

    /// `key = value`, `key: type = value`.
    fn setting(
        &mut self,
        key: Key,
        ty: Option<Pair<'t>>,
        eq: &Pair<'t>,
        mut tail: Tail<'t>,
        now: &mut Before,
    ) -> Entry {
        if let KeyKind::Path(idents) = &key.kind
            && let [only] = idents.as_slice()
            && let Some(word) = reserved_word(&only.text)
        {
            let diagnostic = self.reserved(tail.key_start, tail.key_end, word);
            self.breaks(diagnostic);
        }
        let ty = ty.and_then(|colon| {
            let (from, to) = range(&colon);
            let mut inner = colon.into_inner();
            match self.next(&mut inner) {
                Some(ty) if ty.as_rule() == Rule::type_ => Some(self.type_expr(ty)),
                _ => {
                    let diagnostic = self
                        .diagnostic(
                            codes::UNEXPECTED,
                            from,
                            to,
                            format!("expected a type after `:`, found {}", self.found(to)),
                        )
                        .help(
                            "types are string int number bool percent duration size version list(…) map(…)",
                        );
                    self.breaks(diagnostic);
                    None
                }
            }
        });
        let (eq_start, eq_end) = range(eq);
        if eq.as_str() != "=" {
            self.odd_equals(eq_start, eq_end);
        }
        let value_pair = self.next(&mut tail.pairs);
        let (value, value_end) = match value_pair {
            Some(pair) if pair.as_rule() == Rule::expr => {
                let (from, to) = range(&pair);
                now.value = Some(from);
                (self.expr(pair), to)
            }
            other => {
                let here = other.map_or(eq_end, |pair| range(&pair).0);
                self.missing_value(eq_end, here);
                (Expr { kind: ExprKind::Error, span: self.span(eq_end, eq_end) }, eq_end)
            }
        };
        let span = self.span(tail.key_start, value_end);
        let next = self.next(&mut tail.pairs);
        if let Some(extra) = next {
            return self.after_value(Setting { key, ty, value, span }, value_end, extra, tail);
        }
        Entry::Setting(Setting { key, ty, value, span })
    }

    /// Reads on only for the brackets, strings and comments in what is left of an entry.
    pub(super) fn skip(&mut self, first: Pair<'t>, tail: &mut Tail<'t>) {
        self.broken = true;
        let mut next = Some(first);
        while let Some(pair) = next {
            if pair.as_rule() == Rule::body {
                self.body(pair);
            } else {
                self.part(pair, true, &mut Vec::new());
            }
            next = self.next(&mut tail.pairs);
        }
    }

    /// `keyword part* { … }`.
    fn statement(&mut self, key: Key, mut tail: Tail<'t>) -> Entry {
        let whole = self.span(tail.key_start, tail.end);
        let keyword = match &key.kind {
            KeyKind::Path(idents) if idents.len() == 1 => idents[0].clone(),
            _ => {
                let diagnostic = if matches!(key.kind, KeyKind::Str(_)) {
                    self.diagnostic(
                        codes::UNEXPECTED,
                        tail.key_start,
                        tail.key_end,
                        "a string alone does nothing",
                    )
                    .help("a line begins with a keyword (`run \"…\"`) or sets something (`\"key\" = value`)")
                } else {
                    self.diagnostic(
                        codes::UNEXPECTED,
                        tail.key_start,
                        tail.key_end,
                        "a value alone does nothing",
                    )
                    .help(
                        "a line begins with a keyword (`rollback when …`) or sets something (`key = value`)",
                    )
                };
                self.breaks(diagnostic);
                if let Some(first) = self.next(&mut tail.pairs) {
                    self.skip(first, &mut tail);
                }
                return Entry::Error(whole);
            }
        };
        if let Some(word) = reserved_word(&keyword.text) {
            let diagnostic = self.reserved_keyword(tail.key_start, tail.key_end, word);
            self.breaks(diagnostic);
        }
        let mut parts = Vec::with_capacity(tail.pairs.room());
        let mut body = None;
        let mut head_end = tail.key_end;
        while let Some(pair) = self.next(&mut tail.pairs) {
            let (from, to) = range(&pair);
            if pair.as_rule() == Rule::body {
                body = Some(self.body(pair));
                break;
            }
            if from == tail.key_end && matches!(self.byte(from), Some(b'(' | b'[')) {
                let diagnostic = self
                    .diagnostic(
                        codes::UNEXPECTED,
                        from,
                        from + 1,
                        format!("`{}` is a statement and not a call", keyword.text),
                    )
                    .help(format!(
                        "what belongs to a keyword follows after a blank: `{} value`",
                        keyword.text
                    ));
                self.breaks(diagnostic);
            }
            self.part_of(&keyword, pair, &mut parts);
            head_end = to;
        }
        let head = self.span(tail.key_start, head_end);
        let span = body.as_ref().map_or(head, |body| head.to(body.span));
        Entry::Statement(Statement { keyword, parts, body, span, head })
    }

    /// One part of the head of a statement, checked against those before it.
    fn part_of(&mut self, keyword: &Ident, pair: Pair<'t>, parts: &mut Vec<Part>) {
        let (from, _) = range(&pair);
        let rule = pair.as_rule();
        let typed = parts.iter().any(|part| matches!(part, Part::Type(_)));
        match rule {
            Rule::in_part | Rule::matches_part if !typed => {
                let word = if rule == Rule::in_part { "in" } else { "matches" };
                let diagnostic = self.reserved(from, from + word.len(), word);
                self.breaks(diagnostic);
                self.part(pair, true, &mut Vec::new());
                return;
            }
            Rule::type_part
                if typed
                    || !matches!(parts.last(), Some(Part::Expr(Expr { kind: ExprKind::Name(_), .. }))) =>
            {
                let diagnostic = self
                    .diagnostic(codes::UNEXPECTED, from, from + 1, "a type follows only the name that it belongs to")
                    .help("`:` gives a type, as in `param replicas: int`; values are set with `=`, and text with a `:` needs quotes");
                self.breaks(diagnostic);
                self.part(pair, true, &mut Vec::new());
                return;
            }
            Rule::value_part if !typed && is_condition(keyword, parts) => {
                self.equals_in_condition(from, pair, parts);
                return;
            }
            _ => {}
        }
        self.part(pair, false, parts);
    }

    /// One part of a head. `quiet` if an error has been reported that explains it.
    pub(super) fn part(&mut self, pair: Pair<'t>, quiet: bool, parts: &mut Vec<Part>) {
        let (start, end) = range(&pair);
        let rule = pair.as_rule();
        match rule {
            Rule::head_expr | Rule::expr => parts.push(Part::Expr(self.expr(pair))),
            Rule::stray => {
                if matches!(pair.as_str(), ")" | "]") {
                    self.out.unbalanced.push(Unbalanced::Close { at: start });
                    self.broken = true;
                } else if !quiet {
                    let diagnostic = self.unexpected(start, end);
                    self.breaks(diagnostic);
                }
            }
            Rule::for_part => {
                let mut inner = pair.into_inner();
                let name = self.next(&mut inner);
                let list = self.next(&mut inner);
                if let (Some(name), Some(list)) = (name, list) {
                    let name = self.ident(&name);
                    let list = self.expr(list);
                    parts.push(Part::For { name, list, span: self.span(start, end) });
                }
            }
            Rule::type_part => {
                let mut inner = pair.into_inner();
                match self.next(&mut inner) {
                    Some(ty) if ty.as_rule() == Rule::type_ => {
                        let ty = self.type_expr(ty);
                        parts.push(Part::Type(ty));
                    }
                    _ if quiet => {}
                    _ => {
                        let diagnostic = self
                            .diagnostic(codes::UNEXPECTED, start, end, format!("expected a type after `:`, found {}", self.found(end)))
                            .help("types are string int number bool percent duration size version list(…) map(…)");
                        self.breaks(diagnostic);
                    }
                }
            }
            Rule::in_part | Rule::matches_part | Rule::value_part => {
                let word = match rule {
                    Rule::in_part => "in",
                    Rule::matches_part => "matches",
                    _ => "=",
                };
                let mut inner = pair.into_inner();
                let value = self.next(&mut inner);
                let value = match value {
                    Some(value) if value.as_rule() != Rule::missing => self.expr(value),
                    other => {
                        let here = other.map_or(end, |pair| range(&pair).0);
                        self.missing_value(start + word.len(), here);
                        return;
                    }
                };
                parts.push(match rule {
                    Rule::in_part => Part::In(value),
                    Rule::matches_part => Part::Matches(value),
                    _ => Part::Value(value),
                });
            }
            _ => {}
        }
    }

    fn type_expr(&mut self, pair: Pair<'t>) -> TypeExpr {
        let (start, end) = range(&pair);
        let span = self.span(start, end);
        let mut inner = pair.into_inner();
        let name = match self.next(&mut inner) {
            Some(name) => self.ident(&name),
            None => Ident { text: String::new(), span },
        };
        let mut args = Vec::new();
        if self.depth >= MAX_DEPTH {
            self.breaks(too_deep(span.shrink_to_start()));
            return TypeExpr { name, args, span };
        }
        self.depth += 1;
        if let Some(list) = self.next(&mut inner) {
            let (open, stop) = range(&list);
            let mut list = list.into_inner();
            let mut sense = None;
            let mut last = open + 1;
            while let Some(pair) = self.next(&mut list) {
                let (from, to) = range(&pair);
                if pair.as_rule() == Rule::seq_stray {
                    sense = sense.or(Some(last));
                }
                last = to;
                match pair.as_rule() {
                    Rule::type_ => args.push(self.type_expr(pair)),
                    Rule::seq_stray => {
                        let diagnostic = self.unexpected(from, to);
                        self.breaks(diagnostic);
                    }
                    Rule::unclosed => {
                        self.out.unbalanced.push(Unbalanced::Open { open, stop, sense });
                        self.broken = true;
                    }
                    _ => {}
                }
            }
        }
        self.depth -= 1;
        TypeExpr { name, args, span }
    }
}
