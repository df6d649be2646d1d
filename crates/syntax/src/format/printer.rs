//! Goes over the tree in the order of the text and puts tokens on lines. Before each token the comments that stand before it in the
//! text are put out, wherever that is; a comment ends its line, so what follows goes on in the next.

use super::WIDTH;
use super::flat::Flat;
use super::lines::{Line, join};
use crate::parse::reader::common_indent;
use crate::span::{LineIndex, Span};
use crate::tree::{Arg, Body, Entry, Expr, ExprKind, File, Part, Quote, Setting, Statement, StrLit, UnaryOp};

/// The canonical text of a file.
pub(super) fn print(text: &str, file: &File) -> String {
    let mut printer = Printer {
        text,
        flat: Flat { text },
        index: LineIndex::new(text),
        comments: &file.comments,
        lines: Vec::new(),
        line: Line::default(),
        indent: 0,
        newline: false,
        space: false,
        fresh: true,
        last_end: 0,
    };
    printer.entries(&file.entries);
    printer.comments_before(text.len());
    printer.end_line();
    join(printer.lines)
}

struct Printer<'t> {
    text: &'t str,
    flat: Flat<'t>,
    index: LineIndex,
    /// Those that have not been put out.
    comments: &'t [Span],
    lines: Vec<Line>,
    /// The line being written.
    line: Line,
    /// Levels of the next line.
    indent: usize,
    /// Whether the next token begins a new line.
    newline: bool,
    /// Whether a blank stands before the next token, unless it begins a line.
    space: bool,
    /// Whether nothing has been written since a body or list was opened: no blank line then.
    fresh: bool,
    /// Where in the text the last token or comment ended.
    last_end: usize,
}

/// What stands between brackets that are opened, one to a line.
enum Item<'a> {
    Expr(&'a Expr),
    Arg(&'a Arg),
}

impl<'a> Item<'a> {
    fn value(&self) -> &'a Expr {
        match self {
            Item::Expr(expr) => expr,
            Item::Arg(arg) => &arg.value,
        }
    }

    fn start(&self) -> usize {
        match self {
            Item::Arg(Arg { name: Some(name), .. }) => name.span.start as usize,
            other => other.value().span.start as usize,
        }
    }
}

impl Printer<'_> {
    // ---- lines and tokens

    fn end_line(&mut self) {
        if !self.line.text.is_empty() || self.line.comment.is_some() || self.line.verbatim {
            self.lines.push(std::mem::take(&mut self.line));
        }
        self.line = Line { indent: self.indent, ..Line::default() };
        self.newline = false;
        self.space = false;
    }

    /// A blank line, if there is one in the text between the last token and `start`.
    fn keep_blank_line(&mut self, start: usize) {
        let between = self.text.get(self.last_end..start).unwrap_or("");
        if !self.fresh && between.bytes().filter(|byte| *byte == b'\n').count() > 1 {
            self.lines.push(Line::default());
        }
        self.fresh = false;
    }

    /// Puts out the comments that begin before `start`.
    fn comments_before(&mut self, start: usize) {
        while let Some((comment, rest)) = self.comments.split_first()
            && (comment.start as usize) < start
        {
            self.comments = rest;
            let at = comment.start as usize;
            let text = self.flat.source(*comment).trim_end().to_owned();
            let same_line =
                self.index.line(at) == self.index.line(self.last_end) && !self.line.text.is_empty();
            if same_line && self.line.comment.is_none() {
                self.line.comment = Some(text);
            } else {
                self.end_line();
                self.keep_blank_line(at);
                self.line.text = text;
            }
            self.newline = true;
            self.last_end = comment.end as usize;
        }
    }

    /// Puts out a token that stands at `start..end` in the source.
    fn token(&mut self, start: usize, end: usize, text: &str) {
        self.comments_before(start);
        self.raw(text);
        self.last_end = end;
    }

    fn spanned(&mut self, span: Span, text: &str) {
        self.token(span.start as usize, span.end as usize, text);
    }

    /// Puts out a token whose place in the source is not known.
    fn raw(&mut self, text: &str) {
        if self.newline {
            self.end_line();
        }
        if self.space && !self.line.text.is_empty() {
            self.line.text.push(' ');
        }
        self.space = false;
        self.line.text.push_str(text);
    }

    fn width_left(&self) -> usize {
        if self.newline {
            return WIDTH.saturating_sub(self.indent * 2);
        }
        WIDTH.saturating_sub(self.line.width() + usize::from(self.space))
    }

    fn on_one_line(&self, span: Span) -> bool {
        !self.flat.source(span).contains('\n')
    }

    fn has_comment(&self, span: Span) -> bool {
        let first = self.comments.partition_point(|comment| comment.start < span.start);
        self.comments.get(first).is_some_and(|comment| comment.start < span.end)
    }

    // ---- entries

    fn entries(&mut self, entries: &[Entry]) {
        for entry in entries {
            let span = entry.span();
            self.comments_before(span.start as usize);
            if self.newline {
                self.end_line();
            }
            self.keep_blank_line(span.start as usize);
            let indent = self.indent;
            match entry {
                Entry::Setting(setting) => self.setting(setting),
                Entry::Statement(statement) => self.statement(statement),
                Entry::Error(span) => self.spanned(*span, self.flat.source(*span).to_owned().as_str()),
            }
            self.indent = indent;
            self.last_end = self.last_end.max(span.end as usize);
            self.newline = true;
        }
    }

    fn setting(&mut self, setting: &Setting) {
        let first = self.lines.len();
        let mut key = self.flat.key(&setting.key);
        let mut ends = (key.len(), None);
        if let Some(ty) = &setting.ty {
            key.push(':');
            ends.0 = key.len();
            key.push(' ');
            key.push_str(&self.flat.ty(ty));
            ends.1 = Some(key.len());
        }
        self.spanned(setting.key.span, &key);
        if let Some(ty) = &setting.ty {
            self.last_end = ty.span.end as usize;
        }
        self.indent += 1;
        self.space = true;
        self.raw("=");
        self.space = true;
        self.expr(&setting.value);
        if self.lines.len() == first && !key.contains('\n') {
            self.line.setting = Some(ends);
        }
    }

    fn statement(&mut self, statement: &Statement) {
        self.spanned(statement.keyword.span, &statement.keyword.text);
        self.indent += 1;
        for part in &statement.parts {
            match part {
                Part::Type(ty) => {
                    self.raw(":");
                    self.space = true;
                    self.spanned(ty.span, &self.flat.ty(ty));
                    continue;
                }
                Part::Expr(expr) => {
                    self.space = true;
                    self.expr(expr);
                    continue;
                }
                Part::Value(_) => self.word("="),
                Part::In(_) => self.word("in"),
                Part::Matches(_) => self.word("matches"),
                Part::For { name, .. } => {
                    self.word("for");
                    self.spanned(name.span, &name.text);
                    self.word("in");
                }
            }
            if let Part::Value(expr) | Part::In(expr) | Part::Matches(expr) | Part::For { list: expr, .. } =
                part
            {
                self.expr(expr);
            }
        }
        self.indent -= 1;
        if let Some(body) = &statement.body {
            self.space = true;
            self.body(body);
        }
    }

    /// A word with a blank on both sides.
    fn word(&mut self, word: &str) {
        self.space = true;
        self.raw(word);
        self.space = true;
    }

    fn body(&mut self, body: &Body) {
        self.braces(body.span, &body.entries, self.indent);
    }

    /// `{ … }`, its lines one level deeper than `base` if it is opened.
    fn braces(&mut self, span: Span, entries: &[Entry], base: usize) {
        if self.on_one_line(span) || (entries.is_empty() && !self.has_comment(span)) {
            let flat = self.flat.body(entries);
            if flat.chars().count() <= self.width_left() || entries.is_empty() {
                self.spanned(span, &flat);
                return;
            }
        }
        self.open(span, "{", base);
        self.entries(entries);
        self.close(span, "}", base);
    }

    fn open(&mut self, span: Span, bracket: &str, base: usize) {
        let start = span.start as usize;
        self.token(start, start + 1, bracket);
        self.indent = base + 1;
        self.newline = true;
        self.fresh = true;
    }

    fn close(&mut self, span: Span, bracket: &str, base: usize) {
        let end = span.end as usize;
        self.comments_before(end.saturating_sub(1));
        self.indent = base;
        self.newline = true;
        self.token(end.saturating_sub(1), end, bracket);
        self.fresh = false;
    }

    // ---- expressions

    fn expr(&mut self, expr: &Expr) {
        if self.on_one_line(expr.span) {
            let flat = self.flat.expr(expr);
            if flat.chars().count() <= self.width_left() || !opens(expr) {
                self.spanned(expr.span, &flat);
                return;
            }
        }
        let start = expr.span.start as usize;
        let end = expr.span.end as usize;
        match &expr.kind {
            ExprKind::Literal(_) | ExprKind::Name(_) | ExprKind::Error => {
                let source = self.flat.source(expr.span);
                self.spanned(expr.span, source);
            }
            ExprKind::Str(text) => self.string(text),
            ExprKind::Field(base, name) => {
                self.expr(base);
                self.raw(".");
                self.spanned(name.span, &name.text);
            }
            ExprKind::Index(base, index) => {
                self.expr(base);
                let brackets = Span { start: base.span.end, ..expr.span };
                self.sequence(brackets, ["[", "]"], &[Item::Expr(index)], false);
            }
            ExprKind::Call(name, args) => {
                self.spanned(name.span, &name.text);
                let items: Vec<Item<'_>> = args.iter().map(Item::Arg).collect();
                let brackets = Span { start: name.span.end, ..expr.span };
                self.sequence(brackets, ["(", ")"], &items, true);
            }
            ExprKind::List(items) => {
                let items: Vec<Item<'_>> = items.iter().map(Item::Expr).collect();
                self.sequence(expr.span, ["[", "]"], &items, true);
            }
            ExprKind::Map(settings) => {
                let entries: Vec<Entry> = settings.iter().cloned().map(Entry::Setting).collect();
                let indent = self.indent;
                let base = self.base();
                self.braces(expr.span, &entries, base);
                self.indent = indent;
            }
            ExprKind::Unary(op, inner) => {
                let word = if *op == UnaryOp::Not { "not" } else { "-" };
                self.token(start, start + word.len(), word);
                self.space = *op == UnaryOp::Not;
                self.expr(inner);
            }
            ExprKind::Binary(op, at, left, right) => {
                self.expr(left);
                let between = self.text.get(left.span.end as usize..right.span.start as usize).unwrap_or("");
                if between.contains('\n') {
                    // Comments first: they belong to the line before.
                    self.comments_before(at.start as usize);
                    self.newline = true;
                }
                self.space = true;
                self.spanned(*at, op.symbol());
                self.space = true;
                self.expr(right);
            }
            ExprKind::If(condition, then, otherwise) => {
                self.token(start, start + 2, "if");
                self.space = true;
                self.expr(condition);
                self.branch("then", then);
                self.branch("else", otherwise);
            }
            ExprKind::Paren(inner) => {
                self.token(start, start + 1, "(");
                self.expr(inner);
                self.comments_before(end.saturating_sub(1));
                self.token(end.saturating_sub(1), end, ")");
            }
        }
    }

    /// `then …` or `else …` of a choice over several lines, on a line of its own.
    fn branch(&mut self, word: &str, expr: &Expr) {
        self.comments_before(expr.span.start as usize);
        self.newline = true;
        self.raw(word);
        self.space = true;
        self.expr(expr);
    }

    /// The level of the line on which a bracket is about to be opened.
    fn base(&self) -> usize {
        if self.newline { self.indent } else { self.line.indent }
    }

    /// `[…]` or `(…)` over several lines, one item on each; a single item with brackets of its own keeps to its brackets.
    fn sequence(&mut self, span: Span, brackets: [&str; 2], items: &[Item<'_>], comma: bool) {
        let [open, close] = brackets;
        let start = span.start as usize;
        let end = span.end as usize;
        // A blank or comment before an opener that touches its name cannot be: comments come out inside of it.
        if let [item] = items {
            let value = item.value();
            let outside = [Span { end: value.span.start, ..span }, Span { start: value.span.end, ..span }];
            if hugs(value) && !outside.iter().any(|span| self.has_comment(*span)) {
                self.token(start, start + 1, open);
                self.item(item);
                self.token(end.saturating_sub(1), end, close);
                return;
            }
        }
        if items.is_empty() && !self.has_comment(span) {
            self.token(start, end, &format!("{open}{close}"));
            return;
        }
        let indent = self.indent;
        let base = self.base();
        self.open(span, open, base);
        for item in items {
            self.comments_before(item.start());
            if self.newline {
                self.end_line();
            }
            self.keep_blank_line(item.start());
            self.indent = base + 2;
            self.item(item);
            self.indent = base + 1;
            if comma {
                self.line.text.push(',');
            }
            self.newline = true;
        }
        self.close(span, close, base);
        self.indent = indent;
    }

    fn item(&mut self, item: &Item<'_>) {
        if let Item::Arg(Arg { name: Some(name), .. }) = item {
            self.spanned(name.span, &name.text);
            self.word("=");
        }
        self.expr(item.value());
    }

    /// A string; a block is moved as a whole, so that its text stays the same.
    fn string(&mut self, text: &StrLit) {
        let source = self.flat.source(text.span).to_owned();
        let block = matches!(text.quote, Quote::BlockDouble | Quote::BlockSingle);
        let (Some(first), true) = (source.find('\n'), block) else {
            self.spanned(text.span, &source);
            return;
        };
        let marks = source.get(..3).unwrap_or("\"\"\"").to_owned();
        let last = source.rfind('\n').unwrap_or(first);
        let content = source.get(first + 1..last).unwrap_or("");
        let common = common_indent(content);
        self.spanned(text.span, &marks);
        let base = self.line.indent;
        let indent = self.indent;
        if last > first {
            for line in content.split('\n') {
                let line = line.strip_suffix('\r').unwrap_or(line);
                let line =
                    if line.trim().is_empty() { "" } else { line.strip_prefix(common).unwrap_or(line) };
                self.indent = base + 1;
                self.end_line();
                self.line =
                    Line { indent: base + 1, text: line.to_owned(), verbatim: true, ..Line::default() };
            }
        }
        self.indent = base;
        self.end_line();
        self.line.text.push_str(&marks);
        self.indent = indent;
    }
}

/// Whether some brackets in an expression can be opened.
fn opens(expr: &Expr) -> bool {
    match &expr.kind {
        ExprKind::List(items) => !items.is_empty(),
        ExprKind::Call(_, args) => !args.is_empty(),
        ExprKind::Map(settings) => !settings.is_empty(),
        ExprKind::Field(inner, _) | ExprKind::Unary(_, inner) | ExprKind::Paren(inner) => opens(inner),
        ExprKind::Index(base, _) => opens(base),
        ExprKind::Binary(_, _, left, right) => opens(left) || opens(right),
        // A choice is not opened by itself: its lines would be broken where the writer did not.
        _ => false,
    }
}

/// Whether a value has brackets (or quotes) that close on a line of their own.
fn hugs(expr: &Expr) -> bool {
    match &expr.kind {
        ExprKind::List(items) => !items.is_empty(),
        ExprKind::Map(settings) => !settings.is_empty(),
        ExprKind::Str(text) => matches!(text.quote, Quote::BlockDouble | Quote::BlockSingle),
        _ => false,
    }
}
