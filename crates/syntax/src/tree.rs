//! The tree that parsing yields. It knows the shape of a file (entries, parts, bodies, expressions) and nothing of what a
//! keyword means. Every node carries its span; nothing that was written is missing from it but blanks and comments, and the
//! comments are kept beside it.

use crate::span::Span;

/// One parsed file.
#[derive(Debug, Clone, PartialEq)]
pub struct File {
    /// Top-level entries in source order.
    pub entries: Vec<Entry>,
    /// Comments in source order, each with its `#` and without its line end.
    pub comments: Vec<Span>,
    /// The whole text.
    pub span: Span,
}

/// One entry of a file, a body or a map.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// `key = value` or `key: type = value`.
    Setting(Setting),
    /// `keyword part* { … }`.
    Statement(Statement),
    /// Something that could not be read; a diagnostic covers it.
    Error(Span),
}

impl Entry {
    /// From its first to its last token.
    pub fn span(&self) -> Span {
        match self {
            Entry::Setting(setting) => setting.span,
            Entry::Statement(statement) => statement.span,
            Entry::Error(span) => *span,
        }
    }
}

/// `key = value`, or `key: type = value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// What is set.
    pub key: Key,
    /// `: type`, as metrics have it.
    pub ty: Option<TypeExpr>,
    /// The value; `ExprKind::Error` where it could not be read.
    pub value: Expr,
    /// From the key to the end of the value.
    pub span: Span,
}

/// The left side of a setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// How it was written.
    pub kind: KeyKind,
    /// Where.
    pub span: Span,
}

/// How a key was written.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyKind {
    /// `name` or `a.b.c`: one identifier for each part, never empty.
    Path(Vec<Ident>),
    /// `"any text"` or `'any text'`.
    Str(StrLit),
}

/// `keyword part* { … }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// The first word.
    pub keyword: Ident,
    /// What stands between the keyword and the body.
    pub parts: Vec<Part>,
    /// `{ … }`, if there is one.
    pub body: Option<Body>,
    /// From the keyword to the last token, the body included.
    pub span: Span,
    /// From the keyword to the last part, without the body.
    pub head: Span,
}

/// `{ entries }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    /// Entries in source order.
    pub entries: Vec<Entry>,
    /// The braces included.
    pub span: Span,
    /// False if the `}` was missing and was supplied by the parser.
    pub closed: bool,
}

/// One part of a statement's head.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// An expression; words such as `to`, `when`, `every` are `ExprKind::Name`.
    Expr(Expr),
    /// `: type`.
    Type(TypeExpr),
    /// `= value`.
    Value(Expr),
    /// `in list`, after a type.
    In(Expr),
    /// `matches 'regex'`, after a type.
    Matches(Expr),
    /// `for NAME in list`, in a stage's head.
    For {
        /// The loop variable.
        name: Ident,
        /// What it runs over.
        list: Expr,
        /// From `for` to the end of the list.
        span: Span,
    },
}

impl Part {
    /// Where the part stands (without `:`, `=`, `in` or `matches`).
    pub fn span(&self) -> Span {
        match self {
            Part::Expr(expr) | Part::Value(expr) | Part::In(expr) | Part::Matches(expr) => expr.span,
            Part::Type(ty) => ty.span,
            Part::For { span, .. } => *span,
        }
    }
}

/// A name as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ident {
    /// Its text.
    pub text: String,
    /// Where.
    pub span: Span,
}

/// A type as it was written: `string`, `list(int)`. Whether it exists is the checker's business.
#[derive(Debug, Clone, PartialEq)]
pub struct TypeExpr {
    /// `string`, `list`, …
    pub name: Ident,
    /// What stands in the parentheses.
    pub args: Vec<TypeExpr>,
    /// Where.
    pub span: Span,
}

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// From its first to its last token.
    pub span: Span,
}

/// What an expression is.
#[derive(Debug, Clone, PartialEq)]
pub enum ExprKind {
    /// A literal with or without a unit.
    Literal(Literal),
    /// A string of any of the four kinds.
    Str(StrLit),
    /// A bare name: a parameter, an enum member, or a word that the schema reads.
    Name(Ident),
    /// `base.field`.
    Field(Box<Expr>, Ident),
    /// `base[index]`.
    Index(Box<Expr>, Box<Expr>),
    /// `name(arg, key = arg)`.
    Call(Ident, Vec<Arg>),
    /// `[a, b]`.
    List(Vec<Expr>),
    /// `{ key = value }` where a value stands.
    Map(Vec<Setting>),
    /// `not x`, `-x`.
    Unary(UnaryOp, Box<Expr>),
    /// `a op b`; the span is that of the operator.
    Binary(BinaryOp, Span, Box<Expr>, Box<Expr>),
    /// `if c then a else b`.
    If(Box<Expr>, Box<Expr>, Box<Expr>),
    /// `(x)`.
    Paren(Box<Expr>),
    /// Could not be read; a diagnostic covers it.
    Error,
}

/// One argument of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Arg {
    /// `key =`, if named.
    pub name: Option<Ident>,
    /// The value.
    pub value: Expr,
}

/// A literal that is not a string. How it was written can be read from the span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Literal {
    /// `true`, `false`.
    Bool(bool),
    /// `42`.
    Int(i64),
    /// `0.5`.
    Number(f64),
    /// `10%` is 10.0.
    Percent(f64),
    /// `1h30m`, in milliseconds.
    DurationMs(u64),
    /// `256Mi`, in bytes.
    SizeBytes(u64),
}

/// Operators before their operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnaryOp {
    /// `not x`.
    Not,
    /// `-x`.
    Neg,
}

/// Operators between two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it; `symbol` gives the spelling")]
pub enum BinaryOp {
    Or,
    And,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Matches,
    In,
    Add,
    Sub,
    Mul,
    Div,
}

impl BinaryOp {
    /// As it is written.
    pub fn symbol(self) -> &'static str {
        match self {
            BinaryOp::Or => "or",
            BinaryOp::And => "and",
            BinaryOp::Eq => "==",
            BinaryOp::Ne => "!=",
            BinaryOp::Lt => "<",
            BinaryOp::Le => "<=",
            BinaryOp::Gt => ">",
            BinaryOp::Ge => ">=",
            BinaryOp::Matches => "matches",
            BinaryOp::In => "in",
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
        }
    }
}

/// A string literal.
#[derive(Debug, Clone, PartialEq)]
pub struct StrLit {
    /// Which quotes.
    pub quote: Quote,
    /// Text and `${…}` in order; text parts are never adjacent to each other except where an escape or a dedented line
    /// break made separate spans convenient.
    pub parts: Vec<StrPart>,
    /// The quotes included.
    pub span: Span,
}

impl StrLit {
    /// The text, if nothing in it is interpolated.
    pub fn plain(&self) -> Option<String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                StrPart::Text { value, .. } => text.push_str(value),
                StrPart::Interp { .. } => return None,
            }
        }
        Some(text)
    }
}

/// Which quotes a string has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quote {
    /// `"…"`: escapes and `${…}`.
    Double,
    /// `'…'`: raw.
    Single,
    /// `"""` block: `${…}`, no escapes, dedented.
    BlockDouble,
    /// `'''` block: raw, dedented.
    BlockSingle,
}

/// A piece of a string.
#[derive(Debug, Clone, PartialEq)]
pub enum StrPart {
    /// Text after escapes and dedenting.
    Text {
        /// What it says.
        value: String,
        /// Where it was written.
        span: Span,
    },
    /// `${expr}`.
    Interp {
        /// What is put in.
        expr: Expr,
        /// From `$` to `}`.
        span: Span,
    },
}
