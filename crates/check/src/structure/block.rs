//! A statement beside its row of the schema, and small readers of the tree.

use crate::schema::{self, Kind, Names, Part, Setting, Statement, Variant};
use cdpipe_syntax::Span;
use cdpipe_syntax::tree::{self, Expr, ExprKind, Ident, KeyKind, TypeExpr};
use std::borrow::Cow;

/// A statement that was matched with its row of the schema.
#[derive(Debug)]
pub(crate) struct Block<'t> {
    pub(crate) spec: &'static Statement,
    pub(crate) stmt: &'t tree::Statement,
    /// The word of the head's (last) choice.
    pub(crate) variant: Option<&'static Variant>,
    /// The name it declares, or its label.
    pub(crate) name: Option<(Cow<'t, str>, Span)>,
    /// Values of the head, by label.
    pub(crate) args: Vec<(&'static str, &'static Kind, &'t Expr)>,
    pub(crate) ty: Option<&'t TypeExpr>,
    pub(crate) value: Option<&'t Expr>,
    pub(crate) within: Option<&'t Expr>,
    pub(crate) matches: Option<&'t Expr>,
    pub(crate) looped: Option<(&'t Ident, &'t Expr)>,
    /// Parts for the statement's own code.
    pub(crate) rest: &'t [tree::Part],
    pub(crate) inner: Inner<'t>,
}

/// What stands between braces.
#[derive(Debug, Default)]
pub(crate) struct Inner<'t> {
    pub(crate) settings: Vec<(&'static Setting, &'t tree::Setting)>,
    /// Settings with names of the user's own, dots included.
    pub(crate) open: Vec<(String, &'t tree::Setting)>,
    pub(crate) children: Vec<Block<'t>>,
}

impl<'t> Block<'t> {
    /// The expression of a setting.
    pub(crate) fn setting(&self, name: &str) -> Option<&'t tree::Setting> {
        self.inner.settings.iter().find(|(spec, _)| spec.name == name).map(|(_, setting)| *setting)
    }

    /// The value of the head under this label.
    pub(crate) fn arg(&self, label: &str) -> Option<&'t Expr> {
        self.args.iter().find(|(found, _, _)| *found == label).map(|(_, _, expr)| *expr)
    }

    /// A bare name of the head under this label.
    pub(crate) fn arg_name(&self, label: &str) -> Option<&'t Ident> {
        self.arg(label).and_then(as_name)
    }

    /// The first child of this kind.
    pub(crate) fn child(&self, id: schema::Id) -> Option<&Block<'t>> {
        self.inner.children.iter().find(|child| child.spec.id == id)
    }

    /// All children of this kind.
    pub(crate) fn children(&self, id: schema::Id) -> impl Iterator<Item = &Block<'t>> {
        self.inner.children.iter().filter(move |child| child.spec.id == id)
    }

    /// The word of its choice; empty if there is none.
    pub(crate) fn word(&self) -> &'static str {
        self.variant.map_or("", |variant| variant.word)
    }

    /// The statement's head.
    pub(crate) fn head(&self) -> Span {
        self.stmt.head
    }

    /// The name, or an empty text.
    pub(crate) fn name_text(&self) -> &str {
        self.name.as_ref().map_or("", |(name, _)| name.as_ref())
    }

    /// Where the name stands, or else the head.
    pub(crate) fn name_span(&self) -> Span {
        self.name.as_ref().map_or(self.stmt.head, |(_, span)| *span)
    }
}

/// A bare name.
pub(crate) fn as_name(expr: &Expr) -> Option<&Ident> {
    match &expr.kind {
        ExprKind::Name(name) => Some(name),
        ExprKind::Paren(inner) => as_name(inner),
        _ => None,
    }
}

/// Calls `visit` with the expression and everything in it.
pub(crate) fn walk<'t>(expr: &'t Expr, visit: &mut dyn FnMut(&'t Expr)) {
    visit(expr);
    match &expr.kind {
        ExprKind::Literal(_) | ExprKind::Name(_) | ExprKind::Error => {}
        ExprKind::Str(text) => {
            for part in &text.parts {
                if let tree::StrPart::Interp { expr, .. } = part {
                    walk(expr, visit);
                }
            }
        }
        ExprKind::Field(inner, _) | ExprKind::Unary(_, inner) | ExprKind::Paren(inner) => walk(inner, visit),
        ExprKind::Index(a, b) | ExprKind::Binary(_, _, a, b) => {
            walk(a, visit);
            walk(b, visit);
        }
        ExprKind::If(a, b, c) => {
            walk(a, visit);
            walk(b, visit);
            walk(c, visit);
        }
        ExprKind::Call(_, args) => args.iter().for_each(|arg| walk(&arg.value, visit)),
        ExprKind::List(items) => items.iter().for_each(|item| walk(item, visit)),
        ExprKind::Map(items) => items.iter().for_each(|item| walk(&item.value, visit)),
    }
}

/// The key as text, and whether it is one plain word.
pub(crate) fn key_text(key: &tree::Key) -> (Cow<'_, str>, bool) {
    match &key.kind {
        KeyKind::Path(parts) if parts.len() == 1 => (Cow::Borrowed(&parts[0].text), true),
        KeyKind::Path(parts) => {
            let words: Vec<_> = parts.iter().map(|part| part.text.as_str()).collect();
            (Cow::Owned(words.join(".")), false)
        }
        KeyKind::Str(text) => (Cow::Owned(text.plain().unwrap_or_default()), false),
    }
}

/// At most 40 characters of one line.
pub(crate) fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() > 40 || line.len() < text.len() {
        format!("{}…", line.chars().take(39).collect::<String>())
    } else {
        line.to_owned()
    }
}

/// The declared things that a statement of this kind adds to.
pub(crate) fn declares(spec: &Statement) -> Option<Names> {
    spec.parts.iter().find_map(|part| match part {
        Part::Declares(names) => Some(*names),
        _ => None,
    })
}
