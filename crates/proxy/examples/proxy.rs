//! The proxy alone, as `cdpipe proxy --state DIR` runs it: what the tests of this crate start as a process of its own.

use std::process::ExitCode;

use cdpipe_proxy::{ServeOptions, serve};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, flag, directory] = arguments.as_slice() else {
        return ExitCode::from(2);
    };
    if command != "proxy" || flag != "--state" {
        return ExitCode::from(2);
    }
    let mut options = ServeOptions::new(directory);
    options.own_session = true;
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
