//! Expressions as they stand in a plan: typed, with everything known at planning time already folded into values. What is left are
//! symbols for what is known only later (an output, a measurement), and evaluation is a pure function of those.
//!
//! The rules of which operator takes which types are here once; the checker asks `result_type`, evaluation follows the same table.

mod eval;
mod version;

pub use eval::EvalError;

use crate::id::NodeId;
use crate::value::{Type, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// An expression of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expr {
    /// Known now.
    Value(Value),
    /// Known later.
    Symbol(Symbol),
    /// `not x`.
    Not(Box<Expr>),
    /// `-x`.
    Neg(Box<Expr>),
    /// `a op b`.
    Binary(Op, Box<Expr>, Box<Expr>),
    /// `if c then a else b`.
    If(Box<Expr>, Box<Expr>, Box<Expr>),
    /// A function of the language.
    Call(Func, Vec<Expr>),
    /// `base[index]`.
    Index(Box<Expr>, Box<Expr>),
    /// `[a, b]`.
    List(Vec<Expr>),
    /// `{ key = value }`.
    Map(BTreeMap<String, Expr>),
    /// `"text ${x}"`: each part is put in as `Value`'s `Display` writes it; a secret part makes the whole a secret text.
    Template(Vec<Expr>),
}

/// Something that is known only while a run goes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Symbol {
    /// `stage.NAME.OUTPUT`: from the last successful attempt.
    Output {
        /// The stage that declares it.
        node: NodeId,
        /// The stage's name, for printing.
        stage: String,
        /// The output's name.
        name: String,
    },
    /// `stage.NAME.outcome`, as a string.
    NodeOutcome {
        /// Whose.
        node: NodeId,
        /// Its name, for printing.
        name: String,
    },
    /// `stage.name` in a pipeline-level hook: the stage that ended last with that outcome.
    StageName,
    /// `pipeline.outcome`, as a string.
    PipelineOutcome,
    /// `reason`: why the hook runs, in one line.
    Reason,
    /// `run.id`.
    RunId,
    /// `candidate.url`, `candidate.host`, `candidate.release`, … of the deploy around it.
    Deploy(Subject, DeployFact),
    /// A measurement.
    Metric(MetricRef),
}

/// Facts about one side of a deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeployFact {
    /// `http://HOST:PORT` of one ready instance.
    Url,
    /// `HOST:PORT` of one ready instance.
    Host,
    /// Release id.
    Release,
    /// Version label.
    Version,
}

/// Of which side something is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The release being brought in.
    Candidate,
    /// The release that serves now; at 100 % its last live window.
    Stable,
    /// What was measured on stable before the deploy began.
    Baseline,
    /// The whole service.
    Service,
}

impl Subject {
    /// The word of the language.
    pub fn as_str(self) -> &'static str {
        match self {
            Subject::Candidate => "candidate",
            Subject::Stable => "stable",
            Subject::Baseline => "baseline",
            Subject::Service => "service",
        }
    }
}

/// A measurement that a rule names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MetricRef {
    /// Of which side.
    pub subject: Subject,
    /// What.
    pub measure: MeasureName,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeasureName {
    /// `ready`: the share of wanted instances that are ready, in percent. Always there.
    Ready,
    /// `failed`: instances that are not running. Always there.
    Failed,
    /// `candidate.requests`: requests in the last interval. Always there where a router counts them.
    Requests,
    /// A metric of a `metrics` block.
    Named {
        /// The block.
        set: String,
        /// The metric in it.
        name: String,
    },
}

impl fmt::Display for MetricRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.subject != Subject::Service {
            write!(f, "{}.", self.subject.as_str())?;
        }
        match &self.measure {
            MeasureName::Ready => f.write_str("ready"),
            MeasureName::Failed => f.write_str("failed"),
            MeasureName::Requests => f.write_str("requests"),
            MeasureName::Named { name, .. } => f.write_str(name),
        }
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Symbol::Output { stage, name, .. } => write!(f, "{stage}.{name}"),
            Symbol::NodeOutcome { name, .. } => write!(f, "{name}.outcome"),
            Symbol::StageName => f.write_str("stage.name"),
            Symbol::PipelineOutcome => f.write_str("pipeline.outcome"),
            Symbol::Reason => f.write_str("reason"),
            Symbol::RunId => f.write_str("run.id"),
            Symbol::Deploy(subject, fact) => {
                let fact = match fact {
                    DeployFact::Url => "url",
                    DeployFact::Host => "host",
                    DeployFact::Release => "release",
                    DeployFact::Version => "version",
                };
                write!(f, "{}.{fact}", subject.as_str())
            }
            Symbol::Metric(metric) => write!(f, "{metric}"),
        }
    }
}

/// Operators between two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "`symbol` gives the spelling")]
pub enum Op {
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

impl Op {
    /// As it is written.
    pub fn symbol(self) -> &'static str {
        match self {
            Op::Or => "or",
            Op::And => "and",
            Op::Eq => "==",
            Op::Ne => "!=",
            Op::Lt => "<",
            Op::Le => "<=",
            Op::Gt => ">",
            Op::Ge => ">=",
            Op::Matches => "matches",
            Op::In => "in",
            Op::Add => "+",
            Op::Sub => "-",
            Op::Mul => "*",
            Op::Div => "/",
        }
    }
}

/// Functions that plans may call. Their signatures and documentation are in the checker's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is the word of the language")]
pub enum Func {
    Min,
    Max,
    Abs,
    Floor,
    Ceil,
    Round,
    Length,
    Lower,
    Upper,
    Trim,
    Replace,
    Split,
    Join,
    StartsWith,
    EndsWith,
    Base64Decode,
}

impl Func {
    /// All of them.
    pub const ALL: [Func; 16] = [
        Func::Min,
        Func::Max,
        Func::Abs,
        Func::Floor,
        Func::Ceil,
        Func::Round,
        Func::Length,
        Func::Lower,
        Func::Upper,
        Func::Trim,
        Func::Replace,
        Func::Split,
        Func::Join,
        Func::StartsWith,
        Func::EndsWith,
        Func::Base64Decode,
    ];

    /// The word of the language.
    pub fn name(self) -> &'static str {
        match self {
            Func::Min => "min",
            Func::Max => "max",
            Func::Abs => "abs",
            Func::Floor => "floor",
            Func::Ceil => "ceil",
            Func::Round => "round",
            Func::Length => "length",
            Func::Lower => "lower",
            Func::Upper => "upper",
            Func::Trim => "trim",
            Func::Replace => "replace",
            Func::Split => "split",
            Func::Join => "join",
            Func::StartsWith => "starts_with",
            Func::EndsWith => "ends_with",
            Func::Base64Decode => "base64_decode",
        }
    }
}

/// The type of `left op right`, or `None` if the operator does not take these types.
pub fn result_type(op: Op, left: &Type, right: &Type) -> Option<Type> {
    use Type::{Bool, Duration, Int, List, Map, Number, Percent, Size, Str, Version};
    let numeric = |ty: &Type| matches!(ty, Int | Number);
    let united = |ty: &Type| matches!(ty, Percent | Duration | Size);
    let textual = |ty: &Type| matches!(ty, Str | Version);
    match op {
        Op::Or | Op::And => (*left == Bool && *right == Bool).then_some(Bool),
        Op::Eq | Op::Ne => {
            let same = left == right
                || (numeric(left) && numeric(right))
                || (textual(left) && textual(right))
                || matches!((left, right), (List(_), List(_)) | (Map(_), Map(_)));
            (same && *left != Type::Secret).then_some(Bool)
        }
        Op::Lt | Op::Le | Op::Gt | Op::Ge => {
            let ordered = (numeric(left) && numeric(right))
                || (united(left) && left == right)
                || (textual(left) && textual(right));
            ordered.then_some(Bool)
        }
        Op::Matches => (textual(left) && textual(right)).then_some(Bool),
        Op::In => match right {
            List(item) => result_type(Op::Eq, left, item),
            Map(_) => textual(left).then_some(Bool),
            _ => None,
        },
        Op::Add | Op::Sub => match (left, right) {
            (Int, Int) => Some(Int),
            (l, r) if numeric(l) && numeric(r) => Some(Number),
            (l, r) if united(l) && l == r => Some(l.clone()),
            (l, r) if op == Op::Add && textual(l) && textual(r) => Some(Str),
            (List(l), List(r)) if op == Op::Add && l == r => Some(left.clone()),
            _ => None,
        },
        Op::Mul => match (left, right) {
            (Int, Int) => Some(Int),
            (l, r) if numeric(l) && numeric(r) => Some(Number),
            (l, r) if united(l) && numeric(r) => Some(l.clone()),
            (l, r) if numeric(l) && united(r) => Some(r.clone()),
            _ => None,
        },
        Op::Div => match (left, right) {
            (l, r) if numeric(l) && numeric(r) => Some(Number),
            (l, r) if united(l) && numeric(r) => Some(l.clone()),
            (l, r) if united(l) && l == r => Some(Number),
            _ => None,
        },
    }
}

impl Expr {
    /// A plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Expr::Value(Value::Str(text.into()))
    }

    /// The value, if it is known now.
    pub fn known(&self) -> Option<&Value> {
        match self {
            Expr::Value(value) => Some(value),
            _ => None,
        }
    }

    /// Calls `visit` with each symbol in it, in source order.
    pub fn symbols(&self, visit: &mut dyn FnMut(&Symbol)) {
        match self {
            Expr::Value(_) => {}
            Expr::Symbol(symbol) => visit(symbol),
            Expr::Not(x) | Expr::Neg(x) => x.symbols(visit),
            Expr::Binary(_, a, b) | Expr::Index(a, b) => {
                a.symbols(visit);
                b.symbols(visit);
            }
            Expr::If(c, a, b) => {
                c.symbols(visit);
                a.symbols(visit);
                b.symbols(visit);
            }
            Expr::Call(_, items) | Expr::List(items) | Expr::Template(items) => {
                items.iter().for_each(|item| item.symbols(visit));
            }
            Expr::Map(items) => items.values().for_each(|item| item.symbols(visit)),
        }
    }
}

/// As a person reads it in a plan: values as the language writes them, what is known later as `<symbol>`.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Value(Value::Str(text)) => write!(f, "{text:?}"),
            Expr::Value(value) => write!(f, "{value}"),
            Expr::Symbol(symbol @ Symbol::Metric(_)) => write!(f, "{symbol}"),
            Expr::Symbol(symbol) => write!(f, "<{symbol}>"),
            Expr::Not(x) => write!(f, "not {x}"),
            Expr::Neg(x) => write!(f, "-{x}"),
            Expr::Binary(op, a, b) => write!(f, "{a} {} {b}", op.symbol()),
            Expr::If(c, a, b) => write!(f, "if {c} then {a} else {b}"),
            Expr::Call(func, args) => {
                write!(f, "{}(", func.name())?;
                write_list(f, args)?;
                f.write_str(")")
            }
            Expr::Index(base, index) => write!(f, "{base}[{index}]"),
            Expr::List(items) => {
                f.write_str("[")?;
                write_list(f, items)?;
                f.write_str("]")
            }
            Expr::Map(items) => {
                f.write_str("{")?;
                for (at, (key, item)) in items.iter().enumerate() {
                    write!(f, "{}{key} = {item}", if at > 0 { ", " } else { " " })?;
                }
                f.write_str(" }")
            }
            Expr::Template(parts) => {
                f.write_str("\"")?;
                for part in parts {
                    match part {
                        Expr::Value(value) => write!(f, "{value}")?,
                        other => write!(f, "{other}")?,
                    }
                }
                f.write_str("\"")
            }
        }
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, items: &[Expr]) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}
