//! Environments and flag providers.

use super::or_blank;
use crate::checker::Checker;
use crate::codes::names as code;
use crate::schema::Id;
use crate::scope::{Around, Scope};
use crate::structure::Block;
use crate::window::parse_window;
use cdpipe_model::expr::Expr as Lowered;
use cdpipe_model::id::EnvName;
use cdpipe_model::plan::FlagProvider;
use cdpipe_model::service::{Environment, Freeze, TargetKind, TargetSpec, TrafficKind, TrafficSpec};
use cdpipe_model::value::Value;
use cdpipe_syntax::Diagnostic;
use std::collections::BTreeMap;

/// The target's kind, as it is written.
pub(crate) fn target_kind(environment: &Block<'_>) -> Option<TargetKind> {
    let word = environment.child(Id::Target)?.word();
    TargetKind::ALL.into_iter().find(|kind| kind.as_str() == word)
}

/// The router's kind, as it is written.
pub(crate) fn traffic_kind(environment: &Block<'_>) -> Option<TrafficKind> {
    let word = environment.child(Id::Traffic)?.word();
    TrafficKind::ALL.into_iter().find(|kind| kind.as_str() == word)
}

/// Whether nothing stands in it, which is told elsewhere.
pub(crate) fn is_empty(block: &Block<'_>) -> bool {
    block.stmt.body.as_ref().is_none_or(|body| body.entries.is_empty())
}

/// Whether users of the pipeline expect a gate before it: said so, or by its name.
pub(crate) fn protected_by_name(name: &str) -> bool {
    matches!(name, "production" | "prod")
}

impl<'b> Checker<'b> {
    pub(crate) fn environment(&mut self, block: &'b Block<'b>) -> Environment {
        let name = block.name_text();
        let scope = Scope { around: Around::Of(name), ..Scope::file() };
        let found = self.found(block, &scope);
        let target = block.child(Id::Target);
        if target.is_none() && !is_empty(block) {
            self.report(
                Diagnostic::new(
                    &code::MISSING_STATEMENT,
                    block.head(),
                    format!("`environment {name}` has no target"),
                )
                .label("expected `target KIND` in its body")
                .help("say where instances run: `target local`, `docker`, `swarm`, `kubernetes` or `hosts`"),
            );
        }
        let target_settings = target.map(|target| self.settings(target, &scope)).unwrap_or_default();
        let traffic = block.child(Id::Traffic).and_then(|traffic| {
            let mut settings = self.settings(traffic, &scope);
            let kind = traffic_kind(block)?;
            if kind == TrafficKind::Proxy && !settings.contains_key("listen") {
                settings.insert("listen".to_owned(), Value::Str(":8080".to_owned()));
            }
            Some(TrafficSpec { kind, settings })
        });
        if let Some(route) = block.child(Id::ServiceRoute) {
            let _ = self.found(route, &scope);
        }
        let vars = self.open_map(block, Id::Vars, &Scope::file());
        let freezes = block.children(Id::Freeze).flat_map(|freeze| self.windows(freeze, &scope)).collect();
        Environment {
            name: EnvName::from(name),
            target: TargetSpec {
                kind: target_kind(block).unwrap_or(TargetKind::Local),
                settings: target_settings,
            },
            traffic,
            vars,
            freezes,
            protected: found.bool("protected").unwrap_or_else(|| protected_by_name(name)),
        }
    }

    /// The windows of a `freeze` or `window`; its form was checked with its value.
    pub(crate) fn windows(&mut self, block: &Block<'_>, scope: &Scope<'_>) -> Vec<Freeze> {
        let found = self.found(block, scope);
        found.text("WINDOW").and_then(|text| parse_window(&text).ok()).unwrap_or_default()
    }

    /// Settings as values, by name.
    pub(crate) fn settings(&mut self, block: &Block<'_>, scope: &Scope<'_>) -> BTreeMap<String, Value> {
        let found = self.found(block, scope);
        let mut values = BTreeMap::new();
        for (setting, _) in &block.inner.settings {
            if let Some(value) = found.value(setting.name) {
                values.insert(setting.name.to_owned(), value.clone());
            } else if let Some(word) = found.word(setting.name) {
                values.insert(setting.name.to_owned(), Value::Str(word.to_owned()));
            }
        }
        values
    }

    pub(crate) fn flags(&mut self, block: &'b Block<'b>) -> Option<FlagProvider> {
        let scope = Scope::file();
        let found = self.found(block, &scope);
        Some(match block.word() {
            "http" => FlagProvider::Http {
                url: or_blank(found.expr("url")),
                method: found.word("method").unwrap_or("PUT").to_owned(),
                headers: self.open_map(block, Id::Headers, &scope),
                body: Some(found.expr("body").unwrap_or_else(|| Lowered::text("$value"))),
                read_url: found.expr("read_url"),
                read_path: found.text("read_path"),
            },
            "redis" => FlagProvider::Redis {
                url: or_blank(found.expr("url")),
                key: found.text("key").unwrap_or_else(|| "$flag".to_owned()),
            },
            "file" => FlagProvider::File { path: found.text("path").unwrap_or_default() },
            _ => return None,
        })
    }
}
