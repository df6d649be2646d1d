//! Tests of pipelines: played in the simulation, judged, and shown in several ways.

pub(crate) mod faults;
pub(crate) mod json;
pub(crate) mod junit;
pub(crate) mod text;
pub(crate) mod trace;

use crate::failure::{self, Failure};
use crate::render::{self, Found};
use crate::ui::Ui;
use cdpipe_check::testing::Test;
use cdpipe_check::{Checked, Inputs, Source};
use cdpipe_model::plan::SourcePos;
use cdpipe_sim::{Case, Ending, Given, Simulator};
use cdpipe_syntax::{Diagnostic, SourceId, Span};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One test that was played.
pub(crate) struct Played {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub at: SourcePos,
    /// What is wrong: expectations that are not met, or why it could not be played.
    pub unmet: Vec<Diagnostic>,
    /// What was found for each expectation that is not met; empty if it could not be played.
    pub found: Vec<cdpipe_sim::Unmet>,
    /// The run, if it was played.
    pub run: Option<(Arc<Given>, Ending)>,
    /// How long it took, in real time.
    pub took: Duration,
}

impl Played {
    /// Whether everything was as expected.
    pub(crate) fn passed(&self) -> bool {
        self.unmet.is_empty()
    }

    /// How long the run took, in virtual milliseconds.
    pub(crate) fn virtual_ms(&self) -> u64 {
        self.run.as_ref().map_or(0, |(_, ending)| ending.took_ms)
    }
}

/// A pipeline whose tests were played.
pub(crate) struct Suite {
    /// Its path as it was given.
    pub path: String,
    /// The pipeline.
    pub checked: Checked,
    /// In the order of the file.
    pub tests: Vec<Played>,
}

/// Reads and checks a pipeline. `None` if it is wrong; why has been told.
pub(crate) fn load(path: &str, ui: &Ui) -> Result<Option<Checked>, Failure> {
    let checked = crate::load::load(path)?;
    if !checked.has_errors() {
        return Ok(Some(checked));
    }
    tell(&checked, &checked.diagnostics.iter().collect::<Vec<_>>(), ui);
    Ok(None)
}

/// Shows diagnostics of a pipeline.
pub(crate) fn tell(checked: &Checked, diagnostics: &[&Diagnostic], ui: &Ui) {
    let found = [Found { sources: &checked.sources, diagnostics: diagnostics.to_vec() }];
    ui.note(&render::text::render(&found, ui.err));
}

/// The inputs of a test: what it sets, over what the command line sets.
pub(crate) fn inputs(test: Option<&Test>, set: &BTreeMap<String, String>) -> Inputs {
    let mut inputs = Inputs { set: set.clone(), ..Inputs::default() };
    if let Some(test) = test {
        inputs.set.extend(test.sets.iter().map(|(name, value)| (name.clone(), value.to_string())));
        inputs.git = test.git.clone();
    }
    inputs
}

/// Plays one test.
pub(crate) fn play(
    simulator: &Simulator,
    checked: &Checked,
    path: &str,
    test: &Test,
    set: &BTreeMap<String, String>,
) -> Played {
    let began = Instant::now();
    let mut played = Played {
        name: test.name.clone(),
        at: test.at,
        unmet: Vec::new(),
        found: Vec::new(),
        run: None,
        took: Duration::ZERO,
    };
    match given(checked, path, test, set) {
        Ok(given) => {
            let given = Arc::new(given);
            let ending = simulator.play(&given, &Case::default());
            for expectation in &test.expects {
                let Err(unmet) = cdpipe_sim::judge(expectation, &given, &ending) else { continue };
                let span = head(checked, expectation.at, &expectation.text);
                played.unmet.push(
                    Diagnostic::new(
                        &failure::EXPECTATION,
                        span,
                        format!("test \"{}\": expected `{}`", test.name, unmet.expected),
                    )
                    .label(format!("found: {}", unmet.found)),
                );
                played.found.push(unmet);
            }
            played.run = Some((given, ending));
        }
        Err(errors) => played.unmet = errors,
    }
    played.took = began.elapsed();
    played
}

/// What a test gives, with its plan.
pub(crate) fn given(
    checked: &Checked,
    path: &str,
    test: &Test,
    set: &BTreeMap<String, String>,
) -> Result<Given, Vec<Diagnostic>> {
    let plan = cdpipe_check::plan(checked, &inputs(Some(test), set))?;
    let texts = checked.sources.iter().map(|(_, source)| source.text.clone()).collect();
    Given::of_test(test, &plan, path, texts).map_err(|fault| {
        let span = head(checked, test.at, "");
        vec![Diagnostic::new(
            &failure::EXPECTATION,
            span,
            format!("test \"{}\": {}", test.name, fault.message),
        )]
    })
}

/// The span of a statement's head that begins at this place: its keyword, and this text after it.
fn head(checked: &Checked, at: SourcePos, text: &str) -> Span {
    let id = SourceId(at.source);
    let Some(source) = checked.sources.get(id) else { return Span::new(id, 0, 0) };
    let start = offset(source, at);
    let rest = source.text.get(start..).unwrap_or_default();
    let line_end = rest.find('\n').unwrap_or(rest.len());
    let len = match rest.find(text).filter(|_| !text.is_empty()) {
        Some(found) => found + text.len(),
        None => line_end,
    };
    Span::new(id, start, start + len)
}

/// Bytes before a place; lines and characters count from 1.
fn offset(source: &Source, at: SourcePos) -> usize {
    let line_start: usize =
        source.text.split_inclusive('\n').take((at.line as usize).saturating_sub(1)).map(str::len).sum();
    let line = source.text.get(line_start..).unwrap_or_default();
    let column = (at.col as usize).saturating_sub(1);
    line_start + line.char_indices().nth(column).map_or(0, |(byte, _)| byte)
}
