//! Text with tones: what is said is separate from how a stream can show it.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How a piece of text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// As it is.
    #[default]
    Normal,
    /// Names.
    Strong,
    /// Less important.
    Dim,
    /// Went well.
    Good,
    /// Look here.
    Caution,
    /// Went wrong.
    Bad,
    /// Goes on.
    Live,
}

impl Tone {
    fn sgr(self) -> &'static str {
        match self {
            Tone::Normal => "",
            Tone::Strong => "1",
            Tone::Dim => "2",
            Tone::Good => "32",
            Tone::Caution => "33",
            Tone::Bad => "31;1",
            Tone::Live => "36",
        }
    }
}

/// What a stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Escape sequences for colour.
    pub color: bool,
    /// Characters beyond ASCII.
    pub unicode: bool,
}

impl Style {
    /// Nothing but ASCII.
    pub const PLAIN: Style = Style { color: false, unicode: false };

    /// One of two texts, by what can be shown.
    pub fn pick(self, unicode: &'static str, ascii: &'static str) -> &'static str {
        if self.unicode { unicode } else { ascii }
    }
}

/// A line in pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line(pub Vec<(Tone, String)>);

impl Line {
    /// An empty line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a piece.
    #[must_use]
    pub fn push(mut self, tone: Tone, text: impl Into<String>) -> Self {
        self.0.push((tone, text.into()));
        self
    }

    /// Columns it takes.
    pub fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.width()).sum()
    }

    /// Fills up with blanks to so many columns.
    #[must_use]
    pub fn pad_to(self, columns: usize) -> Self {
        let missing = columns.saturating_sub(self.width());
        if missing == 0 { self } else { self.push(Tone::Normal, " ".repeat(missing)) }
    }

    /// As text of at most `columns` columns; what is cut off is shown by a dot or three.
    pub fn render(&self, columns: usize, style: Style) -> String {
        let whole = self.width() <= columns;
        let dots = style.pick("…", "...");
        let mut room = if whole { columns } else { columns.saturating_sub(dots.width()) };
        let mut out = String::new();
        let mut cut = false;
        for (tone, text) in &self.0 {
            let mut kept = String::new();
            for character in text.chars() {
                let wide = character.width().unwrap_or(0);
                if wide > room {
                    cut = true;
                    break;
                }
                room -= wide;
                kept.push(character);
            }
            if style.color && *tone != Tone::Normal && !kept.is_empty() {
                out.push_str(&format!("\u{1b}[{}m{kept}\u{1b}[0m", tone.sgr()));
            } else {
                out.push_str(&kept);
            }
            if cut {
                break;
            }
        }
        if !whole {
            let shown = out.trim_end().len();
            out.truncate(shown);
            out.push_str(dots);
        }
        out
    }

    /// Breaks the line at blanks so that no part is wider than `columns`; parts after the first are indented. A single word that is
    /// wider stays whole.
    pub fn wrap(&self, columns: usize, indent: usize) -> Vec<Line> {
        let mut lines = vec![Line::new()];
        let mut used = 0;
        for (tone, text) in &self.0 {
            for piece in text.split_inclusive(' ') {
                let word = piece.trim_end_matches(' ').width();
                if used + word > columns && used > indent && word > 0 {
                    lines.push(Line::new().push(Tone::Normal, " ".repeat(indent)));
                    used = indent;
                }
                if let Some(line) = lines.last_mut() {
                    match line.0.last_mut() {
                        Some((last, kept)) if last == tone => kept.push_str(piece),
                        _ => line.0.push((*tone, piece.to_owned())),
                    }
                }
                used += piece.width();
            }
        }
        lines
    }

    /// As text in its whole length.
    pub fn render_all(&self, style: Style) -> String {
        self.render(usize::MAX, style)
    }
}

/// A line of foreign output made safe to show inside a line of ours: escape sequences and control characters are taken out, tabs
/// become blanks.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(character) = chars.next() {
        match character {
            '\u{1b}' => match chars.next() {
                // CSI: up to its final byte.
                Some('[') => while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {},
                // OSC and the like: up to BEL or ESC \.
                Some(']' | 'P' | '^' | '_' | 'X') => {
                    while let Some(c) = chars.next() {
                        if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                    continue;
                }
                _ => continue,
            },
            '\t' => {
                out.push_str("    ");
                continue;
            }
            c if c.is_control() => continue,
            c => {
                out.push(c);
                continue;
            }
        }
        // The final byte of a CSI sequence.
        chars.next();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_loses_its_escapes() {
        assert_eq!(clean("\u{1b}[31mred\u{1b}[0m\ttab\u{8}\r"), "red    tab");
        assert_eq!(clean("a\u{1b}]0;title\u{7}b\u{1b}]8;;x\u{1b}\\c"), "abc");
        assert_eq!(clean("\u{1b}["), "");
    }

    #[test]
    fn lines_are_broken_at_blanks() {
        let line = Line::new().push(Tone::Strong, "name  ").push(Tone::Normal, "one two three four");
        let broken: Vec<String> = line.wrap(14, 6).iter().map(|line| line.render_all(Style::PLAIN)).collect();
        assert_eq!(broken, ["name  one two ", "      three ", "      four"]);
    }

    #[test]
    fn long_lines_are_cut_by_columns() {
        let line = Line::new().push(Tone::Strong, "日本語").push(Tone::Normal, " text");
        assert_eq!(line.width(), 11);
        assert_eq!(line.render(8, Style { color: false, unicode: true }), "日本語…");
        assert_eq!(line.render(11, Style::PLAIN), "日本語 text");
        assert_eq!(line.render(8, Style { color: true, unicode: true }), "\u{1b}[1m日本語\u{1b}[0m…");
    }
}
