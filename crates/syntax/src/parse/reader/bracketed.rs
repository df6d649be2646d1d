//! What stands in brackets: the elements of lists, the arguments of calls, indexes, parentheses and maps.

use super::expression::reserved_word;
use super::{Reader, Rule, range};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::parse::matched::Pair;
use crate::tree::{Arg, BinaryOp, Entry, Expr, ExprKind, Ident, Setting};

/// One element between brackets.
pub(super) struct Item<'t> {
    pub(super) name: Option<Pair<'t>>,
    pub(super) value: Expr,
    /// Offsets in the text that is read.
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Which brackets a sequence stands in, for its messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Brackets {
    List,
    Args,
    Paren,
    Index,
}

impl<'t> Reader<'t, '_> {
    pub(super) fn index(&mut self, pair: Pair<'t>) -> Option<Expr> {
        let (start, end) = range(&pair);
        let items = self.items(pair, Brackets::Index);
        let count = items.len();
        let mut items = items.into_iter();
        match (items.next(), count) {
            (Some(item), 1) if item.name.is_none() => Some(item.value),
            _ => {
                let diagnostic = self
                    .diagnostic(
                        codes::UNEXPECTED,
                        start,
                        end,
                        "between the brackets of an index stands one value",
                    )
                    .help("a list as a value of its own needs a blank before its `[`");
                self.breaks(diagnostic);
                None
            }
        }
    }

    pub(super) fn paren(&mut self, pair: Pair<'t>) -> Expr {
        let (start, end) = range(&pair);
        let span = self.span(start, end);
        let items = self.items(pair, Brackets::Paren);
        let count = items.len();
        let mut items = items.into_iter();
        match (items.next(), count) {
            (Some(item), 1) => {
                let value = match item.name {
                    Some(name) => self.equals_in_paren(&name, item.value),
                    None => item.value,
                };
                Expr { kind: ExprKind::Paren(Box::new(value)), span }
            }
            (first, _) => {
                let message = if first.is_none() {
                    "there is nothing between these parentheses"
                } else {
                    "between parentheses stands one value"
                };
                let diagnostic = self
                    .diagnostic(codes::UNEXPECTED, start, end, message)
                    .help("a list is written `[a, b]`, a map `{ key = value }`, and the `(` of a call touches the name");
                self.breaks(diagnostic);
                Expr { kind: ExprKind::Error, span }
            }
        }
    }

    /// `(a = b)`: the comparison that was meant.
    pub(super) fn equals_in_paren(&mut self, name: &Pair<'t>, right: Expr) -> Expr {
        let (start, end) = range(name);
        let text = self.slice(start, end);
        let at = start + text.find('=').unwrap_or(0);
        let diagnostic = self
            .diagnostic(codes::EQUALS, at, at + 1, "`=` sets a value; a comparison is written `==`")
            .fix("compare with `==`", vec![self.edit(at, at + 1, "==")]);
        self.report(diagnostic);
        let left = text[..at - start].trim_end();
        let left_span = self.span(start, start + left.len());
        let left =
            Expr { kind: ExprKind::Name(Ident { text: left.to_owned(), span: left_span }), span: left_span };
        let span = left_span.to(right.span);
        let kind = ExprKind::Binary(BinaryOp::Eq, self.span(at, at + 1), Box::new(left), Box::new(right));
        Expr { kind, span }
    }

    pub(super) fn args(&mut self, items: Vec<Item<'t>>) -> Vec<Arg> {
        let mut args = Vec::with_capacity(items.len());
        for item in items {
            let name = match item.name.and_then(|name| name.into_inner().next()) {
                Some(name) => {
                    let (from, to) = range(&name);
                    if let Some(word) = reserved_word(name.as_str()) {
                        let diagnostic = self.reserved(from, to, word);
                        self.report(diagnostic);
                    }
                    Some(self.ident(&name))
                }
                None => None,
            };
            args.push(Arg { name, value: item.value });
        }
        args
    }

    /// What stands between brackets; checks that commas and items alternate.
    pub(super) fn items(&mut self, pair: Pair<'t>, brackets: Brackets) -> Vec<Item<'t>> {
        let (start, end) = range(&pair);
        let mut inner = pair.into_inner();
        let mut items: Vec<Item<'t>> = Vec::with_capacity(inner.room().div_ceil(2));
        let mut name = None;
        // Offset of the end of what came last, and whether a comma may follow it.
        let mut comma_due = false;
        let mut sense = None;
        while let Some(pair) = self.next(&mut inner) {
            let (from, to) = range(&pair);
            match pair.as_rule() {
                Rule::comma => {
                    if !comma_due {
                        let diagnostic = self
                            .diagnostic(codes::MISSING_VALUE, from, to, "expected a value before this comma")
                            .suggestion("leave the comma out", vec![self.edit(from, to, "")]);
                        self.breaks(diagnostic);
                    }
                    comma_due = false;
                }
                Rule::item_name => {
                    if comma_due || brackets == Brackets::List {
                        sense = sense.or(items.last().map(|last| last.end));
                    }
                    if comma_due {
                        self.missing_comma(&items, from);
                    }
                    comma_due = false;
                    // Only for the comments after its `=`.
                    let mut inside = pair.into_inner();
                    while self.next(&mut inside).is_some() {}
                    name = Some(pair);
                }
                Rule::seq_stray => {
                    sense = sense.or(items.last().map(|last| last.end));
                    self.seq_stray(from, to, brackets, comma_due);
                    comma_due = false;
                    name = None;
                }
                Rule::unclosed => {
                    self.out.unbalanced.push(super::Unbalanced::Open { open: start, stop: end, sense });
                    self.broken = true;
                }
                _ => {
                    if comma_due {
                        sense = sense.or(items.last().map(|last| last.end));
                        self.missing_comma(&items, from);
                    }
                    let value = self.expr(pair);
                    items.push(Item { name: name.take(), value, start: from, end: to });
                    comma_due = true;
                }
            }
        }
        items
    }

    pub(super) fn missing_comma(&mut self, items: &[Item<'t>], here: usize) {
        let Some(last) = items.last() else { return };
        let diagnostic = self
            .diagnostic(
                codes::MISSING_COMMA,
                last.end,
                last.end,
                format!("expected a comma after `{}`", self.short(last.start, last.end)),
            )
            .label("a comma is missing")
            .also(self.span(here, here), "the next value begins here")
            .fix("add the comma", vec![self.edit(last.end, last.end, ",")]);
        self.report(diagnostic);
    }

    pub(super) fn seq_stray(&mut self, from: usize, to: usize, brackets: Brackets, after_item: bool) {
        let text = self.slice(from, to);
        let diagnostic = match text {
            ":" if after_item => {
                let diagnostic = self.diagnostic(codes::COLON, from, to, "`:` does not set a value here");
                match brackets {
                    Brackets::Args => diagnostic
                        .help("an argument is named with `=`")
                        .fix("write `=`", vec![self.edit(from, to, " =")]),
                    _ => diagnostic.help("names and values together are a map: `{ name = value }`"),
                }
            }
            ";" => self
                .diagnostic(codes::UNEXPECTED, from, to, "`;` does not separate the values of a list")
                .fix("write a comma", vec![self.edit(from, to, ",")]),
            _ if reserved_word(text).is_some() => self.reserved(from, to, text),
            _ => self.unexpected(from, to),
        };
        self.breaks(diagnostic);
    }

    /// `{ key = value }` where a value stands.
    pub(super) fn map(&mut self, pair: Pair<'t>) -> ExprKind {
        let body = self.body(pair);
        let mut settings: Vec<Setting> = Vec::with_capacity(body.entries.len());
        for entry in body.entries {
            match entry {
                Entry::Setting(setting) => {
                    if let Some(ty) = &setting.ty {
                        let diagnostic =
                            Diagnostic::new(codes::MAP_ENTRY, ty.span, "a key of a map has no type")
                                .help("write `key = value`");
                        self.report(diagnostic);
                    }
                    settings.push(setting);
                }
                Entry::Statement(statement) => {
                    let diagnostic = Diagnostic::new(
                        codes::MAP_ENTRY,
                        statement.head,
                        format!("expected `=` and a value after the key `{}`", statement.keyword.text),
                    )
                    .help("this `{` stands where a value is expected, so it opens a map, which holds `key = value`");
                    self.breaks(diagnostic);
                }
                // Has been said.
                Entry::Error(_) => self.broken = true,
            }
        }
        ExprKind::Map(settings)
    }
}
