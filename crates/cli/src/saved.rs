//! A plan in a file: what was looked at is what will be run, or nothing is.

use crate::failure::{self, Failure};
use crate::files;
use crate::preview::Preview;
use cdpipe_model::plan::Plan;
use cdpipe_model::record::GitFacts;
use serde::{Deserialize, Serialize};

/// Version of the format.
const VERSION: u32 = 1;

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedPlan {
    /// What this is.
    kind: String,
    /// Version of the format.
    version: u32,
    /// Version of cdpipe that wrote it.
    cdpipe_version: String,
    /// When, milliseconds since 1970.
    pub made_at_ms: u64,
    /// Absolute path of the pipeline's file.
    pub file: String,
    /// The texts of the sources, in the order of the plan's.
    pub texts: Vec<String>,
    /// Facts of git.
    pub git: GitFacts,
    /// The plan.
    pub plan: Plan,
    /// What was seen by each deploy that was made from what is there.
    pub seen: Vec<Seen>,
}

/// What one deploy was planned from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Its stage.
    pub stage: String,
    /// Its step in the stage.
    pub step: u32,
    /// Hash of the observation.
    pub hash: String,
}

const KIND: &str = "cdpipe-plan";

impl SavedPlan {
    /// A plan made just now.
    pub(crate) fn new(
        file: String,
        texts: Vec<String>,
        git: GitFacts,
        plan: Plan,
        previews: &[Preview],
    ) -> Self {
        let seen = seen(&plan, previews);
        Self {
            kind: KIND.to_owned(),
            version: VERSION,
            cdpipe_version: env!("CARGO_PKG_VERSION").to_owned(),
            made_at_ms: crate::times::now_ms(),
            file,
            texts,
            git,
            plan,
            seen,
        }
    }

    /// Reads one.
    pub(crate) fn read(path: &str) -> Result<Self, Failure> {
        let text = files::read(path)?;
        let bad = |why: String| {
            Failure::new(&failure::MOVED, format!("`{path}` is no plan of this cdpipe: {why}"))
                .help("make one with `cdpipe plan FILE --out PLAN`")
        };
        let head: serde_json::Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        match (
            head.get("kind").and_then(|kind| kind.as_str()),
            head.get("version").and_then(serde_json::Value::as_u64),
        ) {
            (Some(KIND), Some(version)) if version == u64::from(VERSION) => {}
            (Some(KIND), Some(version)) => {
                return Err(bad(format!("it has format version {version}, this one reads {VERSION}")));
            }
            _ => return Err(bad("it does not say that it is one".to_owned())),
        }
        serde_json::from_value(head).map_err(|error| bad(error.to_string()))
    }

    /// As the file has it.
    pub(crate) fn to_json(&self) -> Result<String, Failure> {
        serde_json::to_string_pretty(self).map(|text| format!("{text}\n")).map_err(|error| {
            Failure::new(&failure::UNWRITABLE, format!("the plan cannot be written: {error}"))
        })
    }

    /// Refuses if a source has changed since.
    pub(crate) fn check_sources(&self) -> Result<(), Failure> {
        for (at, (source, text)) in self.plan.sources.iter().zip(&self.texts).enumerate() {
            let path = if at == 0 { self.file.as_str() } else { source.path.as_str() };
            if files::read(path)? != *text {
                return Err(Failure::new(
                    &failure::MOVED,
                    format!("`{path}` has changed since the plan was made"),
                )
                .help("make a new plan and look at it again"));
            }
        }
        Ok(())
    }

    /// Refuses if a target is not as it was seen.
    pub(crate) fn check_seen(&self, previews: &[Preview]) -> Result<(), Failure> {
        for preview in previews {
            if let Err(fault) = &preview.program {
                return Err(Failure::from_fault(&failure::CANNOT_RUN, fault.clone()).exit(2));
            }
        }
        let now = seen(&self.plan, previews);
        let moved: Vec<&str> =
            self.seen.iter().filter(|then| !now.contains(then)).map(|then| then.stage.as_str()).collect();
        if moved.is_empty() && now.len() == self.seen.len() {
            return Ok(());
        }
        Err(Failure::new(
            &failure::MOVED,
            format!("what is deployed has changed since the plan was made; it concerns {}", moved.join(", ")),
        )
        .help("make a new plan and look at it again"))
    }
}

fn seen(plan: &Plan, previews: &[Preview]) -> Vec<Seen> {
    previews
        .iter()
        .filter_map(|preview| {
            Some(Seen {
                stage: plan.node(preview.node)?.name.clone(),
                step: preview.index,
                hash: preview.seen_hash.clone()?,
            })
        })
        .collect()
}
