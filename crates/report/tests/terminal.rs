//! What a screen shows at moments of a run, at several sizes.

mod story;

use cdpipe_report::state::RunState;
use cdpipe_report::style::Style;
use cdpipe_report::terminal::Terminal;
use indicatif::InMemoryTerm;
use story::Story;

/// The screen as it looks after the story.
fn screen(columns: u16, rows: u16, unicode: bool, tell: impl FnOnce(&mut Story<'_>)) -> String {
    let term = InMemoryTerm::new(rows, columns);
    let style = Style { color: false, unicode };
    let size = Box::new(move || (usize::from(columns), usize::from(rows)));
    let mut terminal = Terminal::on_term(term.clone(), style, size, RunState::default());
    let mut story = Story::begin(&mut terminal);
    tell(&mut story);
    let text = term.contents();
    let ruler = "-".repeat(usize::from(columns));
    format!("{ruler}\n{text}\n{ruler}")
}

#[test]
fn a_build_under_way() {
    insta::assert_snapshot!(screen(80, 24, true, |story| {
        story.build();
        story.wait(300);
    }));
}

#[test]
fn a_canary_under_way() {
    insta::assert_snapshot!(screen(80, 24, true, |story| {
        story.build();
        story.build_ends();
        story.gate_asks();
        story.gate_opens();
        story.canary_begins();
        story.wait(500);
    }));
}

#[test]
fn a_canary_under_way_in_forty_columns() {
    insta::assert_snapshot!(screen(40, 16, false, |story| {
        story.build();
        story.build_ends();
        story.canary_begins();
        story.wait(500);
    }));
}

#[test]
fn a_gate_that_waits() {
    insta::assert_snapshot!(screen(80, 24, true, |story| {
        story.build();
        story.build_ends();
        story.gate_asks();
        story.wait(4_000);
    }));
}

#[test]
fn a_rollback_under_way() {
    insta::assert_snapshot!(screen(80, 24, true, |story| {
        story.build();
        story.build_ends();
        story.gate_asks();
        story.gate_opens();
        story.canary_begins();
        story.canary_goes_bad();
        story.wait(500);
    }));
}

#[test]
fn a_rollback_at_its_end() {
    insta::assert_snapshot!(screen(80, 30, true, |story| {
        story.build();
        story.build_ends();
        story.gate_asks();
        story.gate_opens();
        story.canary_begins();
        story.canary_goes_bad();
        story.canary_is_gone();
        let now = story.now_ms;
        story.to.finish(now);
    }));
}

#[test]
fn a_failed_build_at_its_end() {
    insta::assert_snapshot!(screen(80, 24, true, |story| {
        story.build();
        story.build_fails();
        let now = story.now_ms;
        story.to.finish(now);
    }));
}
