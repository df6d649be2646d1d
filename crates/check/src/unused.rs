//! What is declared and never used.

use crate::checker::Checker;
use crate::codes::{lints as code, names as name_code};
use crate::schema::{Id, Names};
use crate::structure::Block;
use cdpipe_syntax::{Diagnostic, SourceId};

/// Tells of everything in the pipeline's own file that nothing uses. A used file may hold more than one pipeline needs.
pub(crate) fn unused(checker: &mut Checker<'_>, tops: &[Block<'_>]) {
    let library = !tops.iter().any(|block| {
        !matches!(block.spec.id, Id::Service | Id::Metrics | Id::NamedStrategy | Id::NamedWatch | Id::Use)
    });
    if library {
        return;
    }
    let kinds = [
        Names::Param,
        Names::Secret,
        Names::Environment,
        Names::Service,
        Names::Metrics,
        Names::Flags,
        Names::Strategy,
        Names::Watch,
    ];
    for names in kinds {
        for block in checker.names.blocks(names) {
            let name = block.name_text();
            if block.stmt.span.source != SourceId(0) || checker.names.is_used(names, name) {
                continue;
            }
            checker.report(
                Diagnostic::new(
                    &code::UNUSED,
                    block.name_span(),
                    format!("the {} `{name}` is never used", names.noun()),
                )
                .help(match names {
                    Names::Param => format!("use it (`${{{name}}}` in a string), or remove it"),
                    Names::Secret => format!("pass it on (`env {{ X = {name} }}`), or remove it"),
                    Names::Environment => {
                        format!("deploy something to it (`deploy … to {name}`), or remove it")
                    }
                    Names::Service => format!("deploy it (`deploy {name} to …`), or remove it"),
                    Names::Metrics => "name one of its metrics in a watch or a gate, or remove it".to_owned(),
                    _ => format!("name `{name}` where it belongs, or remove it"),
                }),
            );
        }
    }
    for block in checker.names.blocks(Names::Gate) {
        let name = block.name_text();
        if !checker.names.is_used(Names::Gate, name) {
            checker.report(
                Diagnostic::new(
                    &code::UNUSED,
                    block.name_span(),
                    format!("no stage needs the gate `{name}`, so it holds nothing back"),
                )
                .help(format!("write `needs = [{name}]` in what it should hold back")),
            );
        }
    }
    if checker.names.nodes.is_empty()
        && let Some(first) = tops.first()
    {
        checker.report(
            Diagnostic::new(
                &name_code::NOTHING_TO_RUN,
                first.head(),
                "the pipeline has no stage, so there is nothing to run",
            )
            .help("add one: `stage build { run \"make\" }`"),
        );
    }
}
