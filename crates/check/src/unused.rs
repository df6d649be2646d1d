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
    metrics(checker);
    outputs(checker);
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

/// Metrics that no rule and no gate reads, of blocks of which another one is read. (Of others the block is told.)
fn metrics(checker: &mut Checker<'_>) {
    for block in checker.names.blocks(Names::Metrics) {
        let set = block.name_text();
        if block.stmt.span.source != SourceId(0) || !checker.names.is_used(Names::Metrics, set) {
            continue;
        }
        for (metric, setting) in &block.inner.open {
            if checker.used_metrics.contains(&(set, metric.as_str())) {
                continue;
            }
            checker.report(
                Diagnostic::new(
                    &code::UNUSED_METRIC,
                    setting.key.span,
                    format!("no watch and no gate reads the metric `{metric}`"),
                )
                .help(format!("compare it in a rule (`rollback when {metric} > …`), or remove it")),
            );
        }
    }
}

/// Outputs that nothing reads.
fn outputs(checker: &mut Checker<'_>) {
    for (index, block) in checker.names.nodes.clone().into_iter().enumerate() {
        for output in block.children(Id::Output) {
            let name = output.name_text();
            if checker.used_outputs.contains(&(index, name)) {
                continue;
            }
            checker.report(
                Diagnostic::new(
                    &code::UNUSED_OUTPUT,
                    output.name_span(),
                    format!("nothing reads the output `{name}`"),
                )
                .help(format!(
                    "read it in a stage that needs this one (`${{stage.{}.{name}}}`), or remove it",
                    block.name_text()
                )),
            );
        }
    }
}
