//! Checks and plans the files it is given, for trying things out: `cargo run -p cdpipe-check --example check -- FILE…`.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example is the rim: it reads files and prints"
)]

use cdpipe_check::{Inputs, check, plan};

fn main() {
    for path in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let started = std::time::Instant::now();
        let checked =
            check(&path, &text, &|path| std::fs::read_to_string(path).map_err(|error| error.to_string()));
        println!("{path}: checked in {:?}", started.elapsed());
        let show = |diags: &[cdpipe_syntax::Diagnostic]| {
            for diag in diags.iter().take(50) {
                let at = checked.sources.line_col(diag.primary.span);
                println!("  {}:{} {} {:?}: {}", at.line, at.col, diag.code(), diag.severity, diag.message);
                for label in std::iter::once(&diag.primary).chain(&diag.secondary) {
                    let at = checked.sources.line_col(label.span);
                    println!(
                        "      {}:{} `{}` {}",
                        at.line,
                        at.col,
                        checked.sources.slice(label.span),
                        label.text
                    );
                }
                if let Some(help) = &diag.help {
                    println!("      help: {help}");
                }
            }
        };
        show(&checked.diagnostics);
        match plan(&checked, &Inputs::default()) {
            Ok(plan) => println!("{}", serde_json::to_string_pretty(&plan).unwrap_or_default()),
            Err(diags) => {
                println!("  no plan:");
                show(&diags);
            }
        }
    }
}
