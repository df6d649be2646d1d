//! A message that can't be sent never fails a run.

use super::plans::{header, node, run, stage, step};
use super::world::{Driver, World};
use cdpipe_model::action::{ActionKind, ActionResult, Answer, Block};
use cdpipe_model::expr::{Expr, Symbol};
use cdpipe_model::plan::{Channel, Hook, HookEvent, Notify, Retry, Step, StepKind};
use cdpipe_model::record::Record;
use cdpipe_model::{Fault, NodeId, Outcome};
use std::collections::BTreeMap;

fn notify(text: Expr) -> Step {
    let url = Expr::text("http://chat.example");
    step(StepKind::Notify(Notify { channel: Channel::Slack, url, text, headers: BTreeMap::new() }))
}

/// How each message ended.
fn ends(driver: &Driver, block: Block) -> Vec<(Outcome, Option<String>)> {
    let ends = driver.journal.iter().filter_map(|record| match record {
        Record::StepFinished { step, outcome, reason } if step.block == block && step.index == 0 => {
            Some((*outcome, reason.as_ref().map(|fault| fault.kind.clone())))
        }
        _ => None,
    });
    ends.collect()
}

#[test]
fn a_message_that_cannot_be_sent_fails_nothing_and_says_why() {
    let fault = || Fault::new("unreachable", "nobody answers");
    for (result, kind) in [
        (ActionResult::Failed(fault()), "unreachable"),
        (ActionResult::TimedOut(fault()), "unreachable"),
        // The engine was killed while it was sent.
        (ActionResult::Unknown(Fault::new("interrupted", "nobody knows")), "interrupted"),
    ] {
        let hook =
            Hook { events: vec![HookEvent::Success], steps: vec![notify(Expr::text("live")), run("after")] };
        let steps = vec![notify(Expr::text("begins")), run("build")];
        let header = header(vec![node(0, &[], stage(steps, vec![hook]))], Vec::new());
        let mut driver = Driver::new(&header, World::default());
        let outcome = driver.run(&mut |_, action, _| match &action.kind {
            ActionKind::Notify { .. } => Some(result.clone()),
            _ => None,
        });
        assert_eq!(outcome, Outcome::Succeeded, "{kind}");
        assert_eq!(driver.world.commands, ["build", "after"], "what comes after it is done");
        let told = vec![(Outcome::Succeeded, Some(kind.to_owned()))];
        assert_eq!(ends(&driver, Block::Main), told);
        assert_eq!(ends(&driver, Block::Hook(0)), told);
    }
}

#[test]
fn a_message_is_tried_again_and_has_the_time_that_it_says() {
    let retry = Retry { more: 1, delay_ms: 1_000, max_delay_ms: 1_000 };
    let message = Step { timeout_ms: 7_000, retry, ..notify(Expr::text("live")) };
    let header = header(vec![node(0, &[], stage(vec![message], Vec::new()))], Vec::new());
    let mut driver = Driver::new(&header, World::default());
    let mut tries = 0;
    let outcome = driver.run(&mut |_, action, _| {
        let ActionKind::Notify { .. } = &action.kind else { return None };
        assert_eq!(action.deadline_ms, 7_000);
        tries += 1;
        Some(match tries {
            1 => ActionResult::Failed(Fault::new("unreachable", "nobody answers")),
            _ => ActionResult::Done(Answer::Nothing),
        })
    });
    assert_eq!((outcome, tries), (Outcome::Succeeded, 2));
    assert_eq!(ends(&driver, Block::Main), [(Outcome::Succeeded, None)]);
}

#[test]
fn a_message_whose_text_has_no_value_fails_nothing() {
    let text = Expr::Symbol(Symbol::Output { node: NodeId(0), stage: "n0".into(), name: "nothing".into() });
    let header = header(vec![node(0, &[], stage(vec![notify(text)], Vec::new()))], Vec::new());
    let mut driver = Driver::new(&header, World::default());
    assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Succeeded);
    assert_eq!(ends(&driver, Block::Main), [(Outcome::Succeeded, Some("no-value".to_owned()))]);
}
