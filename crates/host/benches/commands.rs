//! What a command costs beyond its process: 10,000 times `true`, two at a time, by the runner and by a plain spawn.
//!
//! `cargo bench -p cdpipe-host`

#![allow(clippy::expect_used, reason = "a bench that can't run has nothing to say")]
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

#[allow(dead_code, reason = "each user takes a part")]
#[path = "../tests/support/context.rs"]
mod context;

use cdpipe_host::{HostRunner, Masker, RunnerConfig};
use cdpipe_model::action::RunAction;
use cdpipe_model::ports::Runner as _;
use context::Context;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const COMMANDS: usize = 10_000;
const PARALLEL: usize = 2;

fn main() {
    let plain = best_of(plain);
    let single = best_of(|| runner(tokio::runtime::Builder::new_current_thread()));
    let multi = best_of(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(PARALLEL);
        runner(builder)
    });
    println!("{COMMANDS} x `sh -ec true`, {PARALLEL} at a time, milliseconds each:");
    println!("                             took  ratio   own CPU time");
    for (name, cost) in
        [("spawned plainly, no pipes", plain), ("runner, one thread", single), ("runner, two threads", multi)]
    {
        let ratio = cost.took.as_secs_f64() / plain.took.as_secs_f64();
        println!("  {name:<25} {:.3}   {ratio:.2}   {:.3}", each(cost.took), each(cost.own));
    }
}

/// What all of them cost.
#[derive(Clone, Copy)]
struct Cost {
    took: Duration,
    /// Processor time of this process; that of the commands is not in it.
    own: Duration,
}

#[allow(clippy::cast_precision_loss, reason = "ten thousand")]
fn each(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0 / COMMANDS as f64
}

/// The machine may be busy: the least disturbed of three says most.
fn best_of(measure: impl Fn()) -> Cost {
    let once = || {
        let (begun, before) = (Instant::now(), own_time());
        measure();
        Cost { took: begun.elapsed(), own: own_time().saturating_sub(before) }
    };
    let all = [once(), once(), once()];
    Cost {
        took: all.map(|cost| cost.took).into_iter().min().unwrap_or_default(),
        own: all.map(|cost| cost.own).into_iter().min().unwrap_or_default(),
    }
}

/// User and system time of all threads, in the kernel's ticks of 10 ms.
fn own_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    let fields: Vec<&str> = text.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

fn plain() {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < COMMANDS {
                    let status = Command::new("/bin/sh")
                        .args(["-ec", "true"])
                        .stdin(Stdio::null())
                        .process_group(0)
                        .status()
                        .expect("runs");
                    assert!(status.success());
                }
            });
        }
    });
}

fn runner(mut builder: tokio::runtime::Builder) {
    let folder = tempfile::tempdir().expect("a folder");
    let runner = Arc::new(HostRunner::new(
        RunnerConfig {
            base: folder.path().to_owned(),
            commands: folder.path().join("commands"),
            supervisor: env!("CARGO_BIN_EXE_cdpipe-host-helper").into(),
            grace: Duration::from_secs(5),
            hidden_env: Vec::new(),
        },
        Masker::default(),
    ));
    let runtime = builder.enable_all().build().expect("a runtime");
    let next = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..PARALLEL)
        .map(|_| {
            let (runner, next) = (Arc::clone(&runner), Arc::clone(&next));
            runtime.spawn(async move {
                let context = Context::default();
                let run = RunAction {
                    script: "true".to_owned(),
                    env: BTreeMap::new(),
                    dir: None,
                    stdin: None,
                    image: None,
                    environment: None,
                    outputs: Vec::new(),
                };
                while next.fetch_add(1, Ordering::Relaxed) < COMMANDS {
                    runner.run(context.call(), &run).await.expect("succeeds");
                }
            })
        })
        .collect();
    runtime.block_on(async {
        for worker in workers {
            worker.await.expect("ends");
        }
    });
}
