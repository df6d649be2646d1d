//! The table as text: how a statement is written, what a setting may hold.

use super::{BodyUse, Form, Kind, Part, Setting, Statement};

/// How a statement is written: `deploy SERVICE to ENVIRONMENT { … }`.
pub fn statement_syntax(statement: &Statement) -> String {
    let mut text = statement.keyword.to_owned();
    parts_syntax(statement.parts, &mut text);
    match statement.body {
        BodyUse::None => {}
        BodyUse::Optional(_) => text.push_str(" [{ … }]"),
        BodyUse::Required(_) => text.push_str(" { … }"),
    }
    text
}

fn parts_syntax(parts: &[Part], text: &mut String) {
    for part in parts {
        match part {
            Part::Declares(_) => text.push_str(" NAME"),
            Part::Label(label, _) => {
                text.push(' ');
                text.push_str(label);
            }
            Part::Word(word) => {
                text.push(' ');
                text.push_str(word);
            }
            Part::Arg(_, Kind::Enum(members)) => {
                text.push(' ');
                text.push_str(&members.iter().map(|member| member.word).collect::<Vec<_>>().join("|"));
            }
            Part::Arg(label, kind) => {
                text.push(' ');
                if matches!(kind, Kind::Str(_) | Kind::SecretStr(_)) {
                    text.push_str(&format!("\"{label}\""));
                } else {
                    text.push_str(label);
                }
            }
            Part::Choice(_, variants) => {
                text.push(' ');
                let words: Vec<_> = variants
                    .iter()
                    .map(|variant| {
                        let mut word = variant.word.to_owned();
                        parts_syntax(variant.parts, &mut word);
                        if statement_has_own_body(variant.body) {
                            word.push_str(" { … }");
                        }
                        word
                    })
                    .collect();
                text.push_str(&words.join(" | "));
            }
            Part::Opt(inner) => {
                let mut piece = String::new();
                parts_syntax(inner, &mut piece);
                text.push_str(&format!(" [{}]", piece.trim_start()));
            }
            Part::Type => text.push_str(": TYPE"),
            Part::Value(_) => text.push_str(" = VALUE"),
            Part::In => text.push_str(" in LIST"),
            Part::Matches => text.push_str(" matches 'REGEX'"),
            Part::For => text.push_str(" for x in LIST"),
            Part::Rest(what) => {
                text.push(' ');
                text.push_str(&what.replace('`', ""));
            }
        }
    }
}

fn statement_has_own_body(body: Option<BodyUse>) -> bool {
    body.is_some_and(|body| body.body().is_some())
}

/// What a value may be, in a few words: `a duration, at least 100ms`.
pub fn kind_text(kind: &Kind) -> String {
    match kind {
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::Int(min, max) => format!("a whole number from {min} to {max}"),
        Kind::Number(min, max) => format!("a number from {min} to {max}"),
        Kind::Percent(min, max) => format!("a percentage from {min}% to {max}%"),
        Kind::Duration(0 | 1) => "a duration such as `30s` or `1h30m`".to_owned(),
        #[allow(
            clippy::cast_precision_loss,
            reason = "the smallest durations of the table are a few hundred milliseconds"
        )]
        Kind::Duration(min) => {
            format!("a duration of at least {}", cdpipe_model::value::format_duration_ms(*min as f64))
        }
        Kind::Size => "a size such as `256Mi`".to_owned(),
        Kind::Count => "a number of instances (`2`) or a share of them (`20%`)".to_owned(),
        Kind::Str(form) | Kind::SecretStr(form) => form_text(*form).to_owned(),
        Kind::Scalar => "a single value".to_owned(),
        Kind::Enum(members) => {
            let words: Vec<_> = members.iter().map(|member| format!("`{}`", member.word)).collect();
            match words.split_last() {
                Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                _ => words.join(""),
            }
        }
        Kind::List(item) => format!("a list, each item {}", kind_text(item)),
        Kind::Map(item) => format!("a map, each value {}", kind_text(item)),
        Kind::Ref(names) => format!("the name of {}", names.a_noun()),
        Kind::Needs => "a list of stages and gates".to_owned(),
        Kind::Condition => "a condition such as `git.branch == \"main\"`".to_owned(),
        Kind::Rule => "a condition such as `error_rate > 1%`".to_owned(),
        Kind::Listen => "a port, or an address with one (`\"127.0.0.1:80\"`)".to_owned(),
        Kind::Argv => "a program and its arguments as a list of strings".to_owned(),
        Kind::Status => "a status code, or a list of them".to_owned(),
        Kind::RouteMatch => "`header(\"name\", \"value\")` or `cookie(\"name\", \"value\")`".to_owned(),
        Kind::Channel => "`slack(url)` or `webhook(url)`".to_owned(),
        Kind::Query => {
            "a query: a string, `ratio(a, b)`, `rate(m)`, `quantile(q, m)` or `sample(m)`".to_owned()
        }
        Kind::Events => {
            "`success`, `failure`, `rollback`, `rollback_failed`, `cancel` or `always`, joined by `or`"
                .to_owned()
        }
        Kind::Any => "a value".to_owned(),
    }
}

fn form_text(form: Form) -> &'static str {
    match form {
        Form::Plain => "a string",
        Form::Shell => "a shell command as a string",
        Form::Url => "a URL as a string",
        Form::Path => "a path as a string",
        Form::Glob => "a path or a glob as a string",
        Form::Regex => "a regular expression as a string",
        Form::Window => "a window of the week such as `\"Mon..Fri 09:00-17:00 Europe/Madrid\"`",
        Form::Image => "a container image as a string",
        Form::HttpPath => "a path that starts with `/`, as a string",
        Form::HttpTarget => "a URL, or a path of the candidate that starts with `/`, as a string",
        Form::Endpoint => "an endpoint such as `\"unix:///var/run/docker.sock\"`",
        Form::Compose => "a compose file and a service of it: `\"docker-compose.yml#app\"`",
        Form::Workload => "a kind and a name: `\"Deployment/web\"`",
        Form::Use => "a relative path as a string",
    }
}

/// One setting in one line: `timeout = 10m  For one attempt.`
pub fn setting_line(setting: &Setting) -> String {
    let rest = if setting.required {
        "required".to_owned()
    } else if setting.default.is_empty() {
        "optional".to_owned()
    } else {
        format!("default `{}`", setting.default)
    };
    format!("`{}`: {}, {rest}. {}", setting.name, kind_text(&setting.kind), setting.doc)
}
