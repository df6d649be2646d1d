//! Behind a real istiod and a real Envoy: shares, headers, hands of others.

use super::edge::{Edge, GATEWAY, ISTIO, edge, is_plausible};
use super::space::{Space, assert_ended};
use cdpipe_tests::deployed::ask_host;

fn a_canary_gets_its_share(test: &str, edge_of: Edge, header: &str) {
    let Some(address) = edge(test, edge_of.variable) else { return };
    let strategy = format!(
        "canary {{\n      {header}\n      step 20% until approved {{ by = [\"{}\"] }}\n    }}",
        whoami()
    );
    let Some(space) = Space::behind(test, edge_of, "shop.lab", &strategy) else { return };
    let before = space.field(edge_of.object, edge_of.rules);
    let version = |headers: &str| {
        let answer = ask_host(address, "shop.lab", headers).unwrap();
        assert_eq!(answer.status, 200, "{}", space.field(edge_of.object, edge_of.rules));
        answer.version
    };
    assert_ended(&space.run("1.0"), 0, &[]);
    assert!((0..20).all(|_| version("") == "1.0"));
    space.delivery();
    assert_ended(&space.run("1.1"), 5, &["20% of traffic on 1.1"]);
    let got = (0..300).filter(|_| version("") == "1.1").count();
    assert!(is_plausible(300, 0.2, got), "{got} of 300 at 20 %");
    assert!((0..30).all(|_| version("canary: true\r\n") == "1.1"));
    assert!((0..60).any(|_| version("canary: other\r\n") == "1.0"));
    assert_ended(&space.place.run(["approve"]).unwrap(), 0, &[]);
    assert_ended(&space.place.run(["resume"]).unwrap(), 0, &[]);
    assert!((0..20).all(|_| version("") == "1.1"));
    assert_ended(&space.run("exits"), 3, &["cannot find my configuration"]);
    assert!((0..20).all(|_| version("") == "1.1"));
    // Somebody else's hand in the middle.
    assert_ended(&space.run("1.2"), 5, &[]);
    let now = space.field(edge_of.object, edge_of.rules).replace("8000", "7000").replace("2000", "3000");
    let path = edge_of.rules.trim_matches(['{', '}']).trim_start_matches(".spec.");
    let patch = format!("{{\"spec\": {{\"{path}\": {now}}}}}");
    space.kubectl(&["-n", &space.name, "patch", edge_of.object, "--type=merge", "-p", &patch]);
    assert_ended(&space.place.run(["approve"]).unwrap(), 0, &[]);
    assert_ended(&space.place.run(["resume"]).unwrap(), 4, &["someone else has changed the rules"]);
    // Once it is as cdpipe left it, it is cdpipe's again, and taken down it is as it was at first.
    let back = patch.replace("7000", "8000").replace("3000", "2000");
    space.kubectl(&["-n", &space.name, "patch", edge_of.object, "--type=merge", "-p", &back]);
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!(space.field(edge_of.object, edge_of.rules), before);
    assert_eq!(space.field("deployments,pods,services", "{.items[*].metadata.name}"), "other");
}

fn whoami() -> String {
    std::env::var("USER").unwrap_or_else(|_| "root".to_owned())
}

#[test]
fn a_canary_behind_the_gateway_api_gets_its_share_and_a_header_chooses_it() {
    a_canary_gets_its_share("gateway", GATEWAY, "route header(\"canary\", \"true\")");
}

#[test]
fn a_canary_through_istio_gets_its_share_and_a_header_chooses_it() {
    a_canary_gets_its_share("istio", ISTIO, "route header(\"canary\", \"true\")");
}

#[test]
fn subsets_of_a_destination_rule_are_the_releases_and_others_stay_as_they_are() {
    let Some(address) = edge("subsets", ISTIO.variable) else { return };
    let strategy = format!(
        "canary {{\n      route header(\"canary\", \"true\")\n      step 30% until approved {{ by = [\"{}\"] }}\n    }}",
        whoami()
    );
    let host = "subsets.lab";
    let Some(space) = Space::behind("subsets", ISTIO, host, &strategy) else { return };
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    let text = text.replace(
        "virtual_service = \"web\"",
        "virtual_service = \"web\", destination_rule = \"web\", settle = 2s",
    );
    space.place.write("pipeline.cd", text).unwrap();
    assert_ended(&space.run("1.0"), 4, &["there is no DestinationRule web"]);
    let objects = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {cdpipe.dev/service: web}, ports: [{name: http, port: \
         80, targetPort: 8080}]}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web, \
         trafficPolicy: {connectionPool: {tcp: {connectTimeout: 2s}}}, subsets: [{name: theirs, labels: {tier: gold}}]}\n";
    let path = space.place.write("rule.yml", objects).unwrap();
    space.kubectl(&["-n", &space.name, "apply", "-f", &path.display().to_string()]);
    let rule = "{.spec}";
    let before = (space.field(ISTIO.object, ISTIO.rules), space.field("destinationrule/web", rule));
    let version = |headers: &str| {
        let answer = ask_host(address, host, headers).unwrap();
        assert_eq!(answer.status, 200, "{}", space.field(ISTIO.object, ISTIO.rules));
        answer.version
    };
    assert_ended(&space.run("1.0"), 0, &[]);
    assert!((0..20).all(|_| version("") == "1.0"));
    space.delivery();
    assert_ended(&space.run("1.1"), 5, &["30% of traffic on 1.1"]);
    let got = (0..300).filter(|_| version("") == "1.1").count();
    assert!(is_plausible(300, 0.3, got), "{got} of 300 at 30 %");
    assert!((0..30).all(|_| version("canary: true\r\n") == "1.1"));
    assert_eq!(space.field("destinationrule/web", "{.spec.subsets[*].name}").split(' ').count(), 3);
    assert_ended(&space.place.run(["approve"]).unwrap(), 0, &[]);
    assert_ended(&space.place.run(["resume"]).unwrap(), 0, &[]);
    assert!((0..20).all(|_| version("") == "1.1"));
    assert_eq!(space.field("destinationrule/web", "{.spec.subsets[*].name}").split(' ').count(), 2);
    assert_eq!(space.field("services", "{.items[*].metadata.name}"), "other web");
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!((space.field(ISTIO.object, ISTIO.rules), space.field("destinationrule/web", rule)), before);
    assert_eq!(space.field("deployments,pods,services", "{.items[*].metadata.name}"), "other web");
}
