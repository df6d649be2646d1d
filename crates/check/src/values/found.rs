//! What was found of one statement: its settings and values, by name, with a way to read each.

use super::whole_ms;
use crate::expr::Low;
use cdpipe_model::expr::Expr as Lowered;
use cdpipe_model::strategy::Count;
use cdpipe_model::value::Value;
use cdpipe_syntax::Span;

/// What was found of one setting or value.
#[derive(Debug, Clone, Default)]
pub(crate) struct Got {
    pub(crate) span: Option<Span>,
    /// It lowered; `None` if it is wrong or not known yet.
    pub(crate) expr: Option<Lowered>,
    /// The member of an enum.
    pub(crate) word: Option<&'static str>,
    /// The name of a declared thing.
    pub(crate) name: Option<String>,
}

impl Got {
    pub(crate) fn low(span: Span, low: Low) -> Self {
        Self { span: Some(span), expr: low.expr, ..Self::default() }
    }

    /// The value, if it is known now.
    pub(crate) fn value(&self) -> Option<&Value> {
        self.expr.as_ref().and_then(Lowered::known)
    }
}

/// All that was found of one statement, by setting or label.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) list: Vec<(&'static str, Got)>,
}

impl Found {
    pub(crate) fn get(&self, name: &str) -> Option<&Got> {
        self.list.iter().find(|(found, _)| *found == name).map(|(_, got)| got)
    }

    /// Whether it was written at all.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether everything that was written has a value now. What is about a value that a parameter will bring says nothing yet.
    pub(crate) fn all_known(&self) -> bool {
        self.list.iter().all(|(_, got)| got.value().is_some() || got.word.is_some() || got.name.is_some())
    }

    /// Whether it was written, with a value that is not known yet (or wrong, which is told elsewhere).
    pub(crate) fn is_open(&self, name: &str) -> bool {
        self.has(name) && self.value(name).is_none()
    }

    pub(crate) fn span(&self, name: &str) -> Option<Span> {
        self.get(name).and_then(|got| got.span)
    }

    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.get(name).and_then(Got::value)
    }

    pub(crate) fn expr(&self, name: &str) -> Option<Lowered> {
        self.get(name).and_then(|got| got.expr.clone())
    }

    pub(crate) fn word(&self, name: &str) -> Option<&'static str> {
        self.get(name).and_then(|got| got.word)
    }

    pub(crate) fn name(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|got| got.name.as_deref())
    }

    pub(crate) fn ms(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::Duration(ms) => Some(whole_ms(*ms)),
            _ => None,
        }
    }

    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        match self.value(name)? {
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    pub(crate) fn count_u32(&self, name: &str) -> Option<u32> {
        self.int(name).and_then(|n| u32::try_from(n).ok())
    }

    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        match self.value(name)? {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::Str(text) => Some(text.clone()),
            _ => None,
        }
    }

    pub(crate) fn texts(&self, name: &str) -> Option<Vec<String>> {
        match self.value(name)? {
            Value::List(items) => Some(items.iter().map(Value::to_string).collect()),
            _ => None,
        }
    }

    pub(crate) fn count(&self, name: &str) -> Option<Count> {
        match self.value(name)? {
            Value::Int(n) => Some(Count::Instances(u32::try_from(*n).unwrap_or(u32::MAX))),
            Value::Percent(share) => Some(Count::Percent(*share)),
            _ => None,
        }
    }

    pub(crate) fn percent(&self, name: &str) -> Option<f64> {
        match self.value(name)? {
            Value::Percent(share) => Some(*share),
            _ => None,
        }
    }
}
