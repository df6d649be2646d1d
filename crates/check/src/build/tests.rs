//! `test "…" { }`: what is given, measured and expected.

use crate::api::GitFacts;
use crate::checker::Checker;
use crate::codes::{names as name_code, types as type_code, values as value_code};
use crate::expr::fits;
use crate::schema::{Id, Names};
use crate::scope::{Around, Place, Scope};
use crate::structure::{Block, as_name, shorten};
use crate::suggest::{nearest, one_of};
use crate::testing::{Expectation, Expected, GateAnswer, Measured, Serving, Test};
use cdpipe_model::Outcome;
use cdpipe_model::expr::{Expr as Lowered, Symbol};
use cdpipe_model::id::{EnvName, ServiceName};
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{BinaryOp, Expr, ExprKind, KeyKind, Part};
use cdpipe_syntax::{Diagnostic, Edit, Span};
use std::collections::BTreeMap;

impl<'b> Checker<'b> {
    pub(crate) fn test(&mut self, block: &'b Block<'b>) -> Test {
        let file = Scope::file();
        let sets = self.sets(block, &file);
        let mut test = Test {
            name: block.name_text().to_owned(),
            sets: sets
                .into_iter()
                .flatten()
                .filter_map(|(name, value)| value.map(|value| (name, value)))
                .collect(),
            git: GitFacts::default(),
            serving: Vec::new(),
            gates: BTreeMap::new(),
            measured: Vec::new(),
            expects: Vec::new(),
            at: self.sources.pos(block.stmt.span),
        };
        for given in block.children(Id::Given) {
            self.given(given, &mut test);
        }
        for when in block.children(Id::When) {
            if let Some(measured) = self.measured(when) {
                test.measured.push(measured);
            }
        }
        for expect in block.children(Id::Expect) {
            if let Some(what) = self.expectation(expect) {
                let text = self.slice(expect.head()).trim_start_matches("expect").trim().to_owned();
                test.expects.push(Expectation { what, text, at: self.sources.pos(expect.stmt.span) });
            }
        }
        if block.child(Id::Expect).is_none() && !block.inner.children.is_empty() {
            self.report(
                Diagnostic::new(
                    &name_code::MISSING_STATEMENT,
                    block.head(),
                    "the test expects nothing, so it can't fail",
                )
                .help("say what must be so: `expect stage production == succeeded`"),
            );
        }
        test
    }

    fn given(&mut self, block: &'b Block<'b>, test: &mut Test) {
        let found = self.found(block, &Scope::file());
        match block.word() {
            "environment" => {
                let Some(environment) = found.name("ENVIRONMENT").map(str::to_owned) else { return };
                for (service, setting) in &block.inner.open {
                    if self.names.take(Names::Service, service).is_none() {
                        let name =
                            cdpipe_syntax::tree::Ident { text: service.clone(), span: setting.key.span };
                        self.unknown_reference(Names::Service, &name);
                        continue;
                    }
                    let low = self.expr(&setting.value, &Scope::file());
                    match (&low.ty, low.known()) {
                        (Some(Type::Str | Type::Version), Some(Value::Str(version))) => {
                            test.serving.push(Serving {
                                environment: EnvName::from(environment.as_str()),
                                service: ServiceName::from(service.as_str()),
                                version: version.clone(),
                            })
                        }
                        (Some(Type::Str | Type::Version) | None, _) => {}
                        (Some(found), _) => {
                            let found = crate::values::a_type(found);
                            self.report(
                                Diagnostic::new(
                                    &type_code::WRONG_TYPE,
                                    setting.value.span,
                                    format!("a version is a string, found {found}"),
                                )
                                .help("write `web = \"v1.0.0\"`"),
                            );
                        }
                    }
                }
            }
            "gate" => {
                let Some(gate) = found.name("GATE").map(str::to_owned) else { return };
                static ANSWERS: crate::schema::Kind = crate::schema::Kind::Enum(&crate::schema::GATE_ANSWERS);
                let Some(value) = block.value else { return };
                let answer = match self.kind(&ANSWERS, value, &Scope::file(), "the answer", false).word {
                    Some("approved") => GateAnswer::Approved,
                    Some("rejected") => GateAnswer::Rejected,
                    Some(_) => GateAnswer::Expired,
                    None => return,
                };
                test.gates.insert(gate, answer);
            }
            _ => {
                test.git = GitFacts {
                    sha: found.text("sha").unwrap_or_default(),
                    branch: found.text("branch").unwrap_or_default(),
                    tag: found.text("tag").unwrap_or_default(),
                };
            }
        }
    }

    fn measured(&mut self, block: &'b Block<'b>) -> Option<Measured> {
        let found = self.found(block, &Scope::file());
        let stage = found.name("STAGE").map(str::to_owned);
        let scope =
            Scope { place: Place::Step, measures: true, sides: true, around: Around::Any, ..Scope::file() };
        let mut values = Vec::new();
        let mut fails = false;
        for (key, setting) in &block.inner.open {
            let low = self.expr(&setting.value, &Scope::file());
            if key == "fails" {
                match (&low.ty, low.known()) {
                    (_, Some(Value::Bool(value))) => fails = *value,
                    (None, _) => {}
                    _ => self.report(
                        Diagnostic::new(
                            &type_code::WRONG_TYPE,
                            setting.value.span,
                            "`fails` is `true` or `false`",
                        )
                        .help("write `fails = true`"),
                    ),
                }
                continue;
            }
            let KeyKind::Path(path) = &setting.key.kind else {
                self.report(
                    Diagnostic::new(
                        &name_code::UNKNOWN_NAME,
                        setting.key.span,
                        "expected a measure such as `candidate.error_rate`",
                    )
                    .help("write it without quotes"),
                );
                continue;
            };
            // The key reads like an expression, so it is looked at as one.
            let Some((first, rest)) = path.split_first() else { continue };
            let mut expr = Expr { kind: ExprKind::Name(first.clone()), span: first.span };
            for field in rest {
                let span = expr.span.to(field.span);
                expr = Expr { kind: ExprKind::Field(Box::new(expr), field.clone()), span };
            }
            let measure = self.expr(&expr, &scope);
            let (Some(Lowered::Symbol(Symbol::Metric(metric))), Some(unit)) = (&measure.expr, &measure.ty)
            else {
                if measure.ty.is_some() {
                    self.report(
                        Diagnostic::new(
                            &name_code::UNKNOWN_NAME,
                            setting.key.span,
                            format!("`{key}` is no measure"),
                        )
                        .help("name a metric, `ready`, `failed` or `candidate.requests`"),
                    );
                }
                continue;
            };
            let Some(found) = &low.ty else { continue };
            if !fits(found, unit) {
                self.report(
                    Diagnostic::new(
                        &type_code::WRONG_TYPE,
                        setting.value.span,
                        format!(
                            "`{key}` is {}, found {}",
                            crate::values::a_type(unit),
                            crate::values::a_type(found)
                        ),
                    )
                    .help("give it the unit that its metric has"),
                );
                continue;
            }
            if let Some(value) = low.known() {
                values.push((metric.clone(), super::params::convert(value.clone(), unit)));
            }
        }
        self.side_uses.clear();
        self.requests_uses.clear();
        Some(Measured { stage: stage?, values, fails })
    }

    fn expectation(&mut self, block: &'b Block<'b>) -> Option<Expected> {
        let exprs: Vec<&Expr> = block
            .rest
            .iter()
            .map(|part| match part {
                Part::Expr(expr) => Some(expr),
                _ => None,
            })
            .collect::<Option<_>>()
            .unwrap_or_default();
        let wrong = |checker: &mut Self, span: Span| {
            checker.report(
                Diagnostic::new(&name_code::HEAD, span, "this is nothing that can be expected").help(
                    "write `expect stage NAME == OUTCOME [within DURATION]`, `expect pipeline == OUTCOME`, `expect traffic(SERVICE, ENVIRONMENT) == { \"v1\" = 100% }` or `expect ran \"on rollback\"`",
                ),
            );
            None
        };
        if exprs.iter().any(|expr| matches!(expr.kind, ExprKind::Error)) {
            return None;
        }
        let (within_ms, exprs) = match exprs.as_slice() {
            [head @ .., word, limit] if as_name(word).is_some_and(|word| word.text == "within") => {
                static LIMIT: crate::schema::Kind = crate::schema::Kind::Duration(1);
                let got = self.kind(&LIMIT, limit, &Scope::file(), "within", false);
                let ms = match got.value() {
                    Some(Value::Duration(ms)) => Some(crate::values::whole_ms(*ms)),
                    _ => None,
                };
                (ms, head.to_vec())
            }
            all => (None, all.to_vec()),
        };
        match exprs.as_slice() {
            [word, rest]
                if as_name(word).is_some_and(|word| matches!(word.text.as_str(), "stage" | "gate")) =>
            {
                let ExprKind::Binary(BinaryOp::Eq, _, left, right) = &rest.kind else {
                    return wrong(self, block.head());
                };
                let names = if as_name(word).is_some_and(|word| word.text == "gate") {
                    Names::Gate
                } else {
                    Names::Stage
                };
                let node = self.reference(names, left).name?;
                Some(Expected::Outcome { node: Some(node), outcome: self.outcome(right)?, within_ms })
            }
            [word, text] if as_name(word).is_some_and(|word| word.text == "ran") => {
                match self.expr(text, &Scope::file()).known() {
                    Some(Value::Str(text)) => Some(Expected::Ran(text.clone())),
                    _ => wrong(self, block.head()),
                }
            }
            [single] => {
                let ExprKind::Binary(BinaryOp::Eq, _, left, right) = &single.kind else {
                    return wrong(self, block.head());
                };
                match &left.kind {
                    ExprKind::Name(name) if name.text == "pipeline" => {
                        Some(Expected::Outcome { node: None, outcome: self.outcome(right)?, within_ms })
                    }
                    ExprKind::Call(name, args) if name.text == "traffic" => {
                        let [service, environment] = args.as_slice() else { return wrong(self, left.span) };
                        let service = self.reference(Names::Service, &service.value).name;
                        let environment = self.reference(Names::Environment, &environment.value).name;
                        let shares = self.shares(right);
                        Some(Expected::Traffic {
                            service: ServiceName::from(service?),
                            environment: EnvName::from(environment?),
                            shares: shares?,
                        })
                    }
                    _ => wrong(self, block.head()),
                }
            }
            _ => wrong(self, block.head()),
        }
    }

    fn outcome(&mut self, expr: &Expr) -> Option<Outcome> {
        let words = Outcome::ALL.map(Outcome::as_str);
        let text = match as_name(expr) {
            Some(name) => name.text.clone(),
            None => shorten(self.slice(expr.span)),
        };
        let outcome = as_name(expr).and_then(|name| Outcome::parse(&name.text));
        if outcome.is_none() {
            let mut diag =
                Diagnostic::new(&value_code::UNKNOWN_MEMBER, expr.span, format!("`{text}` is no outcome"))
                    .help(format!("the outcomes are {}", one_of(words, 8)));
            if let Some(near) = nearest(&text, words) {
                diag = diag.label(format!("did you mean `{near}`?")).suggestion(
                    format!("write `{near}`"),
                    vec![Edit { span: expr.span, replacement: near.to_owned() }],
                );
            }
            self.report(diag);
        }
        outcome
    }

    fn shares(&mut self, expr: &Expr) -> Option<BTreeMap<String, f64>> {
        let low = self.expr(expr, &Scope::file());
        let ty = low.ty.clone()?;
        if ty != Type::Map(Box::new(Type::Percent)) {
            self.report(
                Diagnostic::new(
                    &type_code::WRONG_TYPE,
                    expr.span,
                    format!("traffic is a map of percentages, found {}", crate::values::a_type(&ty)),
                )
                .help("write `{ \"v1.0.0\" = 90%, \"v2.0.0\" = 10% }`"),
            );
            return None;
        }
        let Some(Value::Map(items)) = low.known() else { return Some(BTreeMap::new()) };
        let shares: BTreeMap<String, f64> = items
            .iter()
            .filter_map(|(version, share)| share.magnitude().map(|share| (version.clone(), share)))
            .collect();
        let sum: f64 = shares.values().sum();
        if (sum - 100.0).abs() > 0.01 {
            self.report(
                Diagnostic::new(
                    &value_code::OUT_OF_RANGE,
                    expr.span,
                    format!("the shares sum to {}%, not to 100%", cdpipe_model::value::trim_number(sum)),
                )
                .help("name every version that serves"),
            );
        }
        Some(shares)
    }
}
