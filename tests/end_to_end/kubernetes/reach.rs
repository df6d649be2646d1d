//! Pods whose addresses are not routed from here are reached through the API server, also after a crash.

use super::space::{LONG, Space, assert_ended, ended};
use cdpipe_tests::deployed::comes_true;
use std::process::Stdio;

#[test]
fn checks_reach_pods_through_the_api_server_also_after_a_kill() {
    let Some(space) = Space::new("reach", "kubernetes-rolling.cd") else { return };
    space.strategy(
        "traffic replicas",
        "rolling {}\n    validate {\n      http \"/health\"\n      run \"echo asked at ${candidate.url}; curl -fsS --max-time 20 \
         ${candidate.url}/health\"\n      run \"touch waits; while [ ! -e goes-on ]; do sleep 0.2; done\"\n      http \"/health\"\n    }",
    );
    let path = space.place.work().join("pipeline.cd");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("target kubernetes {", "target kubernetes { reach = port_forward,"))
        .unwrap();
    space.place.write("goes-on", "").unwrap();
    assert_ended(&space.run("1.0"), 0, &["asked at http://127.0.0.1:"]);

    // The port is part of what was journaled, so the next engine listens there again.
    std::fs::remove_file(space.place.work().join("goes-on")).unwrap();
    std::fs::remove_file(space.place.work().join("waits")).unwrap();
    let mut command = space.place.command(["run", "pipeline.cd", "--set", "version=1.1"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(comes_true(LONG, || space.place.work().join("waits").exists()));
    child.kill().unwrap();
    let _ = ended(child);
    space.place.write("goes-on", "").unwrap();
    assert_ended(&space.place.run(["resume"]).unwrap(), 0, &[]);
    space.serves("1.1", 4);
}
