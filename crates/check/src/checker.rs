//! What every part of the check shares: declarations, inputs, diagnostics, and what was met on the way and is judged at the end.

use crate::api::GitFacts;
use crate::expr::{Expanded, Low, SERVICE_FIELDS};
use crate::names::Declared;
use crate::schema::{Id, Kind};
use crate::scope::{Around, Scope};
use crate::sources::Sources;
use crate::structure::Block;
use cdpipe_model::expr::{Expr as Lowered, Subject};
use cdpipe_model::id::NodeId;
use cdpipe_model::service::Service;
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, Ident};
use cdpipe_syntax::{Diagnostic, Span};
use std::collections::{HashMap, HashSet};

/// One stage or gate after its matrix was expanded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expansion {
    /// Whether it is a matrix at all.
    pub(crate) is_matrix: bool,
    /// Values with their nodes; without inputs, one node with no value.
    pub(crate) nodes: Vec<(Option<Value>, u32)>,
    /// Type of the variable.
    pub(crate) ty: Option<Type>,
}

/// State of one check or one plan.
pub(crate) struct Checker<'b> {
    pub(crate) sources: &'b Sources,
    pub(crate) names: Declared<'b>,
    /// Values of parameters; `None` while checking without inputs.
    pub(crate) inputs: Option<&'b HashMap<String, Value>>,
    pub(crate) git: Option<&'b GitFacts>,
    pub(crate) pipeline_name: String,
    pub(crate) diags: Vec<Diagnostic>,
    seen: HashSet<(&'static str, Span, String)>,
    pub(crate) good_patterns: HashSet<String>,
    /// By number of the stage or gate.
    pub(crate) expansions: Vec<Expansion>,
    /// (user, used, where): stages that read something of others.
    pub(crate) output_uses: Vec<(usize, usize, Span)>,
    /// (stage, output): outputs that something reads.
    pub(crate) used_outputs: HashSet<(usize, &'b str)>,
    /// (block, metric): metrics that something reads.
    pub(crate) used_metrics: HashSet<(&'b str, &'b str)>,
    /// Uses of `candidate.requests` in the rules being read.
    pub(crate) requests_uses: Vec<Span>,
    /// Uses of metrics by side: (block, metric, where, side).
    pub(crate) side_uses: Vec<(String, String, Span, Subject)>,
    /// (stage, service, environment, where): what is deployed.
    pub(crate) deploys: Vec<(usize, String, String, Span)>,
    /// (stage, environment, where): where manifests are applied.
    pub(crate) applies: Vec<(usize, String, Span)>,
    pub(crate) services: HashMap<(String, String, usize), Service>,
    fields: HashMap<(String, String, String, usize), Low>,
    resolving: Vec<(String, String)>,
    /// Numbers given to sets of overridden parameters.
    pub(crate) sets_ids: usize,
    pub(crate) defaults: crate::build::Defaults,
    /// Diagnostics that must outlive the silent look at a service's setting.
    pub(crate) loud: Vec<Diagnostic>,
    /// Steps of hooks that can't be taken back.
    pub(crate) irreversible_hooks: Vec<Span>,
}

impl<'b> Checker<'b> {
    pub(crate) fn new(
        sources: &'b Sources,
        names: Declared<'b>,
        inputs: Option<&'b HashMap<String, Value>>,
        git: Option<&'b GitFacts>,
        pipeline_name: String,
    ) -> Self {
        Self {
            sources,
            names,
            inputs,
            git,
            pipeline_name,
            diags: Vec::new(),
            seen: HashSet::new(),
            good_patterns: HashSet::new(),
            expansions: Vec::new(),
            output_uses: Vec::new(),
            used_outputs: HashSet::new(),
            used_metrics: HashSet::new(),
            requests_uses: Vec::new(),
            side_uses: Vec::new(),
            deploys: Vec::new(),
            applies: Vec::new(),
            services: HashMap::new(),
            fields: HashMap::new(),
            resolving: Vec::new(),
            sets_ids: 0,
            defaults: crate::build::Defaults::default(),
            loud: Vec::new(),
            irreversible_hooks: Vec::new(),
        }
    }

    /// Whether inputs are there, so that every value must be.
    pub(crate) fn planning(&self) -> bool {
        self.inputs.is_some()
    }

    /// Adds a diagnostic. What is looked at twice (a service in two environments) is told once.
    pub(crate) fn report(&mut self, diag: Diagnostic) {
        if self.seen.insert((diag.code(), diag.primary.span, diag.message.clone())) {
            self.diags.push(diag);
        }
    }

    /// The text that a span covers.
    pub(crate) fn slice(&self, span: Span) -> &'b str {
        self.sources.slice(span)
    }

    /// One setting of a service, as `web.image` reads it.
    pub(crate) fn service_field(
        &mut self,
        service: &'b Block<'b>,
        field: &Ident,
        root: &Ident,
        span: Span,
        scope: &Scope<'_>,
    ) -> Low {
        let name = service.name_text().to_owned();
        if !SERVICE_FIELDS.contains(&field.text.as_str()) {
            let mut diag = Diagnostic::new(
                &crate::codes::names::UNKNOWN_FIELD,
                field.span,
                format!("the service `{}` has no `{}`", root.text, field.text),
            )
            .help(format!("it has {}", crate::suggest::one_of(SERVICE_FIELDS.iter().copied(), 10)));
            if let Some(near) = crate::suggest::nearest(&field.text, SERVICE_FIELDS.iter().copied()) {
                diag = diag.label(format!("did you mean `{near}`?"));
            }
            self.report(diag);
            return Low::wrong();
        }
        if field.text == "name" {
            return Low::value(Value::Str(name));
        }
        let around = match scope.around {
            Around::None => String::new(),
            Around::Any => "*".to_owned(),
            Around::Of(name) => name.to_owned(),
        };
        let key = (name.clone(), field.text.clone(), around, scope.sets_id);
        if let Some(low) = self.fields.get(&key) {
            return low.clone();
        }
        let step = (name.clone(), field.text.clone());
        if self.resolving.contains(&step) {
            self.loud.push(
                Diagnostic::new(
                    &crate::codes::types::NO_VALUE,
                    span,
                    format!("`{name}.{}` is defined by itself", field.text),
                )
                .help("one of the settings on the way must not read the others"),
            );
            return Low::wrong();
        }
        self.resolving.push(step);
        // What is wrong with the setting itself is told where the service is checked, not at each use.
        let outer_diags = std::mem::take(&mut self.diags);
        let outer_seen = std::mem::take(&mut self.seen);
        let inner = Scope { around: scope.around, sets: scope.sets, sets_id: scope.sets_id, ..Scope::file() };
        let low = self.field_of(service, &field.text, &inner);
        let inner_diags = std::mem::replace(&mut self.diags, outer_diags);
        self.seen = outer_seen;
        self.resolving.pop();
        if self.resolving.is_empty() {
            for diag in std::mem::take(&mut self.loud) {
                self.report(diag);
            }
        }
        if scope.around == Around::None
            && inner_diags.iter().any(|diag| diag.code() == crate::codes::names::NOT_HERE.code)
        {
            self.report(
                Diagnostic::new(
                    &crate::codes::values::NEEDS_ENVIRONMENT,
                    span,
                    format!("`{name}.{}` depends on the environment, and none is known here", field.text),
                )
                .help("use it inside `deploy … to ENVIRONMENT { }`, where one is"),
            );
            return Low::wrong();
        }
        self.fields.insert(key, low.clone());
        low
    }

    fn field_of(&mut self, service: &'b Block<'b>, field: &str, scope: &Scope<'_>) -> Low {
        match field {
            "version" => self.service_version(service, scope),
            "host" => {
                let host = service.child(Id::ServiceRoute).and_then(|route| route.setting("host"));
                match host {
                    Some(setting) => self.expr(&setting.value, scope),
                    None => Low::value(Value::Str(String::new())),
                }
            }
            "replicas" => match service.setting("replicas") {
                Some(setting) => self.expr(&setting.value, scope),
                None => Low::value(Value::Int(1)),
            },
            other => match service.setting(other) {
                Some(setting) => self.expr(&setting.value, scope),
                None => {
                    if other == "port" {
                        Low::value(Value::Int(0))
                    } else {
                        Low::value(Value::Str(String::new()))
                    }
                }
            },
        }
    }

    /// The version of a service: its own, else the parameter `version`, else the image's tag.
    pub(crate) fn service_version(&mut self, service: &Block<'_>, scope: &Scope<'_>) -> Low {
        if let Some(setting) = service.setting("version") {
            return self.expr(&setting.value, scope);
        }
        if let Some(low) = self.param("version", scope) {
            return match low.known() {
                Some(value) => Low::value(Value::Str(value.to_string())),
                None => Low { ty: low.ty.map(|_| Type::Str), expr: low.expr },
            };
        }
        let image = service.setting("image").map(|setting| self.expr(&setting.value, scope));
        match image {
            Some(low) => match low.known() {
                Some(Value::Str(text)) => {
                    Low::value(Value::Str(image_tag(text).unwrap_or_default().to_owned()))
                }
                _ => match low.expr {
                    None if low.ty.is_some() => Low::unknown(Type::Str),
                    _ => Low::value(Value::Str(String::new())),
                },
            },
            None => Low::value(Value::Str(String::new())),
        }
    }

    /// Which node of a stage is meant.
    pub(crate) fn expanded(&mut self, index: usize, item: Option<&Expr>, scope: &Scope<'_>) -> Expanded {
        let Some(expansion) = self.expansions.get(index) else { return Expanded::Wrong };
        if let (None, false) = (item, expansion.is_matrix) {
            return expansion.nodes.first().map_or(Expanded::Unknown, |(_, id)| Expanded::Node(NodeId(*id)));
        }
        let expansion = expansion.clone();
        let Some(item) = item else {
            if expansion.is_matrix {
                // A stage of the same matrix that names its own kind means itself.
                if scope.node == Some(index)
                    && let Some(looped) = scope.looped
                {
                    return match &looped.value {
                        Some(value) => expansion
                            .nodes
                            .iter()
                            .find(|(found, _)| found.as_ref() == Some(value))
                            .map_or(Expanded::Wrong, |(_, id)| Expanded::Node(NodeId(*id))),
                        None => Expanded::Unknown,
                    };
                }
                return Expanded::NotChosen;
            }
            return expansion.nodes.first().map_or(Expanded::Unknown, |(_, id)| Expanded::Node(NodeId(*id)));
        };
        if !expansion.is_matrix {
            self.report(
                Diagnostic::new(
                    &crate::codes::names::UNKNOWN_FIELD,
                    item.span,
                    format!("`{}` is no matrix", self.names.nodes[index].name_text()),
                )
                .help("leave the brackets out"),
            );
            return Expanded::Wrong;
        }
        let low = self.expr(item, scope);
        let Some(value) = low.known() else {
            return if low.ty.is_some() { Expanded::Unknown } else { Expanded::Wrong };
        };
        if expansion.nodes.iter().any(|(found, _)| found.is_none()) {
            return Expanded::Unknown;
        }
        match expansion
            .nodes
            .iter()
            .find(|(found, _)| found.as_ref().is_some_and(|found| found.to_string() == value.to_string()))
        {
            Some((_, id)) => Expanded::Node(NodeId(*id)),
            None => {
                let known: Vec<String> = expansion
                    .nodes
                    .iter()
                    .filter_map(|(value, _)| value.as_ref())
                    .map(ToString::to_string)
                    .collect();
                self.report(
                    Diagnostic::new(
                        &crate::codes::names::UNKNOWN_FIELD,
                        item.span,
                        format!("the matrix `{}` has no `{value}`", self.names.nodes[index].name_text()),
                    )
                    .help(format!(
                        "its values are {}",
                        crate::suggest::one_of(known.iter().map(String::as_str), 12)
                    )),
                );
                Expanded::Wrong
            }
        }
    }

    /// Settings of the user's own in the child `id` of a block (`env`, `headers`, `vars`, `labels`).
    pub(crate) fn open_map(
        &mut self,
        block: &Block<'_>,
        id: Id,
        scope: &Scope<'_>,
    ) -> std::collections::BTreeMap<String, Lowered> {
        static SCALAR: Kind = Kind::Scalar;
        let mut map = std::collections::BTreeMap::new();
        let Some(child) = block.child(id) else { return map };
        let kind =
            child.spec.body.body().and_then(|body| body.open.as_ref()).map_or(&SCALAR, |open| &open.kind);
        for (key, setting) in &child.inner.open {
            let got = self.kind(kind, &setting.value, scope, key, true);
            self.credential(key, &setting.value);
            map.insert(key.clone(), got.expr.unwrap_or_else(|| Lowered::text("")));
        }
        map
    }
}

/// The tag of an image reference; `None` if it has none.
pub(crate) fn image_tag(reference: &str) -> Option<&str> {
    let name = reference.split('@').next().unwrap_or_default();
    let last = name.rsplit('/').next().unwrap_or_default();
    last.split_once(':').map(|(_, tag)| tag)
}
