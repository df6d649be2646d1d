//! Credentials that stand in the text.

use crate::checker::Checker;
use crate::codes::security::HARD_CODED;
use crate::values::as_text;
use cdpipe_syntax::tree::{Expr, StrLit};
use cdpipe_syntax::{Diagnostic, Span};
use std::sync::OnceLock;

/// How well-known credentials start, and the fewest characters that follow.
const PREFIXES: &[(&str, usize)] = &[
    ("ghp_", 30),
    ("gho_", 30),
    ("ghs_", 30),
    ("github_pat_", 30),
    ("glpat-", 16),
    ("AKIA", 16),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("sk_live_", 16),
    ("rk_live_", 16),
    ("npm_", 30),
    ("dckr_pat_", 20),
    ("AIza", 30),
];

const NAMES: &[&str] = &[
    "password",
    "passwd",
    "secret",
    "token",
    "apikey",
    "api_key",
    "private_key",
    "credential",
    "authorization",
];

/// Finds what the checks below look for, in one pass; `None` can't be, since the pattern is fixed and tested.
fn suspicious() -> Option<&'static regex::Regex> {
    static PATTERN: OnceLock<Option<regex::Regex>> = OnceLock::new();
    PATTERN
        .get_or_init(|| {
            let words: Vec<String> = PREFIXES
                .iter()
                .map(|(prefix, _)| *prefix)
                .chain(["-----BEGIN", "hooks.slack.com/", "://"])
                .map(regex::escape)
                .collect();
            regex::Regex::new(&words.join("|")).ok()
        })
        .as_ref()
}

impl Checker<'_> {
    /// A setting whose name says that it holds a credential, with a literal text.
    pub(crate) fn credential(&mut self, key: &str, value: &Expr) {
        let key_text = key.to_lowercase().replace('-', "_");
        let Some(text) = as_text(value).and_then(StrLit::plain) else { return };
        if NAMES.iter().any(|name| key_text.contains(name))
            && text.len() >= 6
            && !text.starts_with('/')
            && !text.starts_with('$')
            && !text.contains("://")
        {
            self.hard_coded(value.span, &format!("`{key}` holds a credential in plain text"));
        }
    }

    /// A literal text that looks like a well-known credential.
    pub(crate) fn credential_in(&mut self, text: &str, span: Span) {
        // Nearly every text of a pipeline holds none of these, so one look for all of them decides.
        if text.len() < 16 || suspicious().is_none_or(|pattern| !pattern.is_match(text)) {
            return;
        }
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        for (prefix, least) in PREFIXES {
            for (at, _) in text.match_indices(prefix) {
                let starts = text[..at].chars().next_back().is_none_or(|before| !word(before));
                let rest = text[at + prefix.len()..].chars().take_while(|c| word(*c)).count();
                if starts && rest >= *least {
                    self.hard_coded(
                        span,
                        &format!("this text holds what looks like a credential (`{prefix}…`)"),
                    );
                    return;
                }
            }
        }
        if text.contains("-----BEGIN") && text.contains("PRIVATE KEY") {
            self.hard_coded(span, "this text holds a private key");
        } else if text.contains("hooks.slack.com/services/T") {
            self.hard_coded(span, "this text holds a webhook, and whoever has it can post there");
        } else if let Some((_, rest)) = text.split_once("://")
            && let Some((user, _)) = rest.split(['/', '?', ' ']).next().unwrap_or_default().rsplit_once('@')
            && user
                .split_once(':')
                .is_some_and(|(_, password)| !password.is_empty() && !password.starts_with('$'))
        {
            self.hard_coded(span, "this URL holds a password");
        }
    }

    fn hard_coded(&mut self, span: Span, message: &str) {
        self.report(
            Diagnostic::new(&HARD_CODED, span, message)
                .label("whoever can read the file has it")
                .help("declare `secret NAME`, use it here, and change the credential: it has been seen"),
        );
    }
}
