//! `cargo xtask`: the chores of this repository, in one place and in Rust.
//!
//! - `test`  sets up what the tests need (through `lab`), runs every test of the workspace, takes down what it set up.
//! - `ci`    everything a change must pass, cheapest first.
//! - `bench` measures cdpipe beside a peer in the same run and prints ratios.
//! - `soak`  the tests again and again for a time, with new seeds, to find what fails rarely.
//! - `lab`   the real components the tests and benches talk to: engines, machines, a cluster, routers and tools.
//!
//! May use: std, libc, serde_json. Deliberately NOT here: any crate of the product (a change to the product must never
//! make the tool that tests it slow or impossible to build), and async (nothing here waits for more than one thing).
//!
//! Invariants: a wait has a deadline; what `lab` ends is what `lab` started; a figure that was not measured is not printed.

mod args;
mod bench;
mod ci;
mod fuzz;
mod lab;
mod net;
mod process;
mod project;
mod runner;
mod say;
mod soak;
mod sys;
mod test;

use std::process::ExitCode;

use say::say;

const USAGE: &str = "\
cargo xtask test  [--timeout-min N] [--keep-lab] [--no-lab] [FILTER …]
                                       every test of the workspace; sets up and takes down the parts of the lab it needs
cargo xtask ci    [--only A,B] [--except A,B] [--fuzz-min N]
                                       fmt, clippy, deny, doc, fuzz, test: cheapest first, all of them, one summary
cargo xtask bench [NAME …] [--rounds N] [--quick] [--profile P [--no-build] | --binary FILE] [--write] [--json FILE]
                                       check, run, proxy, start, memory, size, journal, resume, faults, swarm, hosts,
                                       kubernetes: ratios to a peer measured in the same run where there is one
cargo xtask soak  [--minutes N] [FILTER …]
                                       the tests again and again with new seeds, until the time is up or one fails
cargo xtask lab   up|down|status|env [PART …]
                                       the real components: services in .lab/, tools in the user's cache
                                       (`cargo xtask lab status` names the parts)";

fn main() -> ExitCode {
    sys::forward_signals();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match words.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[] as &[String]),
    };
    let result = match command {
        "test" => test::command(rest),
        "ci" => ci::command(rest),
        "bench" => bench::command(rest),
        "soak" => soak::command(rest),
        "lab" => lab::command(rest),
        runner::NAME => runner::command(rest),
        "help" | "-h" | "--help" => {
            say(USAGE);
            Ok(())
        }
        other => Err(format!("there is no `cargo xtask {other}`\n\n{USAGE}")),
    };
    match result {
        Ok(()) if sys::interrupted() => ExitCode::from(130),
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            say::complain(&format!("error: {message}"));
            ExitCode::from(if sys::interrupted() { 130 } else { 1 })
        }
    }
}
