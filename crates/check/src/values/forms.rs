//! Values of a certain form: lists, programs with arguments, addresses, status codes, and strings such as URLs and images.

use super::{Got, a_type};
use crate::checker::Checker;
use crate::codes::{types as type_code, values as value_code};
use crate::expr::Low;
use crate::schema::{Form, Kind};
use crate::scope::Scope;
use crate::window::parse_window;
use cdpipe_model::expr::Expr as Lowered;
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, ExprKind, Quote, StrLit, StrPart};
use cdpipe_syntax::{Diagnostic, Edit, Span};

impl Checker<'_> {
    pub(crate) fn list_of(
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
    pub(crate) fn argv(&mut self, expr: &Expr, scope: &Scope<'_>, what: &str) -> Got {
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

    pub(crate) fn listen(&mut self, expr: &Expr, scope: &Scope<'_>, what: &str) -> Got {
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

    pub(crate) fn status(&mut self, expr: &Expr, scope: &Scope<'_>, what: &str) -> Got {
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
    pub(crate) fn form(&mut self, form: Form, text: &str, span: Span, what: &str) {
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
            Form::Workload => match text.split_once('/') {
                Some((_, name)) if name.is_empty() || name.contains('/') || has_blank => Some(()),
                Some(("Deployment" | "StatefulSet" | "DaemonSet", _)) => None,
                _ => Some(()),
            }
            .map(|()| {
                bad(
                    format!("{text:?} names no workload"),
                    "write kind and name: `\"Deployment/web\"`; a service is a Deployment, a StatefulSet or a DaemonSet",
                )
            }),
            Form::Image => image_problem(text).map(|why| bad(format!("{text:?} is not an image: {why}"), "write `registry/name:tag`")),
        };
        if let Some(diag) = diag {
            self.report(diag);
        }
    }
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
