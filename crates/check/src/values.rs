//! Values against the schema: each setting and each value of a head by its kind, with ranges, enums and forms of strings.

use crate::checker::Checker;
use crate::codes::{lints, names as code, security, types as type_code, values as value_code};
use crate::expr::{Low, fits};
use crate::schema::{self, Form, Id, Kind, Member, Names};
use crate::scope::Scope;
use crate::structure::{Block, as_name};
use crate::suggest::{nearest, one_of};
use crate::window::parse_window;
use cdpipe_model::expr::Expr as Lowered;
use cdpipe_model::strategy::Count;
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, ExprKind, Ident, Literal, Quote, StrLit, StrPart};
use cdpipe_syntax::{Diagnostic, Edit, Span};

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
    fn low(span: Span, low: Low) -> Self {
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
    list: Vec<(&'static str, Got)>,
}

impl Found {
    pub(crate) fn get(&self, name: &str) -> Option<&Got> {
        self.list.iter().find(|(found, _)| *found == name).map(|(_, got)| got)
    }

    /// Whether it was written at all.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
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

    fn member(&mut self, members: &'static [Member], expr: &Expr, scope: &Scope<'_>, what: &str) -> Got {
        let words = || members.iter().map(|member| member.word);
        if let Some(name) = as_name(expr) {
            if let Some(member) = members.iter().find(|member| member.word == name.text) {
                if self.names.get(Names::Param, &name.text).is_some() {
                    self.report(
                        Diagnostic::new(
                            &lints::MEMBER_OR_PARAM,
                            name.span,
                            format!("this is the word `{}`, not the parameter of that name", name.text),
                        )
                        .help("rename the parameter if its value was meant"),
                    );
                }
                return Got { span: Some(expr.span), word: Some(member.word), ..Got::default() };
            }
            if self.names.get(Names::Param, &name.text).is_none()
                && scope.looped.is_none_or(|looped| looped.name != name.text)
            {
                self.unknown_member(name, members, what);
                return Got::default();
            }
        }
        if let Some(text) = as_text(expr).and_then(StrLit::plain)
            && members.iter().any(|member| member.word == text)
        {
            self.report(
                Diagnostic::new(
                    &value_code::UNKNOWN_MEMBER,
                    expr.span,
                    format!("the word `{text}` stands without quotes"),
                )
                .help(format!("write `{what} = {text}`"))
                .fix("remove the quotes", vec![Edit { span: expr.span, replacement: text }]),
            );
            return Got::default();
        }
        let low = self.expr(expr, scope);
        match (&low.ty, low.known()) {
            (None, _) => Got::default(),
            (Some(Type::Str), None) => Got { span: Some(expr.span), expr: low.expr, ..Got::default() },
            (Some(Type::Str), Some(Value::Str(text))) => {
                let member = members.iter().find(|member| member.word == text);
                if member.is_none() {
                    let mut diag = Diagnostic::new(
                        &value_code::UNKNOWN_MEMBER,
                        expr.span,
                        format!("`{what}` is {}, found {text:?}", one_of(words(), 10)),
                    );
                    if let Some(near) = nearest(text, words()) {
                        diag = diag.label(format!("did you mean `{near}`?"));
                    }
                    self.report(diag.help("a bare word is written without quotes"));
                }
                Got { span: Some(expr.span), word: member.map(|member| member.word), ..Got::default() }
            }
            (Some(found), _) => {
                let found = found.clone();
                self.report(
                    Diagnostic::new(
                        &value_code::UNKNOWN_MEMBER,
                        expr.span,
                        format!("`{what}` is {}, found {}", one_of(words(), 10), a_type(&found)),
                    )
                    .help("write one of these words, without quotes"),
                );
                Got::default()
            }
        }
    }

    fn unknown_member(&mut self, name: &Ident, members: &'static [Member], what: &str) {
        let words = || members.iter().map(|member| member.word);
        let mut diag = Diagnostic::new(
            &value_code::UNKNOWN_MEMBER,
            name.span,
            format!("`{what}` is {}, found `{}`", one_of(words(), 10), name.text),
        );
        if let Some(near) = nearest(&name.text, words()) {
            diag = diag.label(format!("did you mean `{near}`?")).suggestion(
                format!("write `{near}`"),
                vec![Edit { span: name.span, replacement: near.to_owned() }],
            );
        }
        let help: Vec<String> =
            members.iter().map(|member| format!("`{}`: {}", member.word, member.doc)).collect();
        self.report(diag.help(help.join("; ")));
    }

    /// A bare name of something declared.
    pub(crate) fn reference(&mut self, names: Names, expr: &Expr) -> Got {
        let Some(name) = as_name(expr) else {
            let text = self.slice(expr.span).to_owned();
            let mut diag = Diagnostic::new(
                &code::UNKNOWN_REFERENCE,
                expr.span,
                format!(
                    "expected the name of {}, found `{}`",
                    names.a_noun(),
                    crate::structure::shorten(&text)
                ),
            );
            if let Some(plain) = as_text(expr).and_then(StrLit::plain) {
                diag = diag
                    .help("a name stands without quotes")
                    .suggestion("remove the quotes", vec![Edit { span: expr.span, replacement: plain }]);
            } else {
                diag = diag.help(format!("name one that is declared by `{} NAME`", names.keyword()));
            }
            self.report(diag);
            return Got::default();
        };
        if self.names.take(names, &name.text).is_none() {
            self.unknown_reference(names, name);
            return Got::default();
        }
        Got { span: Some(expr.span), name: Some(name.text.clone()), ..Got::default() }
    }

    /// Says that nothing of this name is declared.
    pub(crate) fn unknown_reference(&mut self, names: Names, name: &Ident) {
        let known = self.names.all(names);
        let mut diag = Diagnostic::new(
            &code::UNKNOWN_REFERENCE,
            name.span,
            format!("there is no {} `{}`", names.noun(), name.text),
        );
        if let Some(near) = nearest(&name.text, known.iter().copied()) {
            diag = diag.label(format!("did you mean `{near}`?")).help(format!("write `{near}`")).suggestion(
                format!("write `{near}`"),
                vec![Edit { span: name.span, replacement: near.to_owned() }],
            );
        } else if known.is_empty() {
            diag = diag.help(format!("declare it: `{} {} …`", names.keyword(), name.text));
        } else {
            diag = diag.help(format!("declared are {}", one_of(known, 12)));
        }
        self.report(diag);
    }

    fn list_of(
        &mut self,
        item: &'static Kind,
        expr: &Expr,
        scope: &Scope<'_>,
        what: &str,
        late: bool,
    ) -> Got {
        if let ExprKind::List(items) = &expr.kind {
            let mut all = Vec::new();
            let mut whole = true;
            for each in items {
                match self.kind(item, each, scope, what, late).expr {
                    Some(expr) => all.push(expr),
                    None => whole = false,
                }
            }
            let expr_low = whole.then(|| Lowered::List(all).fold());
            return Got { span: Some(expr.span), expr: expr_low, ..Got::default() };
        }
        let low = self.expr(expr, scope);
        match &low.ty {
            None => Got::default(),
            Some(Type::List(_)) => Got::low(expr.span, low),
            Some(found) => {
                let found = found.clone();
                // The kind of the whole is not at hand as a static, so the message is made here.
                let text = self.slice(expr.span).to_owned();
                self.report(
                    Diagnostic::new(
                        &type_code::WRONG_TYPE,
                        expr.span,
                        format!("`{what}` is a list, found {}", a_type(&found)),
                    )
                    .help(format!("write `[{text}]`"))
                    .suggestion(
                        "make it a list",
                        vec![Edit { span: expr.span, replacement: format!("[{text}]") }],
                    ),
                );
                Got::default()
            }
        }
    }

    /// Program and arguments. A string is split at its blanks; a value in it stays in its word whatever it holds.
    fn argv(&mut self, expr: &Expr, scope: &Scope<'_>, what: &str) -> Got {
        let lows: Vec<(Span, Low)> = match &expr.kind {
            ExprKind::List(items) => items.iter().map(|item| (item.span, self.expr(item, scope))).collect(),
            ExprKind::Str(text) => {
                if text.parts.iter().any(|part| matches!(part, StrPart::Text { value, .. } if value.contains(['"', '\'', '|', '>', '<', ';', '&', '`'])))
                {
                    self.report(
                        Diagnostic::new(
                            &value_code::BAD_FORM,
                            expr.span,
                            format!("`{what}` is not read by a shell, and this looks like shell text"),
                        )
                        .help("write a list, one string for each argument; for a shell: `[\"sh\", \"-c\", \"…\"]`"),
                    );
                    return Got::default();
                }
                let words = split_words(text);
                words.iter().map(|word| (expr.span, self.expr(word, scope))).collect()
            }
            _ => {
                let low = self.expr(expr, scope);
                return match &low.ty {
                    Some(Type::List(item)) if **item == Type::Str => Got::low(expr.span, low),
                    None => Got::default(),
                    Some(Type::Str | Type::Version) => match low.expr {
                        Some(Lowered::Value(Value::Str(text))) => {
                            let words =
                                text.split_whitespace().map(|word| Value::Str(word.to_owned())).collect();
                            Got {
                                span: Some(expr.span),
                                expr: Some(Lowered::Value(Value::List(words))),
                                ..Got::default()
                            }
                        }
                        _ => Got { span: Some(expr.span), ..Got::default() },
                    },
                    found => {
                        self.wrong_type(expr, found.clone().as_ref(), what, &Kind::Argv);
                        Got::default()
                    }
                };
            }
        };
        if lows.is_empty() {
            self.report(
                Diagnostic::new(&value_code::EMPTY_LIST, expr.span, format!("`{what}` names no program"))
                    .help("write the program first, then its arguments: `[\"./web\", \"--port\", \"80\"]`"),
            );
            return Got::default();
        }
        let mut all = Vec::new();
        let mut whole = true;
        for (span, low) in lows {
            match low.ty {
                None => whole = false,
                Some(Type::Secret) => {
                    self.secret_leak(span, "an argument");
                    whole = false;
                }
                Some(Type::List(_) | Type::Map(_)) => {
                    self.report(
                        Diagnostic::new(
                            &type_code::WRONG_TYPE,
                            span,
                            format!("an argument of `{what}` is a single value"),
                        )
                        .help("put its items into the list one by one"),
                    );
                    whole = false;
                }
                Some(_) => match low.expr {
                    Some(expr) => all.push(expr),
                    None => whole = false,
                },
            }
        }
        Got { span: Some(expr.span), expr: whole.then(|| Lowered::List(all).fold()), ..Got::default() }
    }

    fn listen(&mut self, expr: &Expr, scope: &Scope<'_>, what: &str) -> Got {
        let low = self.expr(expr, scope);
        match &low.ty {
            None => return Got::default(),
            Some(Type::Int | Type::Str) => {}
            found => {
                self.wrong_type(expr, found.clone().as_ref(), what, &Kind::Listen);
                return Got::default();
            }
        }
        let text = match low.known() {
            None => return Got { span: Some(expr.span), ..Got::default() },
            Some(Value::Int(port)) => {
                if !(1..=65_535).contains(port) {
                    self.out_of_range(expr, what, "a port from 1 to 65535");
                    return Got::default();
                }
                format!(":{port}")
            }
            Some(value) => value.to_string(),
        };
        let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) || text.contains(char::is_whitespace) || text.contains('/') {
            self.report(
                Diagnostic::new(
                    &value_code::BAD_FORM,
                    expr.span,
                    format!("{text:?} is not an address with a port"),
                )
                .help("write a port (`80`), or an address with one (`\"127.0.0.1:80\"`, `\":80\"`)"),
            );
            return Got::default();
        }
        Got { span: Some(expr.span), expr: Some(Lowered::text(text)), ..Got::default() }
    }

    fn status(&mut self, expr: &Expr, scope: &Scope<'_>, what: &str) -> Got {
        let low = self.expr(expr, scope);
        let codes: Vec<Value> = match (&low.ty, low.known()) {
            (None, _) => return Got::default(),
            (Some(Type::Int), Some(value)) => vec![value.clone()],
            (Some(Type::List(item)), Some(Value::List(items))) if **item == Type::Int => items.clone(),
            (Some(Type::Int), None) => return Got { span: Some(expr.span), ..Got::default() },
            (Some(Type::List(item)), None) if **item == Type::Int => {
                return Got { span: Some(expr.span), ..Got::default() };
            }
            (found, _) => {
                let found = (*found).clone();
                self.wrong_type(expr, found.as_ref(), what, &Kind::Status);
                return Got::default();
            }
        };
        if codes.iter().any(|code| !matches!(code, Value::Int(100..=599))) {
            self.out_of_range(expr, what, "status codes from 100 to 599");
            return Got::default();
        }
        Got { span: Some(expr.span), expr: Some(Lowered::Value(Value::List(codes))), ..Got::default() }
    }

    /// Whether a string has the form its setting takes; says so if not.
    fn form(&mut self, form: Form, text: &str, span: Span, what: &str) {
        let bad =
            |message: String, help: &str| Diagnostic::new(&value_code::BAD_FORM, span, message).help(help);
        let has_blank = text.contains(char::is_whitespace);
        let diag = match form {
            Form::Plain => None,
            Form::Shell | Form::Path | Form::Use => {
                text.trim().is_empty().then(|| bad(format!("`{what}` is empty"), "write what it should be"))
            }
            Form::Regex => {
                self.regex(text, span);
                None
            }
            Form::Glob => glob_problem(text).map(|why| {
                Diagnostic::new(&value_code::BAD_GLOB, span, format!("this is not a path or a glob: {why}"))
                    .help("`*` is any part of a name, `**` any folders, `[a-z]` one character, `{a,b}` one of these")
            }),
            Form::Window => parse_window(text)
                .err()
                .map(|(message, help)| Diagnostic::new(&value_code::BAD_WINDOW, span, message).help(help)),
            Form::Url => (!has_scheme(text) || has_blank).then(|| {
                bad(format!("{text:?} is not a URL"), "write it whole, with its scheme: `http://host:port/path`")
            }),
            Form::HttpPath => (!text.starts_with('/') || has_blank).then(|| {
                bad(format!("{text:?} is not a path"), "a path starts with `/`")
            }),
            Form::HttpTarget => {
                let fine = (text.starts_with('/') || text.starts_with("http://") || text.starts_with("https://")) && !has_blank;
                (!fine).then(|| {
                    bad(
                        format!("{text:?} is neither a URL nor a path"),
                        "write `http://…`, `https://…`, or a path of the candidate that starts with `/`",
                    )
                })
            }
            Form::Endpoint => (!has_scheme(text) || has_blank).then(|| {
                bad(format!("{text:?} is not an endpoint"), "write `unix:///var/run/docker.sock` or `tcp://host:2376`")
            }),
            Form::Compose => (!text.split_once('#').is_some_and(|(file, service)| !file.is_empty() && !service.is_empty()))
                .then(|| bad(format!("{text:?} names no service of a file"), "write `\"docker-compose.yml#app\"`")),
            Form::Workload => (!text.split_once('/').is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty()))
                .then(|| bad(format!("{text:?} names no workload"), "write kind and name: `\"Deployment/web\"`")),
            Form::Image => image_problem(text).map(|why| bad(format!("{text:?} is not an image: {why}"), "write `registry/name:tag`")),
        };
        if let Some(diag) = diag {
            self.report(diag);
        }
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

fn has_scheme(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, rest)| {
        !rest.is_empty()
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    })
}

fn glob_problem(text: &str) -> Option<&'static str> {
    if text.trim().is_empty() {
        return Some("it is empty");
    }
    let (mut in_class, mut braces) = (false, 0_u32);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            // The guard takes the character that the backslash protects.
            '\\' if chars.next().is_none() => return Some("it ends in a backslash"),
            '\\' => {}
            '[' if !in_class => in_class = true,
            ']' if in_class => in_class = false,
            '{' if !in_class => braces += 1,
            '}' if !in_class => {
                if braces == 0 {
                    return Some("a `}` without its `{`");
                }
                braces -= 1;
            }
            _ => {}
        }
    }
    if in_class {
        return Some("a `[` without its `]`");
    }
    (braces > 0).then_some("a `{` without its `}`")
}

fn image_problem(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.contains(char::is_whitespace) {
        return Some("it has blanks");
    }
    let without_digest = text.split('@').next().unwrap_or_default();
    let (folder, last) = without_digest.rsplit_once('/').unwrap_or(("", without_digest));
    let name = last.split(':').next().unwrap_or_default();
    if name.is_empty() {
        return Some("it has no name");
    }
    // Only the registry's host may have capitals.
    let path = folder
        .split_once('/')
        .map_or(if folder.contains(['.', ':']) { "" } else { folder }, |(_, rest)| rest);
    if name.chars().chain(path.chars()).any(|c| c.is_ascii_uppercase()) {
        return Some("its name has capitals");
    }
    if last.ends_with(':') {
        return Some("its tag is empty");
    }
    None
}

/// The words of a string as strings of their own; blanks inside of values don't count.
fn split_words(text: &StrLit) -> Vec<Expr> {
    let mut words: Vec<Vec<StrPart>> = Vec::new();
    let mut open = false;
    for part in &text.parts {
        match part {
            StrPart::Interp { .. } => {
                if !open {
                    words.push(Vec::new());
                }
                if let Some(word) = words.last_mut() {
                    word.push(part.clone());
                }
                open = true;
            }
            StrPart::Text { value, span } => {
                for (at, piece) in value.split(char::is_whitespace).enumerate() {
                    if at > 0 {
                        open = false;
                    }
                    if piece.is_empty() {
                        continue;
                    }
                    if !open {
                        words.push(Vec::new());
                    }
                    if let Some(word) = words.last_mut() {
                        word.push(StrPart::Text { value: piece.to_owned(), span: *span });
                    }
                    open = true;
                }
            }
        }
    }
    words
        .into_iter()
        .map(|parts| Expr {
            kind: ExprKind::Str(StrLit { quote: Quote::Double, parts, span: text.span }),
            span: text.span,
        })
        .collect()
}
