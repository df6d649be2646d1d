//! First pass: statements against the schema table. Which words may stand where, which parts a head has, which settings are
//! there, twice, missing or unknown. Values are not looked at.

mod block;
mod hints;

pub(crate) use block::{Block, Inner, as_name, declares, key_text, shorten, walk};

use crate::codes::names as code;
use crate::schema::{self, Body, BodyUse, Kind, Part, Statement, Variant};
use crate::suggest::{nearest, one_of};
use cdpipe_syntax::tree::{self, Entry, Expr, ExprKind, Ident, KeyKind, TypeExpr};
use cdpipe_syntax::{Diagnostic, Edit, Span};
use std::borrow::Cow;
use std::fmt::Display;

/// Matches the entries of a body (or of a file) with the schema.
pub(crate) fn read_body<'t>(
    entries: &'t [Entry],
    spec: &'static Body,
    owner: &'static str,
    text: &dyn Fn(Span) -> String,
    diags: &mut Vec<Diagnostic>,
) -> Inner<'t> {
    Reader { text, diags }.body(entries, spec, &owner)
}

struct Reader<'r> {
    text: &'r dyn Fn(Span) -> String,
    diags: &'r mut Vec<Diagnostic>,
}

/// What was found of a head.
#[derive(Default)]
struct Head<'t> {
    variant: Option<&'static Variant>,
    name: Option<(Cow<'t, str>, Span)>,
    args: Vec<(&'static str, &'static Kind, &'t Expr)>,
    ty: Option<&'t TypeExpr>,
    value: Option<&'t Expr>,
    within: Option<&'t Expr>,
    matches: Option<&'t Expr>,
    looped: Option<(&'t Ident, &'t Expr)>,
    rest: &'t [tree::Part],
}

impl Reader<'_> {
    fn body<'t>(&mut self, entries: &'t [Entry], spec: &'static Body, owner: &dyn Display) -> Inner<'t> {
        let settings = entries.iter().filter(|entry| matches!(entry, Entry::Setting(_))).count();
        let mut inner = Inner {
            settings: Vec::with_capacity(if spec.open.is_some() { 0 } else { settings }),
            open: Vec::new(),
            children: Vec::with_capacity(entries.len() - settings),
        };
        let mut onces: Vec<(&'static str, Span)> = Vec::new();
        for entry in entries {
            match entry {
                Entry::Error(_) => {}
                Entry::Setting(setting) => self.setting(setting, spec, owner, &mut inner),
                Entry::Statement(statement) => {
                    let Some(found) = spec.statement(&statement.keyword.text) else {
                        self.unknown_statement(statement, spec, owner);
                        continue;
                    };
                    if found.once {
                        if let Some((_, first)) = onces.iter().find(|(word, _)| *word == found.keyword) {
                            self.diags.push(
                                Diagnostic::new(
                                    &code::DUPLICATE_STATEMENT,
                                    statement.keyword.span,
                                    format!(
                                        "`{}` stands twice in {owner}, and may stand only once",
                                        found.keyword
                                    ),
                                )
                                .label("again here")
                                .also(*first, "first here")
                                .help("put what both say into one of them"),
                            );
                        } else {
                            onces.push((found.keyword, statement.keyword.span));
                        }
                    }
                    let block = self.statement(statement, found);
                    inner.children.push(block);
                }
            }
        }
        inner
    }

    fn setting<'t>(
        &mut self,
        setting: &'t tree::Setting,
        spec: &'static Body,
        owner: &dyn Display,
        inner: &mut Inner<'t>,
    ) {
        let (key, plain) = key_text(&setting.key);
        if plain && let Some(found) = spec.setting(&key) {
            if let Some(ty) = &setting.ty {
                self.diags.push(
                    Diagnostic::new(
                        &code::STRAY_TYPE,
                        ty.span,
                        format!("the setting `{key}` has a type, and its type is known"),
                    )
                    .label("this type is not needed")
                    .help(format!("write `{key} = …`"))
                    .suggestion(
                        "remove the type",
                        vec![Edit {
                            span: Span { start: setting.key.span.end, ..ty.span },
                            replacement: String::new(),
                        }],
                    ),
                );
            }
            if let Some((_, first)) = inner.settings.iter().find(|(other, _)| other.name == found.name) {
                self.diags.push(
                    Diagnostic::new(
                        &code::DUPLICATE_SETTING,
                        setting.key.span,
                        format!("`{key}` is set twice in {owner}"),
                    )
                    .label("again here")
                    .also(first.key.span, "first here")
                    .help("keep one of them"),
                );
                return;
            }
            inner.settings.push((found, setting));
            return;
        }
        if let Some(open) = &spec.open {
            // `run = "x"` in an open body is a variable named `run`; that is what the user wrote.
            if !open.dotted && !plain && key.contains('.') && matches!(setting.key.kind, KeyKind::Path(_)) {
                self.diags.push(
                    Diagnostic::new(
                        &code::UNKNOWN_SETTING,
                        setting.key.span,
                        format!("`{key}` has dots, and a {} here is one word", open.label.to_lowercase()),
                    )
                    .help(format!("put it in quotes if the dots belong to the name: `\"{key}\" = …`")),
                );
                return;
            }
            match (&setting.ty, open.typed) {
                (Some(ty), false) => self.diags.push(
                    Diagnostic::new(
                        &code::STRAY_TYPE,
                        ty.span,
                        format!("`{key}` has a type, where none belongs"),
                    )
                    .help(format!("write `{key} = …`")),
                ),
                (None, true) => self.diags.push(
                    Diagnostic::new(
                        &code::STRAY_TYPE,
                        setting.key.span,
                        format!("the {} `{key}` has no unit", open.label.to_lowercase()),
                    )
                    .label(
                        "expected `: percent`, `: duration`, `: number`, `: int` or `: size` after the name",
                    )
                    .help(format!("write `{key}: percent = …`")),
                ),
                _ => {}
            }
            if let Some((_, first)) = inner.open.iter().find(|(other, _)| *other == key) {
                self.diags.push(
                    Diagnostic::new(
                        &code::DUPLICATE_SETTING,
                        setting.key.span,
                        format!("`{key}` is set twice in {owner}"),
                    )
                    .label("again here")
                    .also(first.key.span, "first here")
                    .help("keep one of them"),
                );
                return;
            }
            inner.open.push((key.into_owned(), setting));
            return;
        }
        self.unknown_setting(setting, &key, spec, owner);
    }

    fn statement<'t>(&mut self, stmt: &'t tree::Statement, spec: &'static Statement) -> Block<'t> {
        let mut head = Head::default();
        let mut at = 0;
        let whole = self.parts(stmt, spec, spec.parts, &mut at, &mut head);
        if !whole {
            // What was read of a head that is not understood would only lead to further messages about the same.
            head.args.clear();
        }
        if whole
            && head.rest.is_empty()
            && let Some(extra) = stmt.parts.get(at)
        {
            let last = stmt.parts.last().map_or(extra.span(), tree::Part::span);
            let found = (self.text)(extra.span());
            self.diags.push(
                Diagnostic::new(
                    &code::HEAD,
                    extra.span().to(last),
                    format!("unexpected `{}` after `{}`", shorten(&found), shorten(&self.before(stmt, at))),
                )
                .help(format!("it is written `{}`", schema::statement_syntax(spec))),
            );
        }
        let body_use = head.variant.and_then(|variant| variant.body).unwrap_or(spec.body);
        let owner =
            Owner { spec, name: head.name.as_ref().map(|(name, _)| name.as_ref()), variant: head.variant };
        let inner = match (&stmt.body, body_use) {
            (None, BodyUse::None | BodyUse::Optional(_)) => Inner::default(),
            (None, BodyUse::Required(_)) => {
                if whole {
                    self.diags.push(
                        Diagnostic::new(&code::MISSING_BODY, stmt.head, format!("{owner} has no body"))
                            .label("expected `{ … }` after this")
                            .help(format!("it is written `{}`", schema::statement_syntax(spec))),
                    );
                }
                Inner::default()
            }
            (Some(body), BodyUse::None) => {
                // A head that was not understood may have hidden the word that brings the body.
                if whole {
                    self.diags.push(
                        Diagnostic::new(&code::STRAY_BODY, body.span, format!("{owner} takes no body"))
                            .label("this may not stand here")
                            .help(format!("it is written `{}`", schema::statement_syntax(spec))),
                    );
                }
                Inner::default()
            }
            (Some(body), BodyUse::Optional(inner) | BodyUse::Required(inner)) => {
                let found = self.body(&body.entries, inner, &owner);
                if body.entries.is_empty() && !inner.may_be_empty {
                    self.diags.push(
                        Diagnostic::new(&code::EMPTY_BODY, body.span, format!("{owner} is empty"))
                            .label("nothing stands here")
                            .help(format!("put into it what it is for, or remove it: {}", spec.summary)),
                    );
                }
                self.missing(stmt, inner, &found, &owner);
                found
            }
        };
        if stmt.body.is_none()
            && let BodyUse::Optional(body) = body_use
        {
            self.missing(stmt, body, &inner, &owner);
        }
        Block {
            spec,
            stmt,
            variant: head.variant,
            name: head.name,
            args: head.args,
            ty: head.ty,
            value: head.value,
            within: head.within,
            matches: head.matches,
            looped: head.looped,
            rest: head.rest,
            inner,
        }
    }

    fn missing(
        &mut self,
        stmt: &tree::Statement,
        body: &'static Body,
        inner: &Inner<'_>,
        owner: &dyn Display,
    ) {
        for setting in body.settings.iter().filter(|setting| setting.required) {
            if !inner.settings.iter().any(|(found, _)| found.name == setting.name) {
                self.diags.push(
                    Diagnostic::new(
                        &code::MISSING_SETTING,
                        stmt.head,
                        format!("{owner} lacks the setting `{}`", setting.name),
                    )
                    .label(format!("expected `{} = …` in its body", setting.name))
                    .help(format!(
                        "`{}` is {}. {}",
                        setting.name,
                        schema::kind_text(&setting.kind),
                        setting.doc
                    )),
                );
            }
        }
    }

    fn before(&self, stmt: &tree::Statement, at: usize) -> String {
        let end = at
            .checked_sub(1)
            .and_then(|last| stmt.parts.get(last))
            .map_or(stmt.keyword.span, tree::Part::span);
        (self.text)(stmt.keyword.span.to(end))
    }

    fn parts<'t>(
        &mut self,
        stmt: &'t tree::Statement,
        spec: &'static Statement,
        parts: &'static [Part],
        at: &mut usize,
        head: &mut Head<'t>,
    ) -> bool {
        for part in parts {
            let next = stmt.parts.get(*at);
            if let Part::Opt(inner) = part {
                if let (Some(first), Some(next)) = (inner.first(), next)
                    && starts(first, next)
                    && !self.parts(stmt, spec, inner, at, head)
                {
                    return false;
                }
                continue;
            }
            if let Part::Rest(_) = part {
                if next.is_none() {
                    self.head_error(stmt, spec, part, *at, None);
                    return false;
                }
                head.rest = &stmt.parts[*at..];
                *at = stmt.parts.len();
                continue;
            }
            let Some(next) = next else {
                self.head_error(stmt, spec, part, *at, None);
                return false;
            };
            match (part, next) {
                (Part::Declares(names), tree::Part::Expr(expr)) => {
                    let Some(name) = as_name(expr) else {
                        // A name in quotes has only one reading, so the rest of the statement can still be checked.
                        if let ExprKind::Str(text) = &expr.kind
                            && let Some(plain) = text.plain()
                        {
                            self.diags.push(
                                Diagnostic::new(
                                    &code::HEAD,
                                    expr.span,
                                    format!("the name of {} stands without quotes", names.a_noun()),
                                )
                                .help(format!("write `{} {plain}`", stmt.keyword.text))
                                .suggestion(
                                    "remove the quotes",
                                    vec![Edit { span: expr.span, replacement: plain.clone() }],
                                ),
                            );
                            head.name = Some((Cow::Owned(plain), expr.span));
                            *at += 1;
                            continue;
                        }
                        self.head_error(stmt, spec, part, *at, Some(next));
                        return false;
                    };
                    head.name = Some((Cow::Borrowed(&name.text), name.span));
                }
                (Part::Label(_, string_too), tree::Part::Expr(expr)) => match (&expr.kind, as_name(expr)) {
                    (_, Some(name)) => head.name = Some((Cow::Borrowed(&name.text), name.span)),
                    (ExprKind::Str(text), _) if *string_too => {
                        head.name = Some((Cow::Owned(text.plain().unwrap_or_default()), expr.span));
                    }
                    _ => {
                        self.head_error(stmt, spec, part, *at, Some(next));
                        return false;
                    }
                },
                (Part::Word(word), tree::Part::Expr(expr))
                    if as_name(expr).is_some_and(|name| name.text == *word) => {}
                (Part::Arg(_, Kind::Ref(_)), tree::Part::Expr(expr))
                    if as_name(expr).is_none() && !matches!(expr.kind, ExprKind::Str(_)) =>
                {
                    self.head_error(stmt, spec, part, *at, Some(next));
                    return false;
                }
                (Part::Arg(label, kind), tree::Part::Expr(expr)) => head.args.push((*label, kind, expr)),
                (Part::Choice(label, variants), tree::Part::Expr(expr)) => {
                    let Some(name) = as_name(expr) else {
                        self.head_error(stmt, spec, part, *at, Some(next));
                        return false;
                    };
                    let Some(variant) = variants.iter().find(|variant| variant.word == name.text) else {
                        self.unknown_choice(name, label, variants, stmt);
                        return false;
                    };
                    head.variant = Some(variant);
                    *at += 1;
                    if !self.parts(stmt, spec, variant.parts, at, head) {
                        return false;
                    }
                    continue;
                }
                (Part::Type, tree::Part::Type(ty)) => head.ty = Some(ty),
                (Part::Value(_), tree::Part::Value(value)) => head.value = Some(value),
                (Part::In, tree::Part::In(list)) => head.within = Some(list),
                (Part::Matches, tree::Part::Matches(pattern)) => head.matches = Some(pattern),
                (Part::For, tree::Part::For { name, list, .. }) => head.looped = Some((name, list)),
                _ => {
                    self.head_error(stmt, spec, part, *at, Some(next));
                    return false;
                }
            }
            *at += 1;
        }
        true
    }

    fn unknown_choice(
        &mut self,
        name: &Ident,
        label: &str,
        variants: &'static [Variant],
        stmt: &tree::Statement,
    ) {
        let words = variants.iter().map(|variant| variant.word);
        let mut diag = Diagnostic::new(
            &code::UNKNOWN_CHOICE,
            name.span,
            if label == "WHAT" {
                format!(
                    "`{}` is not known after `{}`: expected {}",
                    name.text,
                    stmt.keyword.text,
                    one_of(words.clone(), 10)
                )
            } else {
                format!(
                    "`{}` is no {} of `{}`: expected {}",
                    name.text,
                    label.to_lowercase(),
                    stmt.keyword.text,
                    one_of(words.clone(), 10)
                )
            },
        );
        if let Some(near) = nearest(&name.text, words) {
            diag = diag.label(format!("did you mean `{near}`?")).suggestion(
                format!("write `{near}`"),
                vec![Edit { span: name.span, replacement: near.to_owned() }],
            );
        }
        self.diags
            .push(diag.help(format!("`cdpipe explain {}` lists what each of them does", stmt.keyword.text)));
    }

    fn head_error(
        &mut self,
        stmt: &tree::Statement,
        spec: &'static Statement,
        part: &Part,
        at: usize,
        found: Option<&tree::Part>,
    ) {
        // The parser has already spoken about what it could not read.
        if matches!(found, Some(tree::Part::Expr(expr)) if matches!(expr.kind, ExprKind::Error)) {
            return;
        }
        let expected = expected_text(part);
        let before = shorten(&self.before(stmt, at));
        let diag = match found {
            Some(part) => {
                let text = (self.text)(part.span());
                Diagnostic::new(
                    &code::HEAD,
                    part.span(),
                    format!("expected {expected} after `{before}`, found `{}`", shorten(&text)),
                )
            }
            None => Diagnostic::new(&code::HEAD, stmt.head, format!("expected {expected} after `{before}`"))
                .label("it ends too early"),
        };
        self.diags.push(diag.help(format!("it is written `{}`", schema::statement_syntax(spec))));
    }
}

fn starts(part: &Part, next: &tree::Part) -> bool {
    match (part, next) {
        (Part::Word(word), tree::Part::Expr(expr)) => as_name(expr).is_some_and(|name| name.text == *word),
        (Part::Choice(_, variants), tree::Part::Expr(expr)) => {
            as_name(expr).is_some_and(|name| variants.iter().any(|variant| variant.word == name.text))
        }
        (Part::Arg(_, Kind::Enum(members)), tree::Part::Expr(expr)) => {
            as_name(expr).is_some_and(|name| members.iter().any(|member| member.word == name.text))
        }
        (Part::Arg(..) | Part::Label(..) | Part::Declares(_), tree::Part::Expr(_))
        | (Part::Type, tree::Part::Type(_))
        | (Part::Value(_), tree::Part::Value(_))
        | (Part::In, tree::Part::In(_))
        | (Part::Matches, tree::Part::Matches(_))
        | (Part::For, tree::Part::For { .. }) => true,
        _ => false,
    }
}

fn expected_text(part: &Part) -> String {
    match part {
        Part::Declares(names) => format!("a name for the {}", names.noun()),
        Part::Label(label, _) => format!("its {}", label.to_lowercase()),
        Part::Word(word) => format!("`{word}`"),
        Part::Arg(_, kind) => schema::kind_text(kind),
        Part::Choice(_, variants) => one_of(variants.iter().map(|variant| variant.word), 10),
        Part::Opt(inner) => inner.first().map(expected_text).unwrap_or_default(),
        Part::Type => "`: TYPE`".to_owned(),
        Part::Value(_) => "`= VALUE`".to_owned(),
        Part::In => "`in LIST`".to_owned(),
        Part::Matches => "`matches 'REGEX'`".to_owned(),
        Part::For => "`for x in LIST`".to_owned(),
        Part::Rest(what) => (*what).to_owned(),
    }
}

/// `stage build` and the like: how messages call the statement. It is put into words only where there is something to say.
struct Owner<'h> {
    spec: &'static Statement,
    name: Option<&'h str>,
    variant: Option<&'static Variant>,
}

impl Display for Owner<'_> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keyword = self.spec.keyword;
        match (self.name, self.variant) {
            (Some(name), _) if !name.is_empty() => write!(to, "`{keyword} {name}`"),
            (_, Some(variant)) => write!(to, "`{keyword} {}`", variant.word),
            _ => write!(to, "`{keyword}`"),
        }
    }
}
