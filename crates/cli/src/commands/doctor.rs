//! `cdpipe doctor`: whether this machine has what runs need.

mod places;

use crate::commands::Ended;
use crate::inputs::InputArgs;
use crate::preview;
use crate::state;
use crate::ui::Ui;
use cdpipe_engine::Store;
use cdpipe_proxy::{ClientError, ProxyClient};
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};

/// Arguments of `cdpipe doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A pipeline: the places that it uses are looked at too.
    #[arg(value_name = "FILE")]
    file: Option<String>,
    #[command(flatten)]
    inputs: InputArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// How a finding is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// Something is missing that only some pipelines need.
    Missing,
    Bad,
}

struct Finding {
    what: &'static str,
    health: Health,
    text: String,
    /// What to do about it; may have several lines.
    help: Option<String>,
    /// Of which environment.
    environment: Option<String>,
    /// Rights that are missing, as `verb resource`.
    missing: Vec<String>,
}

impl Finding {
    fn new(what: &'static str, health: Health, text: impl Into<String>) -> Self {
        Self { what, health, text: text.into(), help: None, environment: None, missing: Vec::new() }
    }
}

/// Looks; ends with 1 if something is wrong that every run needs.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let mut findings = vec![state_finding(), shell_finding()];
    findings.push(tool(
        "git",
        &["--version"],
        "facts of the commit are empty without it (`git.sha`, `git.branch`, `git.tag`)",
    ));
    findings.push(proxy_finding());
    findings.push(proc_finding());
    if let Some(file) = &args.file {
        match places::look(file, &args.inputs, ui)? {
            Some(found) => findings.extend(found),
            None => return Ok(2),
        }
    }
    if args.json {
        let list: Vec<_> = findings
            .iter()
            .map(|finding| {
                let health = match finding.health {
                    Health::Good => "good",
                    Health::Missing => "missing",
                    Health::Bad => "bad",
                };
                let mut one = json!({ "what": finding.what, "health": health, "text": finding.text });
                if let Some(environment) = &finding.environment {
                    one["environment"] = json!(environment);
                }
                if let Some(help) = &finding.help {
                    one["help"] = json!(help);
                }
                if !finding.missing.is_empty() {
                    one["missing"] = json!(finding.missing);
                }
                one
            })
            .collect();
        ui.print(&format!("{:#}\n", json!({ "version": 1, "findings": list })));
    } else {
        let mut place = None;
        for finding in &findings {
            if finding.environment != place {
                place.clone_from(&finding.environment);
                let name = place.as_deref().unwrap_or_default();
                ui.print(&format!("\n{}\n", ui.out.bold(&format!("environment {name}"))));
            }
            let mark = match finding.health {
                Health::Good => ui.out.green("ok     "),
                Health::Missing => ui.out.yellow("missing"),
                Health::Bad => ui.out.red("bad    "),
            };
            let wide = if finding.environment.is_some() { 10 } else { 8 };
            ui.print(&format!("{mark}  {:<wide$}  {}\n", finding.what, finding.text));
            for (number, line) in finding.help.iter().flat_map(|help| help.lines()).enumerate() {
                let word = if number == 0 { ui.out.cyan("help: ") } else { "      ".to_owned() };
                ui.print(&format!("         {word}{line}\n"));
            }
        }
    }
    Ok(u8::from(findings.iter().any(|finding| finding.health == Health::Bad)))
}

fn state_finding() -> Finding {
    let finding = |health, text: String| Finding::new("state", health, text);
    let dir = match state::dir(None) {
        Ok(dir) => dir,
        Err(failure) => return finding(Health::Bad, failure.message),
    };
    match Store::open_existing(&dir) {
        Ok(Some(store)) => match store.unfinished() {
            Ok(runs) if runs.is_empty() => {
                finding(Health::Good, format!("{}, no run is under way", dir.display()))
            }
            Ok(runs) => {
                finding(Health::Good, format!("{}, {} runs are not finished", dir.display(), runs.len()))
            }
            Err(error) => finding(Health::Bad, error.to_string()),
        },
        Ok(None) => match writable_ancestor(&dir) {
            true => finding(Health::Good, format!("{}, to be made by the first run", dir.display())),
            false => finding(
                Health::Bad,
                format!("{} cannot be made; set CDPIPE_STATE to a directory that can", dir.display()),
            ),
        },
        Err(error) => finding(Health::Bad, error.to_string()),
    }
}

/// Whether the nearest directory that is there can be written.
fn writable_ancestor(dir: &Path) -> bool {
    dir.ancestors().find(|dir| dir.as_os_str().is_empty() || dir.exists()).is_some_and(|dir| {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
    })
}

fn shell_finding() -> Finding {
    let works = Command::new("/bin/sh")
        .args(["-c", "exit 7"])
        .stdin(Stdio::null())
        .status()
        .is_ok_and(|status| status.code() == Some(7));
    match works {
        true => Finding::new("shell", Health::Good, "/bin/sh runs commands".to_owned()),
        false => Finding::new(
            "shell",
            Health::Bad,
            "/bin/sh does not run commands; `run` steps need it".to_owned(),
        ),
    }
}

fn tool(what: &'static str, args: &[&str], why: &str) -> Finding {
    let output = Command::new(what).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Finding::new(what, Health::Good, text.lines().next().unwrap_or_default())
        }
        _ => Finding::new(what, Health::Missing, why),
    }
}

fn proxy_finding() -> Finding {
    let finding = |health, text: String| Finding::new("proxy", health, text);
    let Ok(dir) = state::dir(None) else {
        return finding(Health::Missing, "there is no state directory to look in".to_owned());
    };
    let client = ProxyClient::new(dir.join("proxy")).with_timeout_ms(2_000);
    match preview::ask(client.ping()) {
        Ok(Ok(pong)) if pong.version == env!("CARGO_PKG_VERSION") => {
            finding(Health::Good, format!("process {} serves", pong.pid))
        }
        Ok(Ok(pong)) => finding(
            Health::Good,
            format!(
                "process {} serves, of version {}; it is replaced when it is started again",
                pong.pid, pong.version
            ),
        ),
        Ok(Err(ClientError::NotRunning { .. })) => {
            finding(Health::Good, "does not run; a run that routes to it starts it".to_owned())
        }
        Ok(Err(error)) => finding(Health::Bad, error.to_string()),
        Err(failure) => finding(Health::Bad, failure.message),
    }
}

fn proc_finding() -> Finding {
    match Path::new("/proc/self/stat").exists() {
        true => Finding::new("proc", Health::Good, "/proc is there: processes can be told apart".to_owned()),
        false => {
            Finding::new("proc", Health::Bad, "/proc is not there; the local target needs it".to_owned())
        }
    }
}
