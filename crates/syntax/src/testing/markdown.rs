//! Markdown files as tests. A fenced block that begins with ```` ```cd ```` is a pipeline; what is wrong with it stands in the
//! block itself, under the line it concerns, the way a compiler would show it:
//!
//! ````text
//! ```cd
//! stage build {
//!   timeout = 5min
//!             ^^^^ error[CD0106]: `min` in `5min` is not a unit
//!                  help: write `5m`
//!                  fix: write `5m`
//! }
//! ```
//! ````
//!
//! The lines with carets, and the `help:`, `note:` and `fix:` lines right below them, are taken out before the text is read. A
//! block must show each diagnostic, whole, in order; one without such lines must be clean. A word after `cd` on the fence is
//! passed to the check, so that a crate can have kinds of blocks (`cd body`); `cd ignore` is prose.

use crate::diagnostic::{Diagnostic, Severity};
use crate::span::LineIndex;

/// What came of one file.
#[derive(Debug)]
pub struct Outcome {
    /// The file with what is really reported in each block. Write it back to accept it.
    pub updated: String,
    /// For each block that differs: where it is, what it should say and what it says.
    pub failures: Vec<String>,
    /// How many blocks were checked; a file without any tests nothing.
    pub blocks: usize,
}

/// Checks each pipeline of a Markdown text. `check` gets the text of a block, without what it expects, and the words after `cd`
/// on its fence.
pub fn check_markdown(
    name: &str,
    markdown: &str,
    mut check: impl FnMut(&str, &str) -> Vec<Diagnostic>,
) -> Outcome {
    let mut outcome = Outcome { updated: String::new(), failures: Vec::new(), blocks: 0 };
    let mut lines = markdown.split_inclusive('\n').enumerate();
    while let Some((number, line)) = lines.next() {
        outcome.updated.push_str(line);
        let Some(words) = line.trim_end().strip_prefix("```cd") else { continue };
        let words = words.trim();
        let mut block = String::new();
        let mut fence = "";
        for (_, line) in lines.by_ref() {
            if line.trim_end() == "```" {
                fence = line;
                break;
            }
            block.push_str(line);
        }
        if words == "ignore" {
            outcome.updated.push_str(&block);
        } else {
            outcome.blocks += 1;
            let code = strip(&block);
            let annotated = annotate(&code, &check(&code, words));
            if annotated != block {
                outcome.failures.push(format!(
                    "{name}:{}: expected\n{}\nfound\n{}",
                    number + 1,
                    indented(&block),
                    indented(&annotated)
                ));
            }
            outcome.updated.push_str(&annotated);
        }
        outcome.updated.push_str(fence);
    }
    outcome
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// A block without the lines that say what is expected.
fn strip(block: &str) -> String {
    let mut code = String::new();
    let mut below = false;
    for line in block.split_inclusive('\n') {
        let text = line.trim_start_matches([' ', '\t']);
        let after = text.trim_start_matches('^');
        let marks = after.len() < text.len()
            && ["error[", "warning[", "advice["].iter().any(|word| after.trim_start().starts_with(word));
        let more = below
            && ["help: ", "fix: ", "fix (choose): ", "note: "].iter().any(|word| text.starts_with(word));
        below = marks || more;
        if !below {
            code.push_str(line);
        }
    }
    code
}

/// The text with its diagnostics under the lines they concern.
pub fn annotate(code: &str, diagnostics: &[Diagnostic]) -> String {
    let index = LineIndex::new(code);
    let mut by_line: Vec<(usize, &Diagnostic)> = diagnostics
        .iter()
        .map(|diagnostic| (index.line((diagnostic.primary.span.start as usize).min(code.len())), diagnostic))
        .collect();
    by_line.sort_by_key(|(line, diagnostic)| (*line, diagnostic.primary.span.start));
    let mut notes = by_line.into_iter().peekable();
    let mut out = String::new();
    let last = code.split_inclusive('\n').count().saturating_sub(1);
    for (number, line) in code.split_inclusive('\n').enumerate() {
        out.push_str(line);
        // What points past the last line is shown below it.
        while let Some((_, diagnostic)) = notes.next_if(|(at, _)| *at == number || number == last) {
            if !out.ends_with('\n') {
                out.push('\n');
            }
            mark(&mut out, code, &index, number, diagnostic);
        }
    }
    out
}

fn mark(out: &mut String, code: &str, index: &LineIndex, number: usize, diagnostic: &Diagnostic) {
    let start = index.line_start(number);
    let line = code.get(start..).and_then(|rest| rest.split('\n').next()).unwrap_or("");
    let line_end = start + line.len();
    let from = (diagnostic.primary.span.start as usize).clamp(start, line_end);
    let to = (diagnostic.primary.span.end as usize).clamp(from, line_end);
    let columns = |from: usize, to: usize| code.get(from..to).map_or(0, |text| text.chars().count());
    let before = columns(start, from);
    let carets = columns(from, to).max(1);
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Advice => "advice",
    };
    let pad = " ".repeat(before);
    out.push_str(&format!(
        "{pad}{} {severity}[{}]: {}\n",
        "^".repeat(carets),
        diagnostic.code(),
        diagnostic.message
    ));
    let pad = " ".repeat(before + carets + 1);
    for label in &diagnostic.secondary {
        let place = index.line_col(code, label.span.start as usize);
        out.push_str(&format!("{pad}note: {}:{}: {}\n", place.line, place.col, label.text));
    }
    if let Some(help) = &diagnostic.help {
        out.push_str(&format!("{pad}help: {}\n", help.replace('\n', " ")));
    }
    if let Some(fix) = &diagnostic.fix {
        let word = if fix.safe { "fix" } else { "fix (choose)" };
        out.push_str(&format!("{pad}{word}: {}\n", fix.title));
    }
}
