//! A canary through Istio ends: from the moment at which its metric turns bad, or at which somebody says `cdpipe cancel`, to the last answer
//! that a user gets from it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::Setup;
use super::super::figure::{Aim, Figure};
use super::{Cluster, ONE_ROLL_WITHIN, VERSIONS, write};
use crate::net;

/// How often the metric is looked at.
const POLL_MS: u32 = 500;
/// Users who ask one after the other.
const USERS: usize = 4;
/// Of the demo service.
const VERSION_HEADER: &str = "x-shop-version: ";
const HOST: &str = "bench.lab";

/// Who answered when.
type Answers = Arc<Mutex<Vec<(Instant, String)>>>;

fn pipeline(cluster: &Cluster<'_>) -> String {
    format!(
        "pipeline candidate {{ mode = deployment }}\nparam version: string\nenvironment cluster {{\n  target kubernetes {{ namespace = \
         \"{}\" }}\n  traffic istio {{ virtual_service = \"web\" }}\n}}\nservice web {{\n  image = \"{}/shop:${{version}}\"\n  port = \
         8080\n  replicas = 2\n  health http \"/health\" {{ every = 1s, timeout = 2s, within = 60s }}\n  drain = 1s\n}}\nmetrics shop \
         {{\n  source command\n  error_rate: percent = 'cat \"errors-$CDPIPE_ROLE\" 2>/dev/null || echo 0'\n}}\nstage release {{\n  \
         deploy web to cluster {{\n    canary {{ step 50% for 60s }}\n    watch every {POLL_MS}ms {{\n      rollback when \
         candidate.error_rate > 5%\n      after = 0s\n    }}\n  }}\n}}\n",
        cluster.namespace, cluster.registry
    )
}

fn route(namespace: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: {namespace}}}\nspec: {{hosts: [{HOST}], \
         gateways: [istio-system/edge], http: [{{route: [{{destination: {{host: web, port: {{number: 80}}}}}}]}}]}}\n"
    )
}

/// Why a canary goes back.
#[derive(Clone, Copy)]
enum Cause {
    /// Its metric turns bad.
    Breach,
    /// Somebody cancels the run.
    Cancel,
}

impl Cause {
    fn exit_code(self) -> i32 {
        match self {
            Self::Breach => 3,
            Self::Cancel => 1,
        }
    }
}

pub(super) fn bench(setup: &Setup) -> Result<Vec<Figure>, String> {
    let edge = setup.lab("CDPIPE_LAB_ISTIO")?.to_owned();
    let cluster = Cluster::new(setup, "bench-candidate")?;
    let ours = cluster.within(|| {
        write(&cluster.dir.join("web.cd"), &pipeline(&cluster))?;
        let file = cluster.dir.join("route.yml");
        write(&file, &route(cluster.namespace))?;
        cluster.kubectl(&["apply", "-f", &file.display().to_string()]).must()?;
        let over = Arc::new(AtomicBool::new(false));
        let answers = Answers::default();
        cluster
            .cdpipe(&["run", "web.cd", "--set", &format!("version={}", VERSIONS[0])], ONE_ROLL_WITHIN)
            .must()?;
        let users: Vec<_> = (0..USERS)
            .map(|_| {
                let (edge, over, answers) = (edge.clone(), Arc::clone(&over), Arc::clone(&answers));
                std::thread::spawn(move || ask(&edge, &over, &answers))
            })
            .collect();
        let rounds = |cause| (0..setup.rounds).map(|_| round(&cluster, &answers, cause)).collect();
        let measured = [Cause::Breach, Cause::Cancel].map(rounds);
        over.store(true, Ordering::Relaxed);
        for user in users {
            user.join().map_err(|_| "a user ended early".to_owned())?;
        }
        Ok(measured)
    })?;
    let [breach, cancel]: [Result<Vec<f64>, String>; 2] = ours;
    let figure = |id, what, ours| Figure {
        id,
        what,
        unit: "ms",
        ours,
        peer: None,
        aim: Aim::AtMost(f64::from(POLL_MS) + 1000.0),
    };
    Ok(vec![
        figure(
            "istio-breach",
            format!(
                "from a breach of a canary's metric to its last answer at Envoy, {USERS} users, looked at every {POLL_MS} ms"
            ),
            breach?,
        ),
        figure(
            "istio-cancel",
            format!("from `cdpipe cancel` of a canary to its last answer at Envoy, {USERS} users"),
            cancel?,
        ),
    ])
}

/// Asks again and again, on a new connection each time.
fn ask(edge: &str, over: &AtomicBool, answers: &Answers) {
    while !over.load(Ordering::Relaxed) {
        let version = TcpStream::connect(edge).ok().and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            write!(stream, "GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n").ok()?;
            let mut said = String::new();
            stream.read_to_string(&mut said).ok()?;
            said.lines().find_map(|line| line.strip_prefix(VERSION_HEADER).map(str::to_owned))
        });
        let version = version.unwrap_or_else(|| "nobody".to_owned());
        answers.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), version));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Milliseconds from the cause to the last answer of the candidate.
fn round(cluster: &Cluster<'_>, answers: &Answers, cause: Cause) -> Result<f64, String> {
    let candidate = VERSIONS[1];
    let since = |begin: Instant| {
        let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().filter(|(at, _)| *at >= begin).cloned().collect::<Vec<_>>()
    };
    let errors = cluster.dir.join("errors-candidate");
    let _ = std::fs::remove_file(&errors);
    let begin = Instant::now();
    let deploy =
        cluster.cdpipe(&["run", "web.cd", "--set", &format!("version={candidate}")], ONE_ROLL_WITHIN);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| deploy.capture());
        let half = || since(begin).iter().filter(|(_, version)| version == candidate).count() >= 20;
        let serves = net::until(ONE_ROLL_WITHIN, half, || run.is_finished());
        let begin = Instant::now();
        match cause {
            Cause::Breach => write(&errors, "50\n")?,
            Cause::Cancel => cluster.cdpipe(&["cancel"], ONE_ROLL_WITHIN).must().map(drop)?,
        }
        let ended = run.join().map_err(|_| "the run ended early".to_owned())??;
        if !serves || ended.code != cause.exit_code() {
            return Err(format!("the canary did not go back ({}):\n{}", ended.how(), ended.output));
        }
        let after = since(begin);
        if after.iter().any(|(_, version)| version == "nobody") {
            return Err("a user got no answer".to_owned());
        }
        let last = after.iter().filter(|(_, version)| version == candidate).map(|(at, _)| *at).max();
        Ok(last.map_or(0.0, |last| (last - begin).as_secs_f64() * 1e3))
    })
}
