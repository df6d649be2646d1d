//! What stands in a file.

use super::{Body, Form, Id, Kind, Member, Names, Open, Part, Setting, Statement, Variant, m};
use super::{deploy, metrics, place, service, stage};

/// The file itself.
pub static FILE: Body = Body::new(
    &[],
    &[
        &PIPELINE,
        &USE,
        &PARAM,
        &SECRET,
        &place::ENVIRONMENT,
        &service::SERVICE,
        &metrics::METRICS,
        &FLAGS,
        &deploy::NAMED_STRATEGY,
        &deploy::NAMED_WATCH,
        &stage::STAGE,
        &stage::GATE,
        &stage::ON,
        &TEST,
    ],
);

pub(super) static MODES: [Member; 2] = [
    m("delivery", "a person approves"),
    m("deployment", "approvals pass by themselves, except `approval { always = true }`"),
];

static CONCURRENCY: [Member; 3] =
    [m("queue", "it waits"), m("cancel_previous", "it cancels the older one"), m("fail", "it fails at once")];

static PIPELINE: Statement =
    Statement::new(Id::Pipeline, "pipeline", "names the pipeline and says how it runs")
        .parts(&[Part::Label("NAME", true)])
        .optional_body(&PIPELINE_BODY)
        .once()
        .doc("A file without it has the name of the file.")
        .example("pipeline webshop {\n  mode = delivery\n  max_parallel = 4\n}");

static PIPELINE_BODY: Body = Body::new(
    &[
        Setting::new(
            "mode",
            Kind::Enum(&MODES),
            "Whether approvals need a person; a parameter may decide it.",
        )
        .default("delivery"),
        Setting::new("description", Kind::Str(Form::Plain), "What it is for, in a sentence."),
        Setting::new("max_parallel", Kind::Int(1, 10_000), "Stages that may run at a time.").default("8"),
        Setting::new("concurrency", Kind::Enum(&CONCURRENCY), "What a second run does while one goes on.")
            .default("queue"),
    ],
    &[&DEFAULTS],
);

static DEFAULTS: Statement =
    Statement::new(Id::Defaults, "defaults", "what holds for every step that does not say otherwise")
        .body(&DEFAULTS_BODY)
        .once()
        .example("pipeline webshop {\n  defaults { timeout = 20m, retry = 1 }\n}");

static DEFAULTS_BODY: Body = Body::new(
    &[
        Setting::new("timeout", Kind::Duration(1), "For one attempt of a step.").default("10m"),
        Setting::new("retry", Kind::Int(0, 100), "Further attempts of a step that failed.").default("0"),
        Setting::new(
            "retry_delay",
            Kind::Duration(0),
            "Wait before the first further attempt; it doubles each time.",
        )
        .default("1s"),
    ],
    &[],
)
.not_empty();

static USE: Statement = Statement::new(
    Id::Use,
    "use",
    "brings in another file's services, metrics, named strategies and named watches",
)
.parts(&[Part::Arg("FILE", Kind::Str(Form::Use))])
.doc("The path is relative to the file that uses it. Names share one space, so a name that is there twice is an error.")
.example("use \"./strategies.cd\"");

static PARAM: Statement = Statement::new(Id::Param, "param", "an input, checked before anything runs")
    .parts(&[
        Part::Declares(Names::Param),
        Part::Type,
        Part::Opt(&[Part::Matches]),
        Part::Opt(&[Part::In]),
        Part::Opt(&[Part::Value(Kind::Any)]),
    ])
    .optional_body(&PARAM_BODY)
    .doc(
        "It is set by `--set NAME=VALUE` or by the environment variable `CDPIPE_SET_NAME`. Types: `string int number bool \
         percent duration size version`, `list(T)`, `map(T)`. Without a default it must be given.",
    )
    .example("param version: string matches '^v\\d+\\.\\d+\\.\\d+$'\nparam replicas: int in [2, 4, 6] = 4");

static PARAM_BODY: Body =
    Body::new(&[Setting::new("description", Kind::Str(Form::Plain), "What it is for, in a sentence.")], &[]);

static SECRET: Statement = Statement::new(Id::Secret, "secret", "a masked, tainted input")
    .parts(&[Part::Declares(Names::Secret), Part::Opt(&[Part::Word("from"), Part::Choice("SOURCE", &SECRET_SOURCES)])])
    .doc(
        "Without `from` it is read from the environment variable of its name in capitals. It may flow only into `env`, \
         `headers`, `stdin` and credentials; in output it is masked.",
    )
    .example("secret slack_webhook\nsecret token from file \"/run/secrets/token\"");

static SECRET_SOURCES: [Variant; 3] = [
    Variant::new("env", "an environment variable").parts(&[Part::Arg("VARIABLE", Kind::Str(Form::Plain))]),
    Variant::new("file", "a file; one newline at its end is not part of it")
        .parts(&[Part::Arg("PATH", Kind::Str(Form::Path))]),
    Variant::new("command", "what a shell command prints")
        .parts(&[Part::Arg("SCRIPT", Kind::Str(Form::Shell))]),
];

static FLAGS: Statement = Statement::new(Id::Flags, "flags", "a feature-flag provider")
    .parts(&[Part::Declares(Names::Flags), Part::Choice("KIND", &FLAG_KINDS)])
    .example("flags main redis { url = \"redis://flags:6379\", key = \"feature:$flag\" }");

static FLAG_KINDS: [Variant; 3] = [
    Variant::new("http", "an HTTP admin API").body(&FLAGS_HTTP),
    Variant::new("redis", "a Redis server").body(&FLAGS_REDIS),
    Variant::new("file", "a JSON file").body(&FLAGS_FILE),
];

static FLAGS_HTTP: Body = Body::new(
    &[
        Setting::new(
            "url",
            Kind::SecretStr(Form::Url),
            "Where a value is written; `$flag` stands for the flag.",
        )
        .required()
        .late(),
        Setting::new("method", Kind::Enum(&stage::METHODS), "The request's method.").default("PUT"),
        Setting::new(
            "body",
            Kind::SecretStr(Form::Plain),
            "The request's body; `$flag` and `$value` may stand in it.",
        )
        .default("$value")
        .late(),
        Setting::new("read_url", Kind::SecretStr(Form::Url), "Where the value can be read again.").late(),
        Setting::new("read_path", Kind::Str(Form::Plain), "Path of the value in the JSON answer: `a.b[0]`."),
    ],
    &[&stage::HEADERS],
);

static FLAGS_REDIS: Body = Body::new(
    &[
        Setting::new("url", Kind::SecretStr(Form::Url), "`redis://[user:password@]HOST:PORT[/DB]`.")
            .required()
            .late(),
        Setting::new("key", Kind::Str(Form::Plain), "The key; `$flag` stands for the flag.").default("$flag"),
    ],
    &[],
);

static FLAGS_FILE: Body = Body::new(
    &[Setting::new("path", Kind::Str(Form::Path), "The file, a JSON object of flags.").required()],
    &[],
);

static TEST: Statement = Statement::new(Id::Test, "test", "a test of this pipeline, run by `cdpipe test`")
    .parts(&[Part::Label("TEXT", true)])
    .body(&TEST_BODY)
    .doc(
        "It has four parts: `set` and `given` say what is there before the run, `when` what happens in it, `expect` what must be \
         so after it. The engine, the strategies and the watch are those of every run; the targets and the router are simulated \
         and time is virtual, so hours take milliseconds. Nothing is started, changed or asked.\n\nWhat no statement speaks of \
         goes well: a command takes a second and succeeds, an instance is ready after one and a half, and a step of a canary \
         `until approved` is approved at once. Two things do not: a metric that no `when` gives has no data, and a gate that no \
         `given` names is answered by nobody.\n\n`cdpipe test --faults` begins with the same tests and adds what no test says: \
         actions that fail, hang or lose their answer, and a cdpipe that dies at a write of its journal.",
    )
    .example(
        "test \"a failing canary is rolled back\" {\n  given environment production { web = \"v1.0.0\" }\n  \
         when stage production { candidate.error_rate = 9% }\n  expect stage production == rolled_back within 2m\n}",
    );

static TEST_BODY: Body = Body::new(&[], &[&deploy::SET, &GIVEN, &WHEN, &EXPECT]).not_empty();

static GIVEN: Statement = Statement::new(Id::Given, "given", "what is there before the run")
    .parts(&[Part::Choice("WHAT", &GIVENS)])
    .doc(
        "Without `given environment` nothing serves, so a deploy there is the first one. A gate is `approved`, `rejected` or \
         `expired`. Nobody answers one that is `expired` or that no `given` names: it waits until it expires, and one that can't \
         expire for ever; then the run does not end, and an `expect` about it says what it waits for. Without `given git` \
         the repository says nothing.",
    )
    .example(
        "given environment production { web = \"v1.0.0\" }\ngiven gate release = approved\n\
         given git { branch = \"main\", tag = \"v2.0.0\" }",
    );

static GIVENS: [Variant; 3] = [
    Variant::new("environment", "which version of each service serves there")
        .parts(&[Part::Arg("ENVIRONMENT", Kind::Ref(Names::Environment))])
        .body(&GIVEN_ENVIRONMENT),
    Variant::new("gate", "how the gate will be answered")
        .parts(&[Part::Arg("GATE", Kind::Ref(Names::Gate)), Part::Value(Kind::Enum(&GATE_ANSWERS))]),
    Variant::new("git", "what the repository says").body(&GIVEN_GIT),
];

pub(crate) static GATE_ANSWERS: [Member; 3] =
    [m("approved", "it is approved"), m("rejected", "it is rejected"), m("expired", "nobody answers")];

static GIVEN_ENVIRONMENT: Body = Body::new(&[], &[]).open(Open {
    label: "SERVICE",
    kind: Kind::Str(Form::Plain),
    typed: false,
    dotted: false,
    doc: "The version that serves.",
});

static GIVEN_GIT: Body = Body::new(
    &[
        Setting::new("sha", Kind::Str(Form::Plain), "`git.sha`."),
        Setting::new("branch", Kind::Str(Form::Plain), "`git.branch`."),
        Setting::new("tag", Kind::Str(Form::Plain), "`git.tag`."),
    ],
    &[],
);

static WHEN: Statement = Statement::new(Id::When, "when", "what is measured while a stage runs")
    .parts(&[Part::Word("stage"), Part::Arg("STAGE", Kind::Ref(Names::Stage))])
    .body(&WHEN_BODY)
    .doc(
        "A measure has its value from the beginning of the stage to its end. A metric that no `when` gives has no data, and a \
         watch then does what its `no_data` says. A baseline of which nothing is said measures what stable measures.\n\n\
         `fails = true` makes the commands and requests of the stage fail, those of `verify` and `validate` too; hooks and \
         `undo` still succeed. In a stage that has none, the new instances never become ready.\n\nThe name of a stage with \
         `for` means all of its stages.",
    )
    .example(
        "when stage production { candidate.error_rate = 9%, stable.error_rate = 1% }\nwhen stage migrate { fails = true }",
    );

static WHEN_BODY: Body = Body::new(&[], &[])
    .open(Open {
        label: "MEASURE",
        kind: Kind::Any,
        typed: false,
        dotted: true,
        doc: "A value of the measure's type, such as `candidate.error_rate = 9%`; or `fails = true`.",
    })
    .not_empty();

static EXPECT: Statement = Statement::new(Id::Expect, "expect", "what must be so after the run")
    .parts(&[Part::Rest("`stage NAME == OUTCOME [within DURATION]`, `traffic(SERVICE, ENVIRONMENT) == { … }` or `ran \"on rollback\"`")])
    .doc(
        "One of these:\n\n- `stage NAME == OUTCOME`, and so `gate NAME` and `pipeline`: how it ended, with `succeeded`, `failed`, `rolled_back`, \
         `rollback_failed`, `timed_out`, `cancelled` or `skipped`. `within` counts virtual time from its start. The name of a \
         stage with `for` means each of its stages.\n- `traffic(SERVICE, ENVIRONMENT) == { VERSION = PERCENT }`: which \
         version gets which share of the users at the end. A version that is not named gets none.\n- `ran TEXT`: a hook of \
         that event, as `on rollback`, or a step with this in its label ran.\n\nAn expectation that is not met is shown with \
         its place, what was found instead and the trace of the run.",
    )
    .example(
        "expect stage production == rolled_back within 2m\nexpect traffic(web, production) == { \"v1.0.0\" = 100% }\n\
         expect ran \"on rollback\"",
    );
