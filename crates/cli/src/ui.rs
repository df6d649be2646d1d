//! Where text for people and programs goes: the two streams, what they can show, and how wide they are. Decided once, here.

use clap::ValueEnum;
use std::io::{IsTerminal, Write};

/// `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`.
    #[default]
    Auto,
    /// Also into a file or a pipe.
    Always,
    /// Never.
    Never,
}

/// What one stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Escape sequences for colour.
    pub color: bool,
    /// Characters beyond ASCII for drawing.
    pub unicode: bool,
    /// Whether a person looks at it now.
    pub terminal: bool,
    /// Columns.
    pub width: usize,
}

/// Both streams of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    /// Standard output: what the command was asked for.
    pub out: Look,
    /// Standard error: everything else.
    pub err: Look,
}

/// Columns where nobody says how wide it is.
const DEFAULT_WIDTH: usize = 100;

impl Ui {
    /// Looks at the streams and at the environment.
    pub(crate) fn new(choice: ColorChoice) -> Self {
        let look = |terminal: bool, width: Option<usize>| {
            let color = match choice {
                ColorChoice::Always => true,
                ColorChoice::Never => false,
                ColorChoice::Auto => terminal && !env_set("NO_COLOR") && !dumb(),
            };
            // COLUMNS is obeyed also where no terminal is: that makes output reproducible at any width.
            let width = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).or(width);
            let unicode = (terminal && utf8_locale() && !dumb()) || choice == ColorChoice::Always;
            Look { color, unicode, terminal, width: width.unwrap_or(DEFAULT_WIDTH).clamp(20, 400) }
        };
        Self {
            out: look(std::io::stdout().is_terminal(), columns(rustix::stdio::stdout())),
            err: look(std::io::stderr().is_terminal(), columns(rustix::stdio::stderr())),
        }
    }

    /// Writes to standard output. A reader that has gone away (`| head`) is no error of ours.
    pub(crate) fn print(&self, text: &str) {
        let mut stream = std::io::stdout().lock();
        let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
    }

    /// Writes to standard error.
    pub(crate) fn note(&self, text: &str) {
        let mut stream = std::io::stderr().lock();
        let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
    }
}

impl Look {
    /// The text in bold, where there is colour.
    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// The text dimmed, where there is colour.
    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    /// The text in red, where there is colour.
    pub(crate) fn red(&self, text: &str) -> String {
        self.paint("31;1", text)
    }

    /// The text in yellow, where there is colour.
    pub(crate) fn yellow(&self, text: &str) -> String {
        self.paint("33", text)
    }

    /// The text in green, where there is colour.
    pub(crate) fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    /// The text in cyan, where there is colour.
    pub(crate) fn cyan(&self, text: &str) -> String {
        self.paint("36", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

fn env_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

fn dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// By the locale, as C libraries decide it: the first of these that is set. Without any, a terminal of today is taken to know UTF-8.
fn utf8_locale() -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .is_none_or(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        })
}

fn columns(stream: impl std::os::fd::AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}
