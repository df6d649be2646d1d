//! Services: what is deployed.

use super::place::VARIABLES;
use super::{Body, Form, Id, Kind, Member, Names, Open, Part, Setting, Statement, Variant, m};

pub(super) static SERVICE: Statement = Statement::new(Id::Service, "service", "what is deployed")
    .parts(&[Part::Declares(Names::Service)])
    .body(&SERVICE_BODY)
    .doc(
        "It is made from one of `image`, `command`, `compose` and `manifest`.\n\nEach instance finds `$CDPIPE_RELEASE`, \
         `$CDPIPE_SERVICE`, `$CDPIPE_ENVIRONMENT` and `$CDPIPE_INSTANCE` in its environment; on Kubernetes the first two, on a Swarm the \
         first alone.",
    )
    .example(
        "service web {\n  image    = \"ghcr.io/acme/web:${version}\"\n  port     = 3000\n  replicas = 6\n  \
         health   http \"/health\" { every = 2s, within = 60s }\n}",
    );

static SERVICE_BODY: Body = Body::new(
    &[
        Setting::new("image", Kind::Str(Form::Image), "A container image with tag or digest.").late(),
        Setting::new(
            "command",
            Kind::Argv,
            "Program and arguments: a process, or the arguments of an image. Never read by a shell.",
        )
        .late(),
        Setting::new(
            "artifact",
            Kind::Str(Form::Path),
            "A file or directory that is copied into the release; the program runs from there.",
        )
        .late(),
        Setting::new(
            "compose",
            Kind::Str(Form::Compose),
            "A service of a compose file: `docker-compose.yml#app`.",
        ),
        Setting::new(
            "manifest",
            Kind::Str(Form::Glob),
            "Kubernetes manifests: a path, a folder or a glob; `\"-\"` is the standard input of the run. An `image` goes to its container.",
        ),
        Setting::new(
            "workload",
            Kind::Str(Form::Workload),
            "Which of the manifests is the workload: `Deployment/web`.",
        ),
        Setting::new("container", Kind::Str(Form::Plain), "Which container of the workload is the service."),
        Setting::new("name", Kind::Str(Form::Plain), "Its name on the platform, where that differs."),
        Setting::new("adopt", Kind::Bool, "Take over what runs there already under that name.")
            .default("false"),
        Setting::new(
            "version",
            Kind::Str(Form::Plain),
            "The label of the release; by default the parameter `version`, or else the image's tag.",
        )
        .late(),
        Setting::new(
            "port",
            Kind::Int(1, 65_535),
            "The port an instance listens on; a local process gets a free one in `$PORT`.",
        ),
        Setting::new(
            "replicas",
            Kind::Int(0, 10_000),
            "Wanted instances; with `manifest` by default what that says, or else what scales it by itself.",
        )
        .default("1")
        .late(),
        Setting::new(
            "drain",
            Kind::Duration(0),
            "How long requests in flight may take to finish before an instance stops.",
        )
        .default("30s"),
        Setting::new(
            "mounts",
            Kind::List(&Kind::Str(Form::Plain)),
            "What of the engine's machine a container sees: `SOURCE:PATH` or `SOURCE:PATH:ro`; the source is a volume or an absolute path.",
        ),
        Setting::new("restart", Kind::Enum(&RESTARTS), "When the engine starts a container again that has ended.")
            .default("unless_stopped"),
        Setting::new("user", Kind::Str(Form::Plain), "Who a container runs as: `USER`, `UID`, `UID:GID`; on Kubernetes by number."),
        Setting::new("workdir", Kind::Str(Form::Plain), "Working folder in a container."),
        Setting::new("stop_signal", Kind::Str(Form::Plain), "The signal that asks a container to end: `SIGTERM`."),
        Setting::new("entrypoint", Kind::Argv, "Program and arguments before `command`, instead of those of the image."),
        Setting::new(
            "placement",
            Kind::List(&Kind::Str(Form::Plain)),
            "On which nodes of a Swarm its tasks may run: constraints such as `node.labels.disk == ssd`.",
        ),
        Setting::new("retain", Kind::Int(1, 100), "How many former releases are kept for a rollback.")
            .default("5"),
    ],
    &[&ENV, &LABELS, &LOGS, &RESOURCES, &SECRETS, &CONFIGS, &HEALTH, &ROUTE],
)
.not_empty();

/// `env { … }`.
pub(super) static ENV: Statement = Statement::new(Id::Env, "env", "environment variables")
    .body(&VARIABLES)
    .once()
    .doc("Values may hold secrets.")
    .example("env { ENV = environment.name, TOKEN = token }");

static LABELS: Statement =
    Statement::new(Id::Labels, "labels", "labels of each instance, where the platform has them")
        .body(&LABELS_BODY)
        .once()
        .example("labels { team = \"shop\" }");

static LABELS_BODY: Body = Body::new(&[], &[])
    .open(Open { label: "LABEL", kind: Kind::Str(Form::Plain), typed: false, dotted: true, doc: "A label." })
    .not_empty();

static RESTARTS: [Member; 4] = [
    m("unless_stopped", "always, but not after it was stopped"),
    m("always", "always, also when the engine is started"),
    m("on_failure", "when it ended with another code than 0"),
    m("never", "not at all"),
];

static LOGS: Statement = Statement::new(Id::Logs, "logs", "where the engine keeps what a container writes")
    .body(&LOGS_BODY)
    .once()
    .doc("`driver` is the log driver; everything else are its options, with `_` for `-`.")
    .example("logs { driver = \"json-file\", max_size = \"10m\", max_file = \"3\" }");

static LOGS_BODY: Body = Body::new(&[], &[])
    .open(Open {
        label: "OPTION",
        kind: Kind::Str(Form::Plain),
        typed: false,
        dotted: true,
        doc: "`driver`, or an option of it.",
    })
    .not_empty();

static SECRETS: Statement = Statement::new(Id::Secrets, "secrets", "secrets of a Swarm that each task gets as files")
    .body(&FILES_BODY)
    .once()
    .doc("They are there already (`docker secret create`); each is named with the path that it has in the container.")
    .example("secrets { db_password = \"/run/secrets/db\" }");

static CONFIGS: Statement = Statement::new(Id::Configs, "configs", "configs of a Swarm that each task gets as files")
    .body(&FILES_BODY)
    .once()
    .doc("They are there already (`docker config create`); each is named with the path that it has in the container.")
    .example("configs { nginx_v3 = \"/etc/nginx/nginx.conf\" }");

static FILES_BODY: Body = Body::new(&[], &[])
    .open(Open {
        label: "NAME",
        kind: Kind::Str(Form::Plain),
        typed: false,
        dotted: true,
        doc: "Its name in the Swarm, and the path in the container.",
    })
    .not_empty();

static RESOURCES: Statement = Statement::new(Id::Resources, "resources", "what an instance may use")
    .body(&RESOURCES_BODY)
    .once()
    .example("resources { cpu = 0.5, memory = 256Mi }");

static RESOURCES_BODY: Body = Body::new(
    &[
        Setting::new("cpu", Kind::Number(0.001, 1024.0), "Processors; `0.5` is half of one."),
        Setting::new("memory", Kind::Size, "Memory."),
        Setting::new("cpu_limit", Kind::Number(0.001, 1024.0), "Most processors, where it may exceed `cpu`."),
        Setting::new("memory_limit", Kind::Size, "Most memory, where it may exceed `memory`."),
    ],
    &[],
)
.not_empty();

static HEALTH_KINDS: [Member; 2] =
    [m("ready", "a failure takes it out of the traffic"), m("live", "a failure restarts it")];

static HEALTH: Statement = Statement::new(Id::Health, "health", "how readiness is asked")
    .parts(&[
        Part::Opt(&[Part::Arg("KIND", Kind::Enum(&HEALTH_KINDS))]),
        Part::Choice("CHECK", &HEALTH_CHECKS),
    ])
    .optional_body(&HEALTH_BODY)
    .doc("It is asked from where the instance lives. Without `ready` or `live` it is `ready`.")
    .example("health http \"/health\" { every = 2s, timeout = 5s, failures = 3, within = 60s }");

static HEALTH_CHECKS: [Variant; 3] = [
    Variant::new("http", "GET answers 2xx or 3xx").parts(&[Part::Arg("PATH", Kind::Str(Form::HttpPath))]),
    Variant::new("command", "a shell command ends with 0")
        .parts(&[Part::Arg("SCRIPT", Kind::Str(Form::Shell))]),
    Variant::new("tcp", "the port accepts a connection"),
];

static HEALTH_BODY: Body = Body::new(
    &[
        Setting::new("every", Kind::Duration(10), "Between two questions.").default("2s"),
        Setting::new("timeout", Kind::Duration(1), "How long one answer may take.").default("5s"),
        Setting::new("failures", Kind::Int(1, 1000), "Consecutive misses that make an instance unready.")
            .default("3"),
        Setting::new("within", Kind::Duration(1), "How long a new instance may take to become ready.")
            .default("60s"),
    ],
    &[],
);

/// `route { … }` of a service or an environment.
pub(super) static ROUTE: Statement =
    Statement::new(Id::ServiceRoute, "route", "where users reach the service")
        .body(&ROUTE_BODY)
        .once()
        .doc("In an environment it gives defaults for every service there.")
        .example("route { host = \"shop.example.com\" }");

static ROUTE_BODY: Body = Body::new(
    &[
        Setting::new("host", Kind::Str(Form::Plain), "Host header, where a listener is shared."),
        Setting::new("path", Kind::Str(Form::HttpPath), "Path prefix, where a host is shared."),
        Setting::new("listen", Kind::Listen, "Where the router listens, instead of the environment's."),
        Setting::new(
            "object",
            Kind::Str(Form::Plain),
            "On Kubernetes the Service, VirtualService or HTTPRoute of this service, instead of the one that `traffic` names; elsewhere it means nothing.",
        ),
    ],
    &[],
)
.not_empty();
