//! Hooks: the steps of an `on EVENT { }`, and the events that it names.

use super::Defaults;
use crate::checker::Checker;
use crate::codes::{names as name_code, values as value_code};
use crate::scope::Scope;
use crate::structure::Block;
use crate::suggest::nearest;
use cdpipe_model::plan::{Hook, HookEvent};
use cdpipe_syntax::tree::{BinaryOp, Expr, ExprKind};
use cdpipe_syntax::{Diagnostic, Edit};

impl<'b> Checker<'b> {
    /// `on … { }`.
    pub(crate) fn hook(
        &mut self,
        block: &'b Block<'b>,
        scope: &Scope<'_>,
        defaults: Defaults,
    ) -> Option<Hook> {
        let mut events = Vec::new();
        self.events(block.arg("EVENTS")?, &mut events);
        let steps = self.steps(&block.inner.children, scope, defaults);
        Some(Hook { events, steps })
    }

    fn events(&mut self, expr: &Expr, events: &mut Vec<HookEvent>) {
        match &expr.kind {
            ExprKind::Binary(BinaryOp::Or, _, left, right) => {
                self.events(left, events);
                self.events(right, events);
            }
            ExprKind::Paren(inner) => self.events(inner, events),
            ExprKind::Name(name) => {
                let Some(event) = HookEvent::ALL.into_iter().find(|event| event.as_str() == name.text) else {
                    let words = HookEvent::ALL.map(HookEvent::as_str);
                    let mut diag = Diagnostic::new(
                        &name_code::UNKNOWN_CHOICE,
                        name.span,
                        format!("there is no event `{}`", name.text),
                    )
                    .help("the events are `success`, `failure`, `rollback`, `rollback_failed`, `cancel` and `always`");
                    if let Some(near) = nearest(&name.text, words) {
                        diag = diag.label(format!("did you mean `{near}`?")).suggestion(
                            format!("write `{near}`"),
                            vec![Edit { span: name.span, replacement: near.to_owned() }],
                        );
                    } else if matches!(
                        name.text.as_str(),
                        "error" | "fail" | "failed" | "timeout" | "timed_out"
                    ) {
                        diag = diag.help("a failure or a timeout is `failure`");
                    }
                    self.report(diag);
                    return;
                };
                if events.contains(&event) {
                    self.report(
                        Diagnostic::new(
                            &value_code::DUPLICATE_ITEM,
                            name.span,
                            format!("`{}` stands twice in the hook", name.text),
                        )
                        .help("remove one of them"),
                    );
                } else {
                    events.push(event);
                }
            }
            ExprKind::Error => {}
            _ => self.report(
                Diagnostic::new(&name_code::HEAD, expr.span, "expected events after `on`")
                    .help("write `on failure`, or several joined by `or`: `on failure or rollback`"),
            ),
        }
    }
}
