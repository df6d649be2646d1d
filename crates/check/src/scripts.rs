//! Shell texts of a pipeline with maps back to where they were written, for tools that read shell (a process, so not run here).

use crate::api::Checked;
use cdpipe_syntax::Span;
use cdpipe_syntax::tree::{Body, Entry, ExprKind, File, Part, Statement, StrPart};

/// The shell text of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// The text, in which each `${x}` has become `"${CDPIPE_ARG_n}"`.
    pub text: String,
    /// Ranges of bytes of `text` with where they were written, in order. Escapes and dedenting make a piece of text shorter than
    /// its span; then only its start can be relied on.
    pub map: Vec<(std::ops::Range<usize>, Span)>,
    /// The whole literal.
    pub span: Span,
}

impl Script {
    /// Where byte `offset` of the text was written, as exactly as is known.
    pub fn locate(&self, offset: usize) -> Span {
        let Some((range, span)) = self.map.iter().rev().find(|(range, _)| range.start <= offset) else {
            return self.span;
        };
        let written = (span.end - span.start) as usize;
        if range.len() == written {
            let at = u32::try_from(offset.min(range.end) - range.start).unwrap_or(0);
            return Span { start: span.start + at, end: span.start + at, ..*span };
        }
        *span
    }
}

/// Every shell text of `run` and `exec` steps, in source order.
pub fn scripts(checked: &Checked) -> Vec<Script> {
    let mut found = Vec::new();
    if let Some(program) = &checked.program {
        for file in program.files() {
            in_file(file, &mut found);
        }
    }
    found
}

fn in_file(file: &File, found: &mut Vec<Script>) {
    in_entries(&file.entries, found);
}

fn in_entries(entries: &[Entry], found: &mut Vec<Script>) {
    for entry in entries {
        if let Entry::Statement(statement) = entry {
            if matches!(statement.keyword.text.as_str(), "run" | "exec") {
                found.extend(script(statement));
            }
            if let Some(Body { entries, .. }) = &statement.body {
                in_entries(entries, found);
            }
        }
    }
}

fn script(statement: &Statement) -> Option<Script> {
    let Some(Part::Expr(expr)) = statement.parts.first() else { return None };
    let ExprKind::Str(literal) = &expr.kind else { return None };
    let mut script = Script { text: String::new(), map: Vec::new(), span: literal.span };
    let mut values = 0;
    for part in &literal.parts {
        let start = script.text.len();
        let span = match part {
            StrPart::Text { value, span } => {
                script.text.push_str(value);
                *span
            }
            StrPart::Interp { span, .. } => {
                values += 1;
                script.text.push_str(&format!("\"${{CDPIPE_ARG_{values}}}\""));
                *span
            }
        };
        script.map.push((start..script.text.len(), span));
    }
    Some(script)
}
