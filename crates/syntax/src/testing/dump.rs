//! A tree as text, without spans: two texts mean the same if their dumps are equal.

use std::fmt::Write as _;

use crate::span::Span;
use crate::tree::{
    Arg, Body, Entry, Expr, ExprKind, File, Key, KeyKind, Part, Setting, Statement, StrLit, StrPart, TypeExpr,
};

/// One line for each entry, indented by its depth; expressions as nested lists.
pub fn dump(file: &File) -> String {
    let mut dumper = Dumper { out: String::new(), depth: 0 };
    dumper.entries(&file.entries);
    dumper.out
}

struct Dumper {
    out: String,
    depth: usize,
}

impl Dumper {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn entries(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.put(&"  ".repeat(self.depth));
            match entry {
                Entry::Setting(setting) => self.setting(setting),
                Entry::Statement(statement) => self.statement(statement),
                Entry::Error(_) => self.put("(error)"),
            }
            self.put("\n");
        }
    }

    fn setting(&mut self, setting: &Setting) {
        self.put("(set ");
        self.key(&setting.key);
        if let Some(ty) = &setting.ty {
            self.put(" : ");
            self.ty(ty);
        }
        self.put(" ");
        self.expr(&setting.value);
        self.put(")");
    }

    fn key(&mut self, key: &Key) {
        match &key.kind {
            KeyKind::Path(idents) => {
                let path: Vec<&str> = idents.iter().map(|ident| ident.text.as_str()).collect();
                self.put(&path.join("."));
            }
            KeyKind::Str(text) => self.string(text),
        }
    }

    fn statement(&mut self, statement: &Statement) {
        self.put("(");
        self.put(&statement.keyword.text);
        for part in &statement.parts {
            self.put(" ");
            match part {
                Part::Expr(expr) => self.expr(expr),
                Part::Type(ty) => {
                    self.put(": ");
                    self.ty(ty);
                }
                Part::Value(expr) => self.tagged("= ", expr),
                Part::In(expr) => self.tagged("in ", expr),
                Part::Matches(expr) => self.tagged("matches ", expr),
                Part::For { name, list, .. } => {
                    let _ = write!(self.out, "for {} in ", name.text);
                    self.expr(list);
                }
            }
        }
        self.put(")");
        if let Some(body) = &statement.body {
            self.body(body);
        }
    }

    fn tagged(&mut self, tag: &str, expr: &Expr) {
        self.put(tag);
        self.expr(expr);
    }

    fn body(&mut self, body: &Body) {
        self.put(if body.closed { " {\n" } else { " { (not closed)\n" });
        self.depth += 1;
        self.entries(&body.entries);
        self.depth -= 1;
        self.put(&"  ".repeat(self.depth));
        self.put("}");
    }

    fn ty(&mut self, ty: &TypeExpr) {
        self.put(&ty.name.text);
        if !ty.args.is_empty() {
            self.put("(");
            for (number, arg) in ty.args.iter().enumerate() {
                if number > 0 {
                    self.put(" ");
                }
                self.ty(arg);
            }
            self.put(")");
        }
    }

    fn string(&mut self, text: &StrLit) {
        let _ = write!(self.out, "{:?}", text.quote);
        // Where a text is cut into parts is the parser's own business.
        let mut plain = String::new();
        self.put("[");
        for part in &text.parts {
            match part {
                StrPart::Text { value, .. } => plain.push_str(value),
                StrPart::Interp { expr, .. } => {
                    let _ = write!(self.out, "{plain:?} ");
                    plain.clear();
                    self.expr(expr);
                    self.put(" ");
                }
            }
        }
        let _ = write!(self.out, "{plain:?}]");
    }

    fn expr(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::Literal(literal) => {
                let _ = write!(self.out, "{literal:?}");
            }
            ExprKind::Str(text) => self.string(text),
            ExprKind::Name(name) => self.put(&name.text),
            ExprKind::Field(base, name) => {
                self.put("(. ");
                self.expr(base);
                let _ = write!(self.out, " {})", name.text);
            }
            ExprKind::Index(base, index) => {
                self.put("(index ");
                self.expr(base);
                self.put(" ");
                self.expr(index);
                self.put(")");
            }
            ExprKind::Call(name, args) => {
                let _ = write!(self.out, "(call {}", name.text);
                for Arg { name, value } in args {
                    self.put(" ");
                    if let Some(name) = name {
                        let _ = write!(self.out, "{} = ", name.text);
                    }
                    self.expr(value);
                }
                self.put(")");
            }
            ExprKind::List(items) => {
                self.put("[");
                for (number, item) in items.iter().enumerate() {
                    if number > 0 {
                        self.put(" ");
                    }
                    self.expr(item);
                }
                self.put("]");
            }
            ExprKind::Map(settings) => {
                self.put("{");
                for setting in settings {
                    self.put(" ");
                    self.setting(setting);
                }
                self.put(" }");
            }
            ExprKind::Unary(op, operand) => {
                let _ = write!(self.out, "({op:?} ");
                self.expr(operand);
                self.put(")");
            }
            ExprKind::Binary(op, _, left, right) => {
                let _ = write!(self.out, "({} ", op.symbol());
                self.expr(left);
                self.put(" ");
                self.expr(right);
                self.put(")");
            }
            ExprKind::If(condition, then, otherwise) => {
                self.put("(if ");
                self.expr(condition);
                self.put(" ");
                self.expr(then);
                self.put(" ");
                self.expr(otherwise);
                self.put(")");
            }
            ExprKind::Paren(inner) => {
                self.put("(paren ");
                self.expr(inner);
                self.put(")");
            }
            ExprKind::Error => self.put("(error)"),
        }
    }
}

/// The spans of all strings, those inside of `${…}` after the one around them.
pub fn strings(file: &File) -> Vec<Span> {
    let mut found = Vec::new();
    entries_strings(&file.entries, &mut found);
    found
}

fn entries_strings(entries: &[Entry], found: &mut Vec<Span>) {
    for entry in entries {
        match entry {
            Entry::Setting(setting) => setting_strings(setting, found),
            Entry::Statement(statement) => {
                for part in &statement.parts {
                    match part {
                        Part::Expr(expr) | Part::Value(expr) | Part::In(expr) | Part::Matches(expr) => {
                            expr_strings(expr, found)
                        }
                        Part::For { list, .. } => expr_strings(list, found),
                        Part::Type(_) => {}
                    }
                }
                if let Some(body) = &statement.body {
                    entries_strings(&body.entries, found);
                }
            }
            Entry::Error(_) => {}
        }
    }
}

fn setting_strings(setting: &Setting, found: &mut Vec<Span>) {
    if let KeyKind::Str(text) = &setting.key.kind {
        string_strings(text, found);
    }
    expr_strings(&setting.value, found);
}

fn string_strings(text: &StrLit, found: &mut Vec<Span>) {
    found.push(text.span);
    for part in &text.parts {
        if let StrPart::Interp { expr, .. } = part {
            expr_strings(expr, found);
        }
    }
}

fn expr_strings(expr: &Expr, found: &mut Vec<Span>) {
    match &expr.kind {
        ExprKind::Str(text) => string_strings(text, found),
        ExprKind::Field(base, _) => expr_strings(base, found),
        ExprKind::Index(left, right) | ExprKind::Binary(_, _, left, right) => {
            expr_strings(left, found);
            expr_strings(right, found);
        }
        ExprKind::Call(_, args) => args.iter().for_each(|arg| expr_strings(&arg.value, found)),
        ExprKind::List(items) => items.iter().for_each(|item| expr_strings(item, found)),
        ExprKind::Map(settings) => settings.iter().for_each(|setting| setting_strings(setting, found)),
        ExprKind::Unary(_, inner) | ExprKind::Paren(inner) => expr_strings(inner, found),
        ExprKind::If(condition, then, otherwise) => {
            expr_strings(condition, found);
            expr_strings(then, found);
            expr_strings(otherwise, found);
        }
        ExprKind::Literal(_) | ExprKind::Name(_) | ExprKind::Error => {}
    }
}
