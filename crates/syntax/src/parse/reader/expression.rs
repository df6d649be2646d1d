//! Expressions: operands, what touches them, and the climb over the operators between them.

use pest::iterators::{Pair, Pairs};

use super::{MAX_DEPTH, MAX_OPERATORS, Reader, Rule, range, too_deep};
use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::parse::literal;
use crate::span::Span;
use crate::tree::{
    Arg, BinaryOp, Entry, Expr, ExprKind, Ident, KeyKind, Literal, Setting, StrLit, StrPart, UnaryOp,
};

/// A flat expression, before the climb: what stands before each operand, the operand, and the operators between them.
#[derive(Default)]
struct Flat {
    operands: Vec<Operand>,
    ops: Vec<(BinaryOp, Span)>,
    /// Fields, indexes, calls and operators so far.
    weight: usize,
}

struct Operand {
    prefixes: Vec<(UnaryOp, Span)>,
    expr: Expr,
}

/// One element between brackets.
struct Item<'t> {
    name: Option<Pair<'t, Rule>>,
    value: Expr,
    /// Offsets in the text that is read.
    start: usize,
    end: usize,
}

/// Which brackets a sequence stands in, for its messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Brackets {
    List,
    Args,
    Paren,
    Index,
}

impl<'t> Reader<'t, '_> {
    fn error(&self, start: usize, end: usize) -> Expr {
        Expr { kind: ExprKind::Error, span: self.span(start, end) }
    }

    /// An `expr` or a `head_expr` of the grammar.
    pub(super) fn expr(&mut self, pair: Pair<'t, Rule>) -> Expr {
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

    fn flat(&mut self, start: usize, end: usize, mut inner: Pairs<'t, Rule>) -> Expr {
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
    fn operand(&mut self, inner: &mut Pairs<'t, Rule>, after: usize, weight: &mut usize) -> Option<Operand> {
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

    fn term(&mut self, pair: Pair<'t, Rule>) -> Expr {
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

    fn field(&mut self, pair: Pair<'t, Rule>) -> Option<Ident> {
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

    fn index(&mut self, pair: Pair<'t, Rule>) -> Option<Expr> {
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

    fn paren(&mut self, pair: Pair<'t, Rule>) -> Expr {
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
    fn equals_in_paren(&mut self, name: &Pair<'t, Rule>, right: Expr) -> Expr {
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

    fn args(&mut self, items: Vec<Item<'t>>) -> Vec<Arg> {
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
    fn items(&mut self, pair: Pair<'t, Rule>, brackets: Brackets) -> Vec<Item<'t>> {
        let (start, end) = range(&pair);
        let mut inner = pair.into_inner();
        let mut items: Vec<Item<'t>> = Vec::new();
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
                    let mut inside = pair.clone().into_inner();
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

    fn missing_comma(&mut self, items: &[Item<'t>], here: usize) {
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

    fn seq_stray(&mut self, from: usize, to: usize, brackets: Brackets, after_item: bool) {
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
    fn map(&mut self, pair: Pair<'t, Rule>) -> ExprKind {
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

    fn if_expr(&mut self, pair: Pair<'t, Rule>) -> ExprKind {
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

    fn op(&mut self, from: usize, to: usize) -> Option<BinaryOp> {
        let op = match self.slice(from, to) {
            "or" => BinaryOp::Or,
            "and" => BinaryOp::And,
            "==" => BinaryOp::Eq,
            "!=" => BinaryOp::Ne,
            "<" => BinaryOp::Lt,
            "<=" => BinaryOp::Le,
            ">" => BinaryOp::Gt,
            ">=" => BinaryOp::Ge,
            "matches" => BinaryOp::Matches,
            "in" => BinaryOp::In,
            "+" => BinaryOp::Add,
            "*" => BinaryOp::Mul,
            "/" => BinaryOp::Div,
            _ => {
                let blank = from == 0 || self.byte(from - 1).is_some_and(|byte| byte.is_ascii_whitespace());
                if !blank {
                    self.tight_minus(from, to);
                }
                BinaryOp::Sub
            }
        };
        Some(op)
    }

    fn tight_minus(&mut self, from: usize, to: usize) {
        let blank = |at: Option<u8>| at.is_some_and(|byte| byte.is_ascii_whitespace());
        let before = if from > 0 && !blank(self.byte(from - 1)) { " " } else { "" };
        let after = if blank(self.byte(to)) { "" } else { " " };
        let diagnostic = self
            .diagnostic(codes::TIGHT_MINUS, from, to, "a minus between two values has blanks on both sides")
            .help("without them, `a-b` is a name and `-b` a negative value")
            .fix("add the blanks", vec![self.edit(from, to, format!("{before}-{after}"))]);
        self.report(diagnostic);
    }

    /// An operator of another language: what it is here, or None if it is nothing.
    fn bad_op(&mut self, from: usize, to: usize, left: Span) -> Option<BinaryOp> {
        let text = self.slice(from, to);
        let (op, word, safe) = match text {
            "-" => {
                self.tight_minus(from, to);
                return Some(BinaryOp::Sub);
            }
            "&&" => (BinaryOp::And, "and", true),
            "||" => (BinaryOp::Or, "or", true),
            "===" => (BinaryOp::Eq, "==", true),
            "!==" | "<>" => (BinaryOp::Ne, "!=", true),
            "=~" => (BinaryOp::Matches, "matches", true),
            "&" => (BinaryOp::And, "and", false),
            "|" => (BinaryOp::Or, "or", false),
            _ => {
                let diagnostic = self.no_operator(from, to, left);
                self.breaks(diagnostic);
                return None;
            }
        };
        let blank = |at: Option<u8>| at.is_some_and(|byte| byte.is_ascii_whitespace());
        let before = if from > 0 && blank(self.byte(from - 1)) { "" } else { " " };
        let after = if blank(self.byte(to)) { "" } else { " " };
        let edits = vec![self.edit(from, to, format!("{before}{word}{after}"))];
        let diagnostic = self.diagnostic(
            codes::FOREIGN_OPERATOR,
            from,
            to,
            format!("`{text}` is not an operator of cdpipe"),
        );
        let title = format!("write `{word}`");
        self.report(if safe { diagnostic.fix(title, edits) } else { diagnostic.suggestion(title, edits) });
        Some(op)
    }

    fn no_operator(&self, from: usize, to: usize, left: Span) -> Diagnostic {
        let text = self.slice(from, to);
        if text == "%" {
            let number = self.slice(from.saturating_sub(1), from).starts_with([' ', '\t']);
            let rest = self.text.get(to..).unwrap_or("").trim_start_matches([' ', '\t', '\r']);
            let last = rest.is_empty() || rest.starts_with(['\n', ',', ';', '}', ')', ']', '#']);
            if number && last && left.end < self.span(from, from).start {
                let gap = Span { start: left.end, end: self.span(from, from).start, ..left };
                return self
                    .diagnostic(codes::BAD_LITERAL, from, to, "a blank stands before this `%`")
                    .help("a percentage is written in one word, such as `10%`; there is no operator for the remainder")
                    .suggestion("leave the blank out", vec![crate::diagnostic::Edit { span: gap, replacement: String::new() }]);
            }
        }
        let diagnostic = self.diagnostic(
            codes::FOREIGN_OPERATOR,
            from,
            to,
            format!("`{text}` is not an operator of cdpipe"),
        );
        diagnostic.help(match text {
            "=>" => "to compare, write `>=`; values are set with `=`",
            "->" => "values are set with `=`, and words such as `to` are written out",
            ".." => "there are no ranges; write a list, such as `[1, 2, 3]`",
            "//" | "/*" => "a path or an address is text and needs quotes; a comment begins with `#`",
            "??" => "there is no null: a parameter has a default instead",
            "!~" => "write `not (text matches 'regex')`",
            _ => "the operators are + - * / == != < <= > >= matches in and or not",
        })
    }

    /// `c ? a : b`; `from` is where the `?` stands.
    fn ternary(&mut self, start: usize, from: usize, to: usize) {
        let rest = self.slice(from + 1, to).trim_end();
        let end = from + 1 + rest.len();
        let diagnostic = self
            .diagnostic(codes::FOREIGN_OPERATOR, from, from + 1, "`?` is not an operator of cdpipe")
            .help("a choice is written `if condition then value else value`");
        let simple = rest.matches(':').count() == 1 && !rest.contains(['?', '"', '\'']);
        let diagnostic = match rest.split_once(':') {
            Some((then, otherwise)) if simple && !then.trim().is_empty() && !otherwise.trim().is_empty() => {
                let condition = self.slice(start, from).trim_end();
                let text = format!("if {condition} then {} else {}", then.trim(), otherwise.trim());
                diagnostic.suggestion("write it with `if`", vec![self.edit(start, end, text)])
            }
            _ => diagnostic,
        };
        self.breaks(diagnostic);
    }

    /// `replicas-1` next to an operator: it is a name, and probably was not meant as one.
    fn advise_dashes(&mut self, flat: &Flat) {
        let arithmetic = |op: &BinaryOp| {
            matches!(
                op,
                BinaryOp::Add
                    | BinaryOp::Sub
                    | BinaryOp::Mul
                    | BinaryOp::Div
                    | BinaryOp::Lt
                    | BinaryOp::Le
                    | BinaryOp::Gt
                    | BinaryOp::Ge
            )
        };
        if !flat.ops.iter().any(|(op, _)| arithmetic(op)) {
            return;
        }
        for operand in &flat.operands {
            let ExprKind::Name(name) = &operand.expr.kind else { continue };
            let Some((left, right)) = name.text.rsplit_once('-') else { continue };
            if right.is_empty() || !right.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let mut diagnostic = Diagnostic::new(
                codes::TIGHT_MINUS,
                name.span,
                format!("`{}` is read as one name", name.text),
            )
            .help("to subtract, put blanks on both sides of the minus")
            .suggestion(
                "subtract",
                vec![crate::diagnostic::Edit { span: name.span, replacement: format!("{left} - {right}") }],
            );
            diagnostic.severity = crate::diagnostic::Severity::Advice;
            self.report(diagnostic);
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

/// Precedence climbing over a flat expression. Recursion is bounded: by the levels of precedence, and by the prefixes of one
/// operand, which are limited.
struct Climb {
    operands: std::vec::IntoIter<Operand>,
    ops: std::iter::Peekable<std::vec::IntoIter<(BinaryOp, Span)>>,
    chained: Option<Diagnostic>,
}

const NOT: u8 = 3;
const COMPARE: u8 = 4;

fn power(op: BinaryOp) -> u8 {
    match op {
        BinaryOp::Or => 1,
        BinaryOp::And => 2,
        BinaryOp::Eq
        | BinaryOp::Ne
        | BinaryOp::Lt
        | BinaryOp::Le
        | BinaryOp::Gt
        | BinaryOp::Ge
        | BinaryOp::Matches
        | BinaryOp::In => COMPARE,
        BinaryOp::Add | BinaryOp::Sub => 5,
        BinaryOp::Mul | BinaryOp::Div => 6,
    }
}

impl Climb {
    /// Reads as long as operators bind at least as tightly as `least`.
    fn expr(&mut self, least: u8) -> Option<Expr> {
        let operand = self.operands.next()?;
        let left = self.prefixed(operand.prefixes.into_iter(), operand.expr)?;
        self.rest(left, least)
    }

    fn prefixed(&mut self, mut prefixes: std::vec::IntoIter<(UnaryOp, Span)>, expr: Expr) -> Option<Expr> {
        let Some((op, span)) = prefixes.next() else { return Some(expr) };
        let inner = self.prefixed(prefixes, expr)?;
        // `not` is looser than a comparison: what follows up to `and` or `or` belongs to it.
        let inner = if op == UnaryOp::Not { self.rest(inner, NOT)? } else { inner };
        let span = span.to(inner.span);
        Some(Expr { kind: ExprKind::Unary(op, Box::new(inner)), span })
    }

    fn rest(&mut self, mut left: Expr, least: u8) -> Option<Expr> {
        while let Some((op, at)) = self.ops.next_if(|(op, _)| power(*op) >= least) {
            let right = self.expr(power(op) + 1)?;
            if power(op) == COMPARE
                && self.chained.is_none()
                && let ExprKind::Binary(first, _, from, middle) = &left.kind
                && power(*first) == COMPARE
            {
                let _ = from;
                self.chained = Some(
                    Diagnostic::new(
                        codes::CHAINED,
                        at,
                        format!(
                            "`{}` follows on a comparison with `{}`: comparisons cannot be chained",
                            op.symbol(),
                            first.symbol()
                        ),
                    )
                    .label("the second comparison")
                    .also(middle.span, "compared twice")
                    .help("compare twice, joined by `and`: `a < b and b < c`"),
                );
            }
            let span = left.span.to(right.span);
            left = Expr { kind: ExprKind::Binary(op, at, Box::new(left), Box::new(right)), span };
        }
        Some(left)
    }
}
