//! Where in a shell text a `${…}` stands: as a word of its own, where its value can be put in as data, or inside something of the
//! shell's, where it can't. A scanner of the shell's quoting, not of its grammar.

/// Where a value would stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    /// Among words: `"${CDPIPE_ARG_1}"` is right there.
    Word,
    /// In a comment, where nothing matters.
    Comment,
    /// Inside `"…"`.
    Double,
    /// Inside `'…'`.
    Single,
    /// Somewhere else; the text says where.
    Other(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Command,
    /// `( … )` and `$( … )`.
    Paren,
    Backtick,
    Single,
    /// `$'…'`.
    Ansi,
    Double,
    /// `${ … }`.
    Brace,
    /// `$(( … ))`, with the number of parentheses open in it.
    Arithmetic(u32),
    Comment,
    /// Until a line that is this; tabs before it may be skipped.
    Heredoc {
        end: String,
        tabs: bool,
    },
}

/// Reads a shell text piece by piece.
#[derive(Debug)]
pub(crate) struct Scanner {
    modes: Vec<Mode>,
    /// The last character of the text so far; a blank at its start.
    last: char,
    /// The last character is a backslash that takes the next one.
    escaped: bool,
    /// Heredocs whose text starts after this line.
    pending: Vec<(String, bool)>,
    /// The line so far, inside a heredoc.
    line: String,
    /// Text that may be the end of a `<<`: filled while the word after it is read.
    heredoc: Option<Word>,
}

#[derive(Debug, Default)]
struct Word {
    text: String,
    tabs: bool,
    started: bool,
    quote: Option<char>,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self {
            modes: vec![Mode::Command],
            last: ' ',
            escaped: false,
            pending: Vec::new(),
            line: String::new(),
            heredoc: None,
        }
    }

    fn mode(&self) -> &Mode {
        self.modes.last().unwrap_or(&Mode::Command)
    }

    fn pop(&mut self) {
        if self.modes.len() > 1 {
            self.modes.pop();
        }
    }

    /// Where a value would stand that comes now.
    pub(crate) fn spot(&self) -> Spot {
        if self.heredoc.is_some() {
            return Spot::Other("in the word that ends a heredoc");
        }
        if self.escaped {
            return Spot::Other("after a backslash");
        }
        match self.mode() {
            Mode::Command | Mode::Paren => {
                if self.last == '$' {
                    Spot::Other("after a `$`")
                } else {
                    Spot::Word
                }
            }
            Mode::Backtick => {
                if self.modes.contains(&Mode::Double) {
                    Spot::Other("in backticks inside quotes; `$(…)` nests better")
                } else {
                    Spot::Word
                }
            }
            Mode::Single => Spot::Single,
            Mode::Ansi => Spot::Other("inside `$'…'`"),
            Mode::Double => Spot::Double,
            Mode::Brace => Spot::Other("inside a `${…}` of the shell"),
            Mode::Arithmetic(_) => Spot::Other("in arithmetic"),
            Mode::Comment => Spot::Comment,
            Mode::Heredoc { .. } => Spot::Other("in a heredoc"),
        }
    }

    /// A value was put in.
    pub(crate) fn value(&mut self) {
        self.last = 'x';
        self.escaped = false;
        self.line.push('x');
    }

    /// Reads on.
    pub(crate) fn text(&mut self, text: &str) {
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            at += self.step(&chars[at..]);
        }
    }

    /// Reads at least one character; how many it were.
    fn step(&mut self, rest: &[char]) -> usize {
        let c = rest[0];
        let next = rest.get(1).copied();
        if self.escaped {
            self.escaped = false;
            self.last = 'x';
            return 1;
        }
        if self.heredoc.is_some() {
            return self.heredoc_word(c);
        }
        let before = self.last;
        self.last = c;
        match self.mode().clone() {
            Mode::Heredoc { end, tabs } => {
                if c != '\n' {
                    self.line.push(c);
                    return 1;
                }
                let line = std::mem::take(&mut self.line);
                let line = if tabs { line.trim_start_matches('\t') } else { line.as_str() };
                if line == end {
                    self.pop();
                }
                1
            }
            Mode::Comment => {
                if c == '\n' {
                    self.pop();
                    self.newline();
                }
                1
            }
            Mode::Single => {
                if c == '\'' {
                    self.pop();
                }
                1
            }
            Mode::Ansi => {
                match c {
                    '\\' => self.escaped = true,
                    '\'' => self.pop(),
                    _ => {}
                }
                1
            }
            Mode::Double => match (c, next) {
                ('\\', _) => {
                    self.escaped = true;
                    1
                }
                ('"', _) => {
                    self.pop();
                    1
                }
                ('$', Some('(' | '{')) => self.dollar(rest),
                ('`', _) => {
                    self.modes.push(Mode::Backtick);
                    1
                }
                _ => 1,
            },
            Mode::Brace => match (c, next) {
                ('\\', _) => {
                    self.escaped = true;
                    1
                }
                ('}', _) => {
                    self.pop();
                    1
                }
                ('$', Some('(' | '{')) => self.dollar(rest),
                _ => 1,
            },
            Mode::Arithmetic(open) => {
                match (c, next) {
                    ('(', _) => self.set_arithmetic(open + 1),
                    (')', Some(')')) if open == 0 => {
                        self.pop();
                        self.last = ')';
                        return 2;
                    }
                    (')', _) => self.set_arithmetic(open.saturating_sub(1)),
                    ('$', Some('(' | '{')) => return self.dollar(rest),
                    _ => {}
                }
                1
            }
            Mode::Command | Mode::Paren | Mode::Backtick => self.command(rest, before),
        }
    }

    fn set_arithmetic(&mut self, open: u32) {
        if let Some(mode) = self.modes.last_mut() {
            *mode = Mode::Arithmetic(open);
        }
    }

    fn dollar(&mut self, rest: &[char]) -> usize {
        match (rest.get(1), rest.get(2)) {
            (Some('('), Some('(')) => {
                self.modes.push(Mode::Arithmetic(0));
                self.last = '(';
                3
            }
            (Some('('), _) => {
                self.modes.push(Mode::Paren);
                self.last = ' ';
                2
            }
            _ => {
                self.modes.push(Mode::Brace);
                self.last = '{';
                2
            }
        }
    }

    fn command(&mut self, rest: &[char], before: char) -> usize {
        match (rest[0], rest.get(1).copied()) {
            ('\\', _) => self.escaped = true,
            ('\'', _) => {
                let mode = if before == '$' { Mode::Ansi } else { Mode::Single };
                self.modes.push(mode);
            }
            ('"', _) => self.modes.push(Mode::Double),
            ('`', _) => {
                if *self.mode() == Mode::Backtick {
                    self.pop();
                } else {
                    self.modes.push(Mode::Backtick);
                }
            }
            ('$', Some('(' | '{')) => return self.dollar(rest),
            ('(', _) => self.modes.push(Mode::Paren),
            (')', _) if *self.mode() == Mode::Paren => self.pop(),
            ('#', _) if before.is_whitespace() || matches!(before, ';' | '&' | '|' | '(') => {
                self.modes.push(Mode::Comment);
            }
            ('<', Some('<')) => {
                // `<<<` takes a word as its input: nothing special about it.
                if rest.get(2) == Some(&'<') {
                    return 3;
                }
                self.heredoc = Some(Word::default());
                return 2;
            }
            ('\n', _) => self.newline(),
            _ => {}
        }
        1
    }

    fn newline(&mut self) {
        // Bodies follow in the order of their operators, so the first one is on top.
        for (end, tabs) in std::mem::take(&mut self.pending).into_iter().rev() {
            self.modes.push(Mode::Heredoc { end, tabs });
        }
        self.line.clear();
        self.last = '\n';
    }

    fn heredoc_word(&mut self, c: char) -> usize {
        let Some(word) = &mut self.heredoc else { return 1 };
        if let Some(quote) = word.quote {
            if c == quote {
                word.quote = None;
            } else {
                word.text.push(c);
            }
            return 1;
        }
        match c {
            '-' if !word.started => {
                word.tabs = true;
                word.started = true;
                1
            }
            ' ' | '\t' if word.text.is_empty() => 1,
            '\'' | '"' => {
                word.quote = Some(c);
                word.started = true;
                1
            }
            '\\' => 1,
            c if c.is_whitespace() || matches!(c, ';' | '&' | '|' | '<' | '>' | '(' | ')') => {
                if let Some(word) = self.heredoc.take()
                    && !word.text.is_empty()
                {
                    self.pending.push((word.text, word.tabs));
                }
                self.last = ' ';
                0
            }
            c => {
                word.text.push(c);
                word.started = true;
                1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spots of each `@` of a text.
    fn spots(text: &str) -> Vec<Spot> {
        let mut scanner = Scanner::new();
        let mut found = Vec::new();
        for (at, piece) in text.split('@').enumerate() {
            if at > 0 {
                found.push(scanner.spot());
                scanner.value();
            }
            scanner.text(piece);
        }
        found
    }

    #[test]
    fn a_value_among_words() {
        for text in [
            "echo @",
            "echo a@b",
            "X=@ run",
            "echo \"a\"@'b'",
            "echo $(cat @)",
            "echo \"$(cat @)\"",
            "(cd @ && make)",
            "echo `cat @`",
            "echo a#@",
            "cat <<< @",
            "case $x in a) echo @;; esac",
            "echo it\\'s @",
            "echo \"say \\\"hi\\\"\" @",
            "cat <<EOF\nbody\nEOF\necho @",
            "cat <<-'E O'\n\tbody\n\tE O\necho @",
            "# it's a comment\necho @",
            "echo $((1 + (2 * 3))) @",
            "echo ${X:-$(date)} @",
        ] {
            assert_eq!(spots(text), [Spot::Word], "{text}");
        }
    }

    #[test]
    fn a_value_inside_something() {
        assert_eq!(spots("echo \"a @ b\" '@' @"), [Spot::Double, Spot::Single, Spot::Word]);
        assert_eq!(spots("echo # @\necho @"), [Spot::Comment, Spot::Word]);
        for (text, spot) in [
            ("echo $((1 + @))", "in arithmetic"),
            ("cat <<EOF\n@\nEOF", "in a heredoc"),
            ("cat <<A; cat <<B\nA\n@\nB", "in a heredoc"),
            ("echo ${X:-@}", "inside a `${…}` of the shell"),
            ("echo \\@", "after a backslash"),
            ("echo $@", "after a `$`"),
            ("echo $'@'", "inside `$'…'`"),
            ("cat <<@", "in the word that ends a heredoc"),
        ] {
            assert_eq!(spots(text), [Spot::Other(spot)], "{text}");
        }
    }
}
