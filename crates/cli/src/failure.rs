//! Errors of the command line, of files and of the state: what a person is told when a command can't even begin, or can't go on.
//! Errors in a pipeline's text are `cdpipe_syntax::Diagnostic`s instead.

use crate::ui::Look;
use cdpipe_model::Fault;
use cdpipe_syntax::{CodeInfo, Severity};
use std::fmt::Write;

/// Why a command ends without having done what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What kind.
    pub info: &'static CodeInfo,
    /// One sentence without a full stop.
    pub message: String,
    /// Lines that explain it.
    pub details: Vec<String>,
    /// What to do next.
    pub help: Option<String>,
    /// Exit code of the process.
    pub exit: u8,
}

impl Failure {
    /// An error that ends with exit code 2: nothing was done.
    pub(crate) fn new(info: &'static CodeInfo, message: impl Into<String>) -> Self {
        Self { info, message: message.into(), details: Vec::new(), help: None, exit: 2 }
    }

    /// Says what to do next.
    #[must_use]
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Adds a line that explains it.
    #[must_use]
    pub(crate) fn detail(mut self, text: impl Into<String>) -> Self {
        self.details.push(text.into());
        self
    }

    /// Ends the process with another code than 2.
    #[must_use]
    pub(crate) fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// An error of the world, as a port tells it.
    pub(crate) fn from_fault(info: &'static CodeInfo, fault: Fault) -> Self {
        Self { info, message: fault.message, details: fault.details, help: fault.help, exit: 1 }
    }

    /// As it is shown.
    pub(crate) fn render(&self, look: Look) -> String {
        let mut text = String::new();
        let word = look.red(&format!("error[{}]", self.info.code));
        let _ = writeln!(text, "{word}: {}", look.bold(&self.message));
        for line in &self.details {
            let _ = writeln!(text, "  {line}");
        }
        if let Some(help) = &self.help {
            for (at, line) in help.lines().enumerate() {
                let head = if at == 0 { look.cyan("help:") } else { "     ".to_owned() };
                let _ = writeln!(text, "  {head} {line}");
            }
        }
        text
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $title:literal, $explanation:literal;)*) => {
        $(
            $(#[$doc])*
            pub(crate) static $name: CodeInfo = CodeInfo {
                code: $code,
                title: $title,
                severity: Severity::Error,
                explanation: $explanation,
                bad: "",
                good: "",
            };
        )*

        /// Every code of the command line, in order of number.
        pub(crate) fn codes() -> &'static [&'static CodeInfo] {
            static ALL: &[&CodeInfo] = &[$(&$name),*];
            ALL
        }
    };
}

codes! {
    /// A path that leads nowhere.
    NO_SUCH_FILE = "CD0001", "no such file",
        "A path on the command line, or in a `use`, leads to nothing. Nothing was read and nothing was done.\n\n\
         Look at the spelling and at the directory the command was started in; names that come near are listed with the error.";
    /// A directory where one file is meant.
    IS_DIRECTORY = "CD0002", "a directory, where a pipeline is meant",
        "`check` and `fmt` take directories and look for `*.cd` files in them; hidden directories, `target` and `node_modules` are not \
         entered. Commands that run one pipeline take one file. A directory without any `*.cd` file is an error, so that a \
         check in CI can't pass by looking at the wrong place.";
    /// Bytes that are no text.
    NOT_UTF8 = "CD0003", "not UTF-8",
        "A pipeline is UTF-8 text, with or without a byte order mark. The error names the first byte that is not, by offset and line.\n\n\
         Convert the file (`iconv -f LATIN1 -t UTF-8`), or look whether it is a pipeline at all.";
    /// More than is read.
    TOO_LARGE = "CD0004", "too large to be a pipeline",
        "A source may have 16 MiB. A pipeline of 10,000 stages has about 1 MiB, so a larger file is most likely something else.\n\n\
         Split it with `use`, if it is a pipeline.";
    /// The system does not let us read it.
    UNREADABLE = "CD0005", "cannot be read",
        "The operating system refused to give the file's content; its reason is in the message. Nothing was done.";
    /// The system does not let us write it.
    UNWRITABLE = "CD0006", "cannot be written",
        "A file could not be replaced. Files are written whole to a temporary name in the same directory and then renamed, so the old \
         content is still there, complete.";
    /// The words of the command line make no sense together.
    BAD_ARGUMENT = "CD0007", "the command line is wrong",
        "An argument is missing, not known, or does not go with another one. Nothing was done.\n\n`cdpipe help COMMAND` lists them.";
    /// No place for the journal that lasts.
    NO_STATE = "CD0008", "no lasting place for the state",
        "A run that deploys or waits keeps a journal: without it nobody could resume it, approve it or roll it back. In CI the home \
         directory goes away with the job, so such a run is refused there unless `CDPIPE_STATE` names a directory that stays \
         (a volume, a cached path).\n\nA pipeline that only runs commands needs no lasting place.";
    /// The journal can't be read or written.
    STATE = "CD0009", "the state cannot be used",
        "The journal in the state directory could not be opened, read or written. A run whose journal can't be written stops: \
         nothing is done that is not recorded.\n\nThe message says why. Free some space, or mend the permissions, then `cdpipe resume`.";
    /// A name that no run has.
    NO_SUCH_RUN = "CD0010", "no such run",
        "No run of this state directory has that id (the first characters are enough where they are unique), or there is no run \
         at all. `cdpipe runs` lists them.";
    /// Two runs of one pipeline at a time.
    UNFINISHED = "CD0011", "an unfinished run of this pipeline",
        "An earlier run of this pipeline was interrupted or waits. A second one beside it could change the same services at the same \
         time, so it is not started.\n\n`cdpipe resume` goes on with the earlier one; `cdpipe run --abandon` ends it as cancelled, \
         without touching anything, and starts anew.";
    /// Something else than what was planned.
    MOVED = "CD0012", "the plan does not fit any more",
        "`run --plan FILE` does exactly what the plan says, or nothing. The pipeline's text, or what is deployed, has changed since \
         the plan was made. Make a new plan and look at it again.";
    /// A word that does not apply now.
    NOT_POSSIBLE = "CD0013", "not possible now",
        "The run is not in a state in which this can be done: nothing waits for an approval, the stage is not failed, the \
         run is over. The message says what it is doing.";
    /// A run that ends before it begins.
    CANNOT_RUN = "CD0014", "cannot be run here",
        "The pipeline is right, but this machine or this build of cdpipe can't carry it out: a target that is not reachable, a secret \
         without a value, a kind of target that this version does not drive. Nothing was done.";
    /// The target or the proxy did not do it.
    TARGET = "CD0015", "the target did not do it",
        "A target, the proxy or the host refused or failed at what a command asked of it, outside of a run. The message is theirs.";
    /// A word without an explanation.
    UNKNOWN_WORD = "CD0016", "nothing is known of this word",
        "`cdpipe explain` knows error codes (`CD0101`) and the words of the language (`canary`, `drain`, `watch.after`).";
    /// A test whose run went otherwise than it expects.
    EXPECTATION = "CD0017", "an expectation is not met",
        "`cdpipe test` played the pipeline against simulated targets, and it went otherwise than this `expect` says. The trace under the \
         error is what happened, with virtual times: look for the line from which on it is not what you meant, and mend the pipeline, or the \
         test. A metric that no `when` of the test gives has no data, as if its source were silent.";
    /// A pipeline without tests, where tests are meant.
    NO_TESTS = "CD0018", "there is nothing to test",
        "None of the files named on the command line has a `test` block, or none of them has the name that `--filter` looks for. That is an \
         error, so that a job in CI can't pass by looking at the wrong place. `cdpipe explain test` shows how a test is written.";
    /// `cdpipe test --faults` found something.
    FAULTS = "CD0019", "a fault has consequences that must not be",
        "`cdpipe test --faults` lets every action of the pipeline fail, hang and lose its answer, and the engine die at every write of its \
         journal, and found a case in which users get an instance that is not ready, the last good release goes, a lock stays, or the end is \
         neither the old state nor the new. The trace is the shortest one; `--case` plays it again.";
}

#[cfg(test)]
mod tests {
    use super::codes;

    #[test]
    fn codes_are_numbered_in_order_and_explained() {
        for (at, info) in codes().iter().enumerate() {
            assert_eq!(info.code, format!("CD{:04}", at + 1));
            assert!(
                !info.title.ends_with('.') && info.explanation.ends_with(['.', ':', ')']),
                "{}",
                info.code
            );
        }
    }
}
