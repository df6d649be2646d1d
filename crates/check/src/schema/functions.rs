//! Built-in names and functions.

use cdpipe_model::expr::Func;

/// A function.
#[derive(Debug)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// What plans call; `None` for a form that only one place reads (`optional`, `header`, `ratio`, …).
    pub func: Option<Func>,
    /// How it is called and what it gives: `min(a, b, …): same`.
    pub signature: &'static str,
    /// What it does, in one sentence.
    pub doc: &'static str,
    /// Fewest and most arguments.
    pub arity: (usize, usize),
}

const MANY: usize = 64;

const fn f(
    func: Func,
    name: &'static str,
    arity: (usize, usize),
    signature: &'static str,
    doc: &'static str,
) -> Function {
    Function { name, func: Some(func), signature, doc, arity }
}

const fn form(
    name: &'static str,
    arity: (usize, usize),
    signature: &'static str,
    doc: &'static str,
) -> Function {
    Function { name, func: None, signature, doc, arity }
}

/// All functions, by name within each kind.
pub static FUNCTIONS: &[Function] = &[
    f(Func::Abs, "abs", (1, 1), "abs(x): same unit", "The magnitude of a number with any unit."),
    f(
        Func::Base64Decode,
        "base64_decode",
        (1, 1),
        "base64_decode(secret): secret",
        "A base64 secret decoded; it stays secret.",
    ),
    f(Func::Ceil, "ceil", (1, 1), "ceil(number): int", "The next whole number up."),
    f(Func::EndsWith, "ends_with", (2, 2), "ends_with(text, end): bool", "Whether the text ends so."),
    f(Func::Floor, "floor", (1, 1), "floor(number): int", "The next whole number down."),
    f(Func::Join, "join", (2, 2), "join(list, between): string", "The items as one text."),
    f(Func::Length, "length", (1, 1), "length(x): int", "Characters of a string, items of a list or a map."),
    f(Func::Lower, "lower", (1, 1), "lower(text): string", "In small letters."),
    f(Func::Max, "max", (1, MANY), "max(a, b, …): same unit", "The largest."),
    f(Func::Min, "min", (1, MANY), "min(a, b, …): same unit", "The smallest."),
    f(
        Func::Replace,
        "replace",
        (3, 3),
        "replace(text, what, with): string",
        "Each occurrence replaced; no patterns.",
    ),
    f(Func::Round, "round", (1, 1), "round(number): int", "The nearest whole number."),
    f(Func::Split, "split", (2, 2), "split(text, at): list(string)", "The pieces between."),
    f(
        Func::StartsWith,
        "starts_with",
        (2, 2),
        "starts_with(text, start): bool",
        "Whether the text starts so.",
    ),
    f(Func::Trim, "trim", (1, 1), "trim(text): string", "Without blanks at both ends."),
    f(Func::Upper, "upper", (1, 1), "upper(text): string", "In capitals."),
    form(
        "cookie",
        (2, 2),
        "cookie(name, value)",
        "In a canary's `route`: requests whose cookie has this value.",
    ),
    form(
        "header",
        (2, 2),
        "header(name, value)",
        "In a canary's `route`: requests whose header has this value.",
    ),
    form("optional", (1, 1), "optional(stage)", "In `needs`: a skipped one will do, a failed one won't."),
    form(
        "quantile",
        (2, 2),
        "quantile(q, histogram)",
        "In a metric: a quantile of what came between two readings.",
    ),
    form("rate", (1, 1), "rate(counter)", "In a metric: increase a second between two readings."),
    form(
        "ratio",
        (2, 2),
        "ratio(errors, total)",
        "In a metric: a share; no errors at all is 0, no total is no data.",
    ),
    form("sample", (1, 2), "sample(series, unit = ms)", "In a metric: the value as it stands, in this unit."),
    form(
        "slack",
        (1, 1),
        "slack(url)",
        "In `notify`: a Slack-compatible webhook, whose URL is mostly a secret.",
    ),
    form(
        "traffic",
        (2, 2),
        "traffic(service, environment)",
        "In a test's `expect`: the share of each version.",
    ),
    form("webhook", (1, 1), "webhook(url)", "In `notify`: a webhook that takes a JSON document."),
];

/// The function of this name.
pub fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// A name that is always there.
#[derive(Debug)]
pub struct BuiltIn {
    /// As it is written; parts in capitals stand for names.
    pub name: &'static str,
    /// Its type.
    pub ty: &'static str,
    /// Where it may stand.
    pub place: &'static str,
    /// What it is.
    pub doc: &'static str,
}

const fn b(name: &'static str, ty: &'static str, place: &'static str, doc: &'static str) -> BuiltIn {
    BuiltIn { name, ty, place, doc }
}

/// All built-in names.
pub static BUILT_INS: &[BuiltIn] = &[
    b("pipeline.name", "string", "everywhere", "The pipeline's name."),
    b("pipeline.outcome", "string", "hooks of the file", "How the run ended."),
    b("run.id", "string", "steps and hooks", "The id of the run."),
    b("git.sha", "string", "everywhere", "The commit; empty where there is none."),
    b("git.branch", "string", "everywhere", "The branch; empty where there is none."),
    b("git.tag", "string", "everywhere", "A tag on this very commit; empty where there is none."),
    b("environment.name", "string", "services, and inside a deploy", "The environment's name."),
    b(
        "environment.VARIABLE",
        "string",
        "services, and inside a deploy",
        "A variable of the environment's `vars`.",
    ),
    b("SERVICE.name", "string", "everywhere", "The service's name."),
    b("SERVICE.image", "string", "everywhere", "The service's image."),
    b("SERVICE.version", "string", "everywhere", "The service's version."),
    b("SERVICE.port", "int", "everywhere", "The service's port."),
    b("SERVICE.replicas", "int", "everywhere", "The service's wanted instances."),
    b("SERVICE.host", "string", "everywhere", "The host of the service's route."),
    b(
        "stage.name",
        "string",
        "steps and hooks",
        "The name of the stage around it; in a hook of the file, of the stage that ended last so.",
    ),
    b(
        "stage.STAGE.OUTPUT",
        "its own",
        "a stage that needs STAGE",
        "An output of a stage that has succeeded before.",
    ),
    b("stage.STAGE.outcome", "string", "a stage that needs STAGE, and hooks", "How a stage or gate ended."),
    b(
        "reason",
        "string",
        "hooks",
        "Why the hook runs, in one line: each rule that fired, with value, threshold and query.",
    ),
    b(
        "candidate.url",
        "string",
        "inside a deploy",
        "`http://HOST:PORT` of one ready instance of the release being brought in.",
    ),
    b("candidate.host", "string", "inside a deploy", "`HOST:PORT` of one ready instance of it."),
    b("candidate.release", "string", "inside a deploy", "Its release id."),
    b("candidate.version", "string", "inside a deploy", "Its version."),
    b(
        "candidate.METRIC",
        "its unit",
        "rules of a deploy's watch",
        "A metric of the release being brought in.",
    ),
    b("stable.METRIC", "its unit", "rules of a deploy's watch", "A metric of the release that serves now."),
    b(
        "baseline.METRIC",
        "its unit",
        "rules of a deploy's watch",
        "What was measured on stable before the deploy began.",
    ),
    b(
        "candidate.requests",
        "int",
        "rules of a deploy's watch",
        "Requests in the last interval, where the router counts them.",
    ),
    b("METRIC", "its unit", "rules and gates", "A metric of the whole service."),
    b("ready", "percent", "rules and gates", "The share of wanted instances that are ready."),
    b("failed", "int", "rules and gates", "Instances that are not running."),
];

/// The built-in of this name.
pub fn built_in(name: &str) -> Option<&'static BuiltIn> {
    BUILT_INS.iter().find(|built_in| built_in.name == name)
}
