//! `cdpipe explain`: what a code or a word means.

use crate::commands::Ended;
use crate::failure::{self, Failure};
use crate::files::distance;
use crate::ui::{Look, Ui};
use cdpipe_syntax::CodeInfo;

/// Arguments of `cdpipe explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A code (`CD0101`) or a word of the language (`canary`); all codes are listed without one.
    #[arg(value_name = "CODE|WORD")]
    word: Option<String>,
}

/// Every code there is, by number.
pub(crate) fn all_codes() -> Vec<&'static CodeInfo> {
    let mut codes = failure::codes().to_vec();
    codes.extend(cdpipe_check::codes());
    codes.sort_by_key(|info| info.code);
    codes.dedup_by_key(|info| info.code);
    codes
}

/// Prints the page of a code, or what the schema says of a word.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let Some(word) = &args.word else {
        for info in all_codes() {
            ui.print(&format!("{}  {}\n", ui.out.bold(info.code), info.title));
        }
        return Ok(0);
    };
    let code = word.to_ascii_uppercase();
    if let Some(info) = all_codes().into_iter().find(|info| info.code == code) {
        ui.print(&page(info, ui.out));
        return Ok(0);
    }
    if let Some(page) = cdpipe_check::explain(word) {
        ui.print(&wrap_markdown(&page, ui.out.width.min(100)));
        return Ok(0);
    }
    let failure = Failure::new(&failure::UNKNOWN_WORD, format!("nothing is known of `{word}`"));
    let near = all_codes().into_iter().map(|info| info.code).filter(|code| distance(code, word) <= 1).take(3);
    let near: Vec<String> = near.map(|code| format!("`{code}`")).collect();
    Err(if near.is_empty() {
        failure.help("`cdpipe explain` without a word lists all codes; a word may be `deploy`, `canary`, `watch.after`, `max`, `candidate.url`")
    } else {
        failure.help(format!("did you mean {}?", near.join(" or ")))
    })
}

/// The page of a code, for the terminal.
fn page(info: &CodeInfo, look: Look) -> String {
    let word = crate::render::word(info.severity);
    let mut text = format!("{} {}\n\n", look.bold(&format!("{word}[{}]:", info.code)), look.bold(info.title));
    text.push_str(&wrap_markdown(info.explanation, look.width.min(100)));
    for (title, example) in [("Wrong", info.bad), ("Right", info.good)] {
        if !example.trim().is_empty() {
            text.push_str(&format!("\n{}\n\n", look.bold(title)));
            for line in example.trim_matches('\n').lines() {
                text.push_str(format!("    {line}").trim_end());
                text.push('\n');
            }
        }
    }
    text
}

/// Markdown paragraphs and list items wrapped to a width; fenced blocks, headings and tables stay as they are.
pub(crate) fn wrap_markdown(markdown: &str, width: usize) -> String {
    let mut text = String::new();
    let mut paragraph = String::new();
    let mut fenced = false;
    for line in markdown.trim_matches('\n').lines() {
        if line.trim_start().starts_with("```") {
            wrap(&std::mem::take(&mut paragraph), "", width, &mut text);
            fenced = !fenced;
        } else if fenced {
            text.push_str(format!("    {line}").trim_end());
            text.push('\n');
        } else if line.trim().is_empty() {
            wrap(&std::mem::take(&mut paragraph), "", width, &mut text);
            text.push('\n');
        } else if line.starts_with("- ") {
            wrap(&std::mem::take(&mut paragraph), "", width, &mut text);
            wrap(line, "  ", width, &mut text);
        } else if line.starts_with(['|', '#', ' ']) {
            wrap(&std::mem::take(&mut paragraph), "", width, &mut text);
            text.push_str(line);
            text.push('\n');
        } else {
            paragraph.push_str(line);
            paragraph.push(' ');
        }
    }
    wrap(&paragraph, "", width, &mut text);
    text
}

/// Words as lines of at most this width; lines after the first begin with `indent`.
fn wrap(words: &str, indent: &str, width: usize, text: &mut String) {
    let mut column = 0;
    for word in words.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            text.push('\n');
            text.push_str(indent);
            column = indent.len();
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    if column > 0 {
        text.push('\n');
    }
}
