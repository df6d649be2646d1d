//! The schema and the codes as Markdown: what `cdpipe explain` prints and what the reference pages hold.

use crate::codes::codes;
use crate::schema::{
    self, BUILT_INS, Body, FUNCTIONS, Function, Id, Kind, Part, Statement, Variant, kind_text, setting_line,
    statement_syntax, statements,
};
use cdpipe_syntax::{CodeInfo, Severity};
use std::fmt::Write as _;

/// What is known of a code (`CD0201`), a keyword (`deploy`), a setting (`timeout`, `deploy.timeout`), a word (`canary`, `redis`), a
/// word between the parts of a head (`every`, `for`), an operator in letters (`matches`), a function (`max`), a built-in name (`candidate.url`) or `functions` and `names`, as Markdown; `None` if nothing is.
pub fn explain(word: &str) -> Option<String> {
    let word = word.trim();
    if let Some(info) = codes().into_iter().find(|info| info.code.eq_ignore_ascii_case(word)) {
        return Some(error_page(info));
    }
    match word {
        "functions" => return Some(functions_page()),
        "names" => return Some(names_page()),
        _ => {}
    }
    let mut parts = Vec::new();
    let dotted = word.rsplit_once('.');
    for (path, statement) in statements() {
        if statement.keyword == word {
            parts.push(statement_page(&path, statement, 1));
            continue;
        }
        for variant in variants(statement.parts) {
            if variant.word == word {
                parts.push(variant_page(&path, statement, variant));
            }
        }
        let owner = dotted.map(|(owner, _)| owner);
        let name = dotted.map_or(word, |(_, name)| name);
        if owner.is_none_or(|owner| owner == statement.keyword || statement_has_variant(statement, owner)) {
            for body in schema::bodies(statement) {
                for setting in body.settings.iter().filter(|setting| setting.name == name) {
                    parts.push(setting_page(&path, statement, setting));
                }
            }
        }
    }
    if let Some(function) = schema::function(word) {
        parts.push(function_line(function));
    }
    for built_in in BUILT_INS {
        let root = built_in.name.split('.').next().unwrap_or_default();
        if built_in.name == word || root == word {
            parts.push(format!(
                "`{}`: {}, known {}. {}\n",
                built_in.name, built_in.ty, built_in.place, built_in.doc
            ));
        }
    }
    if let Some((_, doc)) = EXPRESSION_WORDS.iter().find(|(known, _)| *known == word) {
        parts.push(format!("In an expression: {doc}.\n"));
    }
    for (path, statement) in statements() {
        if statement.keyword != word && stands_in(statement.parts, word) {
            let syntax = statement_syntax(statement);
            let place = place(&path, statement);
            parts.push(format!("In the head of {place}, {}:\n\n```text\n{syntax}\n```\n", statement.summary));
        }
    }
    if parts.is_empty() {
        for (path, statement) in statements() {
            if let Some((setting, member)) = member_of(statement, word) {
                parts.push(format!(
                    "`{word}` is a word of `{setting}` in {}: {member}.\n",
                    place(&path, statement)
                ));
            }
        }
    }
    parts.dedup();
    (!parts.is_empty()).then(|| parts.join("\n"))
}

/// The words that are reserved, because expressions are made with them.
const EXPRESSION_WORDS: &[(&str, &str)] = &[
    ("and", "`a and b` is true if both are"),
    ("or", "`a or b` is true if one of them is"),
    ("not", "`not a` is true if `a` is false; it reaches as far as the next `and` or `or`"),
    (
        "in",
        "`a in list` is true if an element of the list equals `a`, and `a in map` if `a` is one of its keys",
    ),
    ("matches", "`text matches 'regex'` is true if the regular expression is found in the text"),
    (
        "if",
        "`if condition then a else b` is one of two values; a step or a stage that is left out has `when = condition`",
    ),
    ("then", "`if condition then a else b` is one of two values"),
    ("else", "`if condition then a else b` is one of two values"),
    ("true", "a value of the type `bool`"),
    ("false", "a value of the type `bool`"),
];

/// Whether this word stands between the other parts of a head.
fn stands_in(parts: &'static [Part], word: &str) -> bool {
    parts.iter().any(|part| match part {
        Part::Word(own) => *own == word,
        Part::For => matches!(word, "for" | "in"),
        Part::In => word == "in",
        Part::Matches => word == "matches",
        Part::Opt(inner) => stands_in(inner, word),
        Part::Choice(_, list) => list.iter().any(|variant| stands_in(variant.parts, word)),
        _ => false,
    })
}

fn statement_has_variant(statement: &'static Statement, word: &str) -> bool {
    variants(statement.parts).iter().any(|variant| variant.word == word)
}

/// A word of an enum anywhere in a statement: the setting's name and what it means.
fn member_of(statement: &'static Statement, word: &str) -> Option<(&'static str, &'static str)> {
    let find = |kind: &Kind, name: &'static str| match kind {
        Kind::Enum(members) => {
            members.iter().find(|member| member.word == word).map(|member| (name, member.doc))
        }
        _ => None,
    };
    schema::bodies(statement)
        .into_iter()
        .flat_map(|body| body.settings)
        .find_map(|setting| find(&setting.kind, setting.name))
        .or_else(|| {
            statement.parts.iter().find_map(|part| match part {
                Part::Arg(label, kind) => find(kind, label),
                Part::Opt(inner) => inner.iter().find_map(|part| match part {
                    Part::Arg(label, kind) => find(kind, label),
                    _ => None,
                }),
                _ => None,
            })
        })
}

/// All words of all choices of a head.
fn variants(parts: &'static [Part]) -> Vec<&'static Variant> {
    let mut found = Vec::new();
    for part in parts {
        match part {
            Part::Choice(_, list) => {
                for variant in *list {
                    found.push(variant);
                    found.extend(variants(variant.parts));
                }
            }
            Part::Opt(inner) => found.extend(variants(inner)),
            _ => {}
        }
    }
    found
}

fn place(path: &[&'static str], statement: &Statement) -> String {
    match path.last() {
        Some(owner) => format!("`{}` (in `{owner}`)", statement.keyword),
        None => format!("`{}`", statement.keyword),
    }
}

fn setting_page(path: &[&'static str], statement: &Statement, setting: &schema::Setting) -> String {
    let mut text = format!("A setting of {}.\n\n{}\n", place(path, statement), setting_line(setting));
    if let Kind::Enum(members) = &setting.kind {
        text.push('\n');
        for member in *members {
            let _ = writeln!(text, "- `{}`: {}", member.word, member.doc);
        }
    }
    text
}

fn variant_page(path: &[&'static str], statement: &'static Statement, variant: &Variant) -> String {
    let mut text = format!("`{}` of {}: {}.\n", variant.word, place(path, statement), variant.doc);
    if let Some(body) = variant.body.and_then(schema::BodyUse::body) {
        body_lines(body, &mut text);
    }
    text
}

fn body_lines(body: &Body, text: &mut String) {
    if !body.settings.is_empty() {
        text.push('\n');
        for setting in body.settings {
            let _ = writeln!(text, "- {}", setting_line(setting));
        }
    }
    if let Some(open) = &body.open {
        let _ = writeln!(text, "\nEach `{}` is yours: {}", open.label, open.doc);
    }
    if !body.statements.is_empty() {
        text.push_str("\nStatements in it:\n\n");
        for statement in body.statements {
            let _ = writeln!(text, "- `{}`: {}", statement_syntax(statement), statement.summary);
        }
    }
}

/// The page of a statement; its heading has this level.
fn statement_page(path: &[&'static str], statement: &'static Statement, level: usize) -> String {
    let mut text = String::new();
    let place = match path.last() {
        Some(owner) => format!(" in `{owner}`"),
        None => String::new(),
    };
    let _ = writeln!(text, "{} `{}`{place}\n", "#".repeat(level), statement.keyword);
    let mut summary = statement.summary.to_owned();
    if let Some(first) = summary.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let _ = writeln!(text, "{summary}.");
    if !statement.doc.is_empty() {
        let _ = writeln!(text, "{}", statement.doc);
    }
    let _ = writeln!(text, "\n```text\n{}\n```", statement_syntax(statement));
    if statement.once {
        text.push_str("\nIt stands at most once in its place.\n");
    }
    if !statement.example.is_empty() {
        let _ = writeln!(text, "\n```cd\n{}\n```", statement.example);
    }
    let words = variants(statement.parts);
    for variant in &words {
        let _ = writeln!(text, "\n**`{}`**: {}.", variant.word, variant.doc);
        if let Some(body) = variant.body.and_then(schema::BodyUse::body) {
            body_lines(body, &mut text);
        }
    }
    for part in statement.parts {
        let kinds: Vec<(&str, &Kind)> = match part {
            Part::Arg(label, kind) => vec![(label, kind)],
            Part::Opt(inner) => inner
                .iter()
                .filter_map(|part| match part {
                    Part::Arg(label, kind) => Some((*label, kind)),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        for (label, kind) in kinds {
            match kind {
                Kind::Enum(members) => {
                    let _ = writeln!(text, "\n{label}:\n");
                    for member in *members {
                        let _ = writeln!(text, "- `{}`: {}", member.word, member.doc);
                    }
                }
                kind => {
                    let _ = writeln!(text, "\n{label}: {}.", kind_text(kind));
                }
            }
        }
    }
    if let Some(body) = statement.body.body() {
        body_lines(body, &mut text);
    }
    text
}

fn function_line(function: &Function) -> String {
    format!("`{}`: {}\n", function.signature, function.doc)
}

fn functions_page() -> String {
    let mut text = String::from("# Functions\n\nIn any expression:\n\n");
    for function in FUNCTIONS.iter().filter(|function| function.func.is_some()) {
        let _ = writeln!(text, "- `{}`: {}", function.signature, function.doc);
    }
    text.push_str("\nIn one place each:\n\n");
    for function in FUNCTIONS.iter().filter(|function| function.func.is_none()) {
        let _ = writeln!(text, "- `{}`: {}", function.signature, function.doc);
    }
    text
}

fn names_page() -> String {
    let mut text = String::from(
        "# Built-in names\n\nParts in capitals stand for names of your own.\n\n| name | type | where | what |\n|---|---|---|---|\n",
    );
    for built_in in BUILT_INS {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            built_in.name, built_in.ty, built_in.place, built_in.doc
        );
    }
    text
}

/// Pages and the top-level statements they begin with.
const PAGES: &[(&str, &str, &[Id])] = &[
    ("pipeline", "The file and its inputs", &[Id::Pipeline, Id::Use, Id::Param, Id::Secret]),
    ("environments", "Environments, targets and traffic", &[Id::Environment]),
    ("services", "Services", &[Id::Service]),
    ("metrics", "Metrics and flags", &[Id::Metrics, Id::Flags]),
    ("stages", "Stages, steps and hooks", &[Id::Stage, Id::On]),
    ("gates", "Gates", &[Id::Gate]),
    ("deploys", "Deploys, strategies and watches", &[Id::NamedStrategy, Id::NamedWatch, Id::Deploy]),
    ("tests", "Tests", &[Id::Test]),
];

const GENERATED: &str = "<!-- Written by `cdpipe` from the schema; change the schema, not this page. -->\n\n";

/// The reference, one page for each group of statements: file names and Markdown.
pub fn reference_pages() -> Vec<(String, String)> {
    let all = statements();
    let mut pages = Vec::new();
    let mut index =
        format!("{GENERATED}# Reference\n\nEvery statement, setting, name and function of the language.\n\n");
    // A statement stands on the page of the first group it belongs to; `deploy` opens one of its own inside of stages.
    let mut page_of: Vec<usize> = Vec::new();
    let mut current = 0;
    let mut deploy_depth: Option<usize> = None;
    for (path, statement) in &all {
        if deploy_depth.is_some_and(|depth| path.len() <= depth) {
            deploy_depth = None;
        }
        if path.is_empty()
            && let Some(page) = PAGES.iter().position(|(_, _, ids)| ids.contains(&statement.id))
        {
            current = page;
        }
        if statement.id == Id::Deploy {
            deploy_depth = Some(path.len());
        }
        let deploys = PAGES.iter().position(|(name, _, _)| *name == "deploys").unwrap_or(current);
        page_of.push(if deploy_depth.is_some() { deploys } else { current });
    }
    for (number, (name, title, _)) in PAGES.iter().enumerate() {
        let mut text = format!("{GENERATED}# {title}\n");
        let mut words = Vec::new();
        for ((path, statement), page) in all.iter().zip(&page_of) {
            if *page == number {
                words.push(format!("`{}`", statement.keyword));
                let _ = write!(text, "\n{}", statement_page(path, statement, 2));
            }
        }
        words.dedup();
        let _ = writeln!(index, "- [{title}]({name}.md): {}", words.join(", "));
        pages.push((format!("{name}.md"), text));
    }
    pages.push(("functions.md".to_owned(), format!("{GENERATED}{}", functions_page())));
    pages.push(("names.md".to_owned(), format!("{GENERATED}{}", names_page())));
    index.push_str("- [Functions](functions.md)\n- [Built-in names](names.md)\n");
    pages.push(("README.md".to_owned(), index));
    pages
}

/// One page for each code, and a list of all of them: file names and Markdown.
pub fn error_pages() -> Vec<(String, String)> {
    let mut index = format!(
        "{GENERATED}# What cdpipe says about a pipeline\n\nEach message has a code; `cdpipe explain CODE` prints its page.\n\n| code | | what |\n|---|---|---|\n"
    );
    let mut pages = Vec::new();
    for info in codes() {
        let _ = writeln!(
            index,
            "| [{}]({}.md) | {} | {} |",
            info.code,
            info.code,
            severity_word(info.severity),
            info.title
        );
        pages.push((format!("{}.md", info.code), format!("{GENERATED}{}", error_page(info))));
    }
    pages.push(("README.md".to_owned(), index));
    pages
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Advice => "advice",
    }
}

fn error_page(info: &CodeInfo) -> String {
    let mut text = format!(
        "# {} ({}): {}\n\n{}\n",
        info.code,
        severity_word(info.severity),
        info.title,
        info.explanation.trim_end()
    );
    for (title, example) in [("Wrong", info.bad), ("Right", info.good)] {
        if !example.trim().is_empty() {
            let _ = write!(text, "\n## {title}\n\n```cd\n{}\n```\n", example.trim_matches('\n'));
        }
    }
    text
}
