//! `cdpipe proxy`: the built-in reverse proxy. A run starts it by itself; these are for looking at it, and for running it by hand.

use crate::commands::Ended;
use crate::failure::{self, Failure};
use crate::state;
use crate::ui::Ui;
use cdpipe_proxy::{ClientError, ProxyClient, ServeOptions};
use cdpipe_report::words;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Arguments of `cdpipe proxy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Its state directory; the project's without it.
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(flatten)]
    serve: ServeArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// How it serves.
#[derive(Debug, Default, clap::Args)]
struct ServeArgs {
    /// Also serve `/metrics` and `/healthz` here.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Threads that carry traffic; one for each core without it.
    #[arg(long, value_name = "COUNT")]
    workers: Option<usize>,
}

/// What is asked of it.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serve in the foreground.
    Serve(ServeArgs),
    /// Show what it serves.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print its numbers as Prometheus text.
    Metrics,
    /// Stop it: requests in flight get half a minute.
    Stop,
}

/// Serves, or asks the one that serves.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let dir = match &args.state {
        Some(dir) => dir.clone(),
        None => state::dir(None)?.join("proxy"),
    };
    match &args.command {
        // Started by a run: it must not end with the terminal that the run was started from.
        None => serve(dir, &args.serve, !std::io::stdin().is_terminal()),
        Some(Command::Serve(args)) => serve(dir, args, false),
        Some(Command::Status { json }) => {
            let client = ProxyClient::new(&dir);
            let (pong, now) = ask(async { Ok((client.ping().await?, client.get().await?)) })?;
            ui.print(&if *json { as_json(&pong, &now) } else { as_text(&pong, &now, ui) });
            Ok(0)
        }
        Some(Command::Metrics) => {
            let text = ask(ProxyClient::new(&dir).metrics())?;
            ui.print(&text);
            Ok(0)
        }
        Some(Command::Stop) => {
            let pong = ask(ProxyClient::new(&dir).shutdown())?;
            ui.print(&format!("the proxy (process {}) stops\n", pong.pid));
            Ok(0)
        }
    }
}

fn serve(dir: PathBuf, args: &ServeArgs, own_session: bool) -> Ended {
    let mut options = ServeOptions::new(dir);
    options.admin_listen = args.admin;
    options.own_session = own_session;
    if let Some(workers) = args.workers {
        options.workers = workers.clamp(1, 256);
    }
    cdpipe_proxy::serve(&options)
        .map_err(|error| Failure::new(&failure::TARGET, error.to_string()).exit(1))?;
    Ok(0)
}

fn ask<T>(call: impl Future<Output = Result<T, ClientError>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(&failure::CANNOT_RUN, error.to_string()))?;
    runtime.block_on(call).map_err(|error| {
        let failure = Failure::new(&failure::TARGET, error.to_string()).exit(1);
        match error {
            ClientError::NotRunning { .. } => {
                failure.help("a run that routes to it starts it; `cdpipe proxy serve` runs it by hand")
            }
            _ => failure,
        }
    })
}

fn as_text(
    pong: &cdpipe_proxy::control::protocol::Pong,
    now: &cdpipe_proxy::control::protocol::State,
    ui: &Ui,
) -> String {
    let look = ui.out;
    let mut text = format!(
        "{}\n",
        look.dim(&format!(
            "process {}, version {}, {} connections{}",
            pong.pid,
            pong.version,
            now.connections,
            if pong.stopping { ", stopping" } else { "" },
        ))
    );
    for fenced in &now.table.routes {
        let table = &fenced.table;
        let route = &table.route;
        let mut place = route.listen.clone().unwrap_or_else(|| "no listener".to_owned());
        place.extend(route.host.iter().map(|host| format!(" host {host}")));
        place.extend(route.path.iter().map(|path| format!(" path {path}")));
        text.push_str(&format!("\n{} on {place}\n", look.bold(route.service.as_str())));
        if table.entries.is_empty() {
            text.push_str(&format!("  {}\n", look.yellow("closed: answers 503")));
        }
        for entry in &table.entries {
            let in_flight = now
                .loads
                .iter()
                .filter(|load| load.service == route.service.0 && load.release == entry.release.0)
                .map(|load| load.in_flight)
                .sum::<u64>();
            text.push_str(&format!(
                "  {:>6}  {}  {}, {}, {in_flight} in flight\n",
                words::share(entry.weight_bp),
                entry.release,
                entry.role.as_str(),
                words::count(u32::try_from(entry.members.len()).unwrap_or(u32::MAX), "instance"),
            ));
        }
    }
    if now.table.routes.is_empty() {
        text.push_str("no routes\n");
    }
    text
}

fn as_json(
    pong: &cdpipe_proxy::control::protocol::Pong,
    now: &cdpipe_proxy::control::protocol::State,
) -> String {
    let value: Value = json!({
        "version": 1,
        "pid": pong.pid,
        "cdpipe_version": pong.version,
        "stopping": pong.stopping,
        "connections": now.connections,
        "routes": now.table.routes.iter().map(|fenced| &fenced.table).collect::<Vec<_>>(),
        "in_flight": now.loads,
    });
    format!("{value:#}\n")
}
