//! Deploys to the lab's cluster by `cdpipe run` beside `kubectl set … && kubectl rollout status`: two Deployments that cdpipe has made alike,
//! one rolled by each. And through Istio: how long a candidate that goes bad answers users still.

mod candidate;
mod counter;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::counter::Counter;
use super::figure::{Aim, Figure};
use super::{Setup, alternate};
use crate::process::{Job, write_file};
use crate::say::say;

const ONE_ROLL_WITHIN: Duration = Duration::from_secs(120);
/// A hundred pods on a busy machine.
const MANY_WITHIN: Duration = Duration::from_secs(900);
const MANY: usize = 100;
/// Versions that take turns.
const VERSIONS: [&str; 2] = ["1.0", "1.1"];
const OURS: &str = "bench-cdpipe";
const PEER: &str = "bench-kubectl";

/// Where the benches of a cluster work.
struct Cluster<'a> {
    setup: &'a Setup,
    dir: PathBuf,
    registry: &'a str,
    kubectl: &'a str,
    kubeconfig: String,
    namespace: &'static str,
}

impl<'a> Cluster<'a> {
    fn new(setup: &'a Setup, namespace: &'static str) -> Result<Self, String> {
        Ok(Self {
            setup,
            dir: setup.fresh(namespace)?,
            registry: setup.lab("CDPIPE_LAB_REGISTRY")?,
            kubectl: setup.lab("CDPIPE_LAB_KUBECTL")?,
            kubeconfig: setup.lab("CDPIPE_LAB_KUBERNETES")?.to_owned(),
            namespace,
        })
    }

    fn kubectl(&self, args: &[&str]) -> Job {
        let args = [&["--namespace", self.namespace], args].concat();
        self.env(Job::new(self.kubectl, args, MANY_WITHIN))
    }

    fn env(&self, job: Job) -> Job {
        job.env("KUBECONFIG", &self.kubeconfig).env("KUBECACHEDIR", self.dir.join("cache")).dir(&self.dir)
    }

    fn cdpipe(&self, args: &[&str], within: Duration) -> Job {
        self.env(self.setup.cdpipe(args, within)).env("CDPIPE_STATE", self.dir.join("state"))
    }

    /// Has a namespace of its own while `work` is done.
    fn within<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let delete = || self.kubectl(&["delete", "namespace", "--ignore-not-found", self.namespace]).must();
        delete()?;
        self.kubectl(&["create", "namespace", self.namespace]).must()?;
        let done = work();
        delete()?;
        done
    }

    /// kubectl's way: the change, then the wait for its end.
    fn peer(&self, change: &str, within: Duration) -> Job {
        let (kubectl, namespace) = (self.kubectl, self.namespace);
        let script = format!(
            "{kubectl} -n {namespace} {change} >/dev/null && {kubectl} -n {namespace} rollout status deployment/{PEER}"
        );
        self.env(Job::new("sh", ["-c", &script], within))
    }

    /// What is at this place of every pod of a service that is not on its way out.
    fn pods(&self, service: &str, path: &str) -> Result<Vec<String>, String> {
        let label = format!("cdpipe.dev/service={service}");
        let template = format!(
            "go-template={{{{range .items}}}}{{{{if not .metadata.deletionTimestamp}}}}{{{{range .spec.containers}}}}{{{{{path}}}}} \
             {{{{end}}}}{{{{end}}}}{{{{end}}}}"
        );
        let ended = self.kubectl(&["get", "pods", "-l", &label, "-o", &template]).must()?;
        Ok(ended.output.split_whitespace().map(str::to_owned).collect())
    }

    /// Whether each of the two changes all of its pods: what is at this place of them is another then.
    fn must_roll(&self, service: &str, path: &str, count: usize, job: &Job) -> Result<(), String> {
        let before = self.pods(service, path)?;
        job.must()?;
        let after = self.pods(service, path)?;
        if after.len() != count || after.iter().any(|one| before.contains(one)) {
            return Err(format!("{service} was not rolled: {before:?}, then {after:?}"));
        }
        Ok(())
    }
}

pub(super) fn bench(setup: &Setup) -> Result<Vec<Figure>, String> {
    let mut figures = roll(setup)?;
    figures.extend(calls(setup)?);
    figures.extend(candidate::bench(setup)?);
    Ok(figures)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    write_file(path, text)
}

/// One deploy of one service.
fn pipeline(namespace: &str, service: &str, fields: &str, strategy: &str) -> String {
    format!(
        "param version: string\nenvironment cluster {{\n  target kubernetes {{ namespace = \"{namespace}\" }}\n}}\n\
         service {service} {{\n{fields}\n}}\nstage release {{\n  deploy {service} to cluster {{\n    {strategy}\n  }}\n}}\n"
    )
}

fn roll(setup: &Setup) -> Result<Vec<Figure>, String> {
    let cluster = Cluster::new(setup, "bench-roll")?;
    let (a, b) = cluster.within(|| {
        let registry = cluster.registry;
        let fields = format!(
            "  image = \"{registry}/shop:${{version}}\"\n  port = 8080\n  replicas = 4\n  health http \"/health\" {{ every = 1s, \
             timeout = 2s, within = 60s }}\n  drain = 1s"
        );
        let strategy = "rolling { max_surge = 2, max_unavailable = 1, monitor = 1s }";
        for service in [OURS, PEER] {
            let text = pipeline(cluster.namespace, service, &fields, strategy);
            write(&cluster.dir.join(format!("{service}.cd")), &text)?;
        }
        let ours = |service: &str, version: &str| {
            let (file, version) = (format!("{service}.cd"), format!("version={version}"));
            cluster.cdpipe(&["run", &file, "--set", &version], ONE_ROLL_WITHIN)
        };
        let peer = |version: &str| {
            let change = format!("set image deployment/{PEER} app={registry}/shop:{version}");
            cluster.peer(&change, ONE_ROLL_WITHIN)
        };
        // Both Deployments are made by cdpipe, so that nothing but who rolls them differs.
        for service in [OURS, PEER] {
            ours(service, VERSIONS[0]).must()?;
        }
        cluster.must_roll(OURS, ".image", 4, &ours(OURS, VERSIONS[1]))?;
        cluster.must_roll(PEER, ".image", 4, &peer(VERSIONS[1]))?;
        let turns = [Cell::new(0), Cell::new(0)];
        let next = |turn: &Cell<usize>| {
            turn.set(turn.get() + 1);
            VERSIONS[(turn.get() + 1) % 2]
        };
        alternate(
            setup.rounds,
            || Ok(ours(OURS, next(&turns[0]))),
            || Ok(peer(next(&turns[1]))),
            &cluster.dir,
        )
    })?;
    Ok(vec![Figure {
        id: "kubernetes-roll",
        what: "a roll of a Deployment: 4 pods, 2 more and 1 less at a time, 1 s of monitoring".to_owned(),
        unit: "ms",
        ours: a,
        peer: Some(("kubectl set image, rollout status".to_owned(), b)),
        aim: Aim::AtMost(1.05),
    }])
}

/// What both ask of the API server and read from it while 100 pods are rolled. Once: these are counts, not times.
fn calls(setup: &Setup) -> Result<Vec<Figure>, String> {
    let mut cluster = Cluster::new(setup, "bench-calls")?;
    let counter = Counter::before(cluster.kubectl, &cluster.kubeconfig)?;
    let path = cluster.dir.join("kubeconfig");
    write(&path, &counter.kubeconfig())?;
    cluster.kubeconfig = path.display().to_string();
    let cluster = &cluster;
    let (ours, peer) = cluster.within(|| {
        let registry = cluster.registry;
        let fields = format!(
            "  image = \"{registry}/pause:1\"\n  version = version\n  replicas = {MANY}\n  env {{ N = version }}"
        );
        let strategy = "rolling { max_surge = 10, max_unavailable = 0 }";
        let file = cluster.dir.join("many.cd");
        let ours = |service: &str, version: &str| -> Result<Job, String> {
            write(&file, &pipeline(cluster.namespace, service, &fields, strategy))?;
            let version = format!("version={version}");
            Ok(cluster.cdpipe(&["run", "many.cd", "--set", &version], MANY_WITHIN))
        };
        let env = "(index .env 2).value";
        let counted = |service: &str, job: &Job| -> Result<(f64, f64), String> {
            let before = counter.sum();
            cluster.must_roll(service, env, MANY, job)?;
            let after = counter.sum();
            // The two looks at the pods are not theirs.
            let looks = counter.sum();
            cluster.pods(service, env)?;
            let look = counter.sum().less(&looks);
            let sum = after.less(&before).less(&look).less(&look);
            say(&format!("{service}: {} calls, {} bytes", sum.calls, sum.bytes));
            #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
            Ok((sum.calls as f64, sum.bytes as f64 / 1e6))
        };
        ours(OURS, VERSIONS[0])?.must()?;
        let first = counted(OURS, &ours(OURS, VERSIONS[1])?)?;
        cluster.cdpipe(&["down", "many.cd"], MANY_WITHIN).must()?;
        ours(PEER, VERSIONS[0])?.must()?;
        // What kubectl looks up once for a cluster and keeps is not counted.
        cluster.kubectl(&["get", "deployments"]).must()?;
        let change = format!("set env deployment/{PEER} N={}", VERSIONS[1]);
        let second = counted(PEER, &cluster.peer(&change, MANY_WITHIN))?;
        Ok((first, second))
    })?;
    let figure = |id, what: &str, unit, ours, peer| Figure {
        id,
        what: format!("{what} during a roll of a Deployment with {MANY} pods"),
        unit,
        ours: vec![ours],
        peer: Some(("kubectl set env, rollout status".to_owned(), vec![peer])),
        aim: Aim::Told,
    };
    Ok(vec![
        figure("kubernetes-bytes", "read from the API server", "MB", ours.1, peer.1),
        figure("kubernetes-calls", "requests to the API server", "requests", ours.0, peer.0),
    ])
}
