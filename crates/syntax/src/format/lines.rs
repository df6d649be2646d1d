//! Finished lines, and what is put into columns once they are all there.

use super::WIDTH;

/// Blanks for each level.
const STEP: usize = 2;

/// One line of output.
#[derive(Debug, Default, Clone)]
pub(super) struct Line {
    /// Levels of indentation.
    pub(super) indent: usize,
    /// Without indentation and without the comment at its end.
    pub(super) text: String,
    /// The comment at its end.
    pub(super) comment: Option<String>,
    /// If it is a setting that stands on this line alone: bytes up to the end of its key (and colon), and up to that of its type.
    pub(super) setting: Option<(usize, Option<usize>)>,
    /// Whether blanks at its end mean something.
    pub(super) verbatim: bool,
}

impl Line {
    /// Columns so far.
    pub(super) fn width(&self) -> usize {
        self.indent * STEP + self.text.chars().count()
    }
}

/// Joins the lines: aligns what belongs together, drops blanks at the ends.
pub(super) fn join(mut lines: Vec<Line>) -> String {
    align_settings(&mut lines);
    let columns = comment_columns(&lines);
    let mut out = String::new();
    for (line, column) in lines.iter().zip(columns) {
        if !line.text.is_empty() || line.comment.is_some() {
            out.extend(std::iter::repeat_n(' ', line.indent * STEP));
        }
        out.push_str(if line.verbatim { &line.text } else { line.text.trim_end() });
        if let Some(comment) = &line.comment {
            let gap = column.saturating_sub(line.width()).max(2);
            out.extend(std::iter::repeat_n(' ', gap));
            out.push_str(comment);
        }
        out.push('\n');
    }
    out
}

/// Settings in lines that follow one another get their `=` in one column, and their types in another.
fn align_settings(lines: &mut [Line]) {
    let mut start = 0;
    while start < lines.len() {
        let Some((_, ty)) = lines[start].setting else {
            start += 1;
            continue;
        };
        let (indent, typed) = (lines[start].indent, ty.is_some());
        let run = lines[start..]
            .iter()
            .take_while(|line| {
                line.indent == indent && line.setting.is_some_and(|(_, ty)| ty.is_some() == typed)
            })
            .count();
        align_run(&mut lines[start..start + run]);
        start += run;
    }
}

fn align_run(run: &mut [Line]) {
    let chars = |text: &str, to: usize| text.get(..to).map_or(0, |text| text.chars().count());
    let key_width = |line: &Line| line.setting.map_or(0, |(key, _)| chars(&line.text, key));
    let type_width = |line: &Line| match line.setting {
        Some((key, Some(ty))) => chars(&line.text, ty) - chars(&line.text, key) - 1,
        _ => 0,
    };
    let keys = run.iter().map(key_width).max().unwrap_or(0);
    let types = run.iter().map(type_width).max().unwrap_or(0);
    let padding = |line: &Line| {
        let ty = if type_width(line) > 0 { types - type_width(line) } else { 0 };
        (keys - key_width(line), ty)
    };
    if run.iter().any(|line| line.width() + padding(line).0 + padding(line).1 > WIDTH) {
        return;
    }
    for line in run {
        let (before_type, before_equals) = padding(line);
        let Some((key, ty)) = line.setting else { continue };
        if let Some(ty) = ty {
            line.text.insert_str(ty, &" ".repeat(before_equals));
        }
        line.text.insert_str(key, &" ".repeat(before_type));
    }
}

/// For each line the column at which its comment begins: the same for lines of one level that follow one another.
fn comment_columns(lines: &[Line]) -> Vec<usize> {
    let mut columns = vec![0; lines.len()];
    let mut start = 0;
    while start < lines.len() {
        if lines[start].comment.is_none() {
            start += 1;
            continue;
        }
        let indent = lines[start].indent;
        let run =
            lines[start..].iter().take_while(|line| line.comment.is_some() && line.indent == indent).count();
        let column = lines[start..start + run].iter().map(Line::width).max().unwrap_or(0) + 2;
        columns[start..start + run].fill(column);
        start += run;
    }
    columns
}
