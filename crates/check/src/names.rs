//! What the pipeline declares, by name, and what of it was used.

use crate::codes::names as code;
use crate::schema::{Names, SPECIAL_WORDS};
use crate::structure::{Block, declares};
use cdpipe_model::value::Type;
use cdpipe_syntax::Diagnostic;
use cdpipe_syntax::tree::TypeExpr;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Names that expressions know already.
const BUILT_IN_ROOTS: &[&str] = &[
    "git",
    "pipeline",
    "run",
    "environment",
    "stage",
    "candidate",
    "stable",
    "baseline",
    "reason",
    "ready",
    "failed",
];

/// All declarations of all files.
#[derive(Debug, Default)]
pub(crate) struct Declared<'b> {
    /// By the group in which names must differ, and by name.
    table: HashMap<Names, HashMap<&'b str, Declaration<'b>>>,
    /// Parameters in order of declaration.
    pub(crate) params: Vec<&'b Block<'b>>,
    /// Types of parameters.
    pub(crate) param_types: HashMap<&'b str, Type>,
    /// Stages and gates in order of declaration.
    pub(crate) nodes: Vec<&'b Block<'b>>,
    /// Metrics by their own name: the blocks they stand in.
    pub(crate) metric_blocks: HashMap<&'b str, Vec<&'b str>>,
    /// Units of metrics, by block and name.
    pub(crate) metric_units: HashMap<(&'b str, &'b str), Type>,
}

/// One declaration.
#[derive(Debug)]
struct Declaration<'b> {
    names: Names,
    block: &'b Block<'b>,
    /// Number of a stage or gate.
    node: usize,
    used: bool,
}

/// The group in which names of this kind must differ.
fn space(names: Names) -> Names {
    match names {
        Names::Stage | Names::Gate => Names::Node,
        Names::Secret | Names::Service => Names::Param,
        other => other,
    }
}

impl Declaration<'_> {
    /// Whether it is of this kind; a stage and a gate are both nodes.
    fn is(&self, names: Names) -> bool {
        self.names == names || (names == Names::Node && space(self.names) == Names::Node)
    }
}

impl<'b> Declared<'b> {
    /// Collects declarations; tells of names that are there twice or taken.
    pub(crate) fn collect(tops: impl Iterator<Item = &'b Block<'b>>, diags: &mut Vec<Diagnostic>) -> Self {
        let mut found = Self::default();
        for block in tops {
            let Some(names) = declares(block.spec) else { continue };
            let Some((name, span)) = &block.name else { continue };
            let name = name.as_ref();
            if SPECIAL_WORDS.contains(&name)
                || (matches!(names, Names::Param | Names::Secret | Names::Service)
                    && BUILT_IN_ROOTS.contains(&name))
            {
                diags.push(
                    Diagnostic::new(
                        &code::RESERVED_NAME,
                        *span,
                        format!("`{name}` has a meaning in the language and can't name {}", names.a_noun()),
                    )
                    .help(format!("choose another name, for instance `my_{name}`")),
                );
                continue;
            }
            match found.table.entry(space(names)).or_default().entry(name) {
                Entry::Occupied(first) => {
                    diags.push(
                        Diagnostic::new(&code::DUPLICATE_NAME, *span, format!("`{name}` is declared twice"))
                            .label("again here")
                            .also(first.get().block.name_span(), "first here")
                            .help("rename one of them, or remove it"),
                    );
                    continue;
                }
                Entry::Vacant(place) => {
                    place.insert(Declaration { names, block, node: found.nodes.len(), used: false });
                }
            }
            match names {
                Names::Param => found.params.push(block),
                Names::Stage | Names::Gate => found.nodes.push(block),
                Names::Metrics => {
                    for (metric, setting) in &block.inner.open {
                        found.metric_blocks.entry(metric).or_default().push(name);
                        let unit =
                            setting.ty.as_ref().and_then(|ty| plain_type(&ty.name.text)).filter(is_unit);
                        if let Some(unit) = unit {
                            found.metric_units.insert((name, metric), unit);
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// The declaration of this name, which counts as used from now on.
    pub(crate) fn take(&mut self, names: Names, name: &str) -> Option<&'b Block<'b>> {
        let found = self.table.get_mut(&space(names))?.get_mut(name).filter(|found| found.is(names))?;
        found.used = true;
        Some(found.block)
    }

    /// The declaration of this name.
    pub(crate) fn get(&self, names: Names, name: &str) -> Option<&'b Block<'b>> {
        self.declaration(names, name).map(|found| found.block)
    }

    /// Whether anything used it.
    pub(crate) fn is_used(&self, names: Names, name: &str) -> bool {
        self.declaration(names, name).is_some_and(|found| found.used)
    }

    /// All names of this kind, sorted.
    pub(crate) fn all(&self, names: Names) -> Vec<&'b str> {
        let mut all: Vec<_> = self.of(names).map(|found| found.block.name_text()).collect();
        all.sort_unstable();
        all
    }

    /// All declarations of this kind, in no order.
    pub(crate) fn blocks(&self, names: Names) -> Vec<&'b Block<'b>> {
        let mut all: Vec<_> = self.of(names).map(|found| found.block).collect();
        all.sort_by_key(|block| (block.stmt.span.source, block.stmt.span.start));
        all
    }

    /// Number of the stage or gate of this name.
    pub(crate) fn node(&self, name: &str) -> Option<usize> {
        self.declaration(Names::Node, name).map(|found| found.node)
    }

    /// As `node`; it counts as used from now on.
    pub(crate) fn take_node(&mut self, name: &str) -> Option<usize> {
        let found = self.table.get_mut(&Names::Node)?.get_mut(name)?;
        found.used = true;
        Some(found.node)
    }

    fn declaration(&self, names: Names, name: &str) -> Option<&Declaration<'b>> {
        self.table.get(&space(names))?.get(name).filter(|found| found.is(names))
    }

    /// All of this kind, in no order.
    fn of(&self, names: Names) -> impl Iterator<Item = &Declaration<'b>> {
        self.table
            .get(&space(names))
            .into_iter()
            .flat_map(HashMap::values)
            .filter(move |found| found.is(names))
    }

    /// Counts the metrics block as used.
    pub(crate) fn use_metrics(&mut self, block: &str) {
        let _ = self.take(Names::Metrics, block);
    }
}

/// Whether metrics can have this type.
pub(crate) fn is_unit(ty: &Type) -> bool {
    matches!(ty, Type::Percent | Type::Duration | Type::Number | Type::Int | Type::Size)
}

/// A type without arguments.
pub(crate) fn plain_type(name: &str) -> Option<Type> {
    Some(match name {
        "string" => Type::Str,
        "int" => Type::Int,
        "number" => Type::Number,
        "bool" => Type::Bool,
        "percent" => Type::Percent,
        "duration" => Type::Duration,
        "size" => Type::Size,
        "version" => Type::Version,
        _ => return None,
    })
}

/// A type as it was written.
pub(crate) fn read_type(ty: &TypeExpr, diags: &mut Vec<Diagnostic>) -> Option<Type> {
    use crate::codes::types::UNKNOWN_TYPE;
    use crate::suggest::nearest;
    let name = ty.name.text.as_str();
    if let ("list" | "map", [inner]) = (name, ty.args.as_slice()) {
        let inner = Box::new(read_type(inner, diags)?);
        return Some(if name == "list" { Type::List(inner) } else { Type::Map(inner) });
    }
    if let (Some(plain), []) = (plain_type(name), ty.args.as_slice()) {
        return Some(plain);
    }
    const ALL: [&str; 10] =
        ["string", "int", "number", "bool", "percent", "duration", "size", "version", "list", "map"];
    let mut diag = Diagnostic::new(&UNKNOWN_TYPE, ty.span, format!("there is no type `{name}`"));
    if plain_type(name).is_some() {
        diag.message = format!("the type `{name}` takes nothing in parentheses");
    } else if matches!(name, "list" | "map") {
        diag.message = format!("`{name}` needs one type in parentheses");
        diag = diag.help(format!("write `{name}(string)`"));
    } else {
        let here = match name.to_lowercase().as_str() {
            "str" | "text" => Some("string"),
            "integer" | "uint" | "i64" => Some("int"),
            "float" | "double" | "decimal" => Some("number"),
            "boolean" => Some("bool"),
            "percentage" => Some("percent"),
            "time" | "interval" | "timespan" => Some("duration"),
            "bytes" => Some("size"),
            "array" => Some("list"),
            "object" | "dict" => Some("map"),
            other => nearest(other, ALL),
        };
        if let Some(here) = here {
            diag = diag.label(format!("did you mean `{here}`?")).suggestion(
                format!("write `{here}`"),
                vec![cdpipe_syntax::Edit { span: ty.name.span, replacement: here.to_owned() }],
            );
        }
        diag = diag.help(
            "the types are `string int number bool percent duration size version`, `list(T)` and `map(T)`",
        );
    }
    diags.push(diag);
    None
}
