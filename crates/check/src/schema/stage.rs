//! Stages, gates, hooks and their steps.

use super::deploy::{DEPLOY, STEP_WATCH};
use super::service::ENV;
use super::{Body, Form, Id, Kind, Member, Names, Open, Part, Setting, Statement, Variant, m};

const TIMEOUT: Setting = Setting::new("timeout", Kind::Duration(1), "For one attempt.").default("10m");
/// Nobody waits ten minutes for a chat or a flag.
const MESSAGE_TIMEOUT: Setting =
    Setting::new("timeout", Kind::Duration(1), "For one attempt.").default("30s");
const RETRY: Setting =
    Setting::new("retry", Kind::Int(0, 100), "Further attempts after a failure.").default("0");
const RETRY_DELAY: Setting = Setting::new(
    "retry_delay",
    Kind::Duration(0),
    "Wait before the first further attempt; it doubles each time.",
)
.default("1s");
const NEEDS: Setting = Setting::new(
    "needs",
    Kind::Needs,
    "Stages and gates that must have succeeded before; `optional(x)` is content with a skipped one.",
)
.default("[]");
const WHEN: Setting = Setting::new("when", Kind::Condition, "It is skipped if this is false.").late();
const DESCRIPTION: Setting =
    Setting::new("description", Kind::Str(Form::Plain), "What it is for, in a sentence.");
const ON_INTERRUPT: Setting = Setting::new(
    "on_interrupt",
    Kind::Enum(&INTERRUPTS),
    "What a resume does if nobody knows whether the step was done.",
)
.default("ask");
const EFFECT: Setting =
    Setting::new("effect", Kind::Enum(&EFFECTS), "Whether it changes something that cdpipe can't take back.")
        .default("none");

static EFFECTS: [Member; 2] = [
    m("none", "nothing has to be undone"),
    m("irreversible", "it changes something that can't be taken back: no rollback reaches behind it"),
];

static INTERRUPTS: [Member; 3] =
    [m("ask", "it asks on a terminal, else fails"), m("retry", "it does it again"), m("fail", "it fails")];

/// Methods of HTTP requests.
pub(super) static METHODS: [Member; 6] = [
    m("GET", "reads"),
    m("HEAD", "reads without a body"),
    m("POST", "sends"),
    m("PUT", "replaces"),
    m("PATCH", "changes"),
    m("DELETE", "deletes"),
];

pub(super) static STAGE: Statement = Statement::new(Id::Stage, "stage", "ordered steps")
    .parts(&[Part::Declares(Names::Stage), Part::Opt(&[Part::For])])
    .body(&STAGE_BODY)
    .doc(
        "Stages run in parallel as far as their `needs` allow. `for x in list` makes one stage for each value, named \
         `build[linux]`; a stage that needs it waits for all of them.",
    )
    .example("stage build for os in [\"linux\", \"darwin\"] {\n  run \"make ${os}\" { timeout = 20m }\n}");

static STAGE_BODY: Body = Body::new(
    &[
        NEEDS,
        WHEN,
        Setting::new(
            "timeout",
            Kind::Duration(1),
            "For one attempt of the whole stage; by default only its steps have one.",
        ),
        Setting::new("retry", Kind::Int(0, 100), "Further attempts of the whole stage.").default("0"),
        RETRY_DELAY,
        Setting::new("lock", Kind::Str(Form::Plain), "A lock of this name is held while it runs."),
        Setting::new(
            "undo_on_failure",
            Kind::Bool,
            "A step that fails after a finished deploy undoes that deploy too.",
        )
        .default("false"),
        DESCRIPTION,
    ],
    &[&RUN, &HTTP, &DEPLOY, &APPLY, &FLAG, &NOTIFY, &WAIT, &STEP_WATCH, &ROLLBACK, &OUTPUT, &UNDO, &ON],
)
.not_empty();

static OUTPUT: Statement = Statement::new(Id::Output, "output", "a value that later stages read")
    .parts(&[Part::Label("NAME", false), Part::Type])
    .doc("A `run` writes `NAME=value` to the file `$CDPIPE_OUTPUT`. Later stages read `stage.STAGE.NAME`.")
    .example("output digest: string");

pub(super) static GATE: Statement = Statement::new(Id::Gate, "gate", "holds back what needs it")
    .parts(&[Part::Declares(Names::Gate)])
    .body(&GATE_BODY)
    .doc("It opens when every check has passed and every approval is given.")
    .example(
        "gate release {\n  needs = [staging]\n  when  = git.tag matches '^v'\n  approval { by = [\"ops\"], expires = 24h }\n}",
    );

static GATE_BODY: Body = Body::new(
    &[NEEDS, WHEN, Setting::new("timeout", Kind::Duration(1), "After so long it fails."), DESCRIPTION],
    &[&APPROVAL, &GATE_METRIC, &HTTP, &RUN, &WINDOW, &ON],
)
.not_empty();

static APPROVAL: Statement = Statement::new(Id::Approval, "approval", "people say yes")
    .optional_body(&APPROVAL_BODY)
    .example("approval { by = [\"ops\", \"release-managers\"], quorum = 1, expires = 24h }");

/// Also of `step 50% until approved { … }`.
pub(super) static APPROVAL_BODY: Body = Body::new(
    &[
        Setting::new(
            "by",
            Kind::List(&Kind::Str(Form::Plain)),
            "Who may; by default anyone who can write the state.",
        ),
        Setting::new("quorum", Kind::Int(1, 100), "How many of them.").default("1"),
        Setting::new("expires", Kind::Duration(1), "After so long it fails."),
        Setting::new("always", Kind::Bool, "Also in deployment mode.").default("false"),
    ],
    &[],
);

static GATE_METRIC: Statement = Statement::new(Id::GateMetric, "metric", "measurements that must hold")
    .parts(&[
        Part::Arg("CONDITION", Kind::Rule),
        Part::Opt(&[Part::Word("for"), Part::Arg("FOR", Kind::Duration(1))]),
    ])
    .optional_body(&GATE_METRIC_BODY)
    .example("metric error_rate < 1% for 10m { every = 30s, no_data = hold }");

static GATE_METRIC_BODY: Body = Body::new(
    &[
        Setting::new("every", Kind::Duration(100), "Between two samples.").default("30s"),
        Setting::new(
            "no_data",
            Kind::Enum(&super::deploy::NO_DATA),
            "What missing data means; `hold` starts the time again.",
        )
        .default("hold"),
        Setting::new("service", Kind::Ref(Names::Service), "The service that is measured."),
        Setting::new("environment", Kind::Ref(Names::Environment), "Where it is measured."),
    ],
    &[],
);

static WINDOW: Statement = Statement::new(Id::Window, "window", "when it may open")
    .parts(&[Part::Arg("WINDOW", Kind::Str(Form::Window))])
    .example("window \"Mon..Fri 09:00-17:00 Europe/Madrid\"");

/// `on … { }` of a file, a stage or a gate.
pub(super) static ON: Statement = Statement::new(Id::On, "on", "a hook: steps that run after an outcome")
    .parts(&[Part::Arg("EVENTS", Kind::Events)])
    .body(&HOOK_BODY)
    .doc(
        "`success`, `failure` (failed or timed out, not a clean rollback), `rollback`, `rollback_failed`, `cancel`, `always`. A \
         hook that fails never changes an outcome.",
    )
    .example("on rollback or failure {\n  notify slack(webhook) \"${stage.name}: ${reason}\"\n}");

static HOOK_BODY: Body = Body::new(&[], &[&RUN, &HTTP, &APPLY, &FLAG, &NOTIFY, &WAIT, &ROLLBACK]).not_empty();

/// The shell steps' settings.
static RUN_BODY: Body = Body::new(
    &[
        TIMEOUT,
        RETRY,
        RETRY_DELAY,
        Setting::new("dir", Kind::Str(Form::Path), "Working directory, relative to the pipeline's file."),
        Setting::new("stdin", Kind::SecretStr(Form::Plain), "Standard input.").late(),
        Setting::new(
            "image",
            Kind::Str(Form::Image),
            "Run it in a container of this image, where the deploy goes.",
        )
        .late(),
        Setting::new(
            "environment",
            Kind::Ref(Names::Environment),
            "Run it with the variables of this environment.",
        ),
        EFFECT,
        ON_INTERRUPT,
    ],
    &[&ENV],
);

pub(super) static RUN: Statement = Statement::new(Id::Run, "run", "a shell command")
    .parts(&[Part::Arg("SCRIPT", Kind::Str(Form::Shell))])
    .optional_body(&RUN_BODY)
    .doc(
        "`${x}` reaches the shell as one word of data, whatever it holds, so it takes no quotes of its own. `$${x}` and `$x` are the \
         shell's own variables.",
    )
    .example("run \"npm run test:e2e\" { timeout = 20m, retry = 2 }");

pub(super) static EXEC: Statement =
    Statement::new(Id::Exec, "exec", "a shell command inside an instance of the candidate")
        .parts(&[Part::Arg("SCRIPT", Kind::Str(Form::Shell))])
        .optional_body(&EXEC_BODY)
        .example("exec \"npm run test:smoke\"");

static EXEC_BODY: Body = Body::new(&[TIMEOUT, RETRY, RETRY_DELAY, ON_INTERRUPT], &[&ENV]);

pub(super) static HTTP: Statement = Statement::new(Id::Http, "http", "an HTTP request")
    .parts(&[Part::Arg("URL", Kind::SecretStr(Form::HttpTarget))])
    .optional_body(&HTTP_BODY)
    .doc("A URL that starts with `/` is asked of the candidate. Without `expect`, 200 to 299 is a success.")
    .example("http \"https://api.example.com/deploys\" {\n  method = POST\n  headers { Authorization = \"Bearer ${token}\" }\n  expect = 201\n}");

static HTTP_BODY: Body = Body::new(
    &[
        Setting::new("method", Kind::Enum(&METHODS), "The request's method.").default("GET"),
        Setting::new("body", Kind::SecretStr(Form::Plain), "The request's body.").late(),
        Setting::new("expect", Kind::Status, "Status codes that are a success; by default 200 to 299."),
        Setting::new("contains", Kind::Str(Form::Plain), "What the answer's body must contain.").late(),
        TIMEOUT,
        RETRY,
        RETRY_DELAY,
        EFFECT,
        ON_INTERRUPT,
    ],
    &[&HEADERS],
);

/// `headers { … }`.
pub(super) static HEADERS: Statement = Statement::new(Id::Headers, "headers", "headers of a request")
    .body(&HEADERS_BODY)
    .once()
    .doc("Values may hold secrets.")
    .example("headers { Authorization = \"Bearer ${token}\" }");

static HEADERS_BODY: Body = Body::new(&[], &[])
    .open(Open {
        label: "HEADER",
        kind: Kind::Scalar,
        typed: false,
        dotted: false,
        doc: "A header; a name with dots stands in quotes.",
    })
    .not_empty();

static APPLY: Statement = Statement::new(Id::Apply, "apply", "manifests to a cluster, by server-side apply")
    .parts(&[
        Part::Arg("PATH", Kind::Str(Form::Glob)),
        Part::Word("to"),
        Part::Arg("ENVIRONMENT", Kind::Ref(Names::Environment)),
    ])
    .optional_body(&APPLY_BODY)
    .doc(
        "Namespaces and CRDs first; it waits until they are established and workloads until they are ready. The files are those of the \
         moment when the plan was made. If it fails, every object is as it was.",
    )
    .example("apply \"k8s/*.yaml\" to production\napply \"monitoring\" to production { prune = true, timeout = 5m }");

static APPLY_BODY: Body = Body::new(
    &[
        TIMEOUT,
        RETRY,
        RETRY_DELAY,
        Setting::new("force", Kind::Bool, "Take over fields that somebody else manages.").default("false"),
        Setting::new("prune", Kind::Bool, "Delete objects of this set that no file has any more.")
            .default("false"),
        Setting::new(
            "set",
            Kind::Str(Form::Plain),
            "Name of the set, which `prune` looks for; by default made from the pipeline, the environment and the path.",
        ),
        Setting::new(
            "generated",
            Kind::Bool,
            "A step before writes the files, so they are pinned when this step begins.",
        )
        .default("false"),
        ON_INTERRUPT,
    ],
    &[],
);

static FLAG_BODY: Body = Body::new(&[MESSAGE_TIMEOUT, RETRY, RETRY_DELAY, ON_INTERRUPT], &[]);

static FLAG: Statement = Statement::new(Id::Flag, "flag", "changes a feature flag")
    .parts(&[
        Part::Choice("ACTION", &FLAG_ACTIONS),
        Part::Word("with"),
        Part::Arg("PROVIDER", Kind::Ref(Names::Flags)),
    ])
    .optional_body(&FLAG_BODY)
    .doc("Its undo is the value that the flag had.")
    .example("flag disable \"new-checkout\" with main\nflag set \"limit\" to 20 with main");

static FLAG_ACTIONS: [Variant; 3] = [
    Variant::new("enable", "it becomes true").parts(&[Part::Arg("FLAG", Kind::Str(Form::Plain))]),
    Variant::new("disable", "it becomes false").parts(&[Part::Arg("FLAG", Kind::Str(Form::Plain))]),
    Variant::new("set", "it becomes this value").parts(&[
        Part::Arg("FLAG", Kind::Str(Form::Plain)),
        Part::Word("to"),
        Part::Arg("VALUE", Kind::Any),
    ]),
];

static NOTIFY: Statement = Statement::new(Id::Notify, "notify", "a message")
    .parts(&[Part::Arg("CHANNEL", Kind::Channel), Part::Arg("TEXT", Kind::Str(Form::Plain))])
    .optional_body(&NOTIFY_BODY)
    .doc("A message that can't be sent never fails a run.")
    .example("notify slack(slack_webhook) \"${web.name} ${version} is live\"");

static NOTIFY_BODY: Body = Body::new(&[MESSAGE_TIMEOUT, RETRY, RETRY_DELAY], &[&HEADERS]);

static WAIT: Statement = Statement::new(Id::Wait, "wait", "a pause")
    .parts(&[Part::Arg("DURATION", Kind::Duration(1))])
    .example("wait 30s");

static ROLLBACK: Statement =
    Statement::new(Id::RollbackStage, "rollback", "undoes a stage, newest effect first")
        .parts(&[Part::Word("stage"), Part::Arg("STAGE", Kind::Ref(Names::Stage))])
        .example("on failure { rollback stage production }");

static UNDO: Statement = Statement::new(Id::Undo, "undo", "how to take back what the steps before it did")
    .body(&UNDO_BODY)
    .example("run \"./migrate up\"\nundo { run \"./migrate down\" }");

static UNDO_BODY: Body = Body::new(&[], &[&RUN, &HTTP, &APPLY, &FLAG, &NOTIFY, &WAIT]).not_empty();

/// Steps of `verify` and `validate`.
pub(super) static CHECK_BODY: Body = Body::new(&[], &[&EXEC, &RUN, &HTTP, &WAIT, &NOTIFY]).not_empty();

/// What ends a step of a canary.
pub(super) static UNTIL: [Variant; 1] =
    [Variant::new("approved", "a person says so").optional_body(&APPROVAL_BODY)];
