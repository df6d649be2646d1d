//! Parameters and secrets: types, constraints, defaults, and the inputs that fill them.

use crate::api::Inputs;
use crate::checker::Checker;
use crate::codes::{types as type_code, values as code};
use crate::expr::fits;
use crate::names::read_type;
use crate::scope::{Scope, Sets};
use crate::structure::{Block, walk};
use crate::suggest::{nearest, one_of};
use cdpipe_model::expr::{Expr as Lowered, Op};
use cdpipe_model::secret::SecretSource;
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, ExprKind, Literal};
use cdpipe_syntax::{Diagnostic, SourceId, Span};
use std::collections::HashMap;

impl<'b> Checker<'b> {
    /// Types, constraints and defaults of all parameters.
    pub(crate) fn params(&mut self) {
        for block in self.names.params.clone() {
            let _ = self.found(block, &Scope::file());
            let ty = block.ty.and_then(|ty| {
                let mut wrong = Vec::new();
                let read = read_type(ty, &mut wrong);
                wrong.into_iter().for_each(|diag| self.report(diag));
                read
            });
            let Some(ty) = ty else { continue };
            self.names.param_types.insert(block.name_text(), ty.clone());
            if self.planning() {
                continue;
            }
            if let Some(pattern) = block.matches {
                if !matches!(ty, Type::Str | Type::Version) {
                    self.report(
                        Diagnostic::new(
                            &type_code::WRONG_TYPE,
                            pattern.span,
                            format!("`matches` is for strings, and this is {}", crate::values::a_type(&ty)),
                        )
                        .help("use `in [ … ]` for other types"),
                    );
                }
                let low = self.expr(pattern, &Scope::file());
                match low.known() {
                    Some(Value::Str(text)) => {
                        let text = text.clone();
                        self.regex(&text, pattern.span);
                    }
                    _ if low.ty.is_some() => self.report(
                        Diagnostic::new(
                            &type_code::WRONG_TYPE,
                            pattern.span,
                            "the pattern after `matches` is a plain string",
                        )
                        .help("write it in single quotes: `matches '^v\\d+$'`"),
                    ),
                    _ => {}
                }
            }
            if let Some(list) = block.within {
                let low = self.expr(list, &Scope::file());
                match &low.ty {
                    Some(Type::List(item))
                        if fits(item, &ty)
                            || matches!(low.known(), Some(Value::List(items)) if items.is_empty()) =>
                    {
                        if let Some(Value::List(items)) = low.known() {
                            let items = items.clone();
                            self.distinct(&items, list);
                        }
                    }
                    None => {}
                    Some(found) => {
                        let found = found.clone();
                        self.report(
                            Diagnostic::new(
                                &type_code::WRONG_TYPE,
                                list.span,
                                format!(
                                    "`in` takes a list of {ty} here, found {}",
                                    crate::values::a_type(&found)
                                ),
                            )
                            .help("list the values it may have: `in [\"a\", \"b\"]`"),
                        );
                    }
                }
            }
            if let Some(default) = block.value {
                self.credential(block.name_text(), default);
                self.only_earlier(block, default);
                let low = self.default(block, default, &ty, &Scope::file());
                if let Some(value) = low {
                    self.constraints(block, &value, default.span, "the default");
                }
            }
        }
    }

    /// A default may name only parameters that stand before it, so that there is an order in which all of them get their values.
    fn only_earlier(&mut self, block: &Block<'_>, default: &Expr) {
        let at = self.names.params.iter().position(|other| std::ptr::eq(*other, block)).unwrap_or(0);
        let mut late = Vec::new();
        walk(default, &mut |expr| {
            if let ExprKind::Name(name) = &expr.kind
                && let Some(found) = self.names.params.iter().position(|other| other.name_text() == name.text)
                && found >= at
            {
                late.push((name.clone(), self.names.params[found].name_span()));
            }
        });
        for (name, declared) in late {
            self.report(
                Diagnostic::new(
                    &crate::codes::names::NOT_HERE,
                    name.span,
                    format!("`{}` has no value yet: a default may name only parameters before it", name.text),
                )
                .also(declared, "declared here")
                .help("move its declaration up"),
            );
        }
    }

    /// The value of a default, where it is known; says what is wrong with its type.
    fn default(&mut self, block: &Block<'_>, default: &Expr, ty: &Type, scope: &Scope<'_>) -> Option<Value> {
        let low = self.expr(default, scope);
        let found = low.ty.clone()?;
        let empty = matches!(low.known(), Some(Value::List(items)) if items.is_empty())
            || matches!(low.known(), Some(Value::Map(items)) if items.is_empty());
        let same_shape =
            matches!((&found, ty), (Type::List(_), Type::List(_)) | (Type::Map(_), Type::Map(_)));
        if found == Type::Secret {
            self.secret_leak(default.span, "a parameter");
            return None;
        }
        if !(fits(&found, ty) || empty && same_shape) {
            let text = self.slice(default.span);
            let mut diag = Diagnostic::new(
                &type_code::WRONG_TYPE,
                default.span,
                format!(
                    "the default of `{}` is {}, and its type is {ty}",
                    block.name_text(),
                    crate::values::a_type(&found)
                ),
            );
            if let Some(type_expr) = block.ty {
                diag = diag.also(type_expr.span, "this type");
            }
            diag = match (ty, &default.kind) {
                (Type::Str | Type::Version, ExprKind::Literal(_)) => diag.help(format!("write `\"{text}\"`")),
                (Type::Duration, ExprKind::Literal(Literal::Int(_))) => diag.help(format!("write `{text}s`")),
                (Type::Percent, ExprKind::Literal(Literal::Int(_) | Literal::Number(_))) => {
                    diag.help(format!("write `{text}%`"))
                }
                _ => diag.help(format!("write {}", example(ty))),
            };
            self.report(diag);
            return None;
        }
        low.known().map(|value| convert(value.clone(), ty))
    }

    /// Whether the value satisfies `matches` and `in`; says so if not.
    pub(crate) fn constraints(&mut self, block: &Block<'_>, value: &Value, span: Span, what: &str) -> bool {
        let name = block.name_text();
        if let Some(pattern) = block.matches
            && let Some(Value::Str(pattern_text)) = self.expr(pattern, &Scope::file()).known()
            && let Value::Str(text) = value
            && regex::Regex::new(pattern_text).is_ok_and(|regex| !regex.is_match(text))
        {
            self.report(
                Diagnostic::new(
                    &code::UNFIT_INPUT,
                    span,
                    format!("{what} of `{name}`, {text:?}, does not match {pattern_text:?}"),
                )
                .also(pattern.span, "it must match this")
                .help("choose a value that matches, or widen the pattern"),
            );
            return false;
        }
        if let Some(list) = block.within
            && let Some(Value::List(items)) = self.expr(list, &Scope::file()).known()
            && !items.is_empty()
        {
            let known = items.iter().any(|item| {
                let same = Lowered::Binary(
                    Op::Eq,
                    Box::new(Lowered::Value(item.clone())),
                    Box::new(Lowered::Value(value.clone())),
                );
                same.eval(&|_| None) == Ok(Value::Bool(true))
            });
            if !known {
                let words: Vec<String> = items.iter().map(ToString::to_string).collect();
                self.report(
                    Diagnostic::new(
                        &code::UNFIT_INPUT,
                        span,
                        format!("{what} of `{name}`, `{value}`, is not among the values it may have"),
                    )
                    .also(list.span, "these")
                    .help(format!("choose {}", one_of(words.iter().map(String::as_str), 12))),
                );
                return false;
            }
        }
        true
    }

    /// Says which values of a list stand in it twice.
    pub(crate) fn distinct(&mut self, items: &[Value], list: &Expr) -> bool {
        if items.is_empty() {
            self.report(
                Diagnostic::new(&code::EMPTY_LIST, list.span, "the list is empty")
                    .help("put at least one value into it"),
            );
            return false;
        }
        let spans: Vec<Span> = match &list.kind {
            ExprKind::List(exprs) if exprs.len() == items.len() => {
                exprs.iter().map(|expr| expr.span).collect()
            }
            _ => vec![list.span; items.len()],
        };
        let mut seen: HashMap<String, Span> = HashMap::new();
        let mut fine = true;
        for (item, span) in items.iter().zip(spans) {
            match seen.get(&item.to_string()) {
                Some(first) => {
                    fine = false;
                    self.report(
                        Diagnostic::new(
                            &code::DUPLICATE_ITEM,
                            span,
                            format!("`{item}` stands twice in the list"),
                        )
                        .label("again here")
                        .also(*first, "first here")
                        .help("remove one of them"),
                    );
                }
                None => {
                    seen.insert(item.to_string(), span);
                }
            }
        }
        fine
    }

    /// Where a secret comes from.
    pub(crate) fn secret(&mut self, block: &Block<'_>) -> SecretSource {
        let found = self.found(block, &Scope::file());
        let text = |label: &str| found.text(label).unwrap_or_default();
        match block.word() {
            "file" => SecretSource::File(text("PATH")),
            "command" => SecretSource::Command(text("SCRIPT")),
            "env" => SecretSource::Env(text("VARIABLE")),
            _ => SecretSource::Env(block.name_text().replace('-', "_").to_uppercase()),
        }
    }
}

/// Values of all parameters.
///
/// # Errors
/// Everything that is missing, unknown or unfit.
pub(crate) fn resolve_inputs(checker: &mut Checker<'_>, inputs: &Inputs) -> HashMap<String, Value> {
    let mut values = Sets::new();
    let known: Vec<&str> = checker.names.params.iter().map(|block| block.name_text()).collect();
    for name in inputs.set.keys() {
        if !known.contains(&name.as_str()) {
            let top = Span::new(SourceId(0), 0, 0);
            let mut diag =
                Diagnostic::new(&code::UNKNOWN_INPUT, top, format!("there is no parameter `{name}` to set"));
            diag = match nearest(name, known.iter().copied()) {
                Some(near) => diag.help(format!("did you mean `--set {near}=…`?")),
                None if known.is_empty() => diag.help("this pipeline has no parameters"),
                None => diag.help(format!("the parameters are {}", one_of(known.iter().copied(), 16))),
            };
            checker.report(diag);
        }
    }
    for block in checker.names.params.clone() {
        let name = block.name_text();
        let Some(ty) = checker.names.param_types.get(name).cloned() else { continue };
        let told = checker.diags.len();
        let given = inputs.set.get(name).map(|text| (text, "--set")).or_else(|| {
            inputs
                .env
                .get(name)
                .or_else(|| inputs.env.get(&name.replace('-', "_")))
                .map(|text| (text, "the environment"))
        });
        let value = match given {
            Some((text, origin)) => match read_input(text, &ty) {
                Ok(value) => checker
                    .constraints(block, &value, block.name_span(), &format!("the value ({origin})"))
                    .then_some(value),
                Err(wanted) => {
                    checker.report(
                        Diagnostic::new(
                            &code::UNFIT_INPUT,
                            block.name_span(),
                            format!("the value of `{name}` ({origin}), {text:?}, is not {wanted}"),
                        )
                        .help(format!(
                            "give it as {}: `--set {name}={}`",
                            crate::values::a_type(&ty),
                            example_text(&ty)
                        )),
                    );
                    None
                }
            },
            None => match block.value {
                Some(default) => {
                    let scope = Scope { sets: Some(&values), ..Scope::file() };
                    let value = checker.default(block, default, &ty, &scope);
                    value.filter(|value| checker.constraints(block, value, default.span, "the default"))
                }
                None => {
                    checker.report(
                        Diagnostic::new(
                            &code::MISSING_INPUT,
                            block.name_span(),
                            format!("the parameter `{name}` has no value"),
                        )
                        .label("this has no default")
                        .help(format!(
                            "give it: `--set {name}={}`, or `CDPIPE_SET_{}`",
                            example_text(&ty),
                            name.replace('-', "_")
                        )),
                    );
                    None
                }
            },
        };
        if value.is_none() && checker.diags.len() == told {
            checker.report(
                Diagnostic::new(
                    &type_code::NO_VALUE,
                    block.name_span(),
                    format!("the parameter `{name}` has no value with these inputs"),
                )
                .help(format!("give it: `--set {name}={}`", example_text(&ty))),
            );
        }
        values.insert(name.to_owned(), value);
    }
    values.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect()
}

/// A whole number where a number is wanted becomes one.
#[allow(clippy::cast_precision_loss, reason = "a whole number was written for a number")]
pub(crate) fn convert(value: Value, ty: &Type) -> Value {
    match (value, ty) {
        (Value::Int(n), Type::Number) => Value::Number(n as f64),
        (Value::List(items), Type::List(item)) => {
            Value::List(items.into_iter().map(|each| convert(each, item)).collect())
        }
        (Value::Map(items), Type::Map(item)) => {
            Value::Map(items.into_iter().map(|(key, each)| (key, convert(each, item))).collect())
        }
        (value, _) => value,
    }
}

fn example(ty: &Type) -> String {
    format!(
        "{}, such as `{}`",
        crate::values::a_type(ty),
        match ty {
            Type::Str | Type::Version => format!("\"{}\"", example_text(ty)),
            Type::List(inner) => format!("[{}]", example_text(inner)),
            Type::Map(inner) => format!("{{ key = {} }}", example_text(inner)),
            _ => example_text(ty),
        }
    )
}

fn example_text(ty: &Type) -> String {
    match ty {
        Type::Bool => "true".to_owned(),
        Type::Int => "3".to_owned(),
        Type::Number => "0.5".to_owned(),
        Type::Percent => "10%".to_owned(),
        Type::Duration => "30s".to_owned(),
        Type::Size => "256Mi".to_owned(),
        Type::Version => "v1.2.3".to_owned(),
        Type::Str | Type::Secret => "text".to_owned(),
        Type::List(inner) => format!("{},…", example_text(inner)),
        Type::Map(inner) => format!("key={},…", example_text(inner)),
    }
}

/// Reads the text of an input. Lists are written `a,b` or as in a pipeline, maps `k=v,k=v`.
///
/// # Errors
/// What was expected.
pub(crate) fn read_input(text: &str, ty: &Type) -> Result<Value, String> {
    let wanted = || format!("{} such as `{}`", crate::values::a_type(ty), example_text(ty));
    let trimmed = text.trim();
    match ty {
        Type::Str | Type::Version => Ok(Value::Str(text.to_owned())),
        Type::Secret => Err("a value of a secret: secrets are not set".to_owned()),
        Type::List(inner) => {
            let body = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(trimmed);
            if body.trim().is_empty() {
                return Ok(Value::List(Vec::new()));
            }
            body.split(',')
                .map(|item| read_input(unquote(item.trim()), inner))
                .collect::<Result<_, _>>()
                .map(Value::List)
        }
        Type::Map(inner) => {
            let body = trimmed.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(trimmed);
            if body.trim().is_empty() {
                return Ok(Value::Map(std::collections::BTreeMap::new()));
            }
            body.split(',')
                .map(|item| {
                    let (key, value) = item.split_once('=').ok_or_else(wanted)?;
                    Ok((unquote(key.trim()).to_owned(), read_input(unquote(value.trim()), inner)?))
                })
                .collect::<Result<_, _>>()
                .map(Value::Map)
        }
        Type::Bool => match trimmed {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(wanted()),
        },
        Type::Int | Type::Number | Type::Percent | Type::Duration | Type::Size => {
            let value = literal(trimmed).ok_or_else(wanted)?;
            let value = convert(value, ty);
            if value.ty() == *ty { Ok(value) } else { Err(wanted()) }
        }
    }
}

fn unquote(text: &str) -> &str {
    let inner = |quote: char| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(text)
}

/// A number with or without a unit, read as the language reads it.
fn literal(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit())
        || !digits.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '%' | '_'))
    {
        return None;
    }
    let source = format!("x = {digits}\n");
    let parsed = cdpipe_syntax::parse(SourceId(0), &source);
    if parsed.diagnostics.iter().any(Diagnostic::is_error) {
        return None;
    }
    let [cdpipe_syntax::tree::Entry::Setting(setting)] = parsed.file.entries.as_slice() else { return None };
    let ExprKind::Literal(literal) = setting.value.kind else { return None };
    #[allow(clippy::cast_precision_loss, reason = "durations stay far below 2^53 milliseconds")]
    let value = match literal {
        Literal::Bool(_) => return None,
        Literal::Int(n) => Value::Int(n),
        Literal::Number(n) => Value::Number(n),
        Literal::Percent(n) => Value::Percent(n),
        Literal::DurationMs(ms) => Value::Duration(ms as f64),
        Literal::SizeBytes(bytes) => Value::Size(bytes),
    };
    if negative { Lowered::Neg(Box::new(Lowered::Value(value))).eval(&|_| None).ok() } else { Some(value) }
}
