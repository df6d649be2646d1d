//! Evaluation: a pure function of an expression and of what its symbols are.

use super::{Expr, Func, Op, Symbol, result_type, version};
use crate::secret::{SecretPart, SecretText};
use crate::value::{Type, Value};
use std::fmt;

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq)]
pub enum EvalError {
    /// This symbol has no value (yet): an output that was not written, a measurement without data.
    Unknown(Symbol),
    /// The operation has no result for these values; one sentence without a full stop.
    Invalid(String),
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvalError::Unknown(symbol) => write!(f, "`{symbol}` has no value"),
            EvalError::Invalid(text) => f.write_str(text),
        }
    }
}

impl Expr {
    /// The value, with `lookup` answering what each symbol is.
    ///
    /// `and`, `or` and `if` look only at what they need, so a symbol without a value does no harm in the branch not taken.
    ///
    /// # Errors
    /// `Unknown` for a symbol without a value; `Invalid` for an operation that has no result (a division by zero, an index past
    /// the end, a type the checker would have refused).
    pub fn eval(&self, lookup: &dyn Fn(&Symbol) -> Option<Value>) -> Result<Value, EvalError> {
        match self {
            Expr::Value(value) => Ok(value.clone()),
            Expr::Symbol(symbol) => lookup(symbol).ok_or_else(|| EvalError::Unknown(symbol.clone())),
            Expr::Not(x) => Ok(Value::Bool(!x.eval_bool(lookup)?)),
            Expr::Neg(x) => negate(x.eval(lookup)?),
            Expr::Binary(Op::And, a, b) => Ok(Value::Bool(a.eval_bool(lookup)? && b.eval_bool(lookup)?)),
            Expr::Binary(Op::Or, a, b) => Ok(Value::Bool(a.eval_bool(lookup)? || b.eval_bool(lookup)?)),
            Expr::Binary(op, a, b) => binary(*op, &a.eval(lookup)?, &b.eval(lookup)?),
            Expr::If(c, a, b) => {
                if c.eval_bool(lookup)? {
                    a.eval(lookup)
                } else {
                    b.eval(lookup)
                }
            }
            Expr::Call(func, args) => {
                let args = args.iter().map(|arg| arg.eval(lookup)).collect::<Result<Vec<_>, _>>()?;
                call(*func, args)
            }
            Expr::Index(base, index) => index_into(&base.eval(lookup)?, &index.eval(lookup)?),
            Expr::List(items) => {
                Ok(Value::List(items.iter().map(|item| item.eval(lookup)).collect::<Result<_, _>>()?))
            }
            Expr::Map(items) => Ok(Value::Map(
                items
                    .iter()
                    .map(|(key, item)| Ok((key.clone(), item.eval(lookup)?)))
                    .collect::<Result<_, EvalError>>()?,
            )),
            Expr::Template(parts) => {
                let parts = parts.iter().map(|part| part.eval(lookup)).collect::<Result<Vec<_>, _>>()?;
                Ok(join_text(parts))
            }
        }
    }

    /// `eval`, and the result is a truth value.
    ///
    /// # Errors
    /// As `eval`, and `Invalid` if it is something else.
    pub fn eval_bool(&self, lookup: &dyn Fn(&Symbol) -> Option<Value>) -> Result<bool, EvalError> {
        match self.eval(lookup)? {
            Value::Bool(b) => Ok(b),
            other => Err(EvalError::Invalid(format!("expected true or false, found {other}"))),
        }
    }

    /// The same expression with everything that is known folded into values.
    #[must_use]
    pub fn fold(self) -> Self {
        let mut late = false;
        self.symbols(&mut |_| late = true);
        if late {
            return self;
        }
        match self.eval(&|_| None) {
            Ok(value) => Expr::Value(value),
            Err(_) => self,
        }
    }
}

fn join_text(parts: Vec<Value>) -> Value {
    if !parts.iter().any(|part| matches!(part, Value::Secret(_))) {
        return Value::Str(parts.iter().map(Value::to_string).collect());
    }
    let mut pieces = Vec::new();
    for part in parts {
        match part {
            Value::Secret(SecretText(inner)) => pieces.extend(inner),
            other => pieces.push(SecretPart::Text(other.to_string())),
        }
    }
    Value::Secret(SecretText(pieces))
}

fn invalid<T>(text: impl Into<String>) -> Result<T, EvalError> {
    Err(EvalError::Invalid(text.into()))
}

fn negate(value: Value) -> Result<Value, EvalError> {
    match value {
        Value::Int(n) => {
            n.checked_neg().map_or_else(|| invalid("the number is too large"), |n| Ok(Value::Int(n)))
        }
        Value::Number(n) => Ok(Value::Number(-n)),
        Value::Percent(n) => Ok(Value::Percent(-n)),
        Value::Duration(n) => Ok(Value::Duration(-n)),
        other => invalid(format!("{other} cannot be negated")),
    }
}

fn binary(op: Op, a: &Value, b: &Value) -> Result<Value, EvalError> {
    match op {
        Op::Or | Op::And => invalid("expected true or false on both sides"),
        Op::Eq => Ok(Value::Bool(equal(a, b))),
        Op::Ne => Ok(Value::Bool(!equal(a, b))),
        Op::Lt | Op::Le | Op::Gt | Op::Ge => {
            let Some(order) = compare(a, b) else { return invalid(format!("{a} and {b} have no order")) };
            Ok(Value::Bool(match op {
                Op::Lt => order.is_lt(),
                Op::Le => order.is_le(),
                Op::Gt => order.is_gt(),
                _ => order.is_ge(),
            }))
        }
        Op::Matches => match (a, b) {
            (Value::Str(text), Value::Str(pattern)) => match regex::Regex::new(pattern) {
                Ok(regex) => Ok(Value::Bool(regex.is_match(text))),
                Err(error) => {
                    invalid(format!("the pattern {pattern:?} is not a regular expression: {error}"))
                }
            },
            _ => invalid("`matches` takes two strings"),
        },
        Op::In => match b {
            Value::List(items) => Ok(Value::Bool(items.iter().any(|item| equal(a, item)))),
            Value::Map(items) => Ok(Value::Bool(a.as_str().is_some_and(|key| items.contains_key(key)))),
            _ => invalid("`in` takes a list or a map on its right"),
        },
        Op::Add | Op::Sub | Op::Mul | Op::Div => arithmetic(op, a, b),
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Int(_) | Value::Number(_), Value::Int(_) | Value::Number(_)) => {
            a.magnitude() == b.magnitude()
        }
        (Value::List(x), Value::List(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| equal(x, y)),
        (Value::Map(x), Value::Map(y)) => {
            x.len() == y.len()
                && x.iter().all(|(key, value)| y.get(key).is_some_and(|other| equal(value, other)))
        }
        _ => a == b,
    }
}

fn compare(a: &Value, b: &Value) -> Option<std::cmp::Ordering> {
    match (a, b) {
        (Value::Int(x), Value::Int(y)) => Some(x.cmp(y)),
        (Value::Size(x), Value::Size(y)) => Some(x.cmp(y)),
        (Value::Str(x), Value::Str(y)) => Some(version::compare(x, y)),
        (Value::Int(_) | Value::Number(_), Value::Int(_) | Value::Number(_))
        | (Value::Percent(_), Value::Percent(_))
        | (Value::Duration(_), Value::Duration(_)) => a.magnitude()?.partial_cmp(&b.magnitude()?),
        _ => None,
    }
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are computed in f64 and checked to be in range before they become whole again"
)]
fn arithmetic(op: Op, a: &Value, b: &Value) -> Result<Value, EvalError> {
    if let (Value::Str(x), Value::Str(y), Op::Add) = (a, b, op) {
        return Ok(Value::Str(format!("{x}{y}")));
    }
    if let (Value::List(x), Value::List(y), Op::Add) = (a, b, op) {
        return Ok(Value::List(x.iter().chain(y).cloned().collect()));
    }
    if let (Value::Int(x), Value::Int(y)) = (a, b) {
        let whole = match op {
            Op::Add => x.checked_add(*y),
            Op::Sub => x.checked_sub(*y),
            Op::Mul => x.checked_mul(*y),
            _ => return divide(*x as f64, *y as f64).map(Value::Number),
        };
        return whole
            .map_or_else(|| invalid(format!("{x} {} {y} is too large", op.symbol())), |n| Ok(Value::Int(n)));
    }
    let Some(ty) = result_type(op, &a.ty(), &b.ty()) else {
        return invalid(format!("{} {} {} has no meaning", a.ty(), op.symbol(), b.ty()));
    };
    let (Some(x), Some(y)) = (a.magnitude(), b.magnitude()) else {
        return invalid(format!("{} {} {} has no meaning", a.ty(), op.symbol(), b.ty()));
    };
    let result = match op {
        Op::Add => x + y,
        Op::Sub => x - y,
        Op::Mul => x * y,
        _ => divide(x, y)?,
    };
    if !result.is_finite() {
        return invalid(format!("{a} {} {b} is not a number", op.symbol()));
    }
    match ty {
        Type::Percent => Ok(Value::Percent(result)),
        Type::Duration => Ok(Value::Duration(result)),
        Type::Size if result >= 0.0 && result < u64::MAX as f64 => Ok(Value::Size(result.round() as u64)),
        Type::Size => invalid(format!("{a} {} {b} is not a size", op.symbol())),
        _ => Ok(Value::Number(result)),
    }
}

fn divide(x: f64, y: f64) -> Result<f64, EvalError> {
    if y == 0.0 { invalid("division by zero") } else { Ok(x / y) }
}

fn index_into(base: &Value, index: &Value) -> Result<Value, EvalError> {
    match (base, index) {
        (Value::List(items), Value::Int(at)) => usize::try_from(*at)
            .ok()
            .and_then(|at| items.get(at))
            .cloned()
            .map_or_else(|| invalid(format!("index {at} is outside a list of {}", items.len())), Ok),
        (Value::Map(items), Value::Str(key)) => {
            items.get(key).cloned().map_or_else(|| invalid(format!("the map has no key {key:?}")), Ok)
        }
        _ => invalid(format!("{} cannot be indexed by {}", base.ty(), index.ty())),
    }
}

fn call(func: Func, args: Vec<Value>) -> Result<Value, EvalError> {
    match (func, args.as_slice()) {
        (Func::Min | Func::Max, [first, rest @ ..]) => {
            let mut best = first.clone();
            for other in rest {
                let Some(order) = compare(other, &best) else {
                    return invalid(format!("{other} and {best} have no order"));
                };
                if (func == Func::Min && order.is_lt()) || (func == Func::Max && order.is_gt()) {
                    best = other.clone();
                }
            }
            Ok(best)
        }
        (Func::Abs, [value]) => match value.magnitude() {
            Some(n) if n < 0.0 => negate(value.clone()),
            Some(_) => Ok(value.clone()),
            None => invalid("`abs` takes a number"),
        },
        (Func::Floor | Func::Ceil | Func::Round, [value]) => match value {
            Value::Int(n) => Ok(Value::Int(*n)),
            Value::Number(n) => {
                let whole = match func {
                    Func::Floor => n.floor(),
                    Func::Ceil => n.ceil(),
                    _ => n.round(),
                };
                if whole.abs() < 9.0e15 {
                    #[allow(clippy::cast_possible_truncation, reason = "checked to be in range")]
                    Ok(Value::Int(whole as i64))
                } else {
                    invalid(format!("{n} is too large for a whole number"))
                }
            }
            _ => invalid(format!("`{}` takes a number without a unit", func.name())),
        },
        (Func::Length, [value]) => {
            let length = match value {
                Value::Str(text) => text.chars().count(),
                Value::List(items) => items.len(),
                Value::Map(items) => items.len(),
                _ => return invalid("`length` takes a string, a list or a map"),
            };
            Ok(Value::Int(i64::try_from(length).unwrap_or(i64::MAX)))
        }
        (Func::Lower, [Value::Str(text)]) => Ok(Value::Str(text.to_lowercase())),
        (Func::Upper, [Value::Str(text)]) => Ok(Value::Str(text.to_uppercase())),
        (Func::Trim, [Value::Str(text)]) => Ok(Value::Str(text.trim().to_owned())),
        (Func::Replace, [Value::Str(text), Value::Str(from), Value::Str(to)]) => {
            Ok(Value::Str(text.replace(from.as_str(), to)))
        }
        (Func::Split, [Value::Str(text), Value::Str(at)]) => {
            Ok(Value::List(text.split(at.as_str()).map(|part| Value::Str(part.to_owned())).collect()))
        }
        (Func::Join, [Value::List(items), Value::Str(with)]) => {
            Ok(Value::Str(items.iter().map(Value::to_string).collect::<Vec<_>>().join(with)))
        }
        (Func::StartsWith, [Value::Str(text), Value::Str(start)]) => {
            Ok(Value::Bool(text.starts_with(start.as_str())))
        }
        (Func::EndsWith, [Value::Str(text), Value::Str(end)]) => {
            Ok(Value::Bool(text.ends_with(end.as_str())))
        }
        (Func::Base64Decode, [Value::Secret(SecretText(parts))]) => match parts.as_slice() {
            [SecretPart::Secret(name)] => {
                Ok(Value::Secret(SecretText(vec![SecretPart::Base64(name.clone())])))
            }
            _ => invalid("`base64_decode` takes one whole secret"),
        },
        _ => invalid(format!("`{}` does not take these arguments", func.name())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(expr: Expr) -> Result<Value, EvalError> {
        expr.eval(&|_| None)
    }

    fn bin(op: Op, a: Value, b: Value) -> Expr {
        Expr::Binary(op, Box::new(Expr::Value(a)), Box::new(Expr::Value(b)))
    }

    #[test]
    fn units_carry_through_arithmetic() {
        assert_eq!(value(bin(Op::Mul, Value::Int(2), Value::Percent(1.5))), Ok(Value::Percent(3.0)));
        assert_eq!(
            value(bin(Op::Div, Value::Duration(500.0), Value::Duration(250.0))),
            Ok(Value::Number(2.0))
        );
        assert!(value(bin(Op::Add, Value::Percent(1.0), Value::Duration(1.0))).is_err());
        assert!(value(bin(Op::Div, Value::Int(1), Value::Int(0))).is_err());
        assert!(value(bin(Op::Mul, Value::Int(i64::MAX), Value::Int(2))).is_err());
    }

    #[test]
    fn versions_order_by_precedence() {
        for (older, newer) in [
            ("v1.9.0", "v1.10.0"),
            ("1.0.0-rc.2", "1.0.0-rc.10"),
            ("1.0.0-rc.1", "1.0.0"),
            ("1.0.0-1", "1.0.0-a"),
        ] {
            assert_eq!(
                value(bin(Op::Lt, Value::Str(older.into()), Value::Str(newer.into()))),
                Ok(Value::Bool(true)),
                "{older} < {newer}"
            );
        }
    }

    #[test]
    fn a_secret_in_a_text_makes_the_text_secret() {
        let token = Value::Secret(SecretText(vec![SecretPart::Secret("token".into())]));
        let text = value(Expr::Template(vec![Expr::text("Bearer "), Expr::Value(token)])).unwrap();
        assert_eq!(text.to_string(), "Bearer <secret token>");
        assert_eq!(text.ty(), Type::Secret);
    }

    #[test]
    fn a_branch_not_taken_needs_no_value() {
        let late = Expr::Symbol(Symbol::Reason);
        let expr =
            Expr::If(Box::new(Expr::Value(Value::Bool(true))), Box::new(Expr::text("x")), Box::new(late));
        assert_eq!(value(expr), Ok(Value::Str("x".into())));
    }

    #[test]
    fn evaluation_follows_the_type_table() {
        let samples = [
            Value::Bool(true),
            Value::Int(3),
            Value::Number(1.5),
            Value::Percent(10.0),
            Value::Duration(1000.0),
            Value::Size(1024),
            Value::Str("a".into()),
        ];
        for op in [Op::Add, Op::Sub, Op::Mul, Op::Div, Op::Lt, Op::Ge] {
            for a in &samples {
                for b in &samples {
                    let expected = result_type(op, &a.ty(), &b.ty());
                    let found = value(bin(op, a.clone(), b.clone())).ok().map(|value| value.ty());
                    // A size minus a larger one has no value though it has a type.
                    if !(expected == Some(Type::Size) && op == Op::Sub) {
                        assert_eq!(found, expected, "{a:?} {} {b:?}", op.symbol());
                    }
                }
            }
        }
    }
}
