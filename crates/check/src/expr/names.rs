//! What names and dotted paths mean: parameters, secrets, the repository, environments, services.

use super::{Low, SERVICE_FIELDS};
use crate::checker::Checker;
use crate::codes::names as code;
use crate::schema::{Id, Names};
use crate::scope::{Around, Place, Scope};
use crate::suggest::{nearest, one_of};
use cdpipe_model::expr::{Expr as Lowered, MeasureName, MetricRef, Subject, Symbol};
use cdpipe_model::secret::{SecretPart, SecretText};
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, ExprKind, Ident};
use cdpipe_syntax::{Diagnostic, Edit, Span};

impl Checker<'_> {
    pub(crate) fn name(&mut self, name: &Ident, scope: &Scope<'_>) -> Low {
        let text = name.text.as_str();
        if let Some(looped) = scope.looped.filter(|looped| looped.name == text) {
            return Low { ty: looped.ty.clone(), expr: looped.value.clone().map(Lowered::Value) };
        }
        if let Some(low) = self.param(text, scope) {
            return low;
        }
        if self.names.take(Names::Secret, text).is_some() {
            let secret = Value::Secret(SecretText(vec![SecretPart::Secret(text.to_owned())]));
            return Low { ty: Some(Type::Secret), expr: Some(Lowered::Value(secret)) };
        }
        if text == "reason" {
            if matches!(scope.place, Place::Hook | Place::FileHook) {
                return Low::symbol(Type::Str, Symbol::Reason);
            }
            return self.not_here(name.span, "reason", "in a hook (`on failure { … }`)");
        }
        if matches!(text, "ready" | "failed") {
            if scope.measures {
                let (ty, measure) = if text == "ready" {
                    (Type::Percent, MeasureName::Ready)
                } else {
                    (Type::Int, MeasureName::Failed)
                };
                return Low::symbol(ty, Symbol::Metric(MetricRef { subject: Subject::Service, measure }));
            }
            return self.not_here(name.span, text, "in rules and gates, where something is measured");
        }
        if self.names.metric_blocks.contains_key(text) {
            if scope.measures {
                return self.metric(Subject::Service, None, name);
            }
            return self.not_here(name.span, text, "in rules and gates, where something is measured");
        }
        self.unknown_name(name, scope)
    }

    /// The parameter of this name, if there is one.
    pub(crate) fn param(&mut self, text: &str, scope: &Scope<'_>) -> Option<Low> {
        self.names.take(Names::Param, text)?;
        let ty = self.names.param_types.get(text).cloned();
        let value = match scope.sets.and_then(|sets| sets.get(text)) {
            Some(set) => set.clone(),
            None => self.inputs.and_then(|inputs| inputs.get(text).cloned()),
        };
        Some(Low { ty, expr: value.map(Lowered::Value) })
    }

    pub(crate) fn not_here(&mut self, span: Span, name: &str, place: &str) -> Low {
        self.report(
            Diagnostic::new(&code::NOT_HERE, span, format!("`{name}` is not known here"))
                .label(format!("it is known {place}"))
                .help(format!("use it {place}")),
        );
        Low::wrong()
    }

    pub(crate) fn unknown_name(&mut self, name: &Ident, scope: &Scope<'_>) -> Low {
        let text = name.text.as_str();
        let mut known: Vec<&str> = self.names.all(Names::Param);
        known.extend(self.names.all(Names::Secret));
        if scope.measures {
            known.extend(self.names.metric_blocks.keys().copied());
            known.extend(["ready", "failed"]);
        }
        known.sort_unstable();
        if let Some(looped) = scope.looped {
            known.push(&looped.name);
        }
        let mut diag = Diagnostic::new(&code::UNKNOWN_NAME, name.span, format!("there is no `{text}`"));
        let thing = [
            (Names::Service, "`.image`, `.version` or `.name`"),
            (Names::Environment, "nothing; `environment.name` is the one around it"),
            (Names::Node, "`.outcome` or an output, after `stage.`"),
        ]
        .into_iter()
        .find(|(names, _)| {
            if *names == Names::Node {
                self.names.node(text).is_some()
            } else {
                self.names.get(*names, text).is_some()
            }
        });
        if let Some((names, fields)) = thing {
            diag.message = format!("the {} `{text}` is not a value", names.noun());
            diag = diag.help(format!("what can be read of it: {fields}"));
        } else if matches!(
            text,
            "git" | "pipeline" | "run" | "environment" | "stage" | "candidate" | "stable" | "baseline"
        ) {
            diag.message = format!("`{text}` is not a value by itself");
            diag = diag.help(format!("write `{text}.` and what of it: see `cdpipe explain {text}`"));
        } else if let Some(near) = nearest(text, known.iter().copied()) {
            diag = diag
                .label(format!("did you mean `{near}`?"))
                .help(format!("write `{near}`, or `\"{text}\"` for the text itself"))
                .suggestion(
                    format!("write `{near}`"),
                    vec![Edit { span: name.span, replacement: near.to_owned() }],
                );
        } else {
            diag = diag.help(format!(
                "declare it (`param {text}: string`), or write `\"{text}\"` for the text itself"
            ));
        }
        self.report(diag);
        Low::wrong()
    }

    pub(crate) fn field(&mut self, expr: &Expr, scope: &Scope<'_>) -> Low {
        let mut path = Vec::new();
        let mut item: Option<&Expr> = None;
        let mut at = expr;
        loop {
            match &at.kind {
                ExprKind::Field(base, field) => {
                    path.push(field);
                    at = base;
                }
                // `stage.build["linux"].digest`: one stage of a matrix.
                ExprKind::Index(base, index) if path.len() == 1 && item.is_none() => {
                    item = Some(index);
                    at = base;
                }
                ExprKind::Name(name) => {
                    path.push(name);
                    break;
                }
                ExprKind::Error => return Low::wrong(),
                _ => {
                    self.report(
                        Diagnostic::new(
                            &code::UNKNOWN_FIELD,
                            expr.span,
                            "nothing can be read of this by a dot",
                        )
                        .help("a value of a map is read by `map[\"key\"]`"),
                    );
                    return Low::wrong();
                }
            }
        }
        path.reverse();
        let (root, rest) = match path.split_first() {
            Some((root, rest)) => (*root, rest),
            None => return Low::wrong(),
        };
        if item.is_some() && root.text != "stage" {
            self.report(Diagnostic::new(
                &code::UNKNOWN_FIELD,
                expr.span,
                "nothing can be read of this by a dot",
            ));
            return Low::wrong();
        }
        match root.text.as_str() {
            "git" => self.git(root, rest),
            "pipeline" => match rest {
                [name] if name.text == "name" => Low::value(Value::Str(self.pipeline_name.clone())),
                [name] if name.text == "outcome" => {
                    if scope.place == Place::FileHook {
                        Low::symbol(Type::Str, Symbol::PipelineOutcome)
                    } else {
                        self.not_here(
                            expr.span,
                            "pipeline.outcome",
                            "in a hook of the file (`on failure { … }`)",
                        )
                    }
                }
                _ => self.unknown_field(root, rest, &["name", "outcome"]),
            },
            "run" => match rest {
                [name] if name.text == "id" => {
                    if scope.place == Place::File {
                        self.not_here(expr.span, "run.id", "in steps and hooks")
                    } else {
                        Low::symbol(Type::Str, Symbol::RunId)
                    }
                }
                _ => self.unknown_field(root, rest, &["id"]),
            },
            "environment" => self.environment_field(root, rest, expr.span, scope),
            "stage" => self.stage_field(root, rest, item, expr.span, scope),
            "candidate" | "stable" | "baseline" => self.side_field(root, rest, expr.span, scope),
            text => {
                if let Some(service) = self.names.get(Names::Service, text)
                    && let [field] = rest
                    && (SERVICE_FIELDS.contains(&field.text.as_str())
                        || self.names.get(Names::Metrics, text).is_none())
                {
                    let _ = self.names.take(Names::Service, text);
                    return self.service_field(service, field, root, expr.span, scope);
                }
                if self.names.get(Names::Metrics, text).is_some()
                    && let [metric] = rest
                {
                    if scope.measures {
                        return self.metric(Subject::Service, Some(root), metric);
                    }
                    return self.not_here(
                        expr.span,
                        &format!("{text}.{}", metric.text),
                        "in rules and gates, where something is measured",
                    );
                }
                if self.names.get(Names::Environment, text).is_some() {
                    self.report(
                        Diagnostic::new(&code::UNKNOWN_NAME, expr.span, format!("the environment `{text}` can't be read from outside"))
                            .help("inside a deploy and in a service `environment.NAME` reads a variable of the environment around it"),
                    );
                    return Low::wrong();
                }
                if scope.looped.is_some_and(|looped| looped.name == text)
                    || self.names.get(Names::Param, text).is_some()
                {
                    self.report(
                        Diagnostic::new(&code::UNKNOWN_FIELD, expr.span, format!("`{text}` has no fields"))
                            .help(format!("a value of a map is read by `{text}[\"key\"]`")),
                    );
                    return Low::wrong();
                }
                let mut known: Vec<&str> = self.names.all(Names::Service);
                known.extend([
                    "git",
                    "pipeline",
                    "run",
                    "environment",
                    "stage",
                    "candidate",
                    "stable",
                    "baseline",
                ]);
                let mut diag =
                    Diagnostic::new(&code::UNKNOWN_NAME, root.span, format!("there is no `{text}`"));
                if self.names.node(text).is_some() {
                    diag = diag
                        .label("stages are read through `stage.`")
                        .help(format!("write `stage.{text}.…`"))
                        .fix(
                            "put `stage.` before it",
                            vec![Edit {
                                span: root.span.shrink_to_start(),
                                replacement: "stage.".to_owned(),
                            }],
                        );
                } else if let Some(near) = nearest(text, known.iter().copied()) {
                    diag = diag
                        .label(format!("did you mean `{near}`?"))
                        .help(format!("write `{near}`"))
                        .suggestion(
                            format!("write `{near}`"),
                            vec![Edit { span: root.span, replacement: near.to_owned() }],
                        );
                } else {
                    diag = diag.help(format!("what has fields: {}", one_of(known, 12)));
                }
                self.report(diag);
                Low::wrong()
            }
        }
    }

    pub(crate) fn unknown_field(&mut self, root: &Ident, rest: &[&Ident], known: &[&str]) -> Low {
        let Some(field) = rest.first() else { return Low::wrong() };
        // `git.sha.short`: the first field is known, but has none itself.
        if rest.len() > 1 && known.contains(&field.text.as_str()) {
            self.report(
                Diagnostic::new(
                    &code::UNKNOWN_FIELD,
                    rest[1].span,
                    format!("`{}.{}` has no fields", root.text, field.text),
                )
                .help(format!("write `{}.{}`", root.text, field.text)),
            );
            return Low::wrong();
        }
        let mut diag = Diagnostic::new(
            &code::UNKNOWN_FIELD,
            field.span,
            format!("`{}` has no `{}`", root.text, field.text),
        );
        if let Some(near) = nearest(&field.text, known.iter().copied()) {
            diag = diag.label(format!("did you mean `{near}`?")).suggestion(
                format!("write `{near}`"),
                vec![Edit { span: field.span, replacement: near.to_owned() }],
            );
        }
        let help = if known.is_empty() {
            format!("`{}` has nothing that can be read here", root.text)
        } else {
            format!("it has {}", one_of(known.iter().copied(), 16))
        };
        self.report(diag.help(help));
        Low::wrong()
    }

    pub(crate) fn git(&mut self, root: &Ident, rest: &[&Ident]) -> Low {
        let [field] = rest else { return self.unknown_field(root, rest, &["sha", "branch", "tag"]) };
        let fact = match (field.text.as_str(), self.git) {
            ("sha" | "branch" | "tag", None) => return Low::unknown(Type::Str),
            ("sha", Some(git)) => git.sha.clone(),
            ("branch", Some(git)) => git.branch.clone(),
            ("tag", Some(git)) => git.tag.clone(),
            _ => return self.unknown_field(root, rest, &["sha", "branch", "tag"]),
        };
        Low::value(Value::Str(fact))
    }

    pub(crate) fn environment_field(
        &mut self,
        root: &Ident,
        rest: &[&Ident],
        span: Span,
        scope: &Scope<'_>,
    ) -> Low {
        let [field] = rest else { return self.unknown_field(root, rest, &["name"]) };
        let name = match scope.around {
            Around::None => {
                if scope.place == Place::File {
                    return self.not_here(
                        span,
                        &format!("environment.{}", field.text),
                        "in services and inside a deploy",
                    );
                }
                return self.not_here(
                    span,
                    &format!("environment.{}", field.text),
                    "inside a deploy (its `verify`, `watch` and `validate`) and in services",
                );
            }
            Around::Any => {
                let known = self.all_variables();
                if field.text == "name" || known.contains(&field.text) {
                    return Low::unknown(Type::Str);
                }
                let known: Vec<&str> =
                    std::iter::once("name").chain(known.iter().map(String::as_str)).collect();
                return self.unknown_field(root, rest, &known);
            }
            Around::Of(name) => name,
        };
        if field.text == "name" {
            return Low::value(Value::Str(name.to_owned()));
        }
        let Some(environment) = self.names.get(Names::Environment, name) else { return Low::wrong() };
        let vars = environment.child(Id::Vars);
        let Some((_, setting)) =
            vars.and_then(|vars| vars.inner.open.iter().find(|(key, _)| *key == field.text))
        else {
            let known: Vec<&str> = vars
                .into_iter()
                .flat_map(|vars| vars.inner.open.iter().map(|(key, _)| key.as_str()))
                .chain(["name"])
                .collect();
            let mut diag = Diagnostic::new(
                &code::UNKNOWN_FIELD,
                field.span,
                format!("the environment `{name}` has no variable `{}`", field.text),
            )
            .also(environment.name_span(), "this environment")
            .help(format!(
                "set it there (`vars {{ {} = … }}`), or read one of {}",
                field.text,
                one_of(known.iter().copied(), 12)
            ));
            if let Some(near) = nearest(&field.text, known.iter().copied()) {
                diag = diag.label(format!("did you mean `{near}`?"));
            }
            self.report(diag);
            return Low::wrong();
        };
        let low =
            self.expr(&setting.value, &Scope { sets: scope.sets, sets_id: scope.sets_id, ..Scope::file() });
        // A variable is text, whatever it was written as.
        match (low.ty, low.expr) {
            (Some(Type::Secret), expr) => Low { ty: Some(Type::Secret), expr },
            (Some(_), Some(Lowered::Value(value))) => Low::value(Value::Str(value.to_string())),
            (Some(_), expr) => {
                Low { ty: Some(Type::Str), expr: expr.map(|expr| Lowered::Template(vec![expr])) }
            }
            (None, _) => Low::wrong(),
        }
    }

    pub(crate) fn all_variables(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .names
            .blocks(Names::Environment)
            .iter()
            .filter_map(|environment| environment.child(Id::Vars))
            .flat_map(|vars| vars.inner.open.iter().map(|(key, _)| key.clone()))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
