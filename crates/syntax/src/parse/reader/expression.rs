//! Expressions: operands, what touches them, and the climb over the operators between them.

use super::bracketed::Brackets;
use super::operator::{Climb, Flat, Operand};
use super::{MAX_DEPTH, MAX_OPERATORS, Reader, Rule, range, too_deep};
use crate::codes;
use crate::parse::literal;
use crate::parse::matched::{Pair, Pairs};
use crate::tree::{BinaryOp, Expr, ExprKind, Ident, KeyKind, Literal, StrLit, StrPart, UnaryOp};

impl<'t> Reader<'t, '_> {
    fn error(&self, start: usize, end: usize) -> Expr {
        Expr { kind: ExprKind::Error, span: self.span(start, end) }
    }

    /// An `expr` or a `head_expr` of the grammar.
    pub(super) fn expr(&mut self, pair: Pair<'t>) -> Expr {
        let (start, end) = range(&pair);
        if self.depth >= MAX_DEPTH {
            let span = self.span(start, start);
            self.breaks(too_deep(span));
            return self.error(start, end);
        }
        self.depth += 1;
        let expr = self.flat(start, end, pair.into_inner());
        self.depth -= 1;
        expr
    }

    fn flat(&mut self, start: usize, end: usize, mut inner: Pairs<'t>) -> Expr {
        let mut flat = Flat::default();
        let Some(first) = self.operand(&mut inner, start, &mut flat.weight) else {
            return self.error(start, end);
        };
        if flat.weight <= MAX_OPERATORS && inner.peek().is_none() && first.prefixes.is_empty() {
            return first.expr;
        }
        let mut last_end = first.expr.span;
        flat.operands.push(first);
        while let Some(pair) = self.next(&mut inner) {
            let (from, to) = range(&pair);
            let op = match pair.as_rule() {
                Rule::op => self.op(from, to),
                Rule::eq_for_eqeq => {
                    let diagnostic = self
                        .diagnostic(codes::EQUALS, from, to, "`=` sets a value; a comparison is written `==`")
                        .fix("compare with `==`", vec![self.edit(from, to, "==")]);
                    self.report(diagnostic);
                    Some(BinaryOp::Eq)
                }
                Rule::bad_op | Rule::slashes => self.bad_op(from, to, last_end),
                Rule::ternary => {
                    self.ternary(start, from, to);
                    return self.error(start, end);
                }
                _ => None,
            };
            flat.weight += 1;
            let after = self.operand(&mut inner, to, &mut flat.weight);
            let (Some(op), Some(operand)) = (op, after) else {
                // Something has been said about it; what was read so far stays for the checker.
                return self.error(start, end);
            };
            last_end = operand.expr.span;
            flat.ops.push((op, self.span(from, to)));
            flat.operands.push(operand);
        }
        if flat.weight > MAX_OPERATORS {
            let diagnostic = self
                .diagnostic(
                    codes::TOO_DEEP,
                    start,
                    start,
                    format!("this expression has {} operators, fields and calls in a row", flat.weight),
                )
                .help(format!("the limit is {MAX_OPERATORS}; use a list, or split it over several settings"));
            self.breaks(diagnostic);
            return self.error(start, end);
        }
        self.advise_dashes(&flat);
        let mut climb = Climb {
            operands: flat.operands.into_iter(),
            ops: flat.ops.into_iter().peekable(),
            chained: None,
        };
        let expr = climb.expr(0);
        if let Some(chained) = climb.chained {
            self.breaks(chained);
        }
        expr.unwrap_or_else(|| self.error(start, end))
    }

    /// Prefixes, a term, and what touches it. None where the grammar found nothing; that is then reported.
    fn operand(&mut self, inner: &mut Pairs<'t>, after: usize, weight: &mut usize) -> Option<Operand> {
        let mut prefixes = Vec::new();
        let mut after = after;
        while let Some(prefix) = self.next_if(inner, |rule| rule == Rule::prefix) {
            let (from, to) = range(&prefix);
            let op = match self.byte(from) {
                Some(b'-') => UnaryOp::Neg,
                Some(b'!') => {
                    let diagnostic = self
                        .diagnostic(codes::FOREIGN_OPERATOR, from, to, "`!` is not an operator of cdpipe")
                        .fix("write `not`", vec![self.edit(from, to, "not ")]);
                    self.report(diagnostic);
                    UnaryOp::Not
                }
                _ => UnaryOp::Not,
            };
            prefixes.push((op, self.span(from, to)));
            after = to;
        }
        if prefixes.len() > MAX_DEPTH {
            let span = prefixes.last().map_or_else(|| self.span(after, after), |(_, span)| *span);
            self.breaks(too_deep(span));
            prefixes.clear();
        }
        let pair = self.next(inner)?;
        let (start, end) = range(&pair);
        if pair.as_rule() == Rule::missing {
            self.missing_value(after, start);
            return None;
        }
        let mut expr = self.term(pair);
        let mut end = end;
        while let Some(touching) =
            self.next_if(inner, |rule| matches!(rule, Rule::field | Rule::index | Rule::args))
        {
            *weight += 1;
            let (from, to) = range(&touching);
            end = end.max(to);
            let span = self.span(start, to);
            let kind = match touching.as_rule() {
                Rule::field => match self.field(touching) {
                    Some(name) => ExprKind::Field(Box::new(expr), name),
                    None => ExprKind::Error,
                },
                Rule::index => match self.index(touching) {
                    Some(index) => ExprKind::Index(Box::new(expr), Box::new(index)),
                    None => ExprKind::Error,
                },
                _ => {
                    let args = self.items(touching, Brackets::Args);
                    match expr.kind {
                        ExprKind::Name(name) => ExprKind::Call(name, self.args(args)),
                        _ => {
                            let diagnostic = self
                                .diagnostic(codes::UNEXPECTED, from, from + 1, "only a name can be called")
                                .help(
                                    "a call is written `name(…)`, with nothing between the name and the `(`",
                                );
                            self.breaks(diagnostic);
                            ExprKind::Error
                        }
                    }
                }
            };
            expr = Expr { kind, span };
            if *weight > MAX_OPERATORS {
                // Said once by the caller; the tree must not grow any deeper.
                expr = self.error(start, to);
            }
        }
        Some(Operand { prefixes, expr })
    }

    fn term(&mut self, pair: Pair<'t>) -> Expr {
        let (start, end) = range(&pair);
        let span = self.span(start, end);
        let kind = match pair.as_rule() {
            Rule::plain_name => ExprKind::Name(self.ident(&pair)),
            Rule::number => self.number(start, end),
            Rule::double | Rule::single | Rule::block_double | Rule::block_single => {
                ExprKind::Str(self.string(pair))
            }
            Rule::bool => ExprKind::Literal(Literal::Bool(pair.as_str() == "true")),
            Rule::list => {
                let items = self.items(pair, Brackets::List);
                for item in &items {
                    if let Some(name) = &item.name {
                        let (from, to) = range(name);
                        let diagnostic = self
                            .diagnostic(codes::UNEXPECTED, from, to, "the elements of a list have no names")
                            .help("names and values together are a map: `{ name = value }`");
                        self.breaks(diagnostic);
                    }
                }
                ExprKind::List(items.into_iter().map(|item| item.value).collect())
            }
            Rule::paren => return self.paren(pair),
            Rule::body => self.map(pair),
            Rule::if_expr => self.if_expr(pair),
            Rule::odd_string => self.odd_string(start, end),
            _ => ExprKind::Error,
        };
        Expr { kind, span }
    }

    /// Says that a value is missing after the token that ends at `after`.
    pub(super) fn missing_value(&mut self, after: usize, here: usize) {
        let before = self.slice(0, after);
        let word: String = before
            .chars()
            .rev()
            .take_while(|letter| {
                !letter.is_whitespace() && !matches!(letter, '(' | '[' | '{' | '"' | '\'' | ')' | ']')
            })
            .take(12)
            .collect();
        let word: String = word.chars().rev().collect();
        let what = if word.is_empty() { "here".to_owned() } else { format!("after `{word}`") };
        let same_line = self.slice(after, here).contains('\n');
        let found = if same_line { "the end of the line".to_owned() } else { self.found(here) };
        let start = after - word.len();
        let mut diagnostic = self.diagnostic(
            codes::MISSING_VALUE,
            start,
            after,
            format!("expected a value {what}, found {found}"),
        );
        let rest = self.text.get(here..).unwrap_or("").trim_start();
        diagnostic = if rest.starts_with("- ") {
            diagnostic.help("a list is written in brackets: `[a, b]`")
        } else if let Some(word) = reserved_word(rest) {
            diagnostic.help(format!("`{word}` is a word of the language and no value; in quotes it is text"))
        } else if rest.starts_with(['@', '/', '\\', '*', '~', '&', '|', '^', '.']) {
            diagnostic.help("text with such a sign is put in quotes")
        } else if rest.starts_with('$') {
            diagnostic
                .help("a value is named without `$`; `${…}` stands only inside of double-quoted strings")
        } else {
            diagnostic.help("write a value, such as `5m`, `10%`, `\"text\"`, a name, a list `[a, b]` or a map `{ key = value }`")
        };
        self.breaks(diagnostic);
    }

    fn number(&mut self, start: usize, end: usize) -> ExprKind {
        match literal::read(self.slice(start, end)) {
            Ok(literal) => ExprKind::Literal(literal),
            Err(bad) => {
                let mut diagnostic =
                    self.diagnostic(codes::BAD_LITERAL, start, end, bad.message).help(bad.help);
                if let Some(instead) = bad.instead {
                    diagnostic = diagnostic.suggestion(
                        format!("write `{instead}`"),
                        vec![self.edit(start, end, instead.clone())],
                    );
                }
                self.report(diagnostic);
                ExprKind::Error
            }
        }
    }

    /// A string in quotes of another language or of a word processor.
    fn odd_string(&mut self, start: usize, end: usize) -> ExprKind {
        let text = self.slice(start, end);
        let opening = text.chars().next().unwrap_or('“');
        let closing = text.chars().next_back().filter(|_| text.chars().count() > 1).unwrap_or(' ');
        let odd = ['“', '”', '„', '‘', '’', '‚', '«', '»', '`'];
        let closed = odd.contains(&closing);
        let inside = text
            .strip_prefix(opening)
            .map_or("", |rest| if closed { rest.strip_suffix(closing).unwrap_or(rest) } else { rest });
        let diagnostic = self
            .diagnostic(
                codes::FOREIGN_QUOTES,
                start,
                start + opening.len_utf8(),
                format!("`{opening}` is not a quotation mark of cdpipe"),
            )
            .help("strings are written between \" and \" or between ' and '; word processors replace these");
        let diagnostic = if closed && !inside.contains(['"', '\\', '$']) {
            diagnostic.fix(
                "write straight quotes",
                vec![
                    self.edit(start, start + opening.len_utf8(), "\""),
                    self.edit(end - closing.len_utf8(), end, "\""),
                ],
            )
        } else {
            diagnostic
        };
        if closed {
            self.report(diagnostic);
        } else {
            self.breaks(diagnostic);
        }
        let span = self.span(start, end);
        let parts = vec![StrPart::Text { value: inside.to_owned(), span }];
        ExprKind::Str(StrLit { quote: crate::tree::Quote::Double, parts, span })
    }

    fn field(&mut self, pair: Pair<'t>) -> Option<Ident> {
        let (start, end) = range(&pair);
        let mut inner = pair.into_inner();
        let name = self.next(&mut inner)?;
        if name.as_rule() != Rule::missing {
            return Some(self.ident(&name));
        }
        let mut diagnostic = self.diagnostic(
            codes::UNEXPECTED,
            start,
            end,
            format!("expected a name after `.`, found {}", self.found(end)),
        );
        diagnostic = if self.byte(end).is_some_and(|byte| byte.is_ascii_digit()) {
            diagnostic.help("a version, a file name or an address is text: put it in quotes")
        } else {
            diagnostic
                .help("a field is written `base.name`, without blanks; if this is text, put it in quotes")
        };
        self.breaks(diagnostic);
        None
    }

    /// The text of a range, cut down for a message.
    pub(super) fn short(&self, start: usize, end: usize) -> String {
        let text = self.slice(start, end);
        let line = text.lines().next().unwrap_or("");
        if line.chars().count() > 32 || line.len() < text.len() {
            let cut: String = line.chars().take(30).collect();
            format!("{}…", cut.trim_end())
        } else {
            line.to_owned()
        }
    }

    fn if_expr(&mut self, pair: Pair<'t>) -> ExprKind {
        let (start, end) = range(&pair);
        let mut inner = pair.into_inner();
        let mut branches = Vec::with_capacity(3);
        let mut after = start + 2;
        while let Some(pair) = self.next(&mut inner) {
            let (from, to) = range(&pair);
            match pair.as_rule() {
                Rule::expr => branches.push(self.expr(pair)),
                Rule::missing => {
                    self.missing_value(after, from);
                    branches.push(self.error(from, to));
                }
                _ => {}
            }
            after = to;
        }
        let count = branches.len();
        let mut branches = branches.into_iter();
        match (branches.next(), branches.next(), branches.next()) {
            (Some(condition), Some(then), Some(otherwise)) => {
                ExprKind::If(Box::new(condition), Box::new(then), Box::new(otherwise))
            }
            _ => {
                let what = if count < 2 { "`then`" } else { "`else`" };
                let diagnostic = self
                    .diagnostic(codes::IF_PARTS, start, start + 2, format!("this `if` has no {what}, found {}", self.found(end)))
                    .help("a choice always has both: `if condition then value else value`; a step that is left out has `when`");
                self.breaks(diagnostic);
                ExprKind::Error
            }
        }
    }

    /// Whether a key is text that a path cannot be.
    pub(super) fn key_text(kind: &KeyKind) -> String {
        match kind {
            KeyKind::Path(idents) => {
                idents.iter().map(|ident| ident.text.as_str()).collect::<Vec<_>>().join(".")
            }
            KeyKind::Str(text) => text.plain().unwrap_or_default(),
        }
    }
}

/// The reserved word with which the text begins.
pub(super) fn reserved_word(text: &str) -> Option<&'static str> {
    let length = text
        .find(|letter: char| !letter.is_alphanumeric() && !matches!(letter, '_' | '-'))
        .unwrap_or(text.len());
    let word = &text[..length];
    ["and", "or", "not", "in", "matches", "if", "then", "else", "true", "false"]
        .into_iter()
        .find(|reserved| *reserved == word)
}
