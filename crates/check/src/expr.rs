//! Expressions: names, types and units, and lowering to the plan's expressions. One walk does both: where everything is known
//! the result is a value, where something is known only later it holds symbols, and where an input is not there yet (while
//! checking without inputs) there is a type and no expression.

mod names;
mod sides;

use crate::checker::Checker;
use crate::codes::{names as code, security, types as type_code, values as value_code};
use crate::schema::{self};
use crate::scope::Scope;
use crate::suggest::{nearest, one_of};
use crate::values::a_type;
use cdpipe_model::expr::{EvalError, Expr as Lowered, Func, Op, Symbol, result_type};
use cdpipe_model::id::NodeId;
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Arg, BinaryOp, Expr, ExprKind, Ident, Literal, StrLit, StrPart, UnaryOp};
use cdpipe_syntax::{Diagnostic, Edit, Span};

/// Texts longer than this are refused: a few interpolations of each other would otherwise fill the memory.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// What is known of an expression.
#[derive(Debug, Clone, Default)]
pub(crate) struct Low {
    /// Its type; `None` if something is wrong with it and a diagnostic says what.
    pub(crate) ty: Option<Type>,
    /// It lowered; `None` if it is wrong, or depends on an input that is not there yet.
    pub(crate) expr: Option<Lowered>,
}

impl Low {
    pub(crate) fn wrong() -> Self {
        Self::default()
    }

    pub(crate) fn unknown(ty: Type) -> Self {
        Self { ty: Some(ty), expr: None }
    }

    pub(crate) fn value(value: Value) -> Self {
        Self { ty: Some(value.ty()), expr: Some(Lowered::Value(value)) }
    }

    pub(crate) fn symbol(ty: Type, symbol: Symbol) -> Self {
        Self { ty: Some(ty), expr: Some(Lowered::Symbol(symbol)) }
    }

    /// The value, if it is known now.
    pub(crate) fn known(&self) -> Option<&Value> {
        self.expr.as_ref().and_then(Lowered::known)
    }
}

/// Whether a value of this type may stand where that one is wanted.
pub(crate) fn fits(found: &Type, wanted: &Type) -> bool {
    match (found, wanted) {
        (Type::Int, Type::Number) | (Type::Str, Type::Version) | (Type::Version, Type::Str) => true,
        (Type::List(a), Type::List(b)) | (Type::Map(a), Type::Map(b)) => fits(a, b),
        _ => found == wanted,
    }
}

impl Checker<'_> {
    /// Looks at an expression.
    pub(crate) fn expr(&mut self, expr: &Expr, scope: &Scope<'_>) -> Low {
        match &expr.kind {
            ExprKind::Error => Low::wrong(),
            ExprKind::Literal(literal) => Low::value(literal_value(*literal)),
            ExprKind::Str(text) => self.text(text, scope),
            ExprKind::Name(name) => self.name(name, scope),
            ExprKind::Paren(inner) => self.expr(inner, scope),
            ExprKind::Field(..) => self.field(expr, scope),
            ExprKind::Index(base, index) => self.index(base, index, expr.span, scope),
            ExprKind::Call(name, args) => self.call(name, args, expr.span, scope),
            ExprKind::List(items) => self.list(items, scope),
            ExprKind::Map(entries) => {
                let mut all = std::collections::BTreeMap::new();
                let mut ty: Option<Type> = None;
                let (mut wrong, mut unknown) = (false, false);
                for entry in entries {
                    let (key, _) = crate::structure::key_text(&entry.key);
                    let low = self.expr(&entry.value, scope);
                    wrong |= low.ty.is_none();
                    ty = ty.or(low.ty);
                    match low.expr {
                        Some(expr) => {
                            all.insert(key.into_owned(), expr);
                        }
                        None => unknown = true,
                    }
                }
                if wrong {
                    return Low::wrong();
                }
                let ty = Type::Map(Box::new(ty.unwrap_or(Type::Str)));
                if unknown {
                    Low::unknown(ty)
                } else {
                    Low { ty: Some(ty), expr: Some(Lowered::Map(all).fold()) }
                }
            }
            ExprKind::Unary(op, inner) => self.unary(*op, inner, expr.span, scope),
            ExprKind::Binary(op, at, left, right) => self.binary(*op, *at, left, right, scope),
            ExprKind::If(condition, then, other) => self.branch(condition, then, other, scope),
        }
    }

    fn no_value(&mut self, span: Span, error: &EvalError) -> Low {
        self.report(
            Diagnostic::new(&type_code::NO_VALUE, span, format!("this has no value: {error}"))
                .help("change it so that it has one for every input"),
        );
        Low::wrong()
    }

    /// Computes what can be computed now.
    fn fold(&mut self, ty: Type, expr: Lowered, span: Span) -> Low {
        let mut late = false;
        expr.symbols(&mut |_| late = true);
        if late {
            return Low { ty: Some(ty), expr: Some(expr) };
        }
        match expr.eval(&|_| None) {
            Ok(value) => Low { ty: Some(ty), expr: Some(Lowered::Value(value)) },
            Err(error) => self.no_value(span, &error),
        }
    }

    fn text(&mut self, text: &StrLit, scope: &Scope<'_>) -> Low {
        if let Some(plain) = text.plain() {
            self.credential_in(&plain, text.span);
            return Low::value(Value::Str(plain));
        }
        let mut parts = Vec::new();
        let (mut wrong, mut unknown, mut secret, mut bytes) = (false, false, false, 0);
        for part in &text.parts {
            match part {
                StrPart::Text { value, .. } => {
                    bytes += value.len();
                    parts.push(Lowered::text(value.clone()));
                }
                StrPart::Interp { expr, .. } => {
                    let low = self.expr(expr, scope);
                    wrong |= low.ty.is_none();
                    secret |= low.ty == Some(Type::Secret);
                    if let Some(Value::Str(value)) = low.known() {
                        bytes += value.len();
                    }
                    match low.expr {
                        Some(expr) => parts.push(expr),
                        None => unknown = true,
                    }
                }
            }
        }
        let ty = if secret { Type::Secret } else { Type::Str };
        if wrong {
            return Low::wrong();
        }
        if bytes > MAX_TEXT_BYTES {
            return self.no_value(text.span, &EvalError::Invalid("the text is longer than 1 MiB".to_owned()));
        }
        if unknown {
            return Low::unknown(ty);
        }
        self.fold(ty, Lowered::Template(parts), text.span)
    }

    fn index(&mut self, base: &Expr, index: &Expr, span: Span, scope: &Scope<'_>) -> Low {
        let base_low = self.expr(base, scope);
        let index_low = self.expr(index, scope);
        let (Some(base_ty), Some(index_ty)) = (&base_low.ty, &index_low.ty) else { return Low::wrong() };
        let item = match (base_ty, index_ty) {
            (Type::List(item), Type::Int) => (**item).clone(),
            (Type::Map(item), Type::Str | Type::Version) => (**item).clone(),
            _ => {
                self.report(
                    Diagnostic::new(
                        &type_code::BAD_OPERATION,
                        span,
                        format!("{} can't be indexed by {}", a_type(base_ty), a_type(index_ty)),
                    )
                    .also(base.span, a_type(base_ty))
                    .also(index.span, a_type(index_ty))
                    .help("a list is indexed by a whole number from 0, a map by a string"),
                );
                return Low::wrong();
            }
        };
        match (base_low.expr, index_low.expr) {
            (Some(base), Some(index)) => {
                self.fold(item, Lowered::Index(Box::new(base), Box::new(index)), span)
            }
            _ => Low::unknown(item),
        }
    }

    fn list(&mut self, items: &[Expr], scope: &Scope<'_>) -> Low {
        let mut ty: Option<(Type, Span)> = None;
        let mut all = Vec::new();
        let (mut wrong, mut unknown) = (false, false);
        for item in items {
            let low = self.expr(item, scope);
            match low.ty {
                None => wrong = true,
                Some(found) => match &mut ty {
                    None => ty = Some((found, item.span)),
                    Some((first, first_span)) => {
                        if !fits(&found, first) {
                            if fits(first, &found) {
                                *first = found;
                            } else if !wrong {
                                let (first, first_span) = (first.clone(), *first_span);
                                self.report(
                                    Diagnostic::new(
                                        &type_code::MIXED,
                                        item.span,
                                        format!("this is {} in a list of {first}", a_type(&found)),
                                    )
                                    .also(first_span, a_type(&first))
                                    .help("the items of a list have one type"),
                                );
                                wrong = true;
                            }
                        }
                    }
                },
            }
            match low.expr {
                Some(expr) => all.push(expr),
                None => unknown = true,
            }
        }
        if wrong {
            return Low::wrong();
        }
        let ty = Type::List(Box::new(ty.map_or(Type::Str, |(ty, _)| ty)));
        if unknown { Low::unknown(ty) } else { Low { ty: Some(ty), expr: Some(Lowered::List(all).fold()) } }
    }

    fn unary(&mut self, op: UnaryOp, inner: &Expr, span: Span, scope: &Scope<'_>) -> Low {
        let low = self.expr(inner, scope);
        let Some(ty) = low.ty else { return Low::wrong() };
        let fits = match op {
            UnaryOp::Not => ty == Type::Bool,
            UnaryOp::Neg => matches!(ty, Type::Int | Type::Number | Type::Percent | Type::Duration),
        };
        if !fits {
            let (word, wanted) = match op {
                UnaryOp::Not => ("not", "`true` or `false`"),
                UnaryOp::Neg => ("-", "a number"),
            };
            self.report(
                Diagnostic::new(
                    &type_code::BAD_OPERATION,
                    span,
                    format!("`{word}` takes {wanted}, found {}", a_type(&ty)),
                )
                .also(inner.span, a_type(&ty))
                .help(match ty {
                    Type::Str | Type::Version => "ask whether it is empty: `x == \"\"`".to_owned(),
                    _ => format!("`{word}` can't be applied to {}", a_type(&ty)),
                }),
            );
            return Low::wrong();
        }
        match low.expr {
            None => Low::unknown(ty),
            Some(expr) => {
                let expr = match op {
                    UnaryOp::Not => Lowered::Not(Box::new(expr)),
                    UnaryOp::Neg => Lowered::Neg(Box::new(expr)),
                };
                self.fold(ty, expr, span)
            }
        }
    }

    fn binary(&mut self, op: BinaryOp, at: Span, left: &Expr, right: &Expr, scope: &Scope<'_>) -> Low {
        let a = self.expr(left, scope);
        let b = self.expr(right, scope);
        let (Some(left_ty), Some(right_ty)) = (&a.ty, &b.ty) else { return Low::wrong() };
        let span = left.span.to(right.span);
        let op = model_op(op);
        if op == Op::Matches
            && let Some(Value::Str(pattern)) = b.known()
            && !self.regex(pattern, right.span)
        {
            return Low::wrong();
        }
        let Some(ty) = result_type(op, left_ty, right_ty) else {
            self.bad_operation(op, at, (left, left_ty), (right, right_ty));
            return Low::wrong();
        };
        match (a.expr, b.expr) {
            // What is decided by one side alone is decided, whatever the other one is.
            (Some(Lowered::Value(Value::Bool(false))), _) if op == Op::And => Low::value(Value::Bool(false)),
            (Some(Lowered::Value(Value::Bool(true))), _) if op == Op::Or => Low::value(Value::Bool(true)),
            (Some(a), Some(b)) => self.fold(ty, Lowered::Binary(op, Box::new(a), Box::new(b)), span),
            _ => Low::unknown(ty),
        }
    }

    fn bad_operation(&mut self, op: Op, at: Span, left: (&Expr, &Type), right: (&Expr, &Type)) {
        let (a, b) = (left.1, right.1);
        let symbol = op.symbol();
        if *a == Type::Secret || *b == Type::Secret {
            self.report(
                Diagnostic::new(&security::PLAIN_SECRET, at, format!("`{symbol}` would look into a secret"))
                    .also(if *a == Type::Secret { left.0.span } else { right.0.span }, "a secret")
                    .help("a secret may only be passed on; to build a text with it write `\"…${secret}…\"`"),
            );
            return;
        }
        let verb = match op {
            Op::Add => "added",
            Op::Sub => "subtracted",
            Op::Mul => "multiplied",
            Op::Div => "divided",
            Op::Eq | Op::Ne | Op::Lt | Op::Le | Op::Gt | Op::Ge => "compared",
            Op::And | Op::Or => "joined",
            Op::Matches => "matched",
            Op::In => "looked up",
        };
        let mut diag = Diagnostic::new(
            &type_code::BAD_OPERATION,
            at,
            format!("{} and {} can't be {verb} by `{symbol}`", a_type(a), a_type(b)),
        )
        .also(left.0.span, a_type(a))
        .also(right.0.span, a_type(b));
        let bare = |ty: &Type| matches!(ty, Type::Int | Type::Number);
        let unit = |ty: &Type| match ty {
            Type::Percent => Some("%"),
            Type::Duration => Some("s"),
            Type::Size => Some("Mi"),
            _ => None,
        };
        let literal = |expr: &Expr| matches!(expr.kind, ExprKind::Literal(_));
        let missing = match (unit(a), unit(b)) {
            (Some(unit), None) if bare(b) && literal(right.0) => Some((right.0, unit)),
            (None, Some(unit)) if bare(a) && literal(left.0) => Some((left.0, unit)),
            _ => None,
        };
        diag = if let Some((number, unit)) = missing {
            let text = self.slice(number.span).to_owned();
            diag.help(format!("give the number its unit, for instance `{text}{unit}`"))
        } else {
            match op {
                Op::And | Op::Or => {
                    diag.help("both sides must be `true` or `false`: compare them with something")
                }
                Op::Matches => diag.help("`text matches 'pattern'` takes two strings"),
                Op::In => diag.help("`x in list` takes a list of the same type on its right"),
                Op::Add if matches!(a, Type::Str) || matches!(b, Type::Str) => {
                    diag.help("put both into one string: `\"${a}${b}\"`")
                }
                _ => diag.help("both sides must have the same unit"),
            }
        };
        self.report(diag);
    }

    fn branch(&mut self, condition: &Expr, then: &Expr, other: &Expr, scope: &Scope<'_>) -> Low {
        let c = self.expr(condition, scope);
        let a = self.expr(then, scope);
        let b = self.expr(other, scope);
        if let Some(ty) = c.ty.as_ref().filter(|ty| **ty != Type::Bool) {
            self.report(
                Diagnostic::new(
                    &type_code::WRONG_TYPE,
                    condition.span,
                    format!("the condition of an `if` is `true` or `false`, found {}", a_type(ty)),
                )
                .help("compare it with something: `if x == \"y\" then … else …`"),
            );
            return Low::wrong();
        }
        let (Some(_), Some(x), Some(y)) = (&c.ty, &a.ty, &b.ty) else { return Low::wrong() };
        let ty = if fits(x, y) {
            y.clone()
        } else if fits(y, x) {
            x.clone()
        } else {
            self.report(
                Diagnostic::new(
                    &type_code::MIXED,
                    then.span.to(other.span),
                    format!("one branch is {}, the other {}", a_type(x), a_type(y)),
                )
                .also(then.span, a_type(x))
                .also(other.span, a_type(y))
                .help("both branches of an `if` have one type"),
            );
            return Low::wrong();
        };
        match (c.known(), a.expr, b.expr) {
            (Some(Value::Bool(true)), Some(a), _) => Low { ty: Some(ty), expr: Some(a) },
            (Some(Value::Bool(false)), _, Some(b)) => Low { ty: Some(ty), expr: Some(b) },
            (_, Some(a), Some(b)) => match c.expr {
                Some(c) => {
                    Low { ty: Some(ty), expr: Some(Lowered::If(Box::new(c), Box::new(a), Box::new(b))) }
                }
                None => Low::unknown(ty),
            },
            _ => Low::unknown(ty),
        }
    }

    fn call(&mut self, name: &Ident, args: &[Arg], span: Span, scope: &Scope<'_>) -> Low {
        let Some(function) = schema::function(&name.text) else {
            let names: Vec<&str> =
                schema::FUNCTIONS.iter().filter(|f| f.func.is_some()).map(|f| f.name).collect();
            let mut diag = Diagnostic::new(
                &code::UNKNOWN_FUNCTION,
                name.span,
                format!("there is no function `{}`", name.text),
            );
            if let Some(near) = nearest(&name.text, names.iter().copied()) {
                diag = diag.label(format!("did you mean `{near}`?")).suggestion(
                    format!("write `{near}`"),
                    vec![Edit { span: name.span, replacement: near.to_owned() }],
                );
            }
            self.report(diag.help(format!("the functions are {}", one_of(names, 20))));
            for arg in args {
                self.expr(&arg.value, scope);
            }
            return Low::wrong();
        };
        let Some(func) = function.func else {
            self.report(
                Diagnostic::new(&code::NOT_HERE, span, format!("`{}` may not be called here", name.text))
                    .help(format!("`{}`: {}", function.signature, function.doc)),
            );
            return Low::wrong();
        };
        let lows: Vec<Low> = args.iter().map(|arg| self.expr(&arg.value, scope)).collect();
        if let Some(named) = args.iter().find_map(|arg| arg.name.as_ref()) {
            self.report(
                Diagnostic::new(
                    &type_code::BAD_ARGUMENTS,
                    named.span,
                    format!("`{}` has no argument named `{}`", name.text, named.text),
                )
                .help(format!("it is called `{}`", function.signature)),
            );
            return Low::wrong();
        }
        if args.len() < function.arity.0 || args.len() > function.arity.1 {
            let wanted = if function.arity.0 == function.arity.1 {
                format!("{}", function.arity.0)
            } else {
                format!("at least {}", function.arity.0)
            };
            self.report(
                Diagnostic::new(
                    &type_code::BAD_ARGUMENTS,
                    span,
                    format!("`{}` takes {wanted} arguments, found {}", name.text, args.len()),
                )
                .help(format!("it is called `{}`", function.signature)),
            );
            return Low::wrong();
        }
        let Some(types) = lows.iter().map(|low| low.ty.clone()).collect::<Option<Vec<_>>>() else {
            return Low::wrong();
        };
        let Some(ty) = call_type(func, &types) else {
            let found: Vec<String> = types.iter().map(ToString::to_string).collect();
            self.report(
                Diagnostic::new(
                    &type_code::BAD_ARGUMENTS,
                    span,
                    format!("`{}` does not take ({})", name.text, found.join(", ")),
                )
                .help(format!("it is called `{}`. {}", function.signature, function.doc)),
            );
            return Low::wrong();
        };
        match lows.into_iter().map(|low| low.expr).collect::<Option<Vec<_>>>() {
            Some(args) => self.fold(ty, Lowered::Call(func, args), span),
            None => Low::unknown(ty),
        }
    }

    /// Whether the pattern is one; says so if not.
    pub(crate) fn regex(&mut self, pattern: &str, span: Span) -> bool {
        if self.good_patterns.contains(pattern) {
            return true;
        }
        match regex::RegexBuilder::new(pattern).size_limit(1 << 20).build() {
            Ok(_) => {
                self.good_patterns.insert(pattern.to_owned());
                true
            }
            Err(error) => {
                let text = error.to_string();
                let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                self.report(
                    Diagnostic::new(
                        &value_code::BAD_REGEX,
                        span,
                        format!("this is not a regular expression: {why}"),
                    )
                    .help(
                        "the syntax is that of RE2; a character with a meaning of its own is written `\\.`",
                    ),
                );
                false
            }
        }
    }
}

/// Fields of a service that expressions may read.
pub(crate) const SERVICE_FIELDS: &[&str] = &["name", "image", "version", "port", "replicas", "host"];

/// One stage of a matrix, or the only one.
pub(crate) enum Expanded {
    /// A diagnostic was given.
    Wrong,
    /// It is a matrix, and nothing says which.
    NotChosen,
    /// Not known without inputs.
    Unknown,
    /// This one.
    Node(NodeId),
}

/// The type of a call, or `None` if the function does not take these types.
fn call_type(func: Func, types: &[Type]) -> Option<Type> {
    let text = |ty: &Type| matches!(ty, Type::Str | Type::Version);
    let plain = |ty: &Type| matches!(ty, Type::Int | Type::Number);
    match (func, types) {
        (Func::Min | Func::Max, [first, rest @ ..]) => {
            let mut ty = first.clone();
            if !(plain(&ty) || matches!(ty, Type::Percent | Type::Duration | Type::Size) || text(&ty)) {
                return None;
            }
            for other in rest {
                result_type(Op::Lt, &ty, other)?;
                if *other == Type::Number {
                    ty = Type::Number;
                }
            }
            Some(ty)
        }
        (Func::Abs, [ty]) => {
            (plain(ty) || matches!(ty, Type::Percent | Type::Duration | Type::Size)).then(|| ty.clone())
        }
        (Func::Floor | Func::Ceil | Func::Round, [ty]) => plain(ty).then_some(Type::Int),
        (Func::Length, [ty]) => (text(ty) || matches!(ty, Type::List(_) | Type::Map(_))).then_some(Type::Int),
        (Func::Lower | Func::Upper | Func::Trim, [ty]) => text(ty).then_some(Type::Str),
        (Func::Replace, [a, b, c]) => (text(a) && text(b) && text(c)).then_some(Type::Str),
        (Func::Split, [a, b]) => (text(a) && text(b)).then(|| Type::List(Box::new(Type::Str))),
        (Func::Join, [Type::List(_), between]) => text(between).then_some(Type::Str),
        (Func::StartsWith | Func::EndsWith, [a, b]) => (text(a) && text(b)).then_some(Type::Bool),
        (Func::Base64Decode, [Type::Secret]) => Some(Type::Secret),
        _ => None,
    }
}

fn model_op(op: BinaryOp) -> Op {
    match op {
        BinaryOp::Or => Op::Or,
        BinaryOp::And => Op::And,
        BinaryOp::Eq => Op::Eq,
        BinaryOp::Ne => Op::Ne,
        BinaryOp::Lt => Op::Lt,
        BinaryOp::Le => Op::Le,
        BinaryOp::Gt => Op::Gt,
        BinaryOp::Ge => Op::Ge,
        BinaryOp::Matches => Op::Matches,
        BinaryOp::In => Op::In,
        BinaryOp::Add => Op::Add,
        BinaryOp::Sub => Op::Sub,
        BinaryOp::Mul => Op::Mul,
        BinaryOp::Div => Op::Div,
    }
}

#[allow(clippy::cast_precision_loss, reason = "durations stay far below 2^53 milliseconds")]
fn literal_value(literal: Literal) -> Value {
    match literal {
        Literal::Bool(b) => Value::Bool(b),
        Literal::Int(n) => Value::Int(n),
        Literal::Number(n) => Value::Number(n),
        Literal::Percent(n) => Value::Percent(n),
        Literal::DurationMs(ms) => Value::Duration(ms as f64),
        Literal::SizeBytes(bytes) => Value::Size(bytes),
    }
}
