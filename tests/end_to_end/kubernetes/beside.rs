//! Releases side by side: the candidate shown alone, variables of a canary, autoscalers and budgets that somebody else has made.

use super::space::{LONG, Space, assert_ended, ended};
use cdpipe_tests::deployed::comes_true;

impl Space {
    /// The addresses that a Service sends to.
    fn addresses(&self, service: &str) -> Vec<String> {
        let label = format!("kubernetes.io/service-name={service}");
        let path = "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[*]}";
        self.words(&["get", "endpointslices", "-l", &label, "-o", path])
    }

    /// The addresses of the pods of a version.
    fn pods_of(&self, version: &str) -> Vec<String> {
        let path = "jsonpath={range .items[*]}{.spec.containers[0].image} {.status.podIP}{\"\\n\"}{end}";
        let text = self.try_kubectl(&["-n", &self.name, "get", "pods", "-o", path]).unwrap_or_default();
        let of = |line: &str| {
            line.split_once(' ')
                .filter(|(image, _)| image.ends_with(&format!(":{version}")))
                .map(|(_, ip)| ip.to_owned())
        };
        let mut found: Vec<String> = text.lines().filter_map(of).collect();
        found.sort();
        found
    }

    fn words(&self, args: &[&str]) -> Vec<String> {
        let args: Vec<&str> = ["-n", self.name.as_str()].iter().chain(args).copied().collect();
        let text = self.try_kubectl(&args).unwrap_or_default();
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        words.sort();
        words
    }

    /// Makes what this text says.
    fn make(&self, text: &str) {
        let path = self.place.write("objects.yml", text).unwrap();
        self.kubectl(&["-n", &self.name, "apply", "-f", &path.display().to_string()]);
    }
}

#[test]
fn a_preview_shows_the_candidate_alone_before_anybody_is_switched() {
    let Some(space) = Space::new("preview", "kubernetes-blue-green.cd") else { return };
    space.stages(
        "stage release {\n  deploy web to cluster {\n    blue_green { preview = \":9090\", keep_old = 0s }\n    verify { run \"sleep 5\" }\n  }\n}\n",
    );
    assert_ended(&space.run("1.0"), 0, &[]);
    let child = space.begin("1.1");
    let shown = comes_true(LONG, || {
        let pods = space.pods_of("1.1");
        pods.len() == 2 && space.addresses("web-preview") == pods
    });
    assert!(shown, "{:?} for {:?}", space.addresses("web-preview"), space.pods_of("1.1"));
    assert_eq!(
        space.field("service/web-preview", "{.spec.ports[0].port} {.spec.ports[0].targetPort}"),
        "9090 8080"
    );
    assert_eq!(space.addresses("web"), space.pods_of("1.0"));
    assert_ended(&ended(child), 0, &["preview"]);
    assert_eq!((space.addresses("web"), space.addresses("web-preview")), (space.pods_of("1.1"), Vec::new()));
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!(space.field("deployments,pods,services", "{.items[*].metadata.name}"), "");
}

#[test]
fn variables_of_a_canary_are_those_of_its_pods_and_end_with_the_promotion() {
    let Some(mut space) = Space::new("canary-env", "kubernetes-rolling.cd") else { return };
    space.place.set("TOKEN", "sesame-open");
    space.strategy(
        "traffic replicas",
        "canary {\n      env { TOKEN = token, SHADE = \"grey\" }\n      step 25% for 3s\n    }",
    );
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    space.place.write("pipeline.cd", format!("secret token from env \"TOKEN\"\n{text}")).unwrap();
    assert_ended(&space.run("1.0"), 0, &[]);
    let child = space.begin("1.1");
    let variables = "{range .items[*]}{.spec.containers[0].image}{\" \"}{.spec.containers[0].env[?(@.name==\"SHADE\")].value}{\"\\n\"}{end}";
    let grey = || {
        let text = space.field("pods", variables);
        text.lines().filter(|line| line.ends_with("shop:1.1 grey")).count()
    };
    assert!(comes_true(LONG, || grey() == 1), "{}", space.field("pods", variables));
    let secrets = space.field("secrets", "{.items[*].metadata.name}");
    assert!(secrets.ends_with("-c"), "{secrets}");
    let done = ended(child);
    assert_ended(&done, 0, &["canary 25%"]);
    assert!(!format!("{}{}", done.stdout, done.stderr).contains("sesame-open"));
    space.serves("1.1", 4);
    assert_eq!(grey(), 0);
    assert!(comes_true(LONG, || space.field("secrets", "{.items[*].metadata.name}").is_empty()));
    // A bad one takes its canary along.
    assert_ended(&space.run("exits"), 3, &["cannot find my configuration"]);
    space.serves("1.1", 4);
    let names = space.field("deployments", "{.items[*].metadata.name}");
    assert!(names.split(' ').all(|name| !name.ends_with("-c")), "{names}");
}

const AUTOSCALER: &str = "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: scaler}\nspec: {scaleTargetRef: \
     {apiVersion: apps/v1, kind: Deployment, name: @NAME@}, minReplicas: @MIN@, maxReplicas: 6, metrics: [{type: Resource, resource: {name: \
     cpu, target: {type: Utilization, averageUtilization: 80}}}]}\n";

#[test]
fn releases_side_by_side_get_copies_of_an_autoscaler_and_a_budget_and_nobody_fights() {
    let Some(space) = Space::new("scaled", "kubernetes-blue-green.cd") else { return };
    space.make(&format!(
        "{}---\napiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {{name: budget}}\nspec: {{maxUnavailable: 1, selector: \
         {{matchLabels: {{cdpipe.dev/workload: web}}}}}}\n",
        AUTOSCALER.replace("@NAME@", "web").replace("@MIN@", "3")
    ));
    space.stages("stage release {\n  deploy web to cluster {\n    blue_green { keep_old = 0s, old = scale_to_zero }\n  }\n}\n");
    assert_ended(&space.run("1.0"), 0, &[]);
    // The pipeline says two, the autoscaler three.
    space.serves("1.0", 3);
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 3);
    assert_ended(&space.run("1.1"), 0, &["3"]);
    space.serves("1.1", 3);
    assert_eq!(space.addresses("web"), space.pods_of("1.1"));
    let deployments = space.words(&["get", "deployments", "-o", "jsonpath={.items[*].metadata.name}"]);
    assert_eq!(deployments.len(), 2);
    let mut expected: Vec<String> =
        deployments.iter().map(|name| format!("{name}/scaler-{}", &name[4..])).collect();
    expected.push("web/scaler".to_owned());
    expected.sort();
    let found = "jsonpath={range .items[*]}{.spec.scaleTargetRef.name}/{.metadata.name}{\" \"}{end}";
    assert_eq!(space.words(&["get", "hpa", "-o", found]), expected);
    let found = "jsonpath={.items[*].spec.selector.matchLabels.cdpipe\\.dev/workload}";
    let mut guarded = deployments.clone();
    guarded.push("web".to_owned());
    guarded.sort();
    assert_eq!(space.words(&["get", "pdb", "-o", found]), guarded);
    // What is kept has no pods, whatever its autoscaler says, and serves again when it is gone back to.
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 3);
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    let left = || space.words(&["get", "hpa,pdb", "-o", "jsonpath={.items[*].metadata.name}"]);
    assert!(comes_true(LONG, || left() == ["budget", "scaler"]), "{:?}", left());
}

#[test]
fn a_deployment_that_rolls_keeps_the_pods_that_its_autoscaler_wants() {
    let Some(space) = Space::new("rolls-scaled", "kubernetes-rolling.cd") else { return };
    space.strategy("", "rolling {}");
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 4);
    space.make(&AUTOSCALER.replace("@NAME@", "shop").replace("@MIN@", "5"));
    space.serves("1.0", 5);
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 5);
    assert_ended(&space.run("exits"), 3, &["cannot find my configuration"]);
    space.serves("1.1", 5);
    assert_ended(&space.run("1.1"), 0, &["unchanged"]);
}
