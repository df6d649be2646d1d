//! The one table of the language: each statement with its parts, settings and children, each built-in name and function. Name
//! checks, suggestions, type checks, completion, hover, `explain` and the reference pages are read from here; nothing about a
//! word is said anywhere else, but for what a table can't say.

mod deploy;
mod file;
mod foreign;
mod functions;
mod metrics;
mod place;
mod print;
mod service;
mod stage;

pub use file::FILE;
pub(crate) use file::GATE_ANSWERS;
pub use foreign::{Foreign, foreign};
pub use functions::{BUILT_INS, BuiltIn, FUNCTIONS, Function, built_in, function};
pub use print::{kind_text, setting_line, statement_syntax};

/// A keyword in one place: `watch` in a deploy and `watch` in a file are two statements.
#[derive(Debug)]
pub struct Statement {
    /// Which, for the code that gives it its meaning.
    pub id: Id,
    /// The word it starts with.
    pub keyword: &'static str,
    /// What it is, in one line without a full stop.
    pub summary: &'static str,
    /// More about it, in Markdown; may be empty.
    pub doc: &'static str,
    /// What stands between the keyword and the body.
    pub parts: &'static [Part],
    /// Its body.
    pub body: BodyUse,
    /// Whether it may stand only once in its body.
    pub once: bool,
    /// An example; may be empty.
    pub example: &'static str,
    /// The version of cdpipe that brought it.
    pub since: &'static str,
}

impl Statement {
    /// A statement without parts, body and example.
    pub const fn new(id: Id, keyword: &'static str, summary: &'static str) -> Self {
        Self {
            id,
            keyword,
            summary,
            doc: "",
            parts: &[],
            body: BodyUse::None,
            once: false,
            example: "",
            since: "0.1",
        }
    }

    /// With these parts.
    #[must_use]
    pub const fn parts(mut self, parts: &'static [Part]) -> Self {
        self.parts = parts;
        self
    }

    /// With a body that must be there.
    #[must_use]
    pub const fn body(mut self, body: &'static Body) -> Self {
        self.body = BodyUse::Required(body);
        self
    }

    /// With a body that may be left out.
    #[must_use]
    pub const fn optional_body(mut self, body: &'static Body) -> Self {
        self.body = BodyUse::Optional(body);
        self
    }

    /// Only once in its place.
    #[must_use]
    pub const fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// With more to read.
    #[must_use]
    pub const fn doc(mut self, doc: &'static str) -> Self {
        self.doc = doc;
        self
    }

    /// With an example.
    #[must_use]
    pub const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }
}

/// Which statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is its keyword, with its place where a keyword has several")]
pub enum Id {
    Pipeline,
    Defaults,
    Use,
    Param,
    Secret,
    Environment,
    Target,
    Traffic,
    Vars,
    Freeze,
    Service,
    Env,
    Labels,
    Logs,
    Resources,
    Secrets,
    Configs,
    Health,
    ServiceRoute,
    Metrics,
    Source,
    Headers,
    Flags,
    NamedStrategy,
    NamedWatch,
    Stage,
    Output,
    Gate,
    Approval,
    GateMetric,
    Window,
    Deploy,
    Set,
    Rolling,
    RollbackConfig,
    BlueGreen,
    Canary,
    Recreate,
    CanaryRoute,
    CanaryStep,
    Verify,
    Validate,
    Watch,
    StepWatch,
    RollbackWhen,
    FailWhen,
    WarnWhen,
    Run,
    Exec,
    Http,
    Apply,
    Flag,
    Notify,
    Wait,
    RollbackStage,
    Undo,
    On,
    Test,
    Given,
    When,
    Expect,
}

/// Whether a statement has a body.
#[derive(Debug, Clone, Copy)]
pub enum BodyUse {
    /// It may not.
    None,
    /// It may.
    Optional(&'static Body),
    /// It must.
    Required(&'static Body),
}

impl BodyUse {
    /// The body, if it may have one.
    pub const fn body(self) -> Option<&'static Body> {
        match self {
            BodyUse::None => None,
            BodyUse::Optional(body) | BodyUse::Required(body) => Some(body),
        }
    }
}

/// What may stand between braces.
#[derive(Debug)]
pub struct Body {
    /// Settings by name.
    pub settings: &'static [Setting],
    /// Statements.
    pub statements: &'static [&'static Statement],
    /// Further settings whose names the user chooses.
    pub open: Option<Open>,
    /// Whether it may be empty.
    pub may_be_empty: bool,
}

impl Body {
    /// With these settings and statements; it may be empty.
    pub const fn new(settings: &'static [Setting], statements: &'static [&'static Statement]) -> Self {
        Self { settings, statements, open: None, may_be_empty: true }
    }

    /// It makes no sense without an entry.
    #[must_use]
    pub const fn not_empty(mut self) -> Self {
        self.may_be_empty = false;
        self
    }

    /// Settings with names of the user's own.
    #[must_use]
    pub const fn open(mut self, open: Open) -> Self {
        self.open = Some(open);
        self
    }

    /// The setting of this name.
    pub fn setting(&self, name: &str) -> Option<&'static Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    /// The statement that starts with this keyword.
    pub fn statement(&self, keyword: &str) -> Option<&'static Statement> {
        self.statements.iter().copied().find(|statement| statement.keyword == keyword)
    }
}

/// Settings whose names the user chooses.
#[derive(Debug)]
pub struct Open {
    /// What the name is: `VARIABLE`.
    pub label: &'static str,
    /// What each may hold.
    pub kind: Kind,
    /// Whether it has a type: `error_rate: percent = …`.
    pub typed: bool,
    /// Whether the key may be a dotted path.
    pub dotted: bool,
    /// What they are for.
    pub doc: &'static str,
}

/// `name = value`.
#[derive(Debug)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// Whether it must be there.
    pub required: bool,
    /// What holds if it is not there, as it would be written; empty if nothing does.
    pub default: &'static str,
    /// What it is for, in one sentence.
    pub doc: &'static str,
    /// Whether its value may be known only while the pipeline runs.
    pub late: bool,
    /// The version of cdpipe that brought it.
    pub since: &'static str,
}

impl Setting {
    /// A setting that may be left out.
    pub const fn new(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self { name, kind, required: false, default: "", doc, late: false, since: "0.1" }
    }

    /// It must be there.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// What holds if it is not there.
    #[must_use]
    pub const fn default(mut self, text: &'static str) -> Self {
        self.default = text;
        self
    }

    /// Its value may be known only while the pipeline runs.
    #[must_use]
    pub const fn late(mut self) -> Self {
        self.late = true;
        self
    }
}

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// `true`, `false`.
    Bool,
    /// A whole number in this range.
    Int(i64, i64),
    /// A number in this range.
    Number(f64, f64),
    /// A percentage in this range, in percent points.
    Percent(f64, f64),
    /// A duration of at least so many milliseconds.
    Duration(u64),
    /// A size in bytes, at least one.
    Size,
    /// A number of instances, absolute or a share: `2`, `20%`.
    Count,
    /// A string of this form.
    Str(Form),
    /// A string in which secrets may stand.
    SecretStr(Form),
    /// Any single value; it is written as a string. Secrets may stand in it.
    Scalar,
    /// One of these words.
    Enum(&'static [Member]),
    /// A list of these.
    List(&'static Kind),
    /// A map of these.
    Map(&'static Kind),
    /// The name of something that is declared.
    Ref(Names),
    /// A list of stages and gates, `optional(x)` among them.
    Needs,
    /// True or false.
    Condition,
    /// True or false, said of measurements.
    Rule,
    /// A port (`80`) or an address with one (`"127.0.0.1:80"`, `":80"`).
    Listen,
    /// A program and its arguments: a list of strings, or a string that is split at blanks.
    Argv,
    /// A status code, or a list of them.
    Status,
    /// `header("name", "value")` or `cookie("name", "value")`.
    RouteMatch,
    /// `slack(url)` or `webhook(url)`.
    Channel,
    /// A metric's query: a string, or `ratio(a, b)`, `rate(m)`, `quantile(q, m)`, `sample(m)`.
    Query,
    /// Events of a hook, joined by `or`.
    Events,
    /// A value of any type.
    Any,
}

/// What form a string has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words say it")]
pub enum Form {
    Plain,
    Shell,
    Url,
    Path,
    Glob,
    Regex,
    Window,
    Image,
    HttpPath,
    /// `http…`, or a path on the candidate.
    HttpTarget,
    Endpoint,
    Compose,
    Workload,
    Use,
}

/// A word of an enum.
#[derive(Debug)]
pub struct Member {
    /// The word.
    pub word: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// Shorthand for a [`Member`].
pub(crate) const fn m(word: &'static str, doc: &'static str) -> Member {
    Member { word, doc }
}

/// Kinds of declared things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the words say it")]
pub enum Names {
    Param,
    Secret,
    Environment,
    Service,
    Metrics,
    Flags,
    Strategy,
    Watch,
    Stage,
    Gate,
    /// A stage or a gate: both stand in the graph, so they share their names.
    Node,
}

impl Names {
    /// As a noun for messages.
    pub fn noun(self) -> &'static str {
        match self {
            Names::Param => "parameter",
            Names::Secret => "secret",
            Names::Environment => "environment",
            Names::Service => "service",
            Names::Metrics => "metrics block",
            Names::Flags => "flag provider",
            Names::Strategy => "strategy",
            Names::Watch => "watch",
            Names::Stage => "stage",
            Names::Gate => "gate",
            Names::Node => "stage or gate",
        }
    }

    /// As a noun with its article.
    pub fn a_noun(self) -> String {
        let article = if self == Names::Environment { "an" } else { "a" };
        format!("{article} {}", self.noun())
    }

    /// The keyword that declares one.
    pub fn keyword(self) -> &'static str {
        match self {
            Names::Param => "param",
            Names::Secret => "secret",
            Names::Environment => "environment",
            Names::Service => "service",
            Names::Metrics => "metrics",
            Names::Flags => "flags",
            Names::Strategy => "strategy",
            Names::Watch => "watch",
            Names::Stage | Names::Node => "stage",
            Names::Gate => "gate",
        }
    }
}

/// One piece of a statement's head.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// A new name of this kind: `stage NAME`.
    Declares(Names),
    /// A new name that only its statement knows (an output, a test); the flag says whether a string will do.
    Label(&'static str, bool),
    /// Exactly this word.
    Word(&'static str),
    /// A value under this label.
    Arg(&'static str, Kind),
    /// One of these words, which decides what follows.
    Choice(&'static str, &'static [Variant]),
    /// These parts, or none of them.
    Opt(&'static [Part]),
    /// `: type`.
    Type,
    /// `= value`.
    Value(Kind),
    /// `in list`.
    In,
    /// `matches 'regex'`.
    Matches,
    /// `for NAME in list`.
    For,
    /// Whatever follows; the statement's own code reads it. The text says what is expected.
    Rest(&'static str),
}

/// One word of a [`Part::Choice`].
#[derive(Debug)]
pub struct Variant {
    /// The word.
    pub word: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// What follows it.
    pub parts: &'static [Part],
    /// The body that belongs to it; `None` leaves the statement's own.
    pub body: Option<BodyUse>,
}

impl Variant {
    /// A word with nothing of its own.
    pub const fn new(word: &'static str, doc: &'static str) -> Self {
        Self { word, doc, parts: &[], body: None }
    }

    /// Followed by these parts.
    #[must_use]
    pub const fn parts(mut self, parts: &'static [Part]) -> Self {
        self.parts = parts;
        self
    }

    /// With a body that must be there.
    #[must_use]
    pub const fn body(mut self, body: &'static Body) -> Self {
        self.body = Some(BodyUse::Required(body));
        self
    }

    /// With a body that may be left out.
    #[must_use]
    pub const fn optional_body(mut self, body: &'static Body) -> Self {
        self.body = Some(BodyUse::Optional(body));
        self
    }
}

/// Words that heads of statements read and that may therefore not be declared as names, and the reserved words.
pub const SPECIAL_WORDS: &[&str] = &[
    "to", "for", "when", "every", "with", "from", "within", "until", "and", "or", "not", "in", "matches",
    "if", "then", "else", "true", "false",
];

/// Every statement of the language with the path of keywords that leads to it, each once, depth first.
pub fn statements() -> Vec<(Vec<&'static str>, &'static Statement)> {
    fn walk(
        body: &'static Body,
        path: &[&'static str],
        seen: &mut Vec<*const Statement>,
        found: &mut Vec<(Vec<&'static str>, &'static Statement)>,
    ) {
        for statement in body.statements.iter().copied() {
            if seen.contains(&std::ptr::from_ref(statement)) {
                continue;
            }
            seen.push(std::ptr::from_ref(statement));
            found.push((path.to_vec(), statement));
            let inner: Vec<_> = path.iter().copied().chain([statement.keyword]).collect();
            for body in bodies(statement) {
                walk(body, &inner, seen, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(&FILE, &[], &mut Vec::new(), &mut found);
    found
}

/// The bodies a statement may have: its own, and those of its variants.
pub fn bodies(statement: &'static Statement) -> Vec<&'static Body> {
    fn variants(parts: &'static [Part], found: &mut Vec<&'static Body>) {
        for part in parts {
            match part {
                Part::Choice(_, list) => {
                    for variant in *list {
                        found.extend(variant.body.and_then(BodyUse::body));
                        variants(variant.parts, found);
                    }
                }
                Part::Opt(inner) => variants(inner, found),
                _ => {}
            }
        }
    }
    let mut found: Vec<&'static Body> = statement.body.body().into_iter().collect();
    variants(statement.parts, &mut found);
    found
}
