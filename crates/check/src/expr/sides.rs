//! What is known only while a run goes on: outputs and outcomes of stages, the sides of a deploy, measurements.

use super::{Expanded, Low};
use crate::checker::Checker;
use crate::codes::{metrics as metric_code, names as code};
use crate::schema::{Id, Names};
use crate::scope::{Place, Scope};
use crate::suggest::{nearest, one_of};
use cdpipe_model::expr::{DeployFact, MeasureName, MetricRef, Subject, Symbol};
use cdpipe_model::id::NodeId;
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, Ident};
use cdpipe_syntax::{Diagnostic, Edit, Span};

impl Checker<'_> {
    pub(crate) fn stage_field(
        &mut self,
        root: &Ident,
        rest: &[&Ident],
        item: Option<&Expr>,
        span: Span,
        scope: &Scope<'_>,
    ) -> Low {
        if let [field] = rest
            && field.text == "name"
            && item.is_none()
        {
            return match (scope.node, scope.place) {
                (_, Place::FileHook) => Low::symbol(Type::Str, Symbol::StageName),
                (Some(node), _) => match scope.looped {
                    Some(looped) => match &looped.value {
                        Some(value) => {
                            Low::value(Value::Str(format!("{}[{value}]", self.names.nodes[node].name_text())))
                        }
                        None => Low::unknown(Type::Str),
                    },
                    None => Low::value(Value::Str(self.names.nodes[node].name_text().to_owned())),
                },
                (None, _) => self.not_here(span, "stage.name", "in steps and hooks"),
            };
        }
        let (name, field) = match rest {
            [name, field] => (*name, *field),
            _ => {
                self.report(
                    Diagnostic::new(
                        &code::UNKNOWN_FIELD,
                        span,
                        "`stage` is read as `stage.NAME.OUTPUT` or `stage.NAME.outcome`",
                    )
                    .help("inside a stage `stage.name` is its own name"),
                );
                return Low::wrong();
            }
        };
        let _ = root;
        let Some(index) = self.names.node(&name.text) else {
            self.unknown_reference(Names::Node, name);
            return Low::wrong();
        };
        if scope.place == Place::File {
            return self.not_here(
                span,
                &format!("stage.{}.{}", name.text, field.text),
                "in the stages that need it, and in hooks",
            );
        }
        let block = self.names.nodes[index];
        let node = match self.expanded(index, item, scope) {
            Expanded::Wrong => return Low::wrong(),
            Expanded::NotChosen => {
                self.report(
                    Diagnostic::new(
                        &code::UNKNOWN_FIELD,
                        span,
                        format!("`{}` is a matrix, so it has several of these", name.text),
                    )
                    .also(block.name_span(), "declared with `for`")
                    .help(format!("say which one: `stage.{}[\"…\"].{}`", name.text, field.text)),
                );
                return Low::wrong();
            }
            Expanded::Unknown => NodeId(u32::try_from(index).unwrap_or(u32::MAX)),
            Expanded::Node(node) => node,
        };
        // Whether the stage around it needs that one is asked for all uses at once, when the graph is known.
        if let Some(user) = scope.node
            && !(user == index && scope.place == Place::Hook)
        {
            self.output_uses.push((user, index, span));
        }
        if field.text == "outcome" {
            return Low::symbol(Type::Str, Symbol::NodeOutcome { node, name: name.text.clone() });
        }
        let output = block.children(Id::Output).find(|output| output.name_text() == field.text);
        let Some(output) = output else {
            let known: Vec<&str> =
                block.children(Id::Output).map(|output| output.name_text()).chain(["outcome"]).collect();
            let mut diag = Diagnostic::new(
                &code::UNKNOWN_FIELD,
                field.span,
                format!("the stage `{}` has no output `{}`", name.text, field.text),
            )
            .also(block.name_span(), "this stage")
            .help(format!(
                "declare it there (`output {}: string`), or read {}",
                field.text,
                one_of(known.iter().copied(), 12)
            ));
            if let Some(near) = nearest(&field.text, known.iter().copied()) {
                diag = diag.label(format!("did you mean `{near}`?")).suggestion(
                    format!("write `{near}`"),
                    vec![Edit { span: field.span, replacement: near.to_owned() }],
                );
            }
            self.report(diag);
            return Low::wrong();
        };
        self.used_outputs.insert((index, output.name_text()));
        let mut ignored = Vec::new();
        let ty = output.ty.and_then(|ty| crate::names::read_type(ty, &mut ignored));
        match ty {
            Some(ty) => {
                Low::symbol(ty, Symbol::Output { node, stage: name.text.clone(), name: field.text.clone() })
            }
            None => Low::wrong(),
        }
    }

    pub(crate) fn side_field(&mut self, root: &Ident, rest: &[&Ident], span: Span, scope: &Scope<'_>) -> Low {
        let subject = match root.text.as_str() {
            "candidate" => Subject::Candidate,
            "stable" => Subject::Stable,
            _ => Subject::Baseline,
        };
        let (block, field) = match rest {
            [field] => (None, *field),
            [block, field] => (Some(*block), *field),
            _ => return self.unknown_field(root, rest, &[]),
        };
        let fact = match field.text.as_str() {
            "url" => Some(DeployFact::Url),
            "host" => Some(DeployFact::Host),
            "release" => Some(DeployFact::Release),
            "version" => Some(DeployFact::Version),
            _ => None,
        };
        if let (Some(fact), None, true) = (fact, block, subject != Subject::Baseline) {
            if scope.candidate {
                return Low::symbol(Type::Str, Symbol::Deploy(subject, fact));
            }
            return self.not_here(
                span,
                &format!("{}.{}", root.text, field.text),
                "inside a deploy (its `verify`, `watch` and `validate`)",
            );
        }
        if !scope.sides {
            let place = if scope.measures {
                "in the `watch` of a deploy; a gate measures the whole service"
            } else {
                "in the rules of a deploy's `watch`"
            };
            return self.not_here(span, &format!("{}.{}", root.text, field.text), place);
        }
        if field.text == "requests" && block.is_none() && subject != Subject::Baseline {
            self.requests_uses.push(span);
            return Low::symbol(
                Type::Int,
                Symbol::Metric(MetricRef { subject, measure: MeasureName::Requests }),
            );
        }
        if matches!(field.text.as_str(), "ready" | "failed") && block.is_none() {
            self.report(
                Diagnostic::new(
                    &code::UNKNOWN_FIELD,
                    field.span,
                    format!("`{}` is asked of the whole service", field.text),
                )
                .help(format!("write `{}`", field.text))
                .suggestion(
                    format!("write `{}`", field.text),
                    vec![Edit { span, replacement: field.text.clone() }],
                ),
            );
            return Low::wrong();
        }
        self.metric(subject, block, field)
    }

    pub(crate) fn metric(&mut self, subject: Subject, block: Option<&Ident>, name: &Ident) -> Low {
        let Some(blocks) = self.names.metric_blocks.get(name.text.as_str()).cloned() else {
            let mut known: Vec<&str> = self.names.metric_blocks.keys().copied().collect();
            known.sort_unstable();
            if subject == Subject::Candidate || subject == Subject::Stable {
                known.push("requests");
            }
            let mut diag = Diagnostic::new(
                &code::UNKNOWN_FIELD,
                name.span,
                format!("there is no metric `{}`", name.text),
            );
            if let Some(near) = nearest(&name.text, known.iter().copied()) {
                diag = diag.label(format!("did you mean `{near}`?")).suggestion(
                    format!("write `{near}`"),
                    vec![Edit { span: name.span, replacement: near.to_owned() }],
                );
            }
            let help = if known.is_empty() {
                format!("declare it in a `metrics NAME {{ … }}`: `{}: percent = …`", name.text)
            } else {
                format!("the metrics are {}", one_of(known, 12))
            };
            self.report(diag.help(help));
            return Low::wrong();
        };
        let set = match block {
            Some(block) => match blocks.iter().find(|set| **set == block.text) {
                Some(set) => *set,
                None => {
                    self.report(
                        Diagnostic::new(
                            &code::UNKNOWN_FIELD,
                            block.span.to(name.span),
                            format!("`metrics {}` has no metric `{}`", block.text, name.text),
                        )
                        .help(format!(
                            "`{}` is a metric of {}",
                            name.text,
                            one_of(blocks.iter().copied(), 8)
                        )),
                    );
                    return Low::wrong();
                }
            },
            None => {
                if let [one, two, ..] = blocks.as_slice() {
                    self.report(
                        Diagnostic::new(
                            &metric_code::AMBIGUOUS_METRIC,
                            name.span,
                            format!("`{}` is a metric of `{one}` and of `{two}`", name.text),
                        )
                        .help(format!("write `{one}.{}` or `{two}.{}`", name.text, name.text)),
                    );
                    return Low::wrong();
                }
                match blocks.first() {
                    Some(set) => *set,
                    None => return Low::wrong(),
                }
            }
        };
        self.names.use_metrics(set);
        if matches!(subject, Subject::Candidate | Subject::Stable | Subject::Baseline) {
            self.side_uses.push((set.to_owned(), name.text.clone(), name.span, subject));
        }
        let from = self.names.get(Names::Metrics, set).and_then(|block| block.child(Id::Source));
        if from.is_some_and(|source| source.word() == "traffic") {
            self.requests_uses.push(name.span);
        }
        let unit =
            self.names.metric_units.iter().find(|((block, metric), _)| *block == set && *metric == name.text);
        match unit.map(|(key, unit)| (*key, unit.clone())) {
            Some((key, unit)) => {
                self.used_metrics.insert(key);
                Low::symbol(
                    unit,
                    Symbol::Metric(MetricRef {
                        subject,
                        measure: MeasureName::Named { set: set.to_owned(), name: name.text.clone() },
                    }),
                )
            }
            None => Low::wrong(),
        }
    }
}
