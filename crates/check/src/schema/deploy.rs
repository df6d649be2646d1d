//! Deploys: strategies, watches, verification.

use super::service::ENV;
use super::stage::{CHECK_BODY, UNTIL};
use super::{Body, Id, Kind, Member, Names, Part, Setting, Statement, Variant, m};

pub(super) static DEPLOY: Statement = Statement::new(Id::Deploy, "deploy", "brings a release of a service into an environment")
    .parts(&[
        Part::Arg("SERVICE", Kind::Ref(Names::Service)),
        Part::Word("to"),
        Part::Arg("ENVIRONMENT", Kind::Ref(Names::Environment)),
    ])
    .optional_body(&DEPLOY_BODY)
    .doc(
        "With one strategy: `rolling`, `blue_green`, `canary`, `recreate`, or `strategy = NAME`; without one it is `rolling` with its \
         defaults. Any failure, timeout or cancel inside it undoes it.",
    )
    .example("deploy web to production {\n  canary { step 10% for 5m; step 50% for 5m }\n  verify { http \"/health\" }\n}");

static DEPLOY_BODY: Body = Body::new(
    &[
        Setting::new(
            "strategy",
            Kind::Ref(Names::Strategy),
            "A strategy that the file names; settings given here win.",
        ),
        Setting::new(
            "watch",
            Kind::Ref(Names::Watch),
            "A watch that the file names; settings given here win.",
        ),
        Setting::new(
            "timeout",
            Kind::Duration(1),
            "For the whole deploy; its expiry rolls back. By default 30m more than it waits.",
        ),
        Setting::new("rollback_timeout", Kind::Duration(1), "For the undo.").default("15m"),
    ],
    &[&ROLLING, &BLUE_GREEN, &CANARY, &RECREATE, &VERIFY, &WATCH, &VALIDATE, &SET],
);

/// `set PARAM = value`, in a deploy and in a test.
pub(super) static SET: Statement =
    Statement::new(Id::Set, "set", "gives a parameter another value here only")
        .parts(&[Part::Arg("PARAM", Kind::Ref(Names::Param)), Part::Value(Kind::Any)])
        .doc(
            "In a deploy it holds for that deploy, so that one pipeline can bring one version after another.",
        )
        .example("deploy web to production { set version = \"v2.0.0\" }");

pub(super) static NAMED_STRATEGY: Statement =
    Statement::new(Id::NamedStrategy, "strategy", "a strategy that deploys can name")
        .parts(&[Part::Declares(Names::Strategy), Part::Choice("KIND", &STRATEGIES)])
        .example("strategy careful canary { step 5% for 10m; step 50% for 10m }");

static STRATEGIES: [Variant; 4] = [
    Variant::new("rolling", "batch by batch").optional_body(&ROLLING_BODY),
    Variant::new("blue_green", "a whole second set, then one switch").optional_body(&BLUE_GREEN_BODY),
    Variant::new("canary", "a growing share of users").body(&CANARY_BODY),
    Variant::new("recreate", "stop, start").optional_body(&RECREATE_BODY),
];

static ROLLING: Statement = Statement::new(Id::Rolling, "rolling", "changes versions batch by batch")
    .optional_body(&ROLLING_BODY)
    .once()
    .doc("Verifies after the first batch.")
    .example("rolling { batch = 2, pause = 30s, monitor = 60s, order = start_first, max_failures = 20% }");

static ORDERS: [Member; 2] = [
    m("start_first", "new instances are ready before old ones go"),
    m("stop_first", "old instances go before new ones start"),
];

static ROLLING_BODY: Body = Body::new(
    &[
        Setting::new("batch", Kind::Count, "Instances replaced at a time.").default("1"),
        Setting::new("pause", Kind::Duration(0), "Watched time between two batches.").default("0s"),
        Setting::new(
            "monitor",
            Kind::Duration(0),
            "Watched time in which a new instance that fails counts as failed.",
        )
        .default("5s"),
        Setting::new("order", Kind::Enum(&ORDERS), "Whether the new or the old goes first.")
            .default("start_first"),
        Setting::new(
            "max_failures",
            Kind::Percent(0.0, 100.0),
            "Share of new instances that may fail before it is undone.",
        )
        .default("0%"),
        Setting::new("max_unavailable", Kind::Count, "Instances that may be missing from the wanted number."),
        Setting::new("max_surge", Kind::Count, "Instances above the wanted number."),
        Setting::new(
            "failure_action",
            Kind::Enum(&FAILURE_ACTIONS),
            "What a Swarm that rolls by itself does when too many fail; what a compose file says of it holds where this says nothing.",
        )
        .default("rollback"),
    ],
    &[&ROLLBACK_CONFIG],
);

static FAILURE_ACTIONS: [Member; 3] = [
    m("rollback", "it goes back by itself, also while cdpipe is dead"),
    m("pause", "it stays where it is, and cdpipe takes it back"),
    m("continue", "it goes on, and cdpipe takes it back if it does not come to its end"),
];

static ROLLBACK_CONFIG: Statement = Statement::new(
    Id::RollbackConfig,
    "rollback_config",
    "how a Swarm that rolls by itself goes back",
)
.body(&ROLLBACK_CONFIG_BODY)
.once()
.doc("What is left out is as on the way forward, but for the pause, of which there is none.")
.example(
    "rolling {\n  batch = 1\n  rollback_config { batch = 4, order = stop_first, max_failures = 50% }\n}",
);

static ROLLBACK_ACTIONS: [Member; 2] =
    [m("pause", "it stays where it is, and the run says so"), m("continue", "it goes on")];

static ROLLBACK_CONFIG_BODY: Body = Body::new(
    &[
        Setting::new("batch", Kind::Count, "Instances replaced at a time; by default as forward."),
        Setting::new("pause", Kind::Duration(0), "Time between two batches.").default("0s"),
        Setting::new(
            "monitor",
            Kind::Duration(0),
            "Time in which an instance that fails counts as failed; by default as forward.",
        ),
        Setting::new(
            "order",
            Kind::Enum(&ORDERS),
            "Whether the new or the old goes first; by default as forward.",
        ),
        Setting::new(
            "max_failures",
            Kind::Percent(0.0, 100.0),
            "Share of instances that may fail; by default as forward.",
        ),
        Setting::new("failure_action", Kind::Enum(&ROLLBACK_ACTIONS), "What is done when more fail.")
            .default("pause"),
    ],
    &[],
)
.not_empty();

static BLUE_GREEN: Statement =
    Statement::new(Id::BlueGreen, "blue_green", "a whole second set, then one switch")
        .optional_body(&BLUE_GREEN_BODY)
        .once()
        .example("blue_green { keep_old = 10m, old = stop }");

static OLD: [Member; 3] = [
    m("remove", "it is removed with all that it had"),
    m("stop", "it is stopped and kept for a rollback"),
    m("scale_to_zero", "it is scaled to no instances"),
];

static BLUE_GREEN_BODY: Body = Body::new(
    &[
        Setting::new("keep_old", Kind::Duration(0), "How long the old release stays ready after the switch.")
            .default("30s"),
        Setting::new("old", Kind::Enum(&OLD), "What becomes of it then.").default("stop"),
        Setting::new(
            "preview",
            Kind::Listen,
            "Where the candidate can be seen before the switch. Behind `traffic service` it names a Service (`\"web-preview:80\"`).",
        ),
    ],
    &[],
);

static CANARY: Statement = Statement::new(Id::Canary, "canary", "a growing share of users")
    .body(&CANARY_BODY)
    .once()
    .doc(
        "After its last step everyone gets the candidate. The stable release keeps its full size until then.",
    )
    .example("canary {\n  route header(\"canary\", \"true\")\n  step 10% for 5m\n  step 50% for 5m\n}");

static STICKY: [Member; 3] = [
    m("none", "each request is a new draw"),
    m("cookie", "by a cookie"),
    m("client_address", "by the client's address"),
];

static CANARY_BODY: Body = Body::new(
    &[
        Setting::new(
            "instances",
            Kind::Count,
            "Candidate instances while it is a canary; by default the share of each step.",
        ),
        Setting::new(
            "sticky",
            Kind::Enum(&STICKY),
            "Whether a user stays on the release that answered first.",
        )
        .default("none"),
    ],
    &[&CANARY_ROUTE, &CANARY_STEP, &ENV],
)
.not_empty();

static CANARY_ROUTE: Statement =
    Statement::new(Id::CanaryRoute, "route", "users who get the candidate through every step")
        .parts(&[Part::Arg("MATCH", Kind::RouteMatch)])
        .example("route header(\"canary\", \"true\")");

static CANARY_STEP: Statement = Statement::new(Id::CanaryStep, "step", "a share, and how long it holds")
    .parts(&[
        Part::Arg("SHARE", Kind::Percent(0.0, 100.0)),
        Part::Opt(&[Part::Word("for"), Part::Arg("FOR", Kind::Duration(0))]),
        Part::Opt(&[Part::Word("until"), Part::Choice("UNTIL", &UNTIL)]),
    ])
    .doc("`for` counts watched time; `until approved` waits for a person.")
    .example("step 10% for 5m\nstep 50% until approved { by = [\"ops\"] }");

static RECREATE: Statement =
    Statement::new(Id::Recreate, "recreate", "stops the old release, then starts the new one")
        .optional_body(&RECREATE_BODY)
        .once()
        .doc("Nothing serves in between; `verify` runs before the route opens again.");

static RECREATE_BODY: Body = Body::new(&[], &[]);

static VERIFY: Statement =
    Statement::new(Id::Verify, "verify", "checks before any user's request reaches the candidate")
        .body(&CHECK_BODY)
        .once()
        .example("verify { http \"/health\"; exec \"npm run test:smoke\" }");

static VALIDATE: Statement =
    Statement::new(Id::Validate, "validate", "checks after the last step; a failure rolls back")
        .body(&CHECK_BODY)
        .once()
        .example("validate { run \"npm run test:production\" }");

pub(super) static NO_DATA: [Member; 3] = [
    m("hold", "stay where we are, for at most `hold_for`"),
    m("rollback", "as if the rule had fired"),
    m("pass", "as if the rule had not fired"),
];

const EVERY: &[Part] = &[Part::Word("every"), Part::Arg("EVERY", Kind::Duration(100))];

static WATCH: Statement = Statement::new(Id::Watch, "watch", "rules that are asked while traffic moves")
    .parts(EVERY)
    .body(&WATCH_BODY)
    .once()
    .doc("The first sample is taken after one interval, the last at the end.")
    .example(
        "watch every 30s {\n  rollback when candidate.error_rate > max(2 * stable.error_rate, 1%)\n  after = 5m\n  no_data = hold\n}",
    );

pub(super) static NAMED_WATCH: Statement =
    Statement::new(Id::NamedWatch, "watch", "a watch that deploys can name")
        .parts(&[Part::Declares(Names::Watch), Part::Word("every"), Part::Arg("EVERY", Kind::Duration(100))])
        .body(&WATCH_BODY)
        .example("watch errors every 30s {\n  rollback when candidate.error_rate > 5%\n  no_data = hold\n}");

static WATCH_BODY: Body = Body::new(
    &[
        Setting::new("after", Kind::Duration(0), "How long it goes on after the last change of traffic.")
            .default("0s"),
        Setting::new(
            "no_data",
            Kind::Enum(&NO_DATA),
            "What missing data means: silence is never success by accident.",
        )
        .default("hold"),
        Setting::new("hold_for", Kind::Duration(1), "How long `hold` may last before it rolls back.")
            .default("10m"),
    ],
    &[&ROLLBACK_WHEN, &WARN_WHEN],
)
.not_empty();

pub(super) static STEP_WATCH: Statement =
    Statement::new(Id::StepWatch, "watch", "rules that are asked for a while, as a step")
        .parts(&[
            Part::Word("every"),
            Part::Arg("EVERY", Kind::Duration(100)),
            Part::Word("for"),
            Part::Arg("FOR", Kind::Duration(1)),
        ])
        .body(&STEP_WATCH_BODY)
        .example("watch every 30s for 5m {\n  fail when error_rate > 1%\n  no_data = hold\n}");

static STEP_WATCH_BODY: Body = Body::new(
    &[
        Setting::new("no_data", Kind::Enum(&NO_DATA), "What missing data means; `rollback` fails the step.")
            .default("hold"),
        Setting::new("hold_for", Kind::Duration(1), "How long `hold` may last before it fails.")
            .default("10m"),
    ],
    &[&FAIL_WHEN, &WARN_WHEN],
)
.not_empty();

const RULE: &[Part] = &[
    Part::Word("when"),
    Part::Arg("CONDITION", Kind::Rule),
    Part::Opt(&[Part::Word("for"), Part::Arg("FOR", Kind::Duration(1))]),
];

static ROLLBACK_WHEN: Statement =
    Statement::new(Id::RollbackWhen, "rollback", "a rule that undoes the deploy")
        .parts(RULE)
        .example("rollback when candidate.error_rate > 5% for 1m");

static FAIL_WHEN: Statement = Statement::new(Id::FailWhen, "fail", "a rule that fails the step")
    .parts(RULE)
    .example("fail when error_rate > 1%");

static WARN_WHEN: Statement = Statement::new(Id::WarnWhen, "warn", "a rule that only says so")
    .parts(RULE)
    .example("warn when candidate.response_time > 1.5 * stable.response_time");
