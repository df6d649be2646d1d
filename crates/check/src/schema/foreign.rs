//! Words of other tools, and what they are called here. Only for suggestions.

/// A word of another tool.
#[derive(Debug)]
pub struct Foreign {
    /// As it is known elsewhere.
    pub word: &'static str,
    /// The word of this language, where one stands for it; empty if none does.
    pub here: &'static str,
    /// What to write instead.
    pub hint: &'static str,
}

const fn w(word: &'static str, here: &'static str, hint: &'static str) -> Foreign {
    Foreign { word, here, hint }
}

static WORDS: &[Foreign] = &[
    w("steps", "", "steps stand directly in the stage: `run \"…\"`, `deploy web to staging`"),
    w("jobs", "stage", "each job is a `stage NAME { … }` of the file"),
    w("job", "stage", "a job is a `stage NAME { … }`"),
    w("stages", "stage", "each is a `stage NAME { … }` of the file"),
    w("task", "stage", "a task is a `stage NAME { … }`"),
    w("script", "run", "a script is a step: `run \"…\"`"),
    w("scripts", "run", "each script is a step: `run \"…\"`"),
    w("sh", "run", "a shell command is a step: `run \"…\"`"),
    w("shell", "run", "a shell command is a step: `run \"…\"`"),
    w("bash", "run", "a shell command is a step: `run \"…\"`"),
    w("cmd", "run", "a shell command is a step: `run \"…\"`"),
    w("execute", "run", "a shell command is a step: `run \"…\"`"),
    w("echo", "run", "a shell command is a step: `run \"echo …\"`"),
    w("depends_on", "needs", "what must have succeeded before: `needs = [build]`"),
    w("dependsOn", "needs", "what must have succeeded before: `needs = [build]`"),
    w("depends", "needs", "what must have succeeded before: `needs = [build]`"),
    w("need", "needs", "what must have succeeded before: `needs = [build]`"),
    w("requires", "needs", "what must have succeeded before: `needs = [build]`"),
    w("after_stage", "needs", "what must have succeeded before: `needs = [build]`"),
    w("if", "when", "a condition is `when = …`"),
    w("only", "when", "a condition is `when = git.branch == \"main\"`"),
    w("except", "when", "a condition is `when = git.branch != \"main\"`"),
    w("condition", "when", "a condition is `when = …`"),
    w(
        "matrix",
        "for",
        "a matrix stands in the stage's head: `stage build for os in [\"linux\", \"darwin\"] { … }`",
    ),
    w("strategy", "canary", "a strategy is `rolling`, `blue_green`, `canary` or `recreate` in a deploy"),
    w("inputs", "param", "each input is `param NAME: TYPE`"),
    w("input", "param", "an input is `param NAME: TYPE`"),
    w("parameters", "param", "each parameter is `param NAME: TYPE`"),
    w("parameter", "param", "a parameter is `param NAME: TYPE`"),
    w("variable", "param", "an input is `param NAME: TYPE`"),
    w(
        "variables",
        "vars",
        "variables stand in an environment: `vars { NAME = \"value\" }`; inputs are `param NAME: TYPE`",
    ),
    w("var", "param", "an input is `param NAME: TYPE`"),
    w("let", "param", "a name for a value is `param NAME: TYPE = value`"),
    w("secrets", "secret", "each is `secret NAME`"),
    w("credentials", "secret", "each is `secret NAME`"),
    w("include", "use", "another file is brought in by `use \"./lib.cd\"`"),
    w("import", "use", "another file is brought in by `use \"./lib.cd\"`"),
    w("manual", "gate", "what waits for a person is `gate NAME { approval { … } }`"),
    w("approve", "approval", "a person's yes is `approval { by = [\"ops\"] }`, in a gate"),
    w("approvals", "approval", "a person's yes is `approval { by = [\"ops\"] }`, in a gate"),
    w("approvers", "by", "who may approve is `by = [\"ops\"]`"),
    w("env_vars", "env", "environment variables are `env { NAME = \"value\" }`"),
    w("healthcheck", "health", "a health check is `health http \"/health\"`"),
    w("health_check", "health", "a health check is `health http \"/health\"`"),
    w("readinessProbe", "health", "a health check is `health ready http \"/health\"`"),
    w("livenessProbe", "health", "a health check is `health live http \"/health\"`"),
    w("interval", "every", "the time between two is `every`"),
    w("retries", "retry", "further attempts are `retry = 2`"),
    w("attempts", "retry", "further attempts are `retry = 2`"),
    w("timeout_minutes", "timeout", "a duration has its unit: `timeout = 20m`"),
    w(
        "parallelism",
        "batch",
        "instances replaced at a time are `batch = 2`; stages at a time are `max_parallel`",
    ),
    w("failure_ratio", "max_failures", "the share that may fail is `max_failures = 20%`"),
    w("max_failure_ratio", "max_failures", "the share that may fail is `max_failures = 20%`"),
    w("delay", "pause", "the time between two batches is `pause = 30s`"),
    w("maxSurge", "max_surge", "here it is `max_surge`"),
    w("maxUnavailable", "max_unavailable", "here it is `max_unavailable`"),
    w("bluegreen", "blue_green", "here it is `blue_green`"),
    w("blueGreen", "blue_green", "here it is `blue_green`"),
    w("setWeight", "step", "a share is `step 10% for 5m`"),
    w("weight", "step", "a share is `step 10% for 5m`"),
    w("slack", "notify", "a message is `notify slack(webhook) \"text\"`"),
    w("message", "notify", "a message is `notify slack(webhook) \"text\"`"),
    w("sleep", "wait", "a pause is `wait 30s`"),
    w("on_failure", "on", "a hook is `on failure { … }`"),
    w("on_success", "on", "a hook is `on success { … }`"),
    w("post", "on", "a hook is `on always { … }`"),
    w("finally", "on", "a hook for every outcome is `on always { … }`"),
    w("always", "on", "a hook for every outcome is `on always { … }`"),
    w("analysis", "watch", "rules over measurements are `watch every 30s { … }`"),
    w("cluster", "target", "where instances run is `target kubernetes { … }`"),
    w("host", "target", "where instances run is `target hosts { … }`"),
    w("ports", "port", "the port an instance listens on is `port = 3000`"),
    w("instances", "replicas", "wanted instances are `replicas = 3`"),
    w("scale", "replicas", "wanted instances are `replicas = 3`"),
    w("outputs", "output", "each output is `output NAME: TYPE`"),
    w("concurrency_group", "lock", "a lock is `lock = \"name\"`"),
    w("resource_group", "lock", "a lock is `lock = \"name\"`"),
    w("assert", "expect", "what must be so is `expect …`"),
];

/// What a word of another tool is called here.
pub fn foreign(word: &str) -> Option<&'static Foreign> {
    WORDS.iter().find(|foreign| foreign.word == word)
}
