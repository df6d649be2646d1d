//! `cdpipe approve | reject | pause | promote | retry | cancel`: what a person asks of a run that is under way.

use crate::commands::Ended;
use crate::drive::{self, ShowArgs};
use crate::failure::{self, Failure};
use crate::history;
use crate::override_gate;
use crate::state::{self, Meant};
use crate::ui::Ui;
use cdpipe_engine::{RunState, Store};
use cdpipe_model::NodeId;
use cdpipe_model::record::Signal;
use cdpipe_report::state::RunState as Folded;

/// `[RUN] [STAGE]` and who asks.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Which run (some letters of its id; without one the only one under way), and which gate or stage of it.
    #[arg(value_names = ["RUN", "STAGE"], num_args = 0..=2)]
    words: Vec<String>,
    /// In whose name; the user's own without it.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// Arguments of `cdpipe approve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Approve {
    #[command(flatten)]
    target: Target,
    /// Open the gate without its conditions; needs a reason, and is journaled.
    #[arg(long = "override", requires = "reason")]
    without_conditions: bool,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Arguments of `cdpipe reject`.
#[derive(Debug, clap::Args)]
pub(crate) struct Reject {
    #[command(flatten)]
    target: Target,
    /// Why.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Arguments of `cdpipe pause`.
#[derive(Debug, clap::Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    target: Target,
    /// Go on after a pause.
    #[arg(long)]
    end: bool,
}

/// Arguments of `cdpipe promote`.
#[derive(Debug, clap::Args)]
pub(crate) struct Promote {
    #[command(flatten)]
    target: Target,
    /// Skip all that is left of the soak, not only the step under way.
    #[arg(long)]
    full: bool,
}

/// Arguments of `cdpipe retry`.
#[derive(Debug, clap::Args)]
pub(crate) struct Retry {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    show: ShowArgs,
}

/// Arguments of `cdpipe cancel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Cancel {
    #[command(flatten)]
    target: Target,
    /// Why.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    show: ShowArgs,
}

/// Gives an approval.
pub(crate) fn approve(args: &Approve, ui: &Ui) -> Ended {
    let asked = Asked::of(&args.target)?;
    if args.without_conditions {
        let by = asked.by.clone();
        let node = asked
            .node(|_, now| now.started_at_ms.is_some() && now.finished.is_none(), "no gate is closed")?;
        let node = override_gate::gate(&asked.meant.header.plan, node)?;
        let reason = args.reason.clone().unwrap_or_default();
        return asked.send(
            Signal::Override { node, by, reason },
            "opened without its conditions",
            Some(node),
            ui,
        );
    }
    let node = asked.node(|_, now| now.approval.is_some(), "nothing waits for an approval")?;
    if asked.state.nodes.get(node.0 as usize).is_none_or(|now| now.approval.is_none()) {
        return Err(Failure::new(
            &failure::NOT_POSSIBLE,
            format!("`{}` does not wait for an approval", asked.state.name(Some(node))),
        )
        .help(format!("`cdpipe status {}` shows what it does", asked.meant.run.run)));
    }
    let by = asked.approver(node, args.target.by.is_some())?;
    let me = state::user();
    let person = crate::people::person_of(&by, &me);
    let approval = asked.state.nodes.get(node.0 as usize).and_then(|now| now.approval.as_ref());
    let (given, quorum, effect_hash) = approval.map_or_else(Default::default, |approval| {
        (approval.given.as_slice(), approval.quorum, approval.effect_hash.clone())
    });
    if given.contains(&person) {
        let more = (quorum as usize).saturating_sub(given.len());
        return Err(Failure::new(
            &failure::NOT_POSSIBLE,
            format!("`{person}` has approved `{}` already", asked.state.name(Some(node))),
        )
        .help(format!(
            "{more} more of {} are needed",
            approval.map_or_else(String::new, |approval| approval.by.join(", "))
        )));
    }
    asked.send(Signal::Approve { node, by, person, effect_hash }, "approved", Some(node), ui)
}

/// Refuses an approval.
pub(crate) fn reject(args: &Reject, ui: &Ui) -> Ended {
    let asked = Asked::of(&args.target)?;
    let node = asked.node(|_, now| now.approval.is_some(), "nothing waits for an approval")?;
    let signal = Signal::Reject { node, by: asked.by.clone(), reason: args.reason.clone() };
    asked.send(signal, "rejected", Some(node), ui)
}

/// Starts nothing new, or goes on.
pub(crate) fn pause(args: &Pause, ui: &Ui) -> Ended {
    let asked = Asked::of(&args.target)?;
    let by = asked.by.clone();
    if args.end {
        asked.send(Signal::Continue { by }, "goes on", None, ui)
    } else {
        asked.send(
            Signal::Pause { by },
            "paused: what is under way goes on, nothing new is started",
            None,
            ui,
        )
    }
}

/// Skips a soak.
pub(crate) fn promote(args: &Promote, ui: &Ui) -> Ended {
    let asked = Asked::of(&args.target)?;
    let node =
        asked.node(|_, now| now.deploy.is_some() && now.finished.is_none(), "no deploy is under way")?;
    let signal = Signal::Promote { node, full: args.full, by: asked.by.clone() };
    asked.send(signal, "promoted", Some(node), ui)
}

/// Tries a failed stage again. A run that has ended goes on from here; the exit code is its own then.
pub(crate) fn retry(args: &Retry, ui: &Ui) -> Ended {
    let asked = Asked::of_any(&args.target)?;
    let run = &asked.meant.run;
    let failed = |now: &cdpipe_report::state::NodeState| {
        now.finished.as_ref().is_some_and(|finished| finished.outcome.exit_code() != 0)
    };
    let node = asked.node(|_, now| failed(now), "no stage has failed")?;
    let name = asked.state.name(Some(node)).to_owned();
    if !asked.state.nodes.get(node.0 as usize).is_some_and(failed) {
        return Err(Failure::new(
            &failure::NOT_POSSIBLE,
            format!("`{name}` has not failed in run {}", run.run),
        )
        .help(format!("`cdpipe status {}` shows how its stages ended", run.run)));
    }
    let signal = Signal::Retry { node, by: asked.by.clone() };
    if run.state.is_unfinished() {
        return asked.send(signal, "is tried again", Some(node), ui);
    }
    if run.state == RunState::Abandoned {
        return Err(asked.over());
    }
    // What came after it stands: an older run must not bring back what that has replaced.
    if let Some(newer) = asked.store.newest_of(&run.file)?.filter(|newest| newest.run != run.run) {
        return Err(Failure::new(
            &failure::NOT_POSSIBLE,
            format!("run {} of this pipeline was started after run {}", newer.run, run.run),
        )
        .help(format!("start a new one with `cdpipe run {}`", run.file)));
    }
    asked.store.reopen(&run.run, signal)?;
    drive::resume(&asked.store, &run.run, &args.show, ui)
}

/// Stops a run and undoes what is under way.
pub(crate) fn cancel(args: &Cancel, ui: &Ui) -> Ended {
    let asked = Asked::of(&args.target)?;
    let signal = Signal::Cancel { by: asked.by.clone(), reason: args.reason.clone() };
    let run = &asked.meant.run.run;
    if asked.store.send(run, signal)? {
        ui.print(&format!("run {run} is cancelled by {}: what is under way is undone\n", asked.by));
        return Ok(0);
    }
    // Nobody drives it: what it has begun is undone from here.
    drive::resume(&asked.store, run, &args.show, ui)?;
    Ok(0)
}

struct Asked {
    store: std::sync::Arc<Store>,
    meant: Meant,
    state: Folded,
    by: String,
}

impl Asked {
    fn of(target: &Target) -> Result<Self, Failure> {
        let asked = Self::read(target, false)?;
        if asked.meant.run.state.is_unfinished() { Ok(asked) } else { Err(asked.over()) }
    }

    fn over(&self) -> Failure {
        let run = &self.meant.run;
        Failure::new(&failure::NOT_POSSIBLE, format!("run {} is over: {}", run.run, run.state.as_str()))
            .help(format!("start a new one with `cdpipe run {}`", run.file))
    }

    /// Also of a run that is over; without a word it is the last one if none is under way.
    fn of_any(target: &Target) -> Result<Self, Failure> {
        Self::read(target, true)
    }

    fn read(target: &Target, or_last: bool) -> Result<Self, Failure> {
        let store = state::open_existing()?;
        let meant = state::meant(&store, &target.words, or_last)?;
        let (folded, _) = history::fold(&store, &meant.run.run)?;
        let by = target.by.clone().unwrap_or_else(state::user);
        Ok(Self { store, meant, state: folded, by })
    }

    /// The stage that was named, or the only one that fits.
    fn node(
        &self,
        fits: impl Fn(NodeId, &cdpipe_report::state::NodeState) -> bool,
        none: &str,
    ) -> Result<NodeId, Failure> {
        if let Some(node) = self.meant.node {
            return Ok(node);
        }
        let fitting: Vec<NodeId> = self
            .meant
            .header
            .plan
            .nodes
            .iter()
            .zip(&self.state.nodes)
            .filter(|(node, now)| fits(node.id, now))
            .map(|(node, _)| node.id)
            .collect();
        match fitting.as_slice() {
            [node] => Ok(*node),
            [] => Err(Failure::new(&failure::NOT_POSSIBLE, format!("{none} in run {}", self.meant.run.run))
                .help(format!("`cdpipe status {}` shows where it is", self.meant.run.run))),
            many => {
                let names: Vec<&str> = many.iter().map(|node| self.state.name(Some(*node))).collect();
                Err(Failure::new(
                    &failure::NOT_POSSIBLE,
                    "more than one stage or gate could be meant: say which",
                )
                .help(format!("one of {}", names.join(", "))))
            }
        }
    }

    /// In whose name an approval is given; an error if that name may not.
    fn approver(&self, node: NodeId, named: bool) -> Result<String, Failure> {
        let listed = self.state.nodes.get(node.0 as usize).and_then(|now| now.approval.as_ref());
        let listed = listed.map(|approval| approval.by.clone()).unwrap_or_default();
        let name = if named {
            (listed.is_empty() || listed.contains(&self.by)).then(|| self.by.clone())
        } else {
            crate::people::name_for(&listed, &self.by)
        };
        name.ok_or_else(|| {
            Failure::new(
                &failure::NOT_POSSIBLE,
                format!("`{}` may not approve `{}`", self.by, self.state.name(Some(node))),
            )
            .help(format!("{} may: a user of that name or group, or `--by NAME`", listed.join(" or ")))
        })
    }

    fn send(&self, signal: Signal, done: &str, node: Option<NodeId>, ui: &Ui) -> Ended {
        let run = &self.meant.run.run;
        let driven = self.store.send(run, signal)?;
        let what =
            node.map_or_else(|| format!("run {run}"), |node| format!("`{}`", self.state.name(Some(node))));
        ui.print(&format!("{what} {done}, by {}\n", self.by));
        if !driven {
            ui.note(&format!(
                "no cdpipe drives run {run} now; this takes effect with `cdpipe resume {run}`\n"
            ));
        }
        Ok(0)
    }
}
