//! API servers that go away, refuse, hang or cut their answers in the middle of a deploy; other writers; rights that are missing; no room.

use super::space::{LONG, Space, assert_ended, ended};
use super::ways::{BLUE_GREEN, CANARY, RECREATE, ROLLING, THROUGH_ISTIO, Way};
use cdpipe_tests::apiserver::{Asked, Fate, Relay};
use cdpipe_tests::deployed::comes_true;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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

/// Passes the connections of the kubeconfig on to the API server, and cuts them when told to.
struct Wire {
    port: u16,
    open: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
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
    let wire = Wire::to(&server);
    let here = format!("127.0.0.1:{}", wire.port);
    let path = space.place.write("kubeconfig", text.replace(&server, &here)).unwrap();
    space.place.set("KUBECONFIG", path.display().to_string());
    let child = space.begin("1.1");
    assert!(comes_true(LONG, || space.image() == "1.1"), "{}", space.image());
    wire.set_open(false);
    std::thread::sleep(Duration::from_secs(3));
    wire.set_open(true);
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

#[test]
fn a_lease_that_somebody_has_deleted_is_made_anew_and_the_count_goes_on() {
    let Some(space) = Space::new("lease", "kubernetes-rolling.cd") else { return };
    space.strategy("", "rolling {}");
    assert_ended(&space.run("1.0"), 0, &[]);
    assert_ended(&space.run("1.1"), 0, &[]);
    let epoch = || space.field("deployment/shop", "{.metadata.annotations.cdpipe\\.dev/epoch}");
    let before: u64 = epoch().parse().unwrap();
    space.kubectl(&["-n", &space.name, "delete", "lease", "cdpipe-shop-lock"]);
    assert_ended(&space.run("1.2"), 0, &[]);
    space.serves("1.2", 4);
    assert!(epoch().parse::<u64>().unwrap() > before, "{} after {before}", epoch());
}

/// A namespace with 1.0 in it, and a way to it on which single requests may come to grief.
fn through_a_relay(way: Way, test: &str) -> Option<(Space, Relay)> {
    let mut space = Space::on(way, test)?;
    let relay = Relay::before(&space.kubectl, &space.kubeconfig).unwrap();
    let path = space.place.write("kubeconfig", relay.kubeconfig()).unwrap();
    space.place.set("KUBECONFIG", path.display().to_string());
    assert_ended(&space.run("1.0"), 0, &[]);
    Some((space, relay))
}

/// Each kind of request that is made meets this fate as often as `times` says, then passes.
fn each_kind(times: usize, fate: Fate) -> impl FnMut(&Asked) -> Fate + Send + 'static {
    let mut met = std::collections::BTreeMap::new();
    move |asked: &Asked| {
        let path = asked.target.split('?').next().unwrap_or_default();
        let count = met.entry((asked.method.clone(), path.to_owned(), asked.is_watch())).or_insert(0);
        *count += 1;
        if *count <= times { fate.clone() } else { Fate::Pass }
    }
}

/// Every kind of request that the deploy makes is refused, cut or left without an answer now and then.
fn comes_through_anything(way: Way) {
    let test = way.test.replace("e-", "api-");
    let Some((space, relay)) = through_a_relay(way, &test) else { return };
    let mut version = "1.0";
    for fate in
        [Fate::Refuse(500, 0), Fate::Refuse(503, 1), Fate::Overload(1), Fate::Cut, Fate::Refuse(429, 1)]
    {
        version = if version == "1.1" { "1.2" } else { "1.1" };
        relay.decide(each_kind(1, fate.clone()));
        let ended = space.run(version);
        assert_ended(&ended, 0, &[&format!("-> {version}")]);
        let met = relay.met(&fate);
        assert!(met >= 8, "{fate:?} met {met} requests only");
        relay.decide(|_| Fate::Pass);
        space.serves(version, 2);
    }
}

#[test]
fn rolling_comes_through_refusals_and_cuts_of_every_request() {
    comes_through_anything(ROLLING);
}

#[test]
fn blue_green_comes_through_refusals_and_cuts_of_every_request() {
    comes_through_anything(BLUE_GREEN);
}

#[test]
fn a_canary_by_replicas_comes_through_refusals_and_cuts_of_every_request() {
    comes_through_anything(CANARY);
}

#[test]
fn recreate_comes_through_refusals_and_cuts_of_every_request() {
    comes_through_anything(RECREATE);
}

#[test]
fn a_canary_through_istio_comes_through_refusals_and_cuts_of_every_request() {
    comes_through_anything(THROUGH_ISTIO);
}

/// The time that an overloaded API server names is kept, but not one that is as good as for ever.
#[test]
fn who_says_when_to_come_again_is_not_asked_before() {
    let Some((space, relay)) = through_a_relay(ROLLING, "api-later") else { return };
    relay.decide(each_kind(2, Fate::Overload(2)));
    assert_ended(&space.run("1.1"), 0, &[]);
    let asked = relay.asked();
    let same = |a: &Asked, b: &Asked| a.method == b.method && a.target == b.target;
    let mut waited = 0;
    for (at, first) in asked.iter().enumerate().filter(|(_, asked)| asked.fate == Fate::Overload(2)) {
        let Some(next) = asked[at + 1..].iter().find(|next| same(first, next)) else { continue };
        let pause = next.at - first.at;
        assert!(pause >= Duration::from_millis(1900), "{first:?} came again after {pause:?}");
        waited += 1;
    }
    assert!(waited >= 8, "{asked:?}");
    // A day is too long: it is asked again before.
    let mut first = true;
    relay.decide(move |asked| {
        let now = asked.method == "PATCH" && std::mem::take(&mut first);
        if now { Fate::Overload(86_400) } else { Fate::Pass }
    });
    assert_ended(&space.run("1.2"), 0, &[]);
    assert_eq!(relay.met(&Fate::Overload(86_400)), 1);
    space.serves("1.2", 2);
}

/// A watch that ends, that is too old before its first word, that is refused as too old, and that never says anything.
#[test]
fn a_watch_that_expires_is_begun_anew() {
    let Some((space, relay)) = through_a_relay(ROLLING, "api-watch") else { return };
    let mut version = "1.0";
    for fate in [Fate::Expire, Fate::Refuse(410, 0), Fate::Hang] {
        version = if version == "1.1" { "1.2" } else { "1.1" };
        let (mut left, bad) = (2, fate.clone());
        relay.decide(move |asked| match asked.is_watch() && left > 0 {
            true => {
                left -= 1;
                bad.clone()
            }
            false => Fate::Pass,
        });
        assert_ended(&space.run(version), 0, &[]);
        assert!(relay.met(&fate) >= 1, "{fate:?} met nothing: {:?}", relay.asked());
        let whole = relay.asked().iter().filter(|asked| asked.is_watch()).count();
        // Nobody may be left to be watched once one has hung.
        let over = fate == Fate::Hang || whole > relay.met(&fate);
        assert!(over, "no watch came to anything after {fate:?}");
        space.serves(version, 2);
    }
}

/// An API server that takes a request and never answers: the call ends at its own deadline and is made again.
#[test]
fn a_call_that_hangs_is_made_again() {
    let Some((mut space, relay)) = through_a_relay(BLUE_GREEN, "api-hangs") else { return };
    space.place.limit(Duration::from_secs(300));
    let mut hung = 0;
    // The first change of a Deployment and the first look at pods after it.
    relay.decide(move |asked| {
        let next = match hung {
            0 => asked.method == "PATCH" && asked.target.contains("/deployments/"),
            1 => asked.method == "GET" && asked.target.contains("/pods?"),
            _ => false,
        };
        hung += i32::from(next);
        if next { Fate::Hang } else { Fate::Pass }
    });
    assert_ended(&space.run("1.1"), 0, &[]);
    assert_eq!(relay.met(&Fate::Hang), 2);
    space.serves("1.1", 2);
}

/// Somebody else changes the annotations and labels of every Deployment of the service all the time: the deploy goes on. Only a change of
/// what runs is somebody else's deploy.
fn another_writer_is_no_hindrance(way: Way) {
    let test = way.test.replace("e-", "writes-");
    let Some((space, relay)) = through_a_relay(way, &test) else { return };
    let relay = Arc::new(relay);
    let (over, wrote) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let names = Arc::new(Mutex::new(Vec::<String>::new()));
    let writer = {
        let (relay, over, wrote, names) =
            (Arc::clone(&relay), Arc::clone(&over), Arc::clone(&wrote), Arc::clone(&names));
        let namespace = space.name.clone();
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for name in names.lock().unwrap().clone() {
                    let count = wrote.load(Ordering::Relaxed);
                    let patch = format!(
                        "{{\"metadata\": {{\"annotations\": {{\"somebody\": \"{count}\"}}, \"labels\": {{\"other\": \"{count}\"}}}}}}"
                    );
                    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
                    if relay.patch(&path, &patch).is_ok_and(|status| status == 200) {
                        wrote.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // More often than this it is the cluster's own controllers that no longer get through.
                std::thread::sleep(Duration::from_millis(400));
            }
        })
    };
    let child = space.begin("1.1");
    let mut child = Some(child);
    let done = comes_true(LONG * 2, || {
        let there = space.field("deployments", "{.items[*].metadata.name}");
        *names.lock().unwrap() = there.split_whitespace().map(str::to_owned).collect();
        child.as_mut().unwrap().try_wait().unwrap().is_some()
    });
    over.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert!(done, "it goes on and on");
    assert_ended(&ended(child.take().unwrap()), 0, &["1.0 -> 1.1"]);
    // A roll of two pods may be over in three seconds.
    let wrote = wrote.load(Ordering::Relaxed);
    assert!(wrote >= 4, "the other one wrote {wrote} times only");
    space.serves("1.1", 2);
}

#[test]
fn rolling_goes_on_beside_another_writer() {
    another_writer_is_no_hindrance(ROLLING);
}

#[test]
fn blue_green_goes_on_beside_another_writer() {
    another_writer_is_no_hindrance(BLUE_GREEN);
}

#[test]
fn a_canary_goes_on_beside_another_writer() {
    another_writer_is_no_hindrance(CANARY);
}

/// Everything that a deploy by this strategy needs but one verb: that verb is named, and what runs is left as it is.
fn a_missing_right_is_named(way: Way, without: &[(&str, &str, &str)]) {
    let test = way.test.replace("e-", "rights-");
    let Some(mut space) = Space::on(way, &test) else { return };
    assert_ended(&space.run("1.0"), 0, &[]);
    space.place.set("KUBECONFIG", space.kubeconfig.clone());
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    let as_viewer = text.replace("kubernetes {", "kubernetes { context = \"viewer\",");
    space.place.write("pipeline.cd", as_viewer).unwrap();
    let verbs = ["get", "list", "watch", "create", "update", "patch", "delete"];
    let resources = [
        ("", "pods"),
        ("", "pods/log"),
        ("", "events"),
        ("", "services"),
        ("", "secrets"),
        ("apps", "deployments"),
        ("apps", "replicasets"),
        ("apps", "statefulsets"),
        ("apps", "daemonsets"),
        ("apps", "controllerrevisions"),
        ("autoscaling", "horizontalpodautoscalers"),
        ("policy", "poddisruptionbudgets"),
        ("coordination.k8s.io", "leases"),
        ("discovery.k8s.io", "endpointslices"),
        ("networking.istio.io", "virtualservices"),
    ];
    let role = |missing: Option<(&str, &str, &str)>| {
        let mut rules = String::new();
        for (group, resource) in resources {
            let given = verbs.iter().filter(|verb| missing != Some((verb, resource, group)));
            let given: Vec<&str> = given.copied().collect();
            rules += &format!("- {{apiGroups: [{group:?}], resources: [{resource:?}], verbs: {given:?}}}\n");
        }
        let name = &space.name;
        let text = format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: deployer, namespace: {name}}}\nrules:\n{rules}---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: deployer, namespace: {name}}}\nroleRef: {{kind: \
             Role, name: deployer, apiGroup: rbac.authorization.k8s.io}}\nsubjects: [{{kind: User, name: viewer, apiGroup: \
             rbac.authorization.k8s.io}}]\n"
        );
        let path = space.place.write("role.yml", text).unwrap();
        space.kubectl(&["apply", "-f", &path.display().to_string()]);
    };
    for missing in without {
        role(Some(*missing));
        let (verb, resource, group) = missing;
        let dot = if group.is_empty() { "" } else { "." };
        let ended = space.run("1.1");
        assert!(ended.code != Some(0), "{missing:?}: {}{}", ended.stdout, ended.stderr);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        let wanted = format!("grant {verb} {resource}{dot}{group}");
        assert!(said.contains(&wanted), "{wanted:?} is missing from\n{said}");
        // With the right back, whatever is left of it is put in order by the next run.
        role(None);
        assert_ended(&space.run("1.0"), 0, &[]);
        space.serves("1.0", 2);
    }
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 2);
}

#[test]
fn a_right_that_rolling_lacks_is_named() {
    let apps = "apps";
    a_missing_right_is_named(
        ROLLING,
        &[
            ("list", "deployments", apps),
            ("watch", "deployments", apps),
            ("patch", "deployments", apps),
            ("list", "replicasets", apps),
            ("list", "pods", ""),
            ("update", "leases", "coordination.k8s.io"),
        ],
    );
}

#[test]
fn a_right_that_blue_green_lacks_is_named() {
    a_missing_right_is_named(
        BLUE_GREEN,
        &[
            ("get", "services", ""),
            ("patch", "services", ""),
            ("watch", "deployments", "apps"),
            ("list", "endpointslices", "discovery.k8s.io"),
        ],
    );
}

#[test]
fn a_right_that_a_canary_lacks_is_named() {
    a_missing_right_is_named(CANARY, &[("patch", "deployments", "apps"), ("list", "pods", "")]);
}

#[test]
fn a_right_that_a_canary_through_istio_lacks_is_named() {
    let group = "networking.istio.io";
    a_missing_right_is_named(
        THROUGH_ISTIO,
        &[("get", "virtualservices", group), ("update", "virtualservices", group)],
    );
}

#[test]
fn a_right_that_recreate_lacks_is_named() {
    a_missing_right_is_named(RECREATE, &[("patch", "deployments", "apps"), ("watch", "deployments", "apps")]);
}
