//! What an expression may name, by where it stands.

use cdpipe_model::value::{Type, Value};
use std::collections::HashMap;

/// Parameters that a deploy or a test sets; `None` for a value that is not known yet.
pub(crate) type Sets = HashMap<String, Option<Value>>;

/// A matrix variable.
#[derive(Debug, Clone)]
pub(crate) struct Looped {
    pub(crate) name: String,
    pub(crate) ty: Option<Type>,
    pub(crate) value: Option<Value>,
}

/// Which environment `environment.…` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Around<'s> {
    /// None is known.
    None,
    /// Some one, but not yet which.
    Any,
    /// This one.
    Of(&'s str),
}

/// Where an expression stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Settings of the file: services, environments, parameters.
    File,
    /// A stage's or gate's own settings and steps.
    Step,
    /// A hook of a stage or a gate.
    Hook,
    /// A hook of the file.
    FileHook,
}

/// What an expression may name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'s> {
    pub(crate) place: Place,
    /// The stage or gate around it.
    pub(crate) node: Option<usize>,
    pub(crate) looped: Option<&'s Looped>,
    pub(crate) around: Around<'s>,
    /// `candidate.url` and the like are known.
    pub(crate) candidate: bool,
    /// Measurements are known.
    pub(crate) measures: bool,
    /// Measurements of `candidate`, `stable` and `baseline` are.
    pub(crate) sides: bool,
    pub(crate) sets: Option<&'s Sets>,
    /// Tells scopes with different `sets` apart; 0 without any.
    pub(crate) sets_id: usize,
}

impl Scope<'_> {
    /// A setting of the file.
    pub(crate) fn file() -> Self {
        Scope {
            place: Place::File,
            node: None,
            looped: None,
            around: Around::None,
            candidate: false,
            measures: false,
            sides: false,
            sets: None,
            sets_id: 0,
        }
    }
}
