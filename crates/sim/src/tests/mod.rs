//! The simulation itself: pipelines from text, played, disturbed and swept.

mod expectations;
mod faults;
mod roll;
mod sweep;

use crate::given::Given;
use cdpipe_check::Inputs;
use cdpipe_check::testing::Test;
use cdpipe_model::plan::Plan;
use std::sync::Arc;

pub(crate) fn plan(text: &str) -> Plan {
    let checked = cdpipe_check::check("shop.cd", text, &|_| Err("no files here".to_owned()));
    assert!(!checked.has_errors(), "{:#?}", checked.diagnostics);
    cdpipe_check::plan(&checked, &Inputs::default()).unwrap()
}

/// A service with this strategy, its watch and its checks, upgraded or brought in.
pub(crate) fn pipeline(strategy: &str, upgrade: bool) -> Arc<Given> {
    let text = text(strategy);
    Arc::new(Given::assumed(&plan(&text), "shop.cd", vec![text], upgrade, 0.0).unwrap())
}

/// The same with a release whose errors rise, so that it goes back.
pub(crate) fn bad(strategy: &str) -> Arc<Given> {
    let text = text(strategy);
    Arc::new(Given::assumed(&plan(&text), "shop.cd", vec![text], true, 100.0).unwrap())
}

/// The same, as its only test begins: this is what the test says.
pub(crate) fn tested(strategy: &str, says: &str) -> (Arc<Given>, Test) {
    let text = format!("{}\ntest \"it\" {{ {says} }}\n", text(strategy));
    let checked = cdpipe_check::check("shop.cd", &text, &|_| Err("no files here".to_owned()));
    assert!(!checked.has_errors(), "{:#?}", checked.diagnostics);
    let test = checked.program.as_ref().unwrap().tests[0].clone();
    (Arc::new(Given::of_test(&test, &plan(&text), "shop.cd", vec![text]).unwrap()), test)
}

fn text(strategy: &str) -> String {
    format!(
        r#"
pipeline shop {{ mode = deployment }}
param version: string = "v2.0.0"
environment here {{
  target local {{}}
  traffic proxy {{}}
}}
service shop {{
  command  = ["./shop"]
  replicas = 3
  env      {{ VERSION = version }}
  health   http "/health" {{ every = 200ms, within = 20s }}
  route    {{ listen = "127.0.0.1:8080" }}
  drain    = 5s
}}
metrics shop {{
  source scrape {{ path = "/metrics" }}
  error_rate: percent = ratio('errors', 'requests')
}}
stage release {{
  lock = "database"
  run "migrate"
  deploy shop to here {{
    {strategy}
    verify {{ run "smoke" }}
    watch every 5s {{
      rollback when candidate.error_rate > 5%
      after = 10s
    }}
  }}
  run "announce"
}}
"#
    )
}

/// Every strategy with a few of its settings, by name.
pub(crate) fn strategies() -> Vec<(&'static str, Arc<Given>)> {
    vec![
        ("rolling", pipeline("rolling { batch = 1, pause = 5s }", true)),
        ("rolling in batches, stop first", pipeline("rolling { batch = 2, order = stop_first }", true)),
        ("blue_green", pipeline("blue_green { keep_old = 10s }", true)),
        ("blue_green with a preview", pipeline("blue_green { preview = \":8081\" }", true)),
        (
            "canary",
            pipeline(
                "canary { route header(\"canary\", \"true\"); step 10% for 10s; step 50% for 10s }",
                true,
            ),
        ),
        ("recreate", pipeline("recreate {}", true)),
        ("rolling by the platform", rolled("rolling { batch = 2, pause = 5s, monitor = 2s }", true)),
        ("rolling by the platform, stop first", rolled("rolling { batch = 1, order = stop_first }", true)),
        ("the first roll", rolled("rolling {}", false)),
        ("the first deploy", pipeline("canary { step 10% for 10s }", false)),
    ]
}

/// The same service where the platform rolls by itself.
pub(crate) fn rolled(strategy: &str, upgrade: bool) -> Arc<Given> {
    let text = rolled_text(strategy);
    Arc::new(Given::assumed(&plan(&text), "shop.cd", vec![text], upgrade, 0.0).unwrap())
}

fn rolled_text(strategy: &str) -> String {
    text(strategy)
        .replace("target local {}", "target swarm {}")
        .replace("  traffic proxy {}\n", "")
        .replace("command  = [\"./shop\"]", "image = \"shop:2\"\n  port = 8080")
        .replace("  route    { listen = \"127.0.0.1:8080\" }\n", "")
}
