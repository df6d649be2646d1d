//! Environments: targets, routers, variables, freezes.

use super::service;
use super::{Body, Form, Id, Kind, Member, Names, Open, Part, Setting, Statement, Variant, m};

pub(super) static ENVIRONMENT: Statement =
    Statement::new(Id::Environment, "environment", "a target, its traffic router, variables and protection")
        .parts(&[Part::Declares(Names::Environment)])
        .body(&ENVIRONMENT_BODY)
        .example(
            "environment production {\n  target  kubernetes { context = \"prod\", namespace = \"production\" }\n  \
             traffic istio { virtual_service = \"myapp\" }\n  freeze  \"Fri 16:00 .. Mon 08:00 Europe/Madrid\"\n}",
        );

static ENVIRONMENT_BODY: Body = Body::new(
    &[Setting::new(
        "protected",
        Kind::Bool,
        "In delivery mode it may be reached only through a gate. Environments named `production` or `prod` are.",
    )
    .default("false")],
    &[&TARGET, &TRAFFIC, &VARS, &FREEZE, &service::ROUTE],
)
.not_empty();

static TARGET: Statement = Statement::new(Id::Target, "target", "where instances run")
    .parts(&[Part::Choice("KIND", &TARGETS)])
    .once()
    .example("target swarm { endpoint = \"unix:///var/run/docker.sock\", network = \"app-network\" }");

static TARGETS: [Variant; 5] = [
    Variant::new("local", "processes on this machine").optional_body(&LOCAL),
    Variant::new("docker", "a Docker engine").optional_body(&DOCKER),
    Variant::new("swarm", "Docker Swarm").optional_body(&SWARM),
    Variant::new("kubernetes", "a Kubernetes cluster").optional_body(&KUBERNETES),
    Variant::new("hosts", "machines over SSH").body(&HOSTS),
];

static LOCAL: Body = Body::new(
    &[
        Setting::new(
            "dir",
            Kind::Str(Form::Path),
            "Where releases, logs and state of the processes lie; by default in cdpipe's state directory.",
        ),
        Setting::new("host", Kind::Str(Form::Plain), "Address the instances listen on.")
            .default("\"127.0.0.1\""),
    ],
    &[],
);

const ENDPOINT: Setting = Setting::new(
    "endpoint",
    Kind::Str(Form::Endpoint),
    "The engine: `unix://…`, `tcp://…`; by default `$DOCKER_HOST`. A relative path of a socket starts at the pipeline's file.",
);

static DOCKER: Body = Body::new(
    &[
        ENDPOINT,
        Setting::new(
            "network",
            Kind::Str(Form::Plain),
            "The network that instances join; made if it is not there.",
        )
        .default("\"cdpipe\""),
        Setting::new(
            "publish",
            Kind::Str(Form::Plain),
            "The address of the engine's machine on which each instance gets a port of its own, for a router outside of the engine; \
             `none` has it reached by its name on the network, which a router in a container there needs.",
        )
        .default("\"127.0.0.1\""),
    ],
    &[],
);

static SWARM: Body = Body::new(
    &[ENDPOINT, Setting::new("network", Kind::Str(Form::Plain), "The network that instances join.")],
    &[],
);

static KUBERNETES: Body = Body::new(
    &[
        Setting::new(
            "context",
            Kind::Str(Form::Plain),
            "Context of the kubeconfig; by default the current one.",
        ),
        Setting::new("namespace", Kind::Str(Form::Plain), "Namespace; by default that of the context."),
        Setting::new(
            "kubeconfig",
            Kind::Str(Form::Path),
            "Path of the kubeconfig; by default `$KUBECONFIG`.",
        ),
        Setting::new(
            "reach",
            Kind::Enum(&REACHES),
            "How `http` steps, `scrape` and `candidate.url` reach pods from here.",
        )
        .default("direct"),
    ],
    &[],
);

static REACHES: [Member; 2] = [
    m("direct", "by their addresses, which must be routed from here"),
    m("port_forward", "through the API server, by a local port for each pod"),
];

static UNITS: [Member; 2] =
    [m("process", "a process in a session of its own"), m("systemd", "a unit for each instance")];

static HOSTS: Body = Body::new(
    &[
        Setting::new(
            "hosts",
            Kind::List(&Kind::Str(Form::Plain)),
            "The machines: `host`, `user@host`, `host:port`.",
        )
        .required(),
        Setting::new("user", Kind::Str(Form::Plain), "User, where a machine names none."),
        Setting::new(
            "identity",
            Kind::Str(Form::Path),
            "Path of the private key; by default the agent's keys.",
        ),
        Setting::new("dir", Kind::Str(Form::Path), "Where releases lie on each machine.")
            .default("\"/var/lib/cdpipe\""),
        Setting::new(
            "ssh_config",
            Kind::Str(Form::Path),
            "Another SSH configuration than the user's: with it names, ports, keys, jump hosts and known hosts.",
        ),
        Setting::new("jump", Kind::Str(Form::Plain), "Jump hosts, as `ssh -J` takes them."),
        Setting::new(
            "addresses",
            Kind::List(&Kind::Str(Form::Plain)),
            "Where the router reaches each machine, in the order of `hosts`; by default where its SSH server is reached.",
        ),
        Setting::new(
            "host",
            Kind::Str(Form::Plain),
            "Address the instances listen on, which each finds in `$HOST`.",
        )
        .default("\"0.0.0.0\""),
        Setting::new(
            "units",
            Kind::Enum(&UNITS),
            "What keeps the instances: processes end with the machine, systemd units come back with it.",
        )
        .default("process"),
        Setting::new("sudo", Kind::Bool, "Work as root on the machines, by `sudo -n`.").default("false"),
        Setting::new(
            "agent",
            Kind::Str(Form::Path),
            "A cdpipe that runs on the machines, where this one does not (another architecture or C library).",
        ),
        Setting::new(
            "engine",
            Kind::Str(Form::Endpoint),
            "Each machine's own Docker engine, for services with an `image`, as it is reached there: `unix://…`, `tcp://…`.",
        )
        .default("\"unix:///var/run/docker.sock\""),
        Setting::new(
            "network",
            Kind::Str(Form::Plain),
            "The network of each engine that its containers join; made if it is not there.",
        )
        .default("\"cdpipe\""),
    ],
    &[],
);

static TRAFFIC: Statement = Statement::new(Id::Traffic, "traffic", "how users' traffic is steered")
    .parts(&[Part::Choice("KIND", &ROUTERS)])
    .once()
    .example("traffic proxy { listen = \"127.0.0.1:8080\" }");

static ROUTERS: [Variant; 7] = [
    Variant::new("proxy", "the built-in reverse proxy").optional_body(&PROXY),
    Variant::new("nginx", "nginx, by one generated include").body(&NGINX),
    Variant::new("haproxy", "HAProxy, by its runtime socket").body(&HAPROXY),
    Variant::new("service", "a Kubernetes Service's selector").optional_body(&KUBE_SERVICE),
    Variant::new("istio", "an Istio VirtualService").body(&ISTIO),
    Variant::new("gateway", "a Gateway API HTTPRoute").body(&GATEWAY),
    Variant::new("replicas", "the share of replicas: no router at all").optional_body(&REPLICAS),
];

const LISTEN: Setting =
    Setting::new("listen", Kind::Listen, "Where users come in: a port, or an address with one.");

static PROXY: Body = Body::new(
    &[
        LISTEN.default("8080"),
        Setting::new(
            "host",
            Kind::Str(Form::Plain),
            "The machine it runs on, reached over SSH as those of a target `hosts` are; by default this one.",
        ),
        Setting::new(
            "dir",
            Kind::Str(Form::Path),
            "Where the proxy keeps its state and control socket; by default in cdpipe's state directory, on another machine below `dir` of the \
             target.",
        ),
    ],
    &[],
);

static NGINX: Body = Body::new(
    &[
        Setting::new(
            "config",
            Kind::Str(Form::Path),
            "The include that cdpipe writes; no other file is touched.",
        )
        .required(),
        Setting::new(
            "host",
            Kind::Str(Form::Plain),
            "The machine it runs on, reached over SSH as those of a target `hosts` are; by default this one.",
        ),
        LISTEN,
        Setting::new("container", Kind::Str(Form::Plain), "The container nginx runs in, if it does."),
        Setting::new("test", Kind::Argv, "How a configuration is tested.").default("[\"nginx\", \"-t\"]"),
        Setting::new("reload", Kind::Argv, "How it is reloaded.").default("[\"nginx\", \"-s\", \"reload\"]"),
        Setting::new(
            "status",
            Kind::Listen,
            "A free loopback address of nginx's machine, where the include says what is in force.",
        )
        .default("8899"),
        Setting::new("settle", Kind::Duration(1), "How long a reload may take to have effect.")
            .default("10s"),
    ],
    &[],
);

static HAPROXY: Body = Body::new(
    &[
        Setting::new("socket", Kind::Str(Form::Path), "The runtime socket, with level admin.").required(),
        Setting::new("backend", Kind::Str(Form::Plain), "The backend; by default the service's name."),
        Setting::new(
            "host",
            Kind::Str(Form::Plain),
            "The machine it runs on, reached over SSH as those of a target `hosts` are; by default this one.",
        ),
        Setting::new(
            "listen",
            Kind::Listen,
            "Where the frontend of your configuration takes users; cdpipe binds nothing there.",
        ),
    ],
    &[],
);

static KUBE_SERVICE: Body = Body::new(
    &[
        Setting::new("name", Kind::Str(Form::Plain), "The Service; by default named as the service."),
        Setting::new(
            "settle",
            Kind::Duration(0),
            "How long nodes get to do what the EndpointSlices say, before a switch counts.",
        )
        .default("2s"),
    ],
    &[],
);

static ISTIO: Body = Body::new(
    &[
        Setting::new(
            "virtual_service",
            Kind::Str(Form::Plain),
            "The VirtualService whose backends are changed.",
        )
        .required(),
        Setting::new(
            "destination_rule",
            Kind::Str(Form::Plain),
            "The DestinationRule that has a subset for each release; its host is the Service that the VirtualService names. By default each \
             release has a Service of its own.",
        ),
        SETTLE,
    ],
    &[],
);

static GATEWAY: Body = Body::new(
    &[
        Setting::new("http_route", Kind::Str(Form::Plain), "The HTTPRoute whose backends are changed.")
            .required(),
        SETTLE,
    ],
    &[],
);

const SETTLE: Setting = Setting::new(
    "settle",
    Kind::Duration(0),
    "How long proxies get to do what was written, before a change counts.",
)
.default("1s");

static REPLICAS: Body = Body::new(&[], &[]);

static VARS: Statement =
    Statement::new(Id::Vars, "vars", "variables for every `run` step and instance there")
        .body(&VARIABLES)
        .once()
        .doc("`environment.NAME` reads one in the pipeline.")
        .example("vars { API_ENDPOINT = \"https://api.example.com\" }");

/// Environment variables.
pub(super) static VARIABLES: Body = Body::new(&[], &[])
    .open(Open {
        label: "VARIABLE",
        kind: Kind::Scalar,
        typed: false,
        dotted: false,
        doc: "An environment variable; a number, a duration or the like is written as the language writes it.",
    })
    .not_empty();

static FREEZE: Statement = Statement::new(Id::Freeze, "freeze", "when nothing may be changed there")
    .parts(&[Part::Arg("WINDOW", Kind::Str(Form::Window))])
    .doc(
        "`Fri 16:00 .. Mon 08:00 Europe/Madrid` spans days; `Mon..Fri 09:00-17:00 Europe/Madrid` is a time of each of these \
         days. The time zone is an IANA name.",
    )
    .example("freeze \"Fri 16:00 .. Mon 08:00 Europe/Madrid\"");
