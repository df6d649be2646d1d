//! Bare words: members of enums, and names of declared things.

use super::{Got, a_type, as_text};
use crate::checker::Checker;
use crate::codes::{lints, names as code, values as value_code};
use crate::schema::{Member, Names};
use crate::scope::Scope;
use crate::structure::as_name;
use crate::suggest::{nearest, one_of};
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, Ident, StrLit};
use cdpipe_syntax::{Diagnostic, Edit};

impl Checker<'_> {
    pub(crate) fn member(
        &mut self,
        members: &'static [Member],
        expr: &Expr,
        scope: &Scope<'_>,
        what: &str,
    ) -> Got {
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

    pub(crate) fn unknown_member(&mut self, name: &Ident, members: &'static [Member], what: &str) {
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
}
