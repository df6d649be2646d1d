//! Metrics: sources, units and queries.

use super::or_blank;
use crate::checker::Checker;
use crate::codes::{metrics as code, names as name_code, types as type_code};
use crate::names::{is_unit, plain_type};
use crate::schema::{self, Id};
use crate::scope::Scope;
use crate::structure::Block;
use crate::suggest::nearest;
use crate::values::as_text;
use cdpipe_model::expr::Subject;
use cdpipe_model::measure::{Metric, MetricSet, MetricSource, Query};
use cdpipe_model::value::Value;
use cdpipe_syntax::tree::{Expr, ExprKind, StrLit};
use cdpipe_syntax::{Diagnostic, Span};
use std::collections::BTreeMap;

const PLACEHOLDERS: [&str; 5] = ["release", "role", "service", "environment", "window"];

impl<'b> Checker<'b> {
    pub(crate) fn metrics(&mut self, block: &'b Block<'b>) -> Option<MetricSet> {
        let name = block.name_text();
        let scope = Scope::file();
        let source = match block.child(Id::Source) {
            Some(source) => self.source(source, &scope),
            None => {
                self.report(
                    Diagnostic::new(
                        &name_code::MISSING_STATEMENT,
                        block.head(),
                        format!("`metrics {name}` has no source"),
                    )
                    .label("expected `source KIND` in its body")
                    .help("say where the numbers are: `source scrape` reads each release's own `/metrics`"),
                );
                None
            }
        };
        let kind = block.child(Id::Source).map_or("", |source| source.word());
        let mut metrics = BTreeMap::new();
        for (metric, setting) in &block.inner.open {
            let unit = setting.ty.as_ref().and_then(|ty| match plain_type(&ty.name.text) {
                Some(unit) if is_unit(&unit) => Some(unit),
                _ => {
                    let mut diag = Diagnostic::new(
                        &code::NOT_A_UNIT,
                        ty.span,
                        format!("a metric can't be a `{}`", self.sources.slice(ty.span)),
                    )
                    .help("its unit is `percent`, `duration`, `number`, `int` or `size`");
                    if let Some(near) =
                        nearest(&ty.name.text, ["percent", "duration", "number", "int", "size"])
                    {
                        diag = diag.label(format!("did you mean `{near}`?"));
                    }
                    self.report(diag);
                    None
                }
            });
            let query = self.query(&setting.value, kind, 0);
            if let (Some(unit), Some(query)) = (unit, query) {
                metrics.insert(metric.clone(), Metric { unit, query });
            }
        }
        if block.inner.open.is_empty() && block.stmt.body.is_some() && !block.inner.children.is_empty() {
            self.report(
                Diagnostic::new(
                    &name_code::MISSING_STATEMENT,
                    block.head(),
                    format!("`metrics {name}` has no metric"),
                )
                .help("name one with its unit: `error_rate: percent = ratio('errors', 'requests')`"),
            );
        }
        Some(MetricSet { name: name.to_owned(), source: source?, metrics })
    }

    fn source(&mut self, block: &Block<'_>, scope: &Scope<'_>) -> Option<MetricSource> {
        let found = self.found(block, scope);
        if let Some(Value::Str(url)) = found.value("url") {
            let url = url.clone();
            self.placeholders(&url, found.span("url").unwrap_or(block.head()));
        }
        Some(match block.word() {
            "prometheus" => MetricSource::Prometheus {
                url: or_blank(found.expr("url")),
                headers: self.open_map(block, Id::Headers, scope),
            },
            "scrape" => {
                MetricSource::Scrape { path: found.text("path").unwrap_or_else(|| "/metrics".to_owned()) }
            }
            "traffic" => MetricSource::Traffic,
            "text" => MetricSource::Text {
                url: or_blank(found.expr("url")),
                headers: self.open_map(block, Id::Headers, scope),
            },
            "http" => MetricSource::Http {
                url: or_blank(found.expr("url")),
                headers: self.open_map(block, Id::Headers, scope),
            },
            "command" => MetricSource::Command,
            _ => return None,
        })
    }

    /// A query in the words of its source.
    fn query(&mut self, expr: &Expr, source: &str, depth: usize) -> Option<Query> {
        if let Some(text) = as_text(expr) {
            let Some(plain) = text.plain() else {
                self.report(
                    Diagnostic::new(&crate::codes::security::IN_SHELL_TEXT, expr.span, "a value can't be put into a query")
                        .help("use `$service`, `$environment`, `$release`, `$role` or `$window`: they are escaped for the source"),
                );
                return None;
            };
            if plain.trim().is_empty() {
                self.report(
                    Diagnostic::new(&crate::codes::values::BAD_FORM, expr.span, "the query is empty")
                        .help("write what is asked, in the words of the source"),
                );
                return None;
            }
            if source != "command" {
                self.placeholders(&plain, expr.span);
            }
            return Some(Query::Raw(plain));
        }
        let ExprKind::Call(name, args) = &expr.kind else {
            if !matches!(expr.kind, ExprKind::Error) {
                self.report(
                    Diagnostic::new(
                        &type_code::WRONG_TYPE,
                        expr.span,
                        format!("a metric is {}", schema::kind_text(&schema::Kind::Query)),
                    )
                    .help("write the query as a string, best in single quotes"),
                );
            }
            return None;
        };
        let Some(function) = schema::function(&name.text)
            .filter(|function| matches!(function.name, "ratio" | "rate" | "quantile" | "sample"))
        else {
            let mut diag = Diagnostic::new(
                &name_code::UNKNOWN_FUNCTION,
                name.span,
                format!("there is no query `{}`", name.text),
            )
            .help(
                "a query is a string, `ratio(a, b)`, `rate(m)`, `quantile(q, m)` or `sample(m, unit = ms)`",
            );
            if let Some(near) = nearest(&name.text, ["ratio", "rate", "quantile", "sample"]) {
                diag = diag.label(format!("did you mean `{near}`?"));
            }
            self.report(diag);
            return None;
        };
        if !matches!(source, "scrape" | "traffic" | "text" | "") && function.name != "ratio" {
            self.report(
                Diagnostic::new(
                    &code::QUERY_FORM,
                    expr.span,
                    format!("`{}` can't be asked of a `{source}` source", function.name),
                )
                .help(match source {
                    "prometheus" => "write it in PromQL, as one string",
                    _ => "write the path or the command, as one string",
                }),
            );
            return None;
        }
        if depth > 4 {
            return None;
        }
        let wrong = |checker: &mut Self| {
            checker.report(
                Diagnostic::new(
                    &type_code::BAD_ARGUMENTS,
                    expr.span,
                    format!("`{}` does not take these arguments", function.name),
                )
                .help(format!("it is called `{}`. {}", function.signature, function.doc)),
            );
            None
        };
        let plain: Vec<&Expr> = args.iter().filter(|arg| arg.name.is_none()).map(|arg| &arg.value).collect();
        let named: Vec<_> =
            args.iter().filter_map(|arg| arg.name.as_ref().map(|name| (name, &arg.value))).collect();
        match (function.name, plain.as_slice(), named.as_slice()) {
            ("ratio", [a, b], []) => {
                let (a, b) = (self.query(a, source, depth + 1), self.query(b, source, depth + 1));
                Some(Query::Ratio(Box::new(a?), Box::new(b?)))
            }
            ("rate", [m], []) => Some(Query::Rate(Box::new(self.query(m, source, depth + 1)?))),
            ("quantile", [q, m], []) => {
                let low = self.expr(q, &Scope::file());
                let share = match low.known() {
                    Some(Value::Percent(share)) => share / 100.0,
                    Some(value) => value.magnitude().unwrap_or(-1.0),
                    None => return if low.ty.is_some() { wrong(self) } else { None },
                };
                if !(0.0..=1.0).contains(&share) {
                    self.report(
                        Diagnostic::new(
                            &crate::codes::values::OUT_OF_RANGE,
                            q.span,
                            "a quantile is a number from 0 to 1",
                        )
                        .help("the 95th percentile is `0.95`"),
                    );
                    return None;
                }
                Some(Query::Quantile { q: share, of: Box::new(self.query(m, source, depth + 1)?) })
            }
            ("sample", [m], []) => {
                Some(Query::Sample { of: Box::new(self.query(m, source, depth + 1)?), unit_ms: None })
            }
            ("sample", [m], [(label, unit)]) if label.text == "unit" => {
                let unit_ms = match &unit.kind {
                    ExprKind::Name(unit) => match unit.text.as_str() {
                        "us" => Some(0.001),
                        "ms" => Some(1.0),
                        "s" => Some(1_000.0),
                        "m" => Some(60_000.0),
                        "h" => Some(3_600_000.0),
                        _ => None,
                    },
                    _ => None,
                };
                let Some(unit_ms) = unit_ms else {
                    self.report(
                        Diagnostic::new(
                            &crate::codes::values::UNKNOWN_MEMBER,
                            unit.span,
                            "`unit` is `us`, `ms`, `s`, `m` or `h`",
                        )
                        .help("say in what the source counts time: `sample('latency', unit = ms)`"),
                    );
                    return None;
                };
                Some(Query::Sample {
                    of: Box::new(self.query(m, source, depth + 1)?),
                    unit_ms: Some(unit_ms),
                })
            }
            _ => wrong(self),
        }
    }

    /// Says which `$name` is no placeholder.
    fn placeholders(&mut self, text: &str, span: Span) {
        for (at, _) in text.match_indices('$') {
            let name: String =
                text[at + 1..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if name.is_empty()
                || name.starts_with(|c: char| c.is_ascii_digit())
                || PLACEHOLDERS.contains(&name.as_str())
            {
                continue;
            }
            let mut diag = Diagnostic::new(
                &code::UNKNOWN_PLACEHOLDER,
                span,
                format!("there is no placeholder `${name}`"),
            )
            .help("the placeholders are `$release`, `$role`, `$service`, `$environment` and `$window`");
            if let Some(near) = nearest(&name, PLACEHOLDERS) {
                diag = diag.label(format!("did you mean `${near}`?"));
            }
            self.report(diag);
        }
    }

    /// Metrics that are asked of one side and don't tell the sides apart.
    pub(crate) fn sides(&mut self) {
        for (set, metric, span, subject) in std::mem::take(&mut self.side_uses) {
            let Some(block) = self.names.get(schema::Names::Metrics, &set) else { continue };
            let Some(source) = block.child(Id::Source) else { continue };
            if matches!(source.word(), "scrape" | "traffic") {
                continue;
            }
            let Some((_, setting)) = block.inner.open.iter().find(|(name, _)| *name == metric) else {
                continue;
            };
            let mut texts = Vec::new();
            collect_texts(&setting.value, &mut texts);
            if let Some(url) = source.setting("url") {
                collect_texts(&url.value, &mut texts);
            }
            let by_command = source.word() == "command";
            let tells = |text: &str| {
                text.contains("$release")
                    || text.contains("$role")
                    || by_command && (text.contains("CDPIPE_RELEASE") || text.contains("CDPIPE_ROLE"))
            };
            if !texts.iter().any(|text| tells(text)) {
                let side = match subject {
                    Subject::Candidate => "candidate",
                    Subject::Stable => "stable",
                    _ => "baseline",
                };
                self.report(
                    Diagnostic::new(
                        &code::NOT_PER_RELEASE,
                        span,
                        format!("`{side}.{metric}` is asked of one release, and its query reads the same for all of them"),
                    )
                    .also(setting.span, "this query names neither `$release` nor `$role`")
                    .help("put `$release` into the query (`{release=\"$release\"}`), or read the metric without a side"),
                );
            }
        }
    }
}

fn collect_texts(expr: &Expr, texts: &mut Vec<String>) {
    match &expr.kind {
        ExprKind::Str(text) => texts.push(StrLit::plain(text).unwrap_or_else(|| {
            text.parts
                .iter()
                .filter_map(|part| match part {
                    cdpipe_syntax::tree::StrPart::Text { value, .. } => Some(value.as_str()),
                    cdpipe_syntax::tree::StrPart::Interp { .. } => None,
                })
                .collect()
        })),
        ExprKind::Call(_, args) => args.iter().for_each(|arg| collect_texts(&arg.value, texts)),
        ExprKind::Paren(inner) => collect_texts(inner, texts),
        _ => {}
    }
}
