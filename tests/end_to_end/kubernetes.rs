//! Deploys to a real cluster with the real binary, each test in a namespace of its own: the platform rolls and goes back, a Service
//! switches, a killed run is taken up again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::{ask_host, comes_true};
use cdpipe_tests::lab;
use cdpipe_tests::load::{Kind, Load, Mix};
use cdpipe_tests::place::{Place, repository};
use cdpipe_tests::processes::Ended;
use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(90);

/// A namespace of the lab's cluster, with a place to run cdpipe in.
struct Space {
    place: Place,
    name: String,
    kubectl: String,
    kubeconfig: String,
}

impl Space {
    /// `None` where the lab has no cluster. The pipeline is one of `pipelines/`, with this namespace, `within` and `replicas`.
    fn new(test: &str, pipeline: &str) -> Option<Self> {
        let found: Vec<String> = ["CDPIPE_LAB_KUBERNETES", "CDPIPE_LAB_KUBECTL", "CDPIPE_LAB_REGISTRY"]
            .into_iter()
            .filter_map(|name| std::env::var(name).ok())
            .collect();
        let [kubeconfig, kubectl, registry] = found.as_slice() else {
            lab::skip(test, "CDPIPE_LAB_KUBERNETES (cargo xtask test, or cargo xtask lab up kubernetes)")
                .unwrap();
            return None;
        };
        let mut place = Place::new().unwrap();
        place.set("KUBECONFIG", kubeconfig.as_str());
        let name = format!("{}-{}", test.replace('_', "-"), std::process::id());
        let text = std::fs::read_to_string(repository().join("pipelines").join(pipeline)).unwrap();
        let text = text
            .replace("namespace = \"default\"", &format!("namespace = \"{name}\""))
            .replace("127.0.0.1:5000", registry)
            .replace("within = 30s", "within = 15s");
        place.write("pipeline.cd", text).unwrap();
        let space = Self { place, name, kubectl: kubectl.clone(), kubeconfig: kubeconfig.clone() };
        space.kubectl(&["create", "namespace", &space.name]);
        Some(space)
    }

    fn try_kubectl(&self, args: &[&str]) -> Option<String> {
        let output =
            Command::new(&self.kubectl).args(args).env("KUBECONFIG", &self.kubeconfig).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[track_caller]
    fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap_or_else(|| panic!("kubectl {args:?} failed"))
    }

    /// A field of an object, or nothing.
    fn field(&self, object: &str, path: &str) -> String {
        self.try_kubectl(&["-n", &self.name, "get", object, "-o", &format!("jsonpath={path}")])
            .unwrap_or_default()
    }

    /// The image that a Deployment has now.
    fn image(&self) -> String {
        let image = self.field("deployment/shop", "{.spec.template.spec.containers[0].image}");
        image.rsplit(':').next().unwrap_or_default().to_owned()
    }

    /// Has the pipeline be one deploy with this strategy, behind this router.
    fn strategy(&self, traffic: &str, strategy: &str) {
        let text = std::fs::read_to_string(self.place.work().join("pipeline.cd")).unwrap();
        let (head, _) = text.split_once("stage ").unwrap();
        let head: String =
            head.lines().filter(|line| !line.contains("traffic")).map(|line| format!("{line}\n")).collect();
        let head = head.replace("  target kubernetes", &format!("  {traffic}\n  target kubernetes"));
        let stage = format!("stage release {{\n  deploy shop to cluster {{\n    {strategy}\n  }}\n}}\n");
        self.place.write("pipeline.cd", head + &stage).unwrap();
    }

    fn begin(&self, version: &str) -> Child {
        let mut command = self.place.command(["run", "pipeline.cd", "--set", &format!("version={version}")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn run(&self, version: &str) -> Ended {
        self.place.run(["run", "pipeline.cd", "--set", &format!("version={version}")]).unwrap()
    }

    /// Every pod that is not on its way out: its image's tag, and whether it is ready.
    fn pods(&self) -> Vec<String> {
        let text = self.try_kubectl(&["-n", &self.name, "get", "pods", "-o", "json"]).unwrap_or_default();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        pods.iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| {
                let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
                let ready = pod["status"]["containerStatuses"][0]["ready"].as_bool().unwrap_or(false);
                format!(
                    "{} {}",
                    image.rsplit(':').next().unwrap_or_default(),
                    if ready { "ready" } else { "not ready" }
                )
            })
            .collect()
    }

    /// So many pods of this version are ready and no others are there.
    #[track_caller]
    fn serves(&self, version: &str, count: usize) {
        let wanted = vec![format!("{version} ready"); count];
        let mut found = Vec::new();
        let holds = comes_true(LONG, || {
            found = self.pods();
            found == wanted
        });
        assert!(holds, "wanted {count} pods of {version}, found {found:?}");
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

fn ended(child: Child) -> Ended {
    let done = child.wait_with_output().unwrap();
    Ended {
        code: done.status.code(),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        took: Duration::ZERO,
    }
}

#[track_caller]
fn assert_ended(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code, Some(code), "stdout:\n{}\nstderr:\n{}", ended.stdout, ended.stderr);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    for part in says {
        assert!(said.contains(part), "{part:?} is missing from\n{said}");
    }
}

#[test]
fn a_deployment_rolls_and_the_same_again_is_nothing_to_do() {
    let Some(space) = Space::new("rolls", "kubernetes-rolling.cd") else { return };
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 4);
    let strategy = "{.spec.strategy.rollingUpdate.maxSurge} {.spec.strategy.rollingUpdate.maxUnavailable}";
    assert_eq!(space.field("deployment/shop", strategy), "2 1");
    // What is there is found by another run: the first stage goes back to 1.0, the second forth again.
    let rolled = space.field("deployment/shop", "{.metadata.generation}");
    space
        .place
        .write("same.cd", {
            let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
            text.replace("set version = \"1.0\"", "set version = \"1.1\"")
        })
        .unwrap();
    let again = space.place.run(["run", "same.cd", "--set", "version=1.1"]).unwrap();
    assert_ended(&again, 0, &["unchanged"]);
    assert_eq!(space.field("deployment/shop", "{.metadata.generation}"), rolled);
    let down = space.place.run(["down", "pipeline.cd"]).unwrap();
    assert_ended(&down, 0, &[]);
    assert_eq!(space.field("deployments,pods", "{.items[*].metadata.name}"), "");
}

#[test]
fn an_image_that_is_not_there_goes_back_at_once() {
    let Some(space) = Space::new("missing", "kubernetes-rolling.cd") else { return };
    let ended = space.run("no-such-tag");
    assert_ended(&ended, 3, &["ErrImagePull", "no-such-tag"]);
    assert_eq!(space.image(), "1.0");
    space.serves("1.0", 4);
}

#[test]
fn a_pod_that_ends_again_and_again_goes_back_with_its_last_words() {
    let Some(space) = Space::new("exits", "kubernetes-rolling.cd") else { return };
    assert_ended(&space.run("exits"), 3, &["exit code 3", "cannot find my configuration"]);
    space.serves("1.0", 4);
}

#[test]
fn a_release_that_never_gets_ready_goes_back() {
    let Some(space) = Space::new("never", "kubernetes-rolling.cd") else { return };
    assert_ended(&space.run("never-healthy"), 3, &["did not become ready in time", "Readiness probe failed"]);
    assert_eq!(space.image(), "1.0");
    space.serves("1.0", 4);
}

#[test]
fn who_may_not_is_told_which_verb_is_missing() {
    let Some(space) = Space::new("viewer", "kubernetes-rolling.cd") else { return };
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    space
        .place
        .write("pipeline.cd", text.replace("kubernetes {", "kubernetes { context = \"viewer\","))
        .unwrap();
    let ended = space.run("1.1");
    assert_ended(&ended, 1, &["grant"]);
    assert_eq!(space.field("deployments", "{.items[*].metadata.name}"), "");
}

#[test]
fn a_run_that_was_killed_in_the_middle_of_a_roll_is_taken_up_again() {
    let Some(space) = Space::new("killed", "kubernetes-rolling.cd") else { return };
    for (seed, version) in [(3_u64, "1.1"), (7, "1.2"), (12, "1.1")] {
        let mut child = space.begin(version);
        assert!(comes_true(LONG, || space.image() == version), "{}", space.image());
        std::thread::sleep(Duration::from_millis(seed * 83 % 900));
        // It may have ended by itself just now: then there is nothing to go on with.
        let was_over = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        if !was_over {
            assert_ended(&space.place.run(["resume"]).unwrap(), 0, &[]);
        }
        space.serves(version, 4);
        assert_eq!(space.field("lease/cdpipe-shop-lock", "{.spec.holderIdentity}"), "");
    }
}

#[test]
fn the_selector_of_a_service_switches_and_a_bad_release_is_never_selected() {
    let Some(space) = Space::new("switches", "kubernetes-blue-green.cd") else { return };
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 2);
    let selector = "{.spec.selector}";
    let selected = space.field("service/web", selector);
    let ips = space.field("endpointslices", "{.items[*].endpoints[*].addresses[*]}");
    let pods = space.field("pods", "{.items[*].status.podIP}");
    let sorted = |text: &str| {
        let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        words.sort();
        words
    };
    assert_eq!(sorted(&ips), sorted(&pods));
    // The first stage is unchanged only where 1.0 serves; so that the bad one meets 1.1, both stages want it.
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    space.place.write("pipeline.cd", text.replace("set version = \"1.0\"", "set version = \"1.1\"")).unwrap();
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    assert_eq!(space.field("service/web", selector), selected);
    space.serves("1.1", 2);
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!(space.field("deployments,pods,services", "{.items[*].metadata.name}"), "");
}

#[test]
fn strategies_take_each_others_place() {
    let Some(space) = Space::new("strategies", "kubernetes-rolling.cd") else { return };
    space.strategy("traffic replicas", "rolling {}");
    assert_ended(&space.run("1.0"), 0, &[]);
    space.strategy("traffic replicas", "recreate {}");
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 4);
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    space.serves("1.1", 4);
    space.strategy("traffic replicas", "rolling {}");
    assert_ended(&space.run("1.2"), 0, &[]);
    space.serves("1.2", 4);
    assert_eq!(space.image(), "1.2");
    space.strategy("traffic replicas", "canary { step 25% for 1s; step 50% for 1s }");
    assert_ended(&space.run("1.0"), 0, &["canary 25%", "canary 50%"]);
    space.serves("1.0", 4);
    assert_ended(&space.run("exits"), 3, &["cannot find my configuration"]);
    space.serves("1.0", 4);
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!(space.field("deployments,pods", "{.items[*].metadata.name}"), "");
}

/// Passes the connections of the kubeconfig on to the API server, and cuts them when told to.
struct Relay {
    port: u16,
    open: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, streams) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
        let (server, is_open, kept) = (server.to_owned(), Arc::clone(&open), Arc::clone(&streams));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if !is_open.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(upstream) = TcpStream::connect(&server) else { continue };
                for (from, to) in [(&client, &upstream), (&upstream, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                kept.lock().unwrap().extend([client, upstream]);
            }
        });
        Self { port, open, streams }
    }

    fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
        if !open {
            for stream in self.streams.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

#[test]
fn an_api_server_that_is_gone_in_the_middle_of_a_roll_is_waited_for() {
    let Some(mut space) = Space::new("away", "kubernetes-rolling.cd") else { return };
    let text = std::fs::read_to_string(&space.kubeconfig).unwrap();
    let (_, rest) = text.split_once("https://").unwrap();
    let server = rest.split(['"', '\n']).next().unwrap().to_owned();
    let relay = Relay::to(&server);
    let here = format!("127.0.0.1:{}", relay.port);
    let path = space.place.write("kubeconfig", text.replace(&server, &here)).unwrap();
    space.place.set("KUBECONFIG", path.display().to_string());
    let child = space.begin("1.1");
    assert!(comes_true(LONG, || space.image() == "1.1"), "{}", space.image());
    relay.set_open(false);
    std::thread::sleep(Duration::from_secs(3));
    relay.set_open(true);
    assert_ended(&ended(child), 0, &[]);
    space.serves("1.1", 4);
}

#[test]
fn a_pod_that_no_node_takes_and_a_quota_end_the_wait_and_say_why() {
    let Some(space) = Space::new("room", "kubernetes-rolling.cd") else { return };
    space.strategy("", "rolling {}");
    assert_ended(&space.run("1.0"), 0, &[]);
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    let patient = text.replace("within = 15s", "within = 5m");
    space.place.write("pipeline.cd", patient.replace("cpu = 0.01", "cpu = 640")).unwrap();
    assert_ended(&space.run("1.1"), 3, &["Unschedulable", "Insufficient cpu"]);
    space.serves("1.0", 4);
    space.kubectl(&["-n", &space.name, "create", "quota", "few", "--hard=pods=4"]);
    space.place.write("pipeline.cd", patient).unwrap();
    assert_ended(&space.run("1.1"), 3, &["gets no pods", "exceeded quota"]);
    space.serves("1.0", 4);
}

#[test]
fn another_writer_in_the_middle_is_told_and_left_alone() {
    let Some(space) = Space::new("writer", "kubernetes-rolling.cd") else { return };
    let child = space.begin("never-healthy");
    assert!(comes_true(LONG, || space.image() == "never-healthy"), "{}", space.image());
    let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    let image = format!("app={registry}/shop:1.2");
    space.kubectl(&["-n", &space.name, "set", "image", "deployment/shop", &image]);
    assert_ended(&ended(child), 4, &["someone else has changed the Deployment shop"]);
    assert_eq!(space.image(), "1.2");
}

#[test]
fn who_has_lost_the_lock_writes_nothing_more() {
    let Some(space) = Space::new("fenced", "kubernetes-rolling.cd") else { return };
    let child = space.begin("never-healthy");
    assert!(comes_true(LONG, || space.image() == "never-healthy"), "{}", space.image());
    let holder = space.field("lease/cdpipe-shop-lock", "{.spec.holderIdentity}");
    assert!(holder.contains('@'), "{holder}");
    space.kubectl(&["-n", &space.name, "annotate", "--overwrite", "deployment/shop", "cdpipe.dev/epoch=99"]);
    assert_ended(&ended(child), 4, &["the lock was taken by someone else"]);
    assert_eq!(space.image(), "never-healthy");
    assert_eq!(space.field("lease/cdpipe-shop-lock", "{.spec.holderIdentity}"), "");
}

/// Where the lab's Envoy serves VirtualServices or HTTPRoutes. A machine that has not built Istio yet does without: that takes longer
/// than the rest of the tests, so it is no failure anywhere.
fn edge(test: &str, variable: &str) -> Option<SocketAddr> {
    let found = std::env::var(variable).ok().and_then(|address| address.parse().ok());
    if found.is_none() {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: needs Istio (cargo xtask lab up istio)");
    }
    found
}

/// The chance of at least `k` successes in `n` trials of chance `p`, by Chernoff's bound.
fn chance_of_more(n: f64, p: f64, k: f64) -> f64 {
    let q = k / n;
    if q <= p {
        return 1.0;
    }
    (-n * (q * (q / p).ln() + (1.0 - q) * ((1.0 - q) / (1.0 - p)).ln())).exp()
}

#[derive(Clone, Copy)]
struct Edge {
    variable: &'static str,
    pipeline: &'static str,
    /// The object whose backends change.
    object: &'static str,
    /// Its rules.
    rules: &'static str,
}

const GATEWAY: Edge = Edge {
    variable: "CDPIPE_LAB_GATEWAY",
    pipeline: "kubernetes-canary-gateway.cd",
    object: "httproute/web",
    rules: "{.spec.rules}",
};
const ISTIO: Edge = Edge {
    variable: "CDPIPE_LAB_ISTIO",
    pipeline: "kubernetes-canary-istio.cd",
    object: "virtualservice/web",
    rules: "{.spec.http}",
};

impl Space {
    /// A namespace with a route for this host, and the pipeline with this strategy.
    fn behind(test: &str, edge: Edge, host: &str, strategy: &str) -> Option<Self> {
        let space = Self::new(test, edge.pipeline)?;
        let name = &space.name;
        let route = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: {name}}}\nspec: \
             {{parentRefs: [{{name: edge, namespace: istio-system}}], hostnames: [{host}], rules: [{{matches: [{{path: {{type: PathPrefix, \
             value: /other}}}}], backendRefs: [{{name: other, port: 80, weight: 1}}]}}, {{backendRefs: [{{name: web, port: 80, weight: \
             1}}]}}]}}\n"
        );
        let service = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: {name}}}\nspec: {{hosts: \
             [{host}], gateways: [istio-system/edge], http: [{{match: [{{uri: {{prefix: /other}}}}], route: [{{destination: {{host: \
             other}}}}]}}, {{route: [{{destination: {{host: web, port: {{number: 80}}}}}}]}}]}}\n"
        );
        let text = if edge.object.starts_with("http") { route } else { service };
        let path = space.place.write("route.yml", text).unwrap();
        // `other` is nobody's Service, so the route is not quite whole: what cdpipe waits for is made so.
        let other = space.place.write("other.yml", format!("apiVersion: v1\nkind: Service\nmetadata: {{name: other, namespace: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n")).unwrap();
        for path in [other, path] {
            space.kubectl(&["apply", "-f", &path.display().to_string()]);
        }
        let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
        let (head, _) = text.split_once("stage ").unwrap();
        let stage = format!("stage release {{\n  deploy web to cluster {{\n    {strategy}\n  }}\n}}\n");
        space.place.write("pipeline.cd", format!("{head}{stage}")).unwrap();
        Some(space)
    }

    fn delivery(&self) {
        let text = std::fs::read_to_string(self.place.work().join("pipeline.cd")).unwrap();
        self.place.write("pipeline.cd", text.replace("mode = deployment", "mode = delivery")).unwrap();
    }
}

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
    let share = f64::from(u32::try_from(got).unwrap());
    let (more, fewer) = (chance_of_more(300.0, 0.2, share), chance_of_more(300.0, 0.8, 300.0 - share));
    assert!(more > 1e-9 && fewer > 1e-9, "{got} of 300 at 20 %");
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
fn canaries_and_rollbacks_through_istio_fail_no_request() {
    let Some(address) = edge("istio-load", ISTIO.variable) else { return };
    let strategy = "canary {\n      step 20% for 1s\n      step 60% for 1s\n    }\n    validate { run \"test ${version} != 1.2\" }";
    let Some(space) = Space::behind("istio-load", ISTIO, "\"*\"", strategy) else { return };
    assert_ended(&space.run("1.0"), 0, &[]);
    let load = Load {
        rate_per_s: 30,
        mix: Mix::new([
            (Kind::Short, 6),
            (Kind::Fresh, 2),
            (Kind::Slow { ms: 300 }, 1),
            (Kind::Echo { bytes: 5000 }, 1),
        ])
        .unwrap(),
        ..Load::on(address)
    };
    let running = load.start().unwrap();
    for (version, code) in [("1.1", 0), ("1.2", 3), ("1.0", 0)] {
        assert_ended(&space.run(version), code, &[]);
    }
    let report = running.stop().unwrap();
    assert!(report.records().len() > 300, "{report}");
    assert!(report.failures().is_empty(), "{report}");
}
