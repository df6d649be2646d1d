//! The tree on one line.

use crate::span::Span;
use crate::tree::{Arg, Entry, Expr, ExprKind, Key, KeyKind, Part, Setting, Statement, TypeExpr, UnaryOp};

/// Writes parts of the tree of `text` without line breaks. Must not be asked for what holds comments or blocks.
#[derive(Clone, Copy)]
pub(super) struct Flat<'t> {
    pub(super) text: &'t str,
}

impl<'t> Flat<'t> {
    pub(super) fn source(self, span: Span) -> &'t str {
        self.text.get(span.range()).unwrap_or("")
    }

    pub(super) fn key(self, key: &Key) -> String {
        match &key.kind {
            KeyKind::Path(idents) => {
                idents.iter().map(|ident| ident.text.as_str()).collect::<Vec<_>>().join(".")
            }
            KeyKind::Str(text) => self.source(text.span).to_owned(),
        }
    }

    pub(super) fn ty(self, ty: &TypeExpr) -> String {
        if ty.args.is_empty() {
            return ty.name.text.clone();
        }
        let args: Vec<String> = ty.args.iter().map(|arg| self.ty(arg)).collect();
        format!("{}({})", ty.name.text, args.join(", "))
    }

    pub(super) fn expr(self, expr: &Expr) -> String {
        let mut out = String::new();
        self.write(expr, &mut out);
        out
    }

    fn write(self, expr: &Expr, out: &mut String) {
        match &expr.kind {
            ExprKind::Literal(_) | ExprKind::Str(_) | ExprKind::Error => out.push_str(self.source(expr.span)),
            ExprKind::Name(name) => out.push_str(&name.text),
            ExprKind::Field(base, name) => {
                self.write(base, out);
                out.push('.');
                out.push_str(&name.text);
            }
            ExprKind::Index(base, index) => {
                self.write(base, out);
                out.push('[');
                self.write(index, out);
                out.push(']');
            }
            ExprKind::Call(name, args) => {
                out.push_str(&name.text);
                out.push('(');
                for (number, arg) in args.iter().enumerate() {
                    out.push_str(if number > 0 { ", " } else { "" });
                    self.arg(arg, out);
                }
                out.push(')');
            }
            ExprKind::List(items) => {
                out.push('[');
                for (number, item) in items.iter().enumerate() {
                    out.push_str(if number > 0 { ", " } else { "" });
                    self.write(item, out);
                }
                out.push(']');
            }
            ExprKind::Map(settings) => {
                let entries: Vec<String> = settings.iter().map(|setting| self.setting(setting)).collect();
                out.push_str(&braced(&entries, ", "));
            }
            ExprKind::Unary(UnaryOp::Not, inner) => {
                out.push_str("not ");
                self.write(inner, out);
            }
            ExprKind::Unary(UnaryOp::Neg, inner) => {
                out.push('-');
                self.write(inner, out);
            }
            ExprKind::Binary(op, _, left, right) => {
                self.write(left, out);
                out.push(' ');
                out.push_str(op.symbol());
                out.push(' ');
                self.write(right, out);
            }
            ExprKind::If(condition, then, otherwise) => {
                out.push_str("if ");
                self.write(condition, out);
                out.push_str(" then ");
                self.write(then, out);
                out.push_str(" else ");
                self.write(otherwise, out);
            }
            ExprKind::Paren(inner) => {
                out.push('(');
                self.write(inner, out);
                out.push(')');
            }
        }
    }

    fn arg(self, arg: &Arg, out: &mut String) {
        if let Some(name) = &arg.name {
            out.push_str(&name.text);
            out.push_str(" = ");
        }
        self.write(&arg.value, out);
    }

    fn setting(self, setting: &Setting) -> String {
        let key = self.key(&setting.key);
        let value = self.expr(&setting.value);
        match &setting.ty {
            Some(ty) => format!("{key}: {} = {value}", self.ty(ty)),
            None => format!("{key} = {value}"),
        }
    }

    fn statement(self, statement: &Statement) -> String {
        let mut out = statement.keyword.text.clone();
        for part in &statement.parts {
            match part {
                Part::Type(ty) => {
                    out.push_str(": ");
                    out.push_str(&self.ty(ty));
                    continue;
                }
                Part::Expr(_) => out.push(' '),
                Part::Value(_) => out.push_str(" = "),
                Part::In(_) => out.push_str(" in "),
                Part::Matches(_) => out.push_str(" matches "),
                Part::For { name, .. } => {
                    out.push_str(" for ");
                    out.push_str(&name.text);
                    out.push_str(" in ");
                }
            }
            if let Part::Expr(expr)
            | Part::Value(expr)
            | Part::In(expr)
            | Part::Matches(expr)
            | Part::For { list: expr, .. } = part
            {
                self.write(expr, &mut out);
            }
        }
        if let Some(body) = &statement.body {
            out.push(' ');
            out.push_str(&self.body(&body.entries));
        }
        out
    }

    /// `{ a = 1, b = 2 }`, `{ run "a"; run "b" }`.
    pub(super) fn body(self, entries: &[Entry]) -> String {
        let texts: Vec<String> = entries
            .iter()
            .map(|entry| match entry {
                Entry::Setting(setting) => self.setting(setting),
                Entry::Statement(statement) => self.statement(statement),
                Entry::Error(span) => self.source(*span).to_owned(),
            })
            .collect();
        let settings = entries.iter().all(|entry| matches!(entry, Entry::Setting(_)));
        braced(&texts, if settings { ", " } else { "; " })
    }
}

fn braced(entries: &[String], separator: &str) -> String {
    if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(separator)) }
}
