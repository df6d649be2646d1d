//! CD07xx: metrics and watches.

codes! {
    NO_DATA_POLICY = "CD0701" Warning "no policy for missing data";
    "A watch that measures says what an answer without data means, because silence must never be success by accident: `no_data = hold` waits \
     (for at most `hold_for`), `rollback` undoes, `pass` goes on. Without it, it holds."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics shop {\n  source scrape\n  errors: percent = ratio('errors', 'requests')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.errors > 5% }\n  }\n}\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics shop {\n  source scrape\n  errors: percent = ratio('errors', 'requests')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.errors > 5%; no_data = rollback }\n  }\n}\n"

    HOLD_FOR = "CD0702" Warning "hold without an end of its own";
    "`no_data = hold` keeps the rollout where it is until data comes. Say with `hold_for` how long that may take before it rolls back; \
     without it, that is 10 minutes. With another policy `hold_for` has no meaning."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics shop {\n  source scrape\n  errors: percent = ratio('errors', 'requests')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.errors > 5%; no_data = hold }\n  }\n}\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics shop {\n  source scrape\n  errors: percent = ratio('errors', 'requests')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.errors > 5%; no_data = hold; hold_for = 5m }\n  }\n}\n"

    NO_FLOOR = "CD0703" Warning "relative rule without a floor";
    "The rule compares with `stable` or `baseline` alone. If that is 0, a single error makes the candidate infinitely worse and rolls it \
     back. A floor keeps the rule calm: `> max(2 * stable.errors, 1%)`."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics shop {\n  source scrape\n  errors: percent = ratio('errors', 'requests')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.errors > 2 * stable.errors; no_data = rollback }\n  }\n}\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics shop {\n  source scrape\n  errors: percent = ratio('errors', 'requests')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.errors > max(2 * stable.errors, 1%); no_data = rollback }\n  }\n}\n"

    NOT_PER_RELEASE = "CD0704" Error "metric does not tell releases apart";
    "`candidate.x` and `stable.x` need a query that names `$release` or `$role`, or a `scrape` source, which reads each release's own \
     instances. Without that both sides would read the same number, and a bad candidate would look like stable."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: percent = ratio('errors', 'requests')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.errors > 5%; no_data = rollback }\n  }\n}\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: percent = ratio('errors{release=\"$release\"}', 'requests{release=\"$release\"}')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.errors > 5%; no_data = rollback }\n  }\n}\n"

    UNKNOWN_PLACEHOLDER = "CD0705" Error "unknown placeholder in a query";
    "In a query `$release`, `$role`, `$service`, `$environment` and `$window` are filled in. Another `$name` would reach the source as it is."
    bad "metrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: percent = 'errors{release=\"$relaese\"}'\n}\ngate calm { metric errors < 1% for 10m }\nstage go { needs = [calm]; run \"make\" }\n"
    good "metrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: percent = 'errors{service=\"$service\"}'\n}\ngate calm { metric errors < 1% for 10m }\nstage go { needs = [calm]; run \"make\" }\n"

    TOO_FEW_SAMPLES = "CD0706" Error "window is shorter than its sampling";
    "The first sample is taken after one interval. A condition that must hold for less time than lies between two samples is never asked, and \
     a watch whose interval is longer than all it watches never looks."
    bad "metrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: percent = 'errors'\n}\ngate calm { metric errors < 1% for 10s { every = 30s } }\nstage go { needs = [calm]; run \"make\" }\n"
    good "metrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: percent = 'errors'\n}\ngate calm { metric errors < 1% for 10m { every = 30s } }\nstage go { needs = [calm]; run \"make\" }\n"

    NOT_A_UNIT = "CD0707" Error "metric has no such unit";
    "A metric is a `percent`, a `duration`, a `number`, an `int` or a `size`: something that can be measured and compared."
    bad "metrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: string = 'errors'\n}\ngate calm { metric errors < 1% for 10m }\nstage go { needs = [calm]; run \"make\" }\n"
    good "metrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: percent = 'errors'\n}\ngate calm { metric errors < 1% for 10m }\nstage go { needs = [calm]; run \"make\" }\n"

    AMBIGUOUS_METRIC = "CD0708" Error "two metrics have this name";
    "Two `metrics` blocks have a metric of this name. Write the block before it: `candidate.shop.errors`."
    bad "metrics one {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: percent = 'errors'\n}\nmetrics two {\n  source prometheus { url = \"http://localhost:9091\" }\n  errors: percent = 'errors'\n}\ngate calm { metric errors < 1% for 10m }\nstage go { needs = [calm]; run \"make\" }\n"
    good "metrics one {\n  source prometheus { url = \"http://localhost:9090\" }\n  errors: percent = 'errors'\n}\nmetrics two {\n  source prometheus { url = \"http://localhost:9091\" }\n  errors: percent = 'errors'\n}\ngate calm { metric one.errors + two.errors < 1% for 10m }\nstage go { needs = [calm]; run \"make\" }\n"

    NO_RULES = "CD0709" Error "watch without a rule";
    "A watch without a rule looks at nothing, and a deploy that seems to be watched is not."
    bad "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up { deploy web to here { watch every 10s { after = 1m } } }\n"
    good "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up { deploy web to here { watch every 10s { rollback when ready < 80%; after = 1m; no_data = rollback } } }\n"

    QUERY_FORM = "CD0710" Error "source can't be asked so";
    "`ratio` works with every source. `rate`, `quantile` and `sample` compute from raw series, so they need `scrape` or `text`; a Prometheus server \
     computes by itself, in its own language."
    bad "metrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  slow: duration = quantile(0.95, 'seconds_bucket')\n}\ngate calm { metric slow < 1s for 10m }\nstage go { needs = [calm]; run \"make\" }\n"
    good "metrics shop {\n  source prometheus { url = \"http://localhost:9090\" }\n  slow: duration = 'histogram_quantile(0.95, rate(seconds_bucket[1m]))'\n}\ngate calm { metric slow < 1s for 10m }\nstage go { needs = [calm]; run \"make\" }\n"

    NOT_COUNTED = "CD0711" Error "the router does not count requests";
    "`candidate.requests` and the metrics of `source traffic` come from the router, and this environment's router does not count requests for each release."
    bad "environment test {\n  target kubernetes { context = \"test\" }\n  traffic istio { virtual_service = \"web\" }\n}\nservice web { manifest = \"k8s/*.yaml\" }\nstage up {\n  deploy web to test {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.requests < 1; no_data = rollback }\n  }\n}\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.requests < 1; no_data = rollback }\n  }\n}\n"

    NO_MEASURE = "CD0712" Warning "rule measures nothing";
    "The rule names no measurement, so it says the same at every sample."
    bad "environment here { target local }\nservice web { command = [\"./web\"] }\nparam strict: bool = true\nstage up { deploy web to here { rolling { pause = 1m }; watch every 10s { rollback when strict; no_data = rollback } } }\n"
    good "environment here { target local }\nservice web { command = [\"./web\"] }\nparam strict: bool = true\nstage up { deploy web to here { rolling { pause = 1m }; watch every 10s { rollback when strict and ready < 80%; no_data = rollback } } }\n"
}
