//! What is said about words that are not known, or not here: slips, words of other tools, statements in the wrong place.

use super::Reader;
use crate::codes::names as code;
use crate::schema::{self, Body, Part};
use crate::suggest::{nearest, one_of};
use cdpipe_syntax::tree::{self};
use cdpipe_syntax::{Diagnostic, Edit, Span};
use std::fmt::Display;

impl Reader<'_> {
    pub(crate) fn unknown_setting(
        &mut self,
        setting: &tree::Setting,
        key: &str,
        spec: &'static Body,
        owner: &dyn Display,
    ) {
        if let Some(statement) = spec.statement(key) {
            let value = (self.text)(setting.value.span);
            let mut diag = Diagnostic::new(
                &code::SETTING_OR_STATEMENT,
                setting.span,
                format!("`{key}` is a statement, and is written without `=`"),
            )
            .help(format!("it is written `{}`", schema::statement_syntax(statement)));
            if matches!(statement.parts, [Part::Arg(_, _)]) || statement.parts.is_empty() {
                diag = diag.suggestion(
                    "remove the `=`",
                    vec![Edit { span: setting.span, replacement: format!("{key} {value}") }],
                );
            }
            self.diags.push(diag);
            return;
        }
        // The parser has spoken about a word that can't be a name at all.
        if plain_reserved(key) {
            return;
        }
        let mut diag = Diagnostic::new(
            &code::UNKNOWN_SETTING,
            setting.key.span,
            format!("{owner} has no setting `{key}`"),
        );
        let names = spec.settings.iter().map(|setting| setting.name);
        if let Some(foreign) = schema::foreign(key).filter(|foreign| fits_here(foreign, spec)) {
            diag = diag.help(foreign.hint);
            if spec.setting(foreign.here).is_some() {
                diag = diag.suggestion(
                    format!("write `{}`", foreign.here),
                    vec![Edit { span: setting.key.span, replacement: foreign.here.to_owned() }],
                );
            }
        } else if let Some(near) = nearest(key, names.clone()) {
            diag = diag.label(format!("did you mean `{near}`?")).help(format!("write `{near}`")).suggestion(
                format!("write `{near}`"),
                vec![Edit { span: setting.key.span, replacement: near.to_owned() }],
            );
        } else if let Some(places) = places_of_setting(key) {
            diag = diag.help(format!("`{key}` is a setting of {places}"));
        } else if spec.settings.is_empty() {
            diag = diag.help(match spec.statements.is_empty() {
                true => "nothing can be set here".to_owned(),
                false => format!(
                    "only statements stand here: {}",
                    one_of(spec.statements.iter().map(|statement| statement.keyword), 16)
                ),
            });
        } else {
            diag = diag.help(format!("its settings are {}", one_of(names, 16)));
        }
        self.diags.push(diag);
    }

    pub(crate) fn unknown_statement(
        &mut self,
        statement: &tree::Statement,
        spec: &'static Body,
        owner: &dyn Display,
    ) {
        let word = statement.keyword.text.as_str();
        let span = statement.keyword.span;
        if let Some(setting) = spec.setting(word) {
            let mut diag = Diagnostic::new(
                &code::SETTING_OR_STATEMENT,
                statement.head,
                format!("`{word}` is a setting, and is written with `=`"),
            )
            .help(format!("write `{word} = …`: {}", schema::kind_text(&setting.kind)));
            if let ([tree::Part::Expr(value)], None) = (statement.parts.as_slice(), &statement.body) {
                diag = diag.suggestion(
                    "put a `=` between",
                    vec![Edit {
                        span: Span { start: span.end, end: value.span.start, ..span },
                        replacement: " = ".to_owned(),
                    }],
                );
            }
            self.diags.push(diag);
            return;
        }
        let places = places_of_statement(word);
        let here = spec.statements.iter().map(|statement| statement.keyword);
        let mut diag = if places.is_some() {
            Diagnostic::new(&code::MISPLACED, span, format!("`{word}` may not stand in {owner}"))
        } else {
            Diagnostic::new(&code::UNKNOWN_STATEMENT, span, format!("{owner} has no statement `{word}`"))
        };
        if word == "fail"
            && spec.statement("rollback").is_some_and(|found| found.id == schema::Id::RollbackWhen)
        {
            diag = diag.help(
                "in the watch of a deploy a rule is `rollback when …`; `fail when …` belongs to a watch that is a step of a stage",
            );
        } else if word == "rollback" && spec.statement("fail").is_some() {
            diag = diag.help(
                "in a watch that is a step a rule is `fail when …`; `rollback when …` belongs to the watch of a deploy",
            );
        } else if let Some(foreign) = schema::foreign(word).filter(|foreign| fits_here(foreign, spec)) {
            diag = diag.help(foreign.hint);
        } else if let Some(places) = places {
            diag = diag.help(format!("`{word}` stands in {places}"));
        } else if let Some(near) =
            nearest(word, here.clone().chain(spec.settings.iter().map(|setting| setting.name)))
        {
            diag = diag
                .label(format!("did you mean `{near}`?"))
                .help(format!("write `{near}`"))
                .suggestion(format!("write `{near}`"), vec![Edit { span, replacement: near.to_owned() }]);
        } else if spec.statements.is_empty() {
            diag = diag.help("only settings stand here: `name = value`");
        } else {
            diag = diag.help(format!("what may stand here: {}", one_of(here, 16)));
        }
        self.diags.push(diag);
    }
}

fn fits_here(foreign: &schema::Foreign, spec: &'static Body) -> bool {
    foreign.here.is_empty() || spec.statement(foreign.here).is_some() || spec.setting(foreign.here).is_some()
}

fn plain_reserved(word: &str) -> bool {
    matches!(word, "and" | "or" | "not" | "in" | "matches" | "if" | "then" | "else" | "true" | "false")
}

fn places_of_statement(word: &str) -> Option<String> {
    let mut places: Vec<&'static str> = Vec::new();
    for (owner, body) in all_bodies() {
        if body.statement(word).is_some() && !places.contains(&owner) {
            places.push(owner);
        }
    }
    (!places.is_empty()).then(|| join_places(&places))
}

fn places_of_setting(word: &str) -> Option<String> {
    let mut places: Vec<&'static str> = Vec::new();
    for (owner, body) in all_bodies() {
        if body.setting(word).is_some() && !places.contains(&owner) {
            places.push(owner);
        }
    }
    (!places.is_empty()).then(|| join_places(&places))
}

fn join_places(places: &[&'static str]) -> String {
    if let Some(at) = places.iter().position(|place| place.is_empty()) {
        let mut rest = places.to_vec();
        rest.remove(at);
        if rest.is_empty() {
            return "the file itself, outside of any braces".to_owned();
        }
        return format!("the file itself, and {}", one_of(rest, 8));
    }
    one_of(places.iter().copied(), 8)
}

/// Each body with the keyword of its owner; the file's has an empty one.
fn all_bodies() -> Vec<(&'static str, &'static Body)> {
    let mut found = vec![("", &schema::FILE)];
    for (_, statement) in schema::statements() {
        found.extend(schema::bodies(statement).into_iter().map(|body| (statement.keyword, body)));
    }
    found
}
