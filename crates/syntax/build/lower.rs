//! The grammar as pest reads it, brought into the few forms for which functions are made.

use std::collections::{BTreeMap, BTreeSet};

use pest_meta::ast::{Expr, Rule, RuleType};
use pest_meta::parser::{self, consume_rules};

use crate::charset::CharSet;

/// What a rule, or a part of one, matches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Form {
    /// One character of a set.
    One(CharSet),
    /// Exactly this text; the empty text matches everywhere.
    Text(String),
    /// The rule of this name.
    Rule(String),
    /// The start of the text.
    Start,
    /// The end of the text.
    End,
    /// All, one after the other.
    Row(Vec<Form>),
    /// The first that matches.
    Choice(Vec<Form>),
    /// It, or nothing.
    Maybe(Box<Form>),
    /// As often as it matches, also never.
    Many(Box<Form>),
    /// It would match here; nothing is taken.
    Ahead(Box<Form>),
    /// It would not match here.
    NotAhead(Box<Form>),
}

/// What of a rule goes into the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `_{ }`: what its rules match.
    Silent,
    /// `@{ }`: the rule, with nothing inside.
    Token,
    /// `${ }`: the rule, and inside what its rules match.
    Node,
}

/// One rule.
pub(crate) struct Lowered {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) form: Form,
    /// Whether it may call itself, on whatever way.
    pub(crate) recursive: bool,
}

/// Reads a grammar.
///
/// # Errors
/// What pest says of it, or which part of pest's notation is used for which no function is made.
pub(crate) fn rules(grammar: &str) -> Result<Vec<Lowered>, String> {
    let pairs = parser::parse(parser::Rule::grammar_rules, grammar).map_err(|error| error.to_string())?;
    pest_meta::validator::validate_pairs(pairs.clone()).map_err(|errors| said(&errors))?;
    let rules = consume_rules(pairs).map_err(|errors| said(&errors))?;
    let mut lowering = Lowering { rules: &rules, sets: BTreeMap::new() };
    let mut forms = BTreeMap::new();
    for rule in &rules {
        forms.insert(rule.name.clone(), (kind(rule)?, lowering.form(&rule.expr)?));
    }
    for (name, (kind, form)) in &forms {
        if *kind == Kind::Token {
            check_token(name, form, &forms)?;
        }
    }
    let order = rules.iter().filter_map(|rule| forms.get_key_value(&rule.name));
    Ok(order
        .map(|(name, (kind, form))| Lowered {
            name: name.clone(),
            kind: *kind,
            form: form.clone(),
            recursive: calls(form, &forms).contains(name),
        })
        .collect())
}

fn said<E: std::fmt::Display>(errors: &[E]) -> String {
    errors.iter().map(E::to_string).collect::<Vec<_>>().join("\n")
}

fn kind(rule: &Rule) -> Result<Kind, String> {
    match rule.ty {
        RuleType::Silent => Ok(Kind::Silent),
        RuleType::Atomic => Ok(Kind::Token),
        RuleType::CompoundAtomic => Ok(Kind::Node),
        RuleType::Normal | RuleType::NonAtomic => {
            Err(format!("`{}` has to be `_`, `@` or `$`: others skip blanks by themselves", rule.name))
        }
    }
}

type Forms = BTreeMap<String, (Kind, Form)>;

/// In a token no `$` rule may stand: pest would put what is inside of that one into the result.
fn check_token(name: &str, form: &Form, forms: &Forms) -> Result<(), String> {
    let mut todo = vec![form];
    let mut seen = BTreeSet::new();
    while let Some(form) = todo.pop() {
        match form {
            Form::Rule(called) => match forms.get(called) {
                Some((Kind::Node, _)) => {
                    return Err(format!("the token `{name}` uses `{called}`, which is none"));
                }
                Some((Kind::Silent, inside)) if seen.insert(called) => todo.push(inside),
                _ => {}
            },
            Form::Row(forms) | Form::Choice(forms) => todo.extend(forms),
            Form::Maybe(form) | Form::Many(form) => todo.push(form),
            _ => {}
        }
    }
    Ok(())
}

/// All rules that may be called while this is matched.
fn calls<'f>(form: &'f Form, forms: &'f Forms) -> BTreeSet<&'f String> {
    let mut todo = vec![form];
    let mut called = BTreeSet::new();
    while let Some(form) = todo.pop() {
        match form {
            Form::Rule(name) => {
                if called.insert(name) {
                    todo.extend(forms.get(name).map(|(_, form)| form));
                }
            }
            Form::Row(forms) | Form::Choice(forms) => todo.extend(forms),
            Form::Maybe(form) | Form::Many(form) | Form::Ahead(form) | Form::NotAhead(form) => {
                todo.push(form)
            }
            Form::One(_) | Form::Text(_) | Form::Start | Form::End => {}
        }
    }
    called
}

struct Lowering<'r> {
    rules: &'r [Rule],
    /// Silent rules that are one character of a set, as far as they have been met; None while one is being looked at.
    sets: BTreeMap<&'r str, Option<CharSet>>,
}

impl<'r> Lowering<'r> {
    fn form(&mut self, expr: &'r Expr) -> Result<Form, String> {
        Ok(match expr {
            Expr::Str(text) => text_form(text),
            Expr::Range(first, last) => match (single(first), single(last)) {
                (Some(first), Some(last)) => Form::One(CharSet::range(first, last)),
                _ => return Err(format!("`'{first}'..'{last}'` is no range of characters")),
            },
            Expr::Ident(name) => self.named(name)?,
            Expr::PosPred(inner) => Form::Ahead(Box::new(self.form(inner)?)),
            Expr::NegPred(inner) => Form::NotAhead(Box::new(self.form(inner)?)),
            Expr::Seq(left, right) => {
                let (left, right) = (self.form(left)?, self.form(right)?);
                row(flat(left, right, |form| match form {
                    Form::Row(forms) => Ok(forms),
                    other => Err(other),
                }))
            }
            Expr::Choice(left, right) => {
                let (left, right) = (self.form(left)?, self.form(right)?);
                choice(flat(left, right, |form| match form {
                    Form::Choice(forms) => Ok(forms),
                    other => Err(other),
                }))
            }
            Expr::Opt(inner) => Form::Maybe(Box::new(self.form(inner)?)),
            Expr::Rep(inner) => Form::Many(Box::new(self.form(inner)?)),
            Expr::RepOnce(inner) => {
                let once = self.form(inner)?;
                let many = Form::Many(Box::new(once.clone()));
                row(vec![once, many])
            }
            other => return Err(format!("no function is made for {other:?}")),
        })
    }

    fn named(&mut self, name: &'r str) -> Result<Form, String> {
        match name {
            "SOI" => return Ok(Form::Start),
            "EOI" => return Ok(Form::End),
            "ANY" => return Ok(Form::One(CharSet::all())),
            _ => {}
        }
        if let Some(known) = self.sets.get(name) {
            return Ok(known.clone().map_or_else(|| Form::Rule(name.to_owned()), Form::One));
        }
        self.sets.insert(name, None);
        let Some(rule) = self.rules.iter().find(|rule| rule.name == name) else {
            // pest has a function for each property of Unicode.
            let property = pest::unicode::by_name(name).ok_or(format!("no rule is named `{name}`"))?;
            let set = CharSet::of(property);
            self.sets.insert(name, Some(set.clone()));
            return Ok(Form::One(set));
        };
        if rule.ty == RuleType::Silent
            && let Form::One(set) = self.form(&rule.expr)?
        {
            self.sets.insert(name, Some(set.clone()));
            return Ok(Form::One(set));
        }
        Ok(Form::Rule(name.to_owned()))
    }
}

fn single(text: &str) -> Option<char> {
    let mut letters = text.chars();
    letters.next().filter(|_| letters.next().is_none())
}

fn text_form(text: &str) -> Form {
    match single(text) {
        Some(letter) => Form::One(CharSet::range(letter, letter)),
        None => Form::Text(text.to_owned()),
    }
}

fn flat(left: Form, right: Form, open: impl Fn(Form) -> Result<Vec<Form>, Form>) -> Vec<Form> {
    let mut all = open(left).unwrap_or_else(|other| vec![other]);
    all.extend(open(right).unwrap_or_else(|other| vec![other]));
    all
}

/// A row, in which `!a ~ b` of two sets is the set of what is in `b` and not in `a`.
fn row(forms: Vec<Form>) -> Form {
    let mut all: Vec<Form> = Vec::with_capacity(forms.len());
    for form in forms {
        match (all.last(), form) {
            (Some(Form::NotAhead(not)), Form::One(set)) if matches!(**not, Form::One(_)) => {
                if let Some(Form::NotAhead(not)) = all.pop()
                    && let Form::One(not) = *not
                {
                    all.push(Form::One(set.without(&not)));
                }
            }
            (_, form) => all.push(form),
        }
    }
    if all.len() == 1 { all.remove(0) } else { Form::Row(all) }
}

/// A choice, in which sets that follow one another are one.
fn choice(forms: Vec<Form>) -> Form {
    let mut all: Vec<Form> = Vec::with_capacity(forms.len());
    for form in forms {
        match (all.last_mut(), form) {
            (Some(Form::One(before)), Form::One(set)) => *before = before.or(&set),
            (_, form) => all.push(form),
        }
    }
    if all.len() == 1 { all.remove(0) } else { Form::Choice(all) }
}
