//! `apply`: the first look counts, a failure takes the set back, and a crash at any place changes nothing of that.

use super::plans::{header, node, run, stage, step};
use super::world::{Driver, World};
use crate::Machine;
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer};
use cdpipe_model::expr::Expr;
use cdpipe_model::objects::{ObjectWas, Surveyed, Was};
use cdpipe_model::plan::{Apply, NodeKind, Retry, Step, StepKind};
use cdpipe_model::record::{Record, RunHeader, Signal};
use cdpipe_model::{Fault, Outcome};
use std::sync::Arc;

fn apply(more: u32) -> Step {
    let apply = Apply {
        path: Expr::text("k8s"),
        environment: "here".into(),
        force: false,
        prune: false,
        set: None,
        generated: false,
        files: Vec::new(),
    };
    Step { retry: Retry { more, delay_ms: 1_000, max_delay_ms: 1_000 }, ..step(StepKind::Apply(apply)) }
}

fn one_stage(steps: Vec<Step>, undo_on_failure: bool) -> Arc<RunHeader> {
    let mut kind = stage(steps, Vec::new());
    if let NodeKind::Stage(stage) = &mut kind {
        stage.undo_on_failure = undo_on_failure;
    }
    header(vec![node(0, &[], kind)], Vec::new())
}

/// A cluster with one object, what fails on it, and what was asked of it.
struct Cluster {
    object: Option<&'static str>,
    /// How often an apply fails, having changed the object.
    fails: u32,
    back_fails: u32,
    asked: Vec<String>,
}

impl Cluster {
    fn new(object: Option<&'static str>, fails: u32) -> Self {
        Self { object, fails, back_fails: 0, asked: Vec::new() }
    }

    fn perform(&mut self, action: &Action) -> ActionResult {
        match &action.kind {
            ActionKind::Survey { .. } => {
                self.asked.push("look".to_owned());
                let was = match self.object {
                    Some(object) => Was::There { object: object.to_owned(), ready: true },
                    None => Was::Absent,
                };
                let object = ObjectWas {
                    api_version: "v1".to_owned(),
                    kind: "ConfigMap".to_owned(),
                    plural: "configmaps".to_owned(),
                    namespace: None,
                    name: "a".to_owned(),
                    leaves: false,
                    was,
                };
                let found = Surveyed { files: Vec::new(), objects: vec![object] };
                ActionResult::Done(Answer::Surveyed(Box::new(found)))
            }
            ActionKind::Apply { .. } => {
                self.asked.push("apply".to_owned());
                self.object = Some("new");
                if self.fails > 0 {
                    self.fails -= 1;
                    return ActionResult::Failed(Fault::new("not-ready", "it crashes"));
                }
                ActionResult::Done(Answer::Nothing)
            }
            ActionKind::Unapply { objects, .. } => {
                self.asked.push("back".to_owned());
                if self.back_fails > 0 {
                    self.back_fails -= 1;
                    return ActionResult::Failed(Fault::new("moved", "somebody was there"));
                }
                self.object = match &objects[0].was {
                    Was::There { object, .. } if object == "old" => Some("old"),
                    Was::There { .. } => Some("something else"),
                    _ => None,
                };
                ActionResult::Done(Answer::Nothing)
            }
            ActionKind::Run(run) if run.script == "fails" => {
                ActionResult::Failed(Fault::new("command-failed", "it exited with 1"))
            }
            _ => World::default().perform(action),
        }
    }
}

/// Runs it; the engine dies after so many actions, whose effect was there and whose answer was lost.
fn play(header: &Arc<RunHeader>, cluster: &mut Cluster, dies_after: Option<usize>) -> Driver {
    let mut driver = Driver::new(header, World::default());
    driver.open();
    go_on(&mut driver, cluster, dies_after);
    driver
}

fn go_on(driver: &mut Driver, cluster: &mut Cluster, dies_after: Option<usize>) {
    for turn in 0..200 {
        let mut lost = false;
        let more = driver.turn(&mut |_, action, _| Some(cluster.perform(action)));
        if Some(turn) == dies_after {
            // What came back, and what followed from it, is not in the journal.
            while let Some(record) = driver.journal.pop() {
                if matches!(record, Record::Returned { .. } | Record::TimerFired { .. }) {
                    break;
                }
            }
            lost = true;
        }
        if lost {
            let header = Arc::clone(driver.machine.header());
            let mut machine = Machine::new(header);
            for record in &driver.journal {
                machine.apply(record);
            }
            driver.machine = machine;
            let at_ms = driver.now_ms;
            driver.feed(Record::Opened { at_ms, by: "test".into(), resumed: true });
        } else if !more {
            return;
        }
    }
    panic!("it does not end: {:?}", cluster.asked);
}

#[test]
fn a_set_that_fails_is_as_it_was_and_the_first_look_counts_for_every_attempt() {
    let mut cluster = Cluster::new(Some("old"), 3);
    let driver = play(&one_stage(vec![apply(2)], false), &mut cluster, None);
    assert_eq!(cluster.asked, ["look", "apply", "apply", "apply", "back"]);
    assert_eq!((driver.machine.outcome(), cluster.object), (Some(Outcome::RolledBack), Some("old")));
    // Where nothing was, there is nothing to be back at.
    let mut cluster = Cluster::new(None, 1);
    let driver = play(&one_stage(vec![apply(0)], false), &mut cluster, None);
    assert_eq!((driver.machine.outcome(), cluster.object), (Some(Outcome::Failed), None));
}

#[test]
fn a_later_failure_takes_it_back_only_where_the_stage_says_so() {
    for (undo, wanted, outcome) in
        [(true, Some("old"), Outcome::RolledBack), (false, Some("new"), Outcome::Failed)]
    {
        let mut cluster = Cluster::new(Some("old"), 0);
        let driver = play(&one_stage(vec![apply(0), run("fails")], undo), &mut cluster, None);
        assert_eq!((driver.machine.outcome(), cluster.object), (Some(outcome), wanted));
    }
}

#[test]
fn a_way_back_that_fails_is_said_and_tried_again_when_asked() {
    for steps in [vec![apply(0)], vec![apply(0), run("fails")]] {
        let mut cluster = Cluster::new(Some("old"), u32::from(steps.len() == 1));
        cluster.back_fails = 1;
        let mut driver = play(&one_stage(steps, true), &mut cluster, None);
        assert_eq!(driver.machine.outcome(), Some(Outcome::RollbackFailed));
        let at_ms = driver.now_ms;
        driver.feed(Record::Signalled { at_ms, signal: Signal::Continue { by: "ann".into() } });
        go_on(&mut driver, &mut cluster, None);
        assert_eq!((driver.machine.outcome(), cluster.object), (Some(Outcome::RolledBack), Some("old")));
    }
}

#[test]
fn a_cancel_in_the_middle_takes_it_back() {
    let header = one_stage(vec![apply(0)], false);
    let mut cluster = Cluster::new(Some("old"), 0);
    let mut driver = Driver::new(&header, World::default());
    driver.open();
    driver.turn(&mut |_, action, _| Some(cluster.perform(action)));
    let at_ms = driver.now_ms;
    let signal = Signal::Cancel { by: "ann".into(), reason: String::new() };
    driver.feed(Record::Signalled { at_ms, signal });
    driver.turn(&mut |_, action, _| {
        let _ = cluster.perform(action);
        Some(ActionResult::Cancelled)
    });
    go_on(&mut driver, &mut cluster, None);
    assert_eq!(cluster.asked, ["look", "apply", "back"]);
    assert_eq!((driver.machine.outcome(), cluster.object), (Some(Outcome::Cancelled), Some("old")));
}

#[test]
fn a_crash_at_any_place_changes_nothing_of_the_end() {
    for (steps, fails) in [
        (vec![apply(0)], 0),
        (vec![apply(0)], 9),
        (vec![apply(2)], 9),
        (vec![apply(0), run("fails")], 0),
        (vec![apply(0), apply(0)], 0),
    ] {
        for object in [None, Some("old")] {
            let header = one_stage(steps.clone(), true);
            let mut whole = Cluster::new(object, fails);
            let wanted = play(&header, &mut whole, None).machine.outcome();
            for dies_after in 0..whole.asked.len() + 3 {
                let mut cluster = Cluster::new(object, fails);
                let driver = play(&header, &mut cluster, Some(dies_after));
                let found = (driver.machine.outcome(), cluster.object);
                assert_eq!(found, (wanted, whole.object), "{dies_after} {fails} {:?}", cluster.asked);
            }
        }
    }
}
