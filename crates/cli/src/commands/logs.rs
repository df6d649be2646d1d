//! `cdpipe logs`: everything a run said, line by line; also while it goes on.

use crate::commands::Ended;
use crate::history::Replay;
use crate::state;
use crate::times;
use crate::ui::Ui;
use cdpipe_engine::{RunState, Store};
use cdpipe_report::Reporter;
use cdpipe_report::json::JsonLines;
use cdpipe_report::plain::Plain;
use cdpipe_report::state::RunState as Folded;
use cdpipe_report::style::Style;
use std::sync::Arc;
use std::time::Duration;

/// How often a run that goes on is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Arguments of `cdpipe logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which run (some letters of its id; without one the last), and which stage of it.
    #[arg(value_names = ["RUN", "STAGE"], num_args = 0..=2)]
    words: Vec<String>,
    /// Go on with what comes, until the run ends.
    #[arg(long, short)]
    follow: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Prints them.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let store = state::open_existing()?;
    let run = match args.words.first() {
        Some(part) => state::find_run(&store, part)?,
        None => match store.runs(1)?.pop() {
            Some(run) => run,
            None => state::only_unfinished(&store)?,
        },
    };
    let header = Arc::new(store.header(&run.run)?);
    let node = args
        .words
        .get(1)
        .map(|name| state::node_named(&header.plan, &format!("run {}", header.run), name))
        .transpose()?;
    let style = Style { color: ui.out.color, unicode: ui.out.unicode };
    let stdout = std::io::stdout();
    let mut reporter: Box<dyn Reporter> = if args.json {
        Box::new(JsonLines::new(stdout, Folded::default()))
    } else {
        let plain = Plain::new(stdout, style, Folded::default()).without_summary();
        Box::new(match node {
            Some(node) => plain.only(node),
            None => plain,
        })
    };
    let mut replay = Replay::new(&store, &header, &mut *reporter);
    loop {
        // Asked before reading: what was written before the run ended is then read in this round.
        let over = !args.follow || !is_driven(&store, &run.run)?;
        replay.tell(&store, &mut *reporter)?;
        if over {
            reporter.finish(times::now_ms());
            return Ok(0);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn is_driven(store: &Store, run: &cdpipe_model::RunId) -> Result<bool, crate::failure::Failure> {
    Ok(store.run(run)?.state == RunState::Running)
}
