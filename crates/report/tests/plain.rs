//! What a log says of whole runs, line by line.

mod story;

use cdpipe_report::plain::Plain;
use cdpipe_report::state::RunState;
use cdpipe_report::style::Style;
use story::Story;

fn told(tell: impl FnOnce(&mut Story<'_>)) -> String {
    let mut plain = Plain::new(Vec::new(), Style::PLAIN, RunState::default());
    let mut story = Story::begin(&mut plain);
    tell(&mut story);
    story.end();
    String::from_utf8_lossy(&plain.into_inner()).into_owned()
}

#[test]
fn a_canary_that_goes_well() {
    let text = told(|story| {
        story.build();
        story.build_ends();
        story.gate_asks();
        story.gate_opens();
        story.canary_begins();
        story.canary_ends_well();
    });
    insta::assert_snapshot!(text);
}

#[test]
fn a_canary_that_goes_bad() {
    let text = told(|story| {
        story.build();
        story.build_ends();
        story.gate_asks();
        story.gate_opens();
        story.canary_begins();
        story.canary_goes_bad();
        story.canary_is_gone();
    });
    insta::assert_snapshot!(text);
}

#[test]
fn a_build_that_fails() {
    let text = told(|story| {
        story.build();
        story.build_fails();
    });
    insta::assert_snapshot!(text);
}

#[test]
fn a_run_that_is_interrupted() {
    let text = told(|story| {
        story.build();
        story.event(cdpipe_model::event::Event::Closed);
    });
    insta::assert_snapshot!(text);
}

#[test]
fn a_message_that_nobody_got_is_told() {
    use cdpipe_model::action::{Block, StepRef};
    use cdpipe_model::record::Record;
    use cdpipe_model::{Fault, NodeId, Outcome};
    let text = told(|story| {
        story.build();
        story.record(Record::StepFinished {
            step: StepRef { node: Some(NodeId(0)), block: Block::Main, index: 0 },
            outcome: Outcome::Succeeded,
            reason: Some(Fault::new("unreachable", "nobody answers at chat.example")),
        });
    });
    assert!(text.contains("not sent: nobody answers at chat.example"), "{text}");
}
