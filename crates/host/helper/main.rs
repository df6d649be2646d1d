//! What the tests of this crate start: a supervisor, a starter that can be killed, and services that behave badly on purpose.

#[path = "../tests/support/context.rs"]
mod context;

use cdpipe_host::{Local, LocalConfig, Masker, Policy, supervise};
use cdpipe_model::ports::Target as _;
use context::Context;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    if let Some(code) = supervise::intercept(std::env::args_os()) {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
    match args.first().map(String::as_str) {
        Some("serve") => serve(
            millis(flag("--slow-ms")),
            flag("--crash-after-ms").map(|text| millis(Some(text))),
            flag("--status").unwrap_or_else(|| "200 OK".to_owned()),
            flag("--sick-file").map(PathBuf::from),
        ),
        Some("ensure") => ensure(&args[1..]),
        _ => ExitCode::from(64),
    }
}

fn millis(text: Option<String>) -> Duration {
    Duration::from_millis(text.and_then(|text| text.parse().ok()).unwrap_or_default())
}

/// An HTTP service on `$PORT`: every answer is its release and process id.
fn serve(
    slow: Duration,
    crash_after: Option<Duration>,
    status: String,
    sick_file: Option<PathBuf>,
) -> ExitCode {
    say(&format!("starting {}", std::env::var("VERSION").unwrap_or_default()));
    std::thread::sleep(slow);
    let begun = Instant::now();
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(0_u16);
    let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(listener) => listener,
        Err(error) => {
            say(&format!("cannot listen on {port}: {error}"));
            return ExitCode::from(98);
        }
    };
    if let Some(after) = crash_after {
        std::thread::spawn(move || {
            std::thread::sleep(after.saturating_sub(begun.elapsed()));
            say("about to crash");
            std::process::exit(7);
        });
    }
    for stream in listener.incoming().flatten() {
        let mut stream = stream;
        let sick = sick_file.as_ref().is_some_and(|path| path.exists());
        let status = if sick { "500 Sick" } else { &status };
        let mut request = [0_u8; 1024];
        let _ = stream.read(&mut request);
        let body = format!("{} {}", std::env::var("CDPIPE_RELEASE").unwrap_or_default(), std::process::id());
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    ExitCode::SUCCESS
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// `ensure STATE BASE SPEC.json COUNT`: a cdpipe of its own, which a test can race with or kill.
fn ensure(args: &[String]) -> ExitCode {
    let [state, base, spec, count] = args else { return ExitCode::from(64) };
    let work = || -> Result<usize, String> {
        let spec = std::fs::read(spec).map_err(|error| error.to_string())?;
        let spec = serde_json::from_slice(&spec).map_err(|error| error.to_string())?;
        let count = count.parse().map_err(|_| "COUNT".to_owned())?;
        let local = Local::new(
            LocalConfig {
                state: PathBuf::from(state),
                environment: "test".into(),
                base: PathBuf::from(base),
                supervisor: std::env::current_exe().map_err(|error| error.to_string())?,
                policy: Policy::default(),
            },
            Masker::default(),
        );
        let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
        let context = Context::default();
        runtime
            .block_on(local.ensure(context.call(), &spec, count, &BTreeMap::new()))
            .map(|instances| instances.len())
            .map_err(|fault| format!("{fault:?}"))
    };
    match work() {
        Ok(count) => {
            say(&count.to_string());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "{reason}");
            ExitCode::FAILURE
        }
    }
}
