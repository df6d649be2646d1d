//! Steps.

use super::{Defaults, or_blank};
use crate::checker::Checker;
use crate::codes::{lints, names as name_code, security, types as type_code};
use crate::expr::fits;
use crate::schema::{self, Id, Kind, Names};
use crate::scope::{Around, Place, Scope};
use crate::shell::{Scanner, Spot};
use crate::structure::{Block, shorten};
use crate::suggest::nearest;
use crate::values::{Found, as_text};
use cdpipe_model::expr::Expr as Lowered;
use cdpipe_model::id::{EnvName, NodeId};
use cdpipe_model::plan::{
    Apply, Channel, FlagStep, HttpStep, Notify, OnInterrupt, Retry, Run, Step, StepKind,
};
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, ExprKind, Quote, StrLit, StrPart};
use cdpipe_syntax::{Diagnostic, Edit, Span};
use std::collections::BTreeMap;

/// The longest label of a step, in characters.
const LABEL_CHARS: usize = 60;

impl<'b> Checker<'b> {
    /// The steps of a body, in order; statements that are none are left out.
    pub(crate) fn steps(
        &mut self,
        blocks: &'b [Block<'b>],
        scope: &Scope<'_>,
        defaults: Defaults,
    ) -> Vec<Step> {
        let mut steps = Vec::with_capacity(blocks.len());
        steps.extend(blocks.iter().filter_map(|block| self.step(block, scope, defaults)));
        steps
    }

    fn step(&mut self, block: &'b Block<'b>, scope: &Scope<'_>, defaults: Defaults) -> Option<Step> {
        let (kind, label, found) = match block.spec.id {
            Id::Run | Id::Exec => {
                let found = self.found(block, scope);
                let (run, label) = self.run(block, &found, scope)?;
                let word = block.spec.keyword;
                let kind = if block.spec.id == Id::Run { StepKind::Run(run) } else { StepKind::Exec(run) };
                (kind, format!("{word} {label}"), found)
            }
            Id::Http => {
                let found = self.found(block, scope);
                let (kind, label) = self.http(block, &found, scope);
                (kind, label, found)
            }
            Id::Apply => {
                let found = self.found(block, scope);
                let environment = found.name("ENVIRONMENT").unwrap_or_default().to_owned();
                if let Some(target) = self.names.get(Names::Environment, &environment)
                    && super::place::target_kind(target)
                        .is_some_and(|kind| kind != cdpipe_model::service::TargetKind::Kubernetes)
                {
                    self.report(
                        Diagnostic::new(
                            &crate::codes::strategies::WRONG_WORKLOAD,
                            block.head(),
                            format!("`{environment}` is no cluster, so no manifests can be applied to it"),
                        )
                        .also(target.name_span(), "its target")
                        .help("apply them to an environment with `target kubernetes`"),
                    );
                }
                if let (Some(node), Place::Step) = (scope.node, scope.place) {
                    self.applies.push((node, environment.clone(), block.head()));
                }
                let path = or_blank(found.expr("PATH"));
                let label = format!("apply {} to {environment}", plain(&path));
                let apply = Apply {
                    path,
                    environment: EnvName::from(environment),
                    force: found.bool("force").unwrap_or(false),
                    prune: found.bool("prune").unwrap_or(false),
                    set: found.text("set"),
                    generated: found.bool("generated").unwrap_or(false),
                    files: Vec::new(),
                };
                (StepKind::Apply(apply), label, found)
            }
            Id::Flag => {
                let found = self.found(block, scope);
                let flag = or_blank(found.expr("FLAG"));
                let value = match block.word() {
                    "enable" => Lowered::Value(Value::Bool(true)),
                    "disable" => Lowered::Value(Value::Bool(false)),
                    _ => or_blank(found.expr("VALUE")),
                };
                if let Some(expr) = block.arg("VALUE")
                    && self.expr(expr, scope).ty == Some(Type::Secret)
                {
                    self.secret_leak(expr.span, "a feature flag");
                }
                let label = format!("flag {} {}", block.word(), plain(&flag));
                let provider = found.name("PROVIDER").unwrap_or_default().to_owned();
                (StepKind::Flag(FlagStep { flag, value, provider }), label, found)
            }
            Id::Notify => {
                let found = self.found(block, scope);
                let (channel, url) = self.channel(block.arg("CHANNEL")?, scope)?;
                let word = match channel {
                    Channel::Slack => "slack",
                    Channel::Webhook => "webhook",
                };
                let kind = StepKind::Notify(Notify {
                    channel,
                    url,
                    text: or_blank(found.expr("TEXT")),
                    headers: self.open_map(block, Id::Headers, scope),
                });
                (kind, format!("notify {word}"), found)
            }
            Id::Wait => {
                let found = self.found(block, scope);
                let ms = found.ms("DURATION").unwrap_or(1);
                #[allow(clippy::cast_precision_loss, reason = "durations are at most a year")]
                let label = format!("wait {}", cdpipe_model::value::format_duration_ms(ms as f64));
                (StepKind::Wait { ms }, label, found)
            }
            Id::StepWatch => {
                let watch = self.watch_of(None, Some(block), scope)?;
                return Some(
                    self.as_step(
                        block,
                        "watch".to_owned(),
                        // It ends by itself; the limit only catches a probe that hangs.
                        watch
                            .for_ms
                            .unwrap_or(0)
                            .saturating_add(watch.hold_for_ms)
                            .saturating_add(defaults.timeout_ms),
                        Retry { more: 0, ..defaults.retry },
                        StepKind::Watch(watch),
                    ),
                );
            }
            Id::RollbackStage => {
                let found = self.found(block, scope);
                let name = found.name("STAGE")?.to_owned();
                let index = self.names.node(&name)?;
                if !self.planning() && !undoable(self.names.nodes[index]) {
                    self.report(
                        Diagnostic::new(
                            &lints::ROLLBACK_OF_NOTHING,
                            block.head(),
                            format!("the stage `{name}` has nothing that could be rolled back"),
                        )
                        .also(self.names.nodes[index].name_span(), "this stage")
                        .help("give it an `undo { … }` that says how to take back what its steps did"),
                    );
                }
                let mut nodes = self
                    .expansions
                    .get(index)
                    .map(|expansion| expansion.nodes.iter().map(|(_, id)| NodeId(*id)).collect::<Vec<_>>())
                    .unwrap_or_default()
                    .into_iter();
                let stage = nodes.next().unwrap_or(NodeId(0));
                // Undoing takes as long as the deploys of that stage may take to be undone; the engine bounds each of them.
                return Some(self.as_step(
                    block,
                    format!("rollback stage {name}"),
                    24 * 3_600_000,
                    Retry::default(),
                    StepKind::Rollback { stage, more: nodes.collect() },
                ));
            }
            Id::Undo => {
                let steps = self.steps(&block.inner.children, scope, defaults);
                let timeout_ms = steps.iter().map(|step| step.timeout_ms).sum::<u64>().max(1);
                return Some(self.as_step(
                    block,
                    "undo".to_owned(),
                    timeout_ms,
                    Retry::default(),
                    StepKind::Undo { steps },
                ));
            }
            Id::Deploy => return self.deploy(block, scope),
            _ => return None,
        };
        let retry = Retry {
            more: found.count_u32("retry").unwrap_or(defaults.retry.more),
            delay_ms: found.ms("retry_delay").unwrap_or(defaults.retry.delay_ms),
            ..defaults.retry
        };
        let timeout_ms = match kind {
            StepKind::Wait { ms } => ms.saturating_add(60_000),
            StepKind::Flag(_) | StepKind::Notify(_) => found.ms("timeout").unwrap_or(defaults.message_ms),
            _ => found.ms("timeout").unwrap_or(defaults.timeout_ms),
        };
        let mut step = self.as_step(block, label, timeout_ms, retry, kind);
        step.on_interrupt = match found.word("on_interrupt") {
            Some("retry") => OnInterrupt::Retry,
            Some("fail") => OnInterrupt::Fail,
            _ => OnInterrupt::Ask,
        };
        if found.word("effect") == Some("irreversible") && scope.place == Place::Hook && !self.planning() {
            self.irreversible_hooks.push(block.head());
        }
        Some(step)
    }

    pub(crate) fn as_step(
        &self,
        block: &Block<'_>,
        label: String,
        timeout_ms: u64,
        retry: Retry,
        kind: StepKind,
    ) -> Step {
        Step {
            label,
            kind,
            timeout_ms,
            retry,
            on_interrupt: OnInterrupt::Ask,
            at: self.sources.pos(block.stmt.span),
        }
    }

    /// A shell command: its text with a variable for each value, and the values.
    fn run(&mut self, block: &'b Block<'b>, found: &Found, scope: &Scope<'_>) -> Option<(Run, String)> {
        let expr = block.arg("SCRIPT")?;
        let Some(text) = as_text(expr) else {
            if !matches!(expr.kind, ExprKind::Error) {
                self.report(
                    Diagnostic::new(
                        &security::IN_SHELL_TEXT,
                        expr.span,
                        "shell text stands in the file as a string; a value would become syntax",
                    )
                    .help(format!("write `{} \"…\"`; a value in it is `${{x}}`", block.spec.keyword)),
                );
            }
            return None;
        };
        let (script, args) = self.script(text, scope)?;
        if script.trim().is_empty() {
            self.report(
                Diagnostic::new(&crate::codes::values::BAD_FORM, expr.span, "the command is empty")
                    .help("write what is to be run"),
            );
        }
        let label = self.label(text);
        let environment = match (found.name("environment"), scope.around) {
            (Some(name), _) => Some(name.to_owned()),
            (None, Around::Of(name)) => Some(name.to_owned()),
            _ => None,
        };
        if let Some(image) = block.setting("image") {
            self.runs_images(image.span, environment.as_deref(), scope);
        }
        let mut env = BTreeMap::new();
        if let Some(block) = environment.as_ref().and_then(|name| self.names.get(Names::Environment, name)) {
            env = self.open_map(
                block,
                Id::Vars,
                &Scope { sets: scope.sets, sets_id: scope.sets_id, ..Scope::file() },
            );
        }
        env.extend(self.open_map(block, Id::Env, scope));
        let run = Run {
            script,
            args,
            env,
            dir: found.text("dir"),
            stdin: found.expr("stdin"),
            image: found.expr("image"),
            environment: environment.map(EnvName::from),
        };
        Some((run, label))
    }

    /// What people see of a script: its first line, as it was written.
    fn label(&self, text: &StrLit) -> String {
        let mut label = String::new();
        for part in &text.parts {
            match part {
                StrPart::Text { value, .. } => label.push_str(value),
                StrPart::Interp { span, .. } => label.push_str(self.slice(*span)),
            }
        }
        let line = label.trim().lines().next().unwrap_or_default();
        if line.chars().count() > LABEL_CHARS || line.len() < label.trim().len() {
            format!("{}…", line.chars().take(LABEL_CHARS - 1).collect::<String>())
        } else {
            line.to_owned()
        }
    }

    /// Shell text in which each value is a variable, with the values. `None` if a diagnostic was given.
    fn script(&mut self, text: &StrLit, scope: &Scope<'_>) -> Option<(String, Vec<Lowered>)> {
        let mut scanner = Scanner::new();
        let mut script = String::new();
        let mut args = Vec::new();
        let mut fine = true;
        for (at, part) in text.parts.iter().enumerate() {
            match part {
                StrPart::Text { value, span } => {
                    self.credential_in(value, *span);
                    scanner.text(value);
                    script.push_str(value);
                }
                StrPart::Interp { expr, span } => {
                    let spot = scanner.spot();
                    scanner.value();
                    let low = self.expr(expr, scope);
                    match low.ty {
                        None => fine = false,
                        Some(Type::Secret) => {
                            fine = false;
                            let name = self.slice(expr.span).to_owned();
                            let variable: String =
                                name.to_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
                            self.report(
                                Diagnostic::new(
                                    &security::SECRET_LEAK,
                                    *span,
                                    "a secret would be seen in a command line",
                                )
                                .label("this holds a secret")
                                .help(format!("write `${variable}` here, and add `{{ env {{ {variable} = {name} }} }}` to the step")),
                            );
                        }
                        Some(Type::List(_) | Type::Map(_)) => {
                            fine = false;
                            self.report(
                                Diagnostic::new(
                                    &type_code::WRONG_TYPE,
                                    *span,
                                    "a list is not one word for the shell",
                                )
                                .help("join it, if one word was meant: `${join(list, \" \")}`"),
                            );
                        }
                        Some(_) => {}
                    }
                    match spot {
                        Spot::Word => {}
                        Spot::Comment => {
                            script.push_str("${}");
                            continue;
                        }
                        Spot::Double | Spot::Single => {
                            fine = false;
                            self.in_quotes(text, at, *span, spot == Spot::Double);
                        }
                        Spot::Other(place) => {
                            fine = false;
                            self.report(
                                Diagnostic::new(
                                    &security::IN_SHELL_TEXT,
                                    *span,
                                    format!("a value can't stand {place}"),
                                )
                                .label("this would become shell syntax")
                                .help("give it by `env { NAME = value }` of the step, and read `$NAME` here"),
                            );
                        }
                    }
                    args.push(or_blank(low.expr));
                    script.push_str(&format!("\"${{CDPIPE_ARG_{}}}\"", args.len()));
                }
            }
        }
        fine.then_some((script, args))
    }

    /// A value inside the shell's own quotes: the quotes are closed before it and opened again after it, or go if they hold nothing
    /// else.
    fn in_quotes(&mut self, text: &StrLit, at: usize, span: Span, double: bool) {
        let quote = match (double, text.quote) {
            (true, Quote::Double) => "\\\"",
            (true, _) => "\"",
            (false, _) => "'",
        };
        let shell_quote = if double { '"' } else { '\'' };
        let before = at
            .checked_sub(1)
            .and_then(|before| text.parts.get(before))
            .is_some_and(|part| matches!(part, StrPart::Text { value, .. } if value.ends_with(shell_quote)));
        let after = text.parts.get(at + 1).is_some_and(
            |part| matches!(part, StrPart::Text { value, .. } if value.starts_with(shell_quote)),
        );
        let width = u32::try_from(quote.len()).unwrap_or(1);
        let edits = if before && after {
            vec![
                Edit {
                    span: Span { start: span.start.saturating_sub(width), end: span.start, ..span },
                    replacement: String::new(),
                },
                Edit {
                    span: Span { start: span.end, end: span.end + width, ..span },
                    replacement: String::new(),
                },
            ]
        } else {
            vec![
                Edit { span: span.shrink_to_start(), replacement: quote.to_owned() },
                Edit { span: span.shrink_to_end(), replacement: quote.to_owned() },
            ]
        };
        let name = if double { "double" } else { "single" };
        self.report(
            Diagnostic::new(
                &security::IN_QUOTES,
                span,
                format!("a value stands inside the shell's {name} quotes, and cdpipe quotes it by itself"),
            )
            .label("this is one word of data already")
            .help("take it out of the quotes")
            .fix("take it out of the quotes", edits),
        );
    }

    fn http(&mut self, block: &'b Block<'b>, found: &Found, scope: &Scope<'_>) -> (StepKind, String) {
        let url = or_blank(found.expr("URL"));
        let method = found.word("method").unwrap_or("GET").to_owned();
        if let (Some(Value::Str(text)), Some(span)) = (url.known(), found.span("URL"))
            && text.starts_with('/')
            && !scope.candidate
        {
            self.report(
                Diagnostic::new(
                    &name_code::NOT_HERE,
                    span,
                    "a path is asked of the candidate, and there is none here",
                )
                .help("write a whole URL, or move it into a deploy's `verify` or `validate`"),
            );
        }
        if let Some(body) = found.span("body").filter(|_| matches!(method.as_str(), "GET" | "HEAD")) {
            self.report(
                Diagnostic::new(
                    &crate::codes::values::BAD_FORM,
                    body,
                    format!("a {method} request has no body"),
                )
                .help("say `method = POST`"),
            );
        }
        let statuses = match found.value("expect") {
            Some(Value::List(items)) => items
                .iter()
                .filter_map(|item| match item {
                    Value::Int(code) => u16::try_from(*code).ok(),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        let label = format!("http {method} {}", plain(&url));
        let kind = StepKind::Http(HttpStep {
            method,
            url,
            headers: self.open_map(block, Id::Headers, scope),
            body: found.expr("body"),
            expect_status: statuses,
            expect_body: found.expr("contains"),
        });
        (kind, label)
    }

    /// `slack(url)`, `webhook(url)`.
    fn channel(&mut self, expr: &Expr, scope: &Scope<'_>) -> Option<(Channel, Lowered)> {
        let wrong = |checker: &mut Self| {
            if !matches!(expr.kind, ExprKind::Error) {
                let text = shorten(checker.slice(expr.span));
                checker.report(
                    Diagnostic::new(&name_code::HEAD, expr.span, format!("expected {}, found `{text}`", schema::kind_text(&Kind::Channel)))
                        .help("write `notify slack(slack_webhook) \"text\"`, with `secret slack_webhook` in the file"),
                );
            }
            None
        };
        let ExprKind::Call(name, args) = &expr.kind else { return wrong(self) };
        let channel = match name.text.as_str() {
            "slack" => Channel::Slack,
            "webhook" => Channel::Webhook,
            other => {
                let mut diag = Diagnostic::new(
                    &name_code::UNKNOWN_FUNCTION,
                    name.span,
                    format!("there is no channel `{other}`"),
                )
                .help("the channels are `slack(url)` and `webhook(url)`");
                if let Some(near) = nearest(other, ["slack", "webhook"]) {
                    diag = diag.label(format!("did you mean `{near}`?"));
                }
                self.report(diag);
                return None;
            }
        };
        let [arg] = args.as_slice() else { return wrong(self) };
        let low = self.expr(&arg.value, scope);
        let ty = low.ty?;
        if !(ty == Type::Secret || fits(&ty, &Type::Str)) {
            self.report(
                Diagnostic::new(
                    &type_code::WRONG_TYPE,
                    arg.value.span,
                    format!(
                        "the address of a message is a string or a secret, found {}",
                        crate::values::a_type(&ty)
                    ),
                )
                .help("declare `secret slack_webhook`"),
            );
            return None;
        }
        Some((channel, or_blank(low.expr)))
    }
}

/// Whether cdpipe could take anything back that this stage did.
pub(crate) fn undoable(block: &Block<'_>) -> bool {
    block
        .inner
        .children
        .iter()
        .any(|child| matches!(child.spec.id, Id::Deploy | Id::Apply | Id::Flag | Id::Undo))
}

/// A text as people read it, shortened.
pub(crate) fn plain(expr: &Lowered) -> String {
    let text = match expr {
        Lowered::Value(value) => value.to_string(),
        other => other.to_string(),
    };
    shorten(&text)
}
