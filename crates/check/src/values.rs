//! Values against the schema: each setting and each value of a head by its kind, with ranges, enums and forms of strings.

mod forms;
mod found;
mod words;

pub(crate) use found::{Found, Got};

use crate::checker::Checker;
use crate::codes::{security, types as type_code, values as value_code};
use crate::expr::{Low, fits};
use crate::schema::{self, Form, Id, Kind};
use crate::scope::Scope;
use crate::structure::Block;
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, ExprKind, Literal, StrLit, StrPart};
use cdpipe_syntax::{Diagnostic, Edit, Span};

/// Milliseconds as a whole number; a negative one is 0.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturating is right")]
pub(crate) fn whole_ms(ms: f64) -> u64 {
    ms.round().max(0.0) as u64
}

/// `a string`, `an int`.
pub(crate) fn a_type(ty: &Type) -> String {
    if *ty == Type::Int { "an int".to_owned() } else { format!("a {ty}") }
}

impl Checker<'_> {
    /// All settings and values of a statement.
    pub(crate) fn found(&mut self, block: &Block<'_>, scope: &Scope<'_>) -> Found {
        let mut list = Vec::with_capacity(block.args.len() + block.inner.settings.len());
        let late_args = matches!(block.spec.id, Id::Http | Id::Notify | Id::Flag | Id::Apply);
        for (label, kind, expr) in &block.args {
            // Scripts of steps are read by their own code, because of their quotes.
            if matches!((block.spec.id, *kind), (Id::Run | Id::Exec, Kind::Str(Form::Shell))) {
                continue;
            }
            let got =
                self.kind(kind, expr, scope, &label.to_lowercase(), late_args || matches!(kind, Kind::Rule));
            list.push((*label, got));
        }
        for (setting, written) in &block.inner.settings {
            let got = self.kind(&setting.kind, &written.value, scope, setting.name, setting.late);
            list.push((setting.name, got));
        }
        Found { list }
    }

    /// A value by its kind.
    pub(crate) fn kind(
        &mut self,
        kind: &'static Kind,
        expr: &Expr,
        scope: &Scope<'_>,
        what: &str,
        late: bool,
    ) -> Got {
        if matches!(expr.kind, ExprKind::Error) {
            return Got::default();
        }
        let mut got = match kind {
            Kind::Enum(members) => self.member(members, expr, scope, what),
            Kind::Ref(names) => self.reference(*names, expr),
            Kind::List(item) => self.list_of(item, expr, scope, what, late),
            Kind::Argv => self.argv(expr, scope, what),
            // Read by the code of their statements.
            Kind::Needs | Kind::RouteMatch | Kind::Channel | Kind::Query | Kind::Events => Got::default(),
            Kind::Str(form) | Kind::SecretStr(form) => {
                let low = self.expr(expr, scope);
                let secret = matches!(kind, Kind::SecretStr(_));
                if *form == Form::Shell
                    && let Some(text) = as_text(expr)
                    && let Some(interp) = text.parts.iter().find_map(|part| match part {
                        StrPart::Interp { span, .. } => Some(*span),
                        StrPart::Text { .. } => None,
                    })
                {
                    self.report(
                        Diagnostic::new(&security::IN_SHELL_TEXT, interp, "a value can't be put into this shell text")
                            .help("read it from a variable of the shell, `$NAME`, which the service's `env` can set"),
                    );
                    return Got::default();
                }
                let low = self.typed(low, expr, &Type::Str, what, secret, kind);
                if let Some(Value::Str(text)) = low.known() {
                    let text = text.clone();
                    self.form(*form, &text, expr.span, what);
                }
                Got::low(expr.span, low)
            }
            Kind::Scalar => {
                let low = self.expr(expr, scope);
                match &low.ty {
                    Some(Type::List(_) | Type::Map(_)) => {
                        self.wrong_type(expr, low.ty.as_ref(), what, kind);
                        Got::default()
                    }
                    _ => Got::low(expr.span, low),
                }
            }
            Kind::Any => {
                let low = self.expr(expr, scope);
                Got::low(expr.span, low)
            }
            Kind::Count => {
                let low = self.expr(expr, scope);
                match &low.ty {
                    Some(Type::Int | Type::Percent) => {
                        let range = match low.known() {
                            Some(Value::Int(n)) => *n < 0 || *n > 10_000,
                            Some(Value::Percent(share)) => !(0.0..=100.0).contains(share),
                            _ => false,
                        };
                        if range {
                            self.out_of_range(
                                expr,
                                what,
                                "a number of instances up to 10000, or a share up to 100%",
                            );
                            return Got::default();
                        }
                        Got::low(expr.span, low)
                    }
                    found => {
                        self.wrong_type(expr, found.clone().as_ref(), what, kind);
                        Got::default()
                    }
                }
            }
            Kind::Listen => self.listen(expr, scope, what),
            Kind::Status => self.status(expr, scope, what),
            Kind::Condition | Kind::Rule => {
                let low = self.expr(expr, scope);
                let low = self.typed(low, expr, &Type::Bool, what, false, kind);
                Got::low(expr.span, low)
            }
            Kind::Bool => {
                let low = self.expr(expr, scope);
                Got::low(expr.span, self.typed(low, expr, &Type::Bool, what, false, kind))
            }
            Kind::Int(min, max) => {
                let low = self.expr(expr, scope);
                let low = self.typed(low, expr, &Type::Int, what, false, kind);
                if let Some(Value::Int(n)) = low.known()
                    && !(*min..=*max).contains(n)
                {
                    self.out_of_range(expr, what, &schema::kind_text(kind));
                    return Got::default();
                }
                Got::low(expr.span, low)
            }
            Kind::Number(min, max) => {
                if let ExprKind::Literal(Literal::DurationMs(ms)) = expr.kind
                    && self.slice(expr.span).ends_with('m')
                {
                    let thousandths = ms / 60_000;
                    #[allow(clippy::cast_precision_loss, reason = "for a suggestion")]
                    let share = cdpipe_model::value::trim_number(thousandths as f64 / 1000.0);
                    let text = self.slice(expr.span).to_owned();
                    self.report(
                        Diagnostic::new(
                            &type_code::MINUTES_AS_CPU,
                            expr.span,
                            format!("`{text}` means {thousandths} minutes, and `{what}` is a plain number"),
                        )
                        .help(format!("write `{share}`"))
                        .suggestion(
                            format!("write `{share}`"),
                            vec![Edit { span: expr.span, replacement: share }],
                        ),
                    );
                    return Got::default();
                }
                let low = self.expr(expr, scope);
                let low = self.typed(low, expr, &Type::Number, what, false, kind);
                if let Some(n) = low.known().and_then(Value::magnitude)
                    && !(*min..=*max).contains(&n)
                {
                    self.out_of_range(expr, what, &schema::kind_text(kind));
                    return Got::default();
                }
                Got::low(expr.span, low)
            }
            Kind::Percent(min, max) => {
                let low = self.expr(expr, scope);
                let low = self.typed(low, expr, &Type::Percent, what, false, kind);
                if let Some(Value::Percent(n)) = low.known()
                    && !(*min..=*max).contains(n)
                {
                    self.out_of_range(expr, what, &schema::kind_text(kind));
                    return Got::default();
                }
                Got::low(expr.span, low)
            }
            Kind::Duration(min) => {
                let low = self.expr(expr, scope);
                let low = self.typed(low, expr, &Type::Duration, what, false, kind);
                #[allow(
                    clippy::cast_precision_loss,
                    reason = "the smallest durations of the table are small"
                )]
                if let Some(Value::Duration(ms)) = low.known()
                    && (*ms < *min as f64 || *ms > MAX_DURATION_MS)
                {
                    let text = if *ms > MAX_DURATION_MS {
                        "a duration of at most 366 days".to_owned()
                    } else {
                        schema::kind_text(kind)
                    };
                    self.out_of_range(expr, what, &text);
                    return Got::default();
                }
                Got::low(expr.span, low)
            }
            Kind::Size => {
                let low = self.expr(expr, scope);
                let low = self.typed(low, expr, &Type::Size, what, false, kind);
                if let Some(Value::Size(0)) = low.known() {
                    self.out_of_range(expr, what, "a size of at least 1B");
                    return Got::default();
                }
                Got::low(expr.span, low)
            }
            Kind::Map(_) => {
                let low = self.expr(expr, scope);
                if !matches!(low.ty, Some(Type::Map(_)) | None) {
                    self.wrong_type(expr, low.ty.as_ref(), what, kind);
                    return Got::default();
                }
                Got::low(expr.span, low)
            }
        };
        if !late {
            self.must_be_known(&mut got, what);
        }
        got
    }

    fn must_be_known(&mut self, got: &mut Got, what: &str) {
        let Some(expr) = &got.expr else { return };
        let mut late = None;
        expr.symbols(&mut |symbol| {
            if late.is_none() {
                late = Some(symbol.to_string());
            }
        });
        if let (Some(symbol), Some(span)) = (late, got.span) {
            self.report(
                Diagnostic::new(
                    &type_code::TOO_LATE,
                    span,
                    format!(
                        "`{what}` must be known before anything runs, and `{symbol}` is known only later"
                    ),
                )
                .help("use a parameter, or move what depends on it into a `run` step"),
            );
            got.expr = None;
        }
    }

    /// Says what is wrong with the type, if anything.
    fn typed(
        &mut self,
        low: Low,
        expr: &Expr,
        wanted: &Type,
        what: &str,
        secret: bool,
        kind: &'static Kind,
    ) -> Low {
        let Some(found) = &low.ty else { return low };
        if fits(found, wanted) {
            return low;
        }
        if *found == Type::Secret {
            if secret {
                return low;
            }
            self.secret_leak(expr.span, &format!("`{what}`"));
            return Low::wrong();
        }
        self.wrong_type(expr, Some(found), what, kind);
        Low::wrong()
    }

    /// Says that a secret would be seen here.
    pub(crate) fn secret_leak(&mut self, span: Span, place: &str) {
        self.report(
            Diagnostic::new(&security::SECRET_LEAK, span, format!("a secret would be seen in {place}"))
                .label("this holds a secret")
                .help("give it by `env { NAME = secret }`, `headers` or `stdin`, where nobody can read it"),
        );
    }

    /// Says that the type is wrong, with the unit or the quotes that are missing or too many.
    pub(crate) fn wrong_type(&mut self, expr: &Expr, found: Option<&Type>, what: &str, kind: &'static Kind) {
        let Some(found) = found else { return };
        let wanted = schema::kind_text(kind);
        let literal = matches!(expr.kind, ExprKind::Literal(_));
        let text = self.slice(expr.span).to_owned();
        if literal && matches!(found, Type::Int | Type::Number) {
            let units: &[&str] = match kind {
                Kind::Duration(_) => &["s", "m"],
                Kind::Percent(..) => &["%"],
                Kind::Size => &["Mi", "MB"],
                _ => &[],
            };
            if let Some(first) = units.first() {
                let choices: Vec<String> = units.iter().map(|unit| format!("`{text}{unit}`")).collect();
                self.report(
                    Diagnostic::new(
                        &type_code::NO_UNIT,
                        expr.span,
                        format!("`{what}` is {wanted}, and `{text}` has no unit"),
                    )
                    .help(format!("write {}", choices.join(" or ")))
                    .suggestion(
                        format!("write `{text}{first}`"),
                        vec![Edit { span: expr.span.shrink_to_end(), replacement: (*first).to_owned() }],
                    ),
                );
                return;
            }
        }
        let mut diag = Diagnostic::new(
            &type_code::WRONG_TYPE,
            expr.span,
            format!("`{what}` is {wanted}, found {}", a_type(found)),
        );
        if let Some(inner) = as_text(expr).and_then(StrLit::plain)
            && !matches!(kind, Kind::Str(_) | Kind::SecretStr(_) | Kind::Scalar | Kind::List(_) | Kind::Needs)
            && looks_like_literal(&inner)
        {
            diag = diag
                .help(format!("write `{inner}` without quotes"))
                .suggestion("remove the quotes", vec![Edit { span: expr.span, replacement: inner }]);
        } else if matches!(kind, Kind::Str(_) | Kind::SecretStr(_)) && literal {
            diag = diag.help(format!("write `\"{text}\"`")).suggestion(
                "put it in quotes",
                vec![Edit { span: expr.span, replacement: format!("\"{text}\"") }],
            );
        } else if matches!(kind, Kind::List(_)) {
            diag = diag.help(format!("write `[{text}]`")).suggestion(
                "make it a list",
                vec![Edit { span: expr.span, replacement: format!("[{text}]") }],
            );
        } else {
            diag = diag.help(format!("`{what}` takes {wanted}"));
        }
        self.report(diag);
    }

    fn out_of_range(&mut self, expr: &Expr, what: &str, wanted: &str) {
        let text = self.slice(expr.span).to_owned();
        self.report(
            Diagnostic::new(
                &value_code::OUT_OF_RANGE,
                expr.span,
                format!("`{what}` is {wanted}, found `{}`", crate::structure::shorten(&text)),
            )
            .help(format!("choose {wanted}")),
        );
    }
}

/// Longer durations are slips: a number too large, or a wrong unit.
const MAX_DURATION_MS: f64 = 366.0 * 86_400_000.0;

/// The string literal, if the expression is one.
pub(crate) fn as_text(expr: &Expr) -> Option<&StrLit> {
    match &expr.kind {
        ExprKind::Str(text) => Some(text),
        ExprKind::Paren(inner) => as_text(inner),
        _ => None,
    }
}

/// What stands in the quotes would mean something without them.
fn looks_like_literal(text: &str) -> bool {
    matches!(text, "true" | "false")
        || (text.starts_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '%')))
}
