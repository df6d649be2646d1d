//! Metrics: where numbers are read and how they are asked.

use super::{Body, Form, Id, Kind, Names, Open, Part, Setting, Statement, Variant, stage};

pub(super) static METRICS: Statement = Statement::new(Id::Metrics, "metrics", "a source of numbers, and named metrics with units")
    .parts(&[Part::Declares(Names::Metrics)])
    .body(&METRICS_BODY)
    .doc(
        "Each metric has a unit (`percent`, `duration`, `number`, `int`, `size`) and a query. In a query `$release`, `$role`, \
         `$service`, `$environment` and `$window` are filled in for each release. `candidate.x` and `stable.x` need a query that \
         names `$release` or `$role`, or the sources `scrape` and `traffic`, which ask each release.",
    )
    .example(
        "metrics shop {\n  source prometheus { url = \"http://prometheus:9090\" }\n  error_rate: percent = \
         ratio('sum(rate(errors{release=\"$release\"}[1m]))', 'sum(rate(requests{release=\"$release\"}[1m]))')\n}",
    );

static METRICS_BODY: Body = Body::new(&[], &[&SOURCE])
    .open(Open {
        label: "METRIC",
        kind: Kind::Query,
        typed: true,
        dotted: false,
        doc: "A metric: its unit and its query.",
    })
    .not_empty();

static SOURCE: Statement = Statement::new(Id::Source, "source", "where the numbers are")
    .parts(&[Part::Choice("KIND", &SOURCES)])
    .once()
    .example("source scrape { path = \"/metrics\" }");

static SOURCES: [Variant; 6] = [
    Variant::new("prometheus", "a Prometheus server").body(&URL),
    Variant::new("scrape", "the release's own metrics, read from each ready instance").optional_body(&SCRAPE),
    Variant::new(
        "traffic",
        "what the environment's router counts of each release: `requests_total{code=\"5xx\"}`, `connect_errors_total`, `aborted_total`, \
         and `response_time_seconds` (a histogram of the built-in proxy, the mean of HAProxy's last answers)",
    ),
    Variant::new("text", "Prometheus text at a URL").body(&URL),
    Variant::new("http", "a JSON document; a query is a path into it").body(&URL),
    Variant::new(
        "command",
        "a command that prints a number; the query is the command, run by `sh` in the folder of the pipeline. Its placeholders are the variables \
         `$CDPIPE_RELEASE`, `$CDPIPE_ROLE`, `$CDPIPE_SERVICE`, `$CDPIPE_ENVIRONMENT` and `$CDPIPE_WINDOW` (`30000ms`)",
    ),
];

static URL: Body = Body::new(
    &[Setting::new("url", Kind::SecretStr(Form::Url), "Where it is.").required().late()],
    &[&stage::HEADERS],
);

static SCRAPE: Body = Body::new(
    &[Setting::new("path", Kind::Str(Form::HttpPath), "Path on each instance.").default("\"/metrics\"")],
    &[],
);
