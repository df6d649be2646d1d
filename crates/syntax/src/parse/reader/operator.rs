//! Operators: which they are, those of other languages, and the climb over their precedences.

use super::Reader;
use crate::codes;
use crate::diagnostic::{Diagnostic, Edit, Severity};
use crate::span::Span;
use crate::tree::{BinaryOp, Expr, ExprKind, UnaryOp};

/// A flat expression, before the climb: what stands before each operand, the operand, and the operators between them.
#[derive(Default)]
pub(super) struct Flat {
    pub(super) operands: Vec<Operand>,
    pub(super) ops: Vec<(BinaryOp, Span)>,
    /// Fields, indexes, calls and operators so far.
    pub(super) weight: usize,
}

pub(super) struct Operand {
    pub(super) prefixes: Vec<(UnaryOp, Span)>,
    pub(super) expr: Expr,
}

impl Reader<'_, '_> {
    pub(super) fn op(&mut self, from: usize, to: usize) -> Option<BinaryOp> {
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

    pub(super) fn tight_minus(&mut self, from: usize, to: usize) {
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
    pub(super) fn bad_op(&mut self, from: usize, to: usize, left: Span) -> Option<BinaryOp> {
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

    pub(super) fn no_operator(&self, from: usize, to: usize, left: Span) -> Diagnostic {
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
                    .suggestion("leave the blank out", vec![Edit { span: gap, replacement: String::new() }]);
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
    pub(super) fn ternary(&mut self, start: usize, from: usize, to: usize) {
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
    pub(super) fn advise_dashes(&mut self, flat: &Flat) {
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
            .suggestion("subtract", vec![Edit { span: name.span, replacement: format!("{left} - {right}") }]);
            diagnostic.severity = Severity::Advice;
            self.report(diagnostic);
        }
    }
}

/// Precedence climbing over a flat expression. Recursion is bounded: by the levels of precedence, and by the prefixes of one
/// operand, which are limited.
pub(super) struct Climb {
    pub(super) operands: std::vec::IntoIter<Operand>,
    pub(super) ops: std::iter::Peekable<std::vec::IntoIter<(BinaryOp, Span)>>,
    pub(super) chained: Option<Diagnostic>,
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
    pub(super) fn expr(&mut self, least: u8) -> Option<Expr> {
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
                && let ExprKind::Binary(first, _, _, middle) = &left.kind
                && power(*first) == COMPARE
            {
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
