//! The `shop` binary: `shop` serves, `shop visitors` visits.

use cdpipe_demo::durations;
use cdpipe_demo::fault::Fault;
use cdpipe_demo::server::{Config, Ended, Shop};
use cdpipe_demo::visitors::{RATE_LIMIT_PER_S, Visits};
use clap::{Args, Parser, Subcommand};
use http::Uri;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// A small web service to deploy, and the users who visit it.
#[derive(Parser)]
#[command(name = "shop", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Visit the shop at a steady rate and tell what the visitors met
    Visitors(Visitors),
}

#[derive(Args)]
struct Serve {
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// Address to listen on
    #[arg(long, env = "HOST", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Version to show
    #[arg(long, env = "VERSION", default_value = concat!("v", env!("CARGO_PKG_VERSION")))]
    shop_version: String,
    /// Release id to show; the version where there is none
    #[arg(long, env = "CDPIPE_RELEASE")]
    release: Option<String>,
    /// Longest time to finish requests in flight after SIGTERM, in milliseconds
    #[arg(long, env = "DRAIN_MS", default_value_t = 10_000)]
    drain_ms: u64,
    /// What is wrong with this release: a list of errors=9%, latency=300ms, after=3s, never-healthy, crash-after=5s,
    /// slow-start=2s
    #[arg(long, env = "FAULT", default_value = "", hide_default_value = true)]
    fault: Fault,
}

#[derive(Args)]
struct Visitors {
    /// Where the shop is
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: Uri,
    /// Visitors each second
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_LIMIT_PER_S)))]
    rate: u32,
    /// For how long they come
    #[arg(long = "for", default_value = "30s", value_parser = durations::parse)]
    length: Duration,
    /// Paths they ask for, in turn
    #[arg(long, value_delimiter = ',', default_value = "/")]
    paths: Vec<String>,
    /// How long to wait for the shop to open first
    #[arg(long, default_value = "0s", value_parser = durations::parse)]
    wait: Duration,
    /// Write a line this often, too, not only at the end
    #[arg(long, value_parser = durations::parse)]
    every: Option<Duration>,
    /// Let each come over a connection of its own
    #[arg(long)]
    new_connections: bool,
    /// Exit with 1 if any visit failed
    #[arg(long)]
    fail_on_error: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let line = CommandLine::parse();
    let ended = match line.command {
        None => serve(line.serve).await,
        Some(Command::Visitors(visitors)) => visit(visitors).await,
    };
    ended.unwrap_or_else(|error| {
        say_error(&format!("shop: {error}"));
        ExitCode::FAILURE
    })
}

async fn serve(options: Serve) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let stop = stop_signal()?;
    let config = Config {
        listen: SocketAddr::new(options.host, options.port),
        release: options
            .release
            .filter(|release| !release.is_empty())
            .unwrap_or_else(|| options.shop_version.clone()),
        version: options.shop_version,
        drain: Duration::from_millis(options.drain_ms),
        fault: options.fault,
    };
    let (version, release) = (config.version.clone(), config.release.clone());
    let shop = Shop::bind(config).await?;
    let pid = std::process::id();
    say(&format!("shop {version} (release {release}) listens on http://{}, pid {pid}", shop.address()));
    match shop.run(stop).await {
        Ended::Drained { took, cut: 0 } => say(&format!("shop {version} drained in {} ms", took.as_millis())),
        Ended::Drained { cut, .. } => {
            say_error(&format!(
                "shop {version}: {cut} connections were still busy after the drain and are cut"
            ));
        }
        Ended::Crashed => {
            say_error(&format!("shop {version}: crash, as $FAULT asks"));
            // What is in flight must be cut as a crash cuts it, not finished by an orderly return.
            std::process::exit(101);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn visit(options: Visitors) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let stop = stop_signal()?;
    let visits = Visits {
        url: options.url,
        rate_per_s: options.rate,
        length: options.length,
        paths: options.paths,
        wait: options.wait,
        every: options.every,
        new_connections: options.new_connections,
    };
    let tally =
        visits.run(stop, |since, tally| say(&format!("visitors, {} s: {tally}", since.as_secs()))).await?;
    say(&format!("visitors: {tally}"));
    Ok(if options.fail_on_error && tally.failed() > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Ready at the first SIGTERM or SIGINT; the handlers stand when this returns, so no early signal is lost.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn say(line: &str) {
    // Who reads the output may have gone; that is no reason to stop serving.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn say_error(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
