//! Services, as one deploy sees them.

use super::place::{target_kind, traffic_kind};
use crate::checker::{Checker, image_tag};
use crate::codes::{names as code, security, strategies as strategy_code};
use crate::schema::{Id, Names};
use crate::scope::{Around, Scope};
use crate::structure::Block;
use crate::values::Found;
use cdpipe_model::capability;
use cdpipe_model::expr::Expr as Lowered;
use cdpipe_model::id::ServiceName;
use cdpipe_model::service::{
    Health, HealthCheck, HealthKind, Route, Service, TargetKind, TrafficKind, Workload,
};
use cdpipe_model::strategy::Strategy;
use cdpipe_model::value::Value;
use cdpipe_syntax::{Diagnostic, Span};
use std::collections::BTreeMap;

/// Environment, address, host and path.
type Claim = (String, Option<String>, Option<String>, Option<String>);

impl<'b> Checker<'b> {
    /// The service in this environment, or in any.
    pub(crate) fn service(
        &mut self,
        block: &'b Block<'b>,
        environment: Option<&'b Block<'b>>,
        scope: &Scope<'_>,
    ) -> Service {
        let name = block.name_text();
        let key = (
            name.to_owned(),
            environment.map_or(String::new(), |env| env.name_text().to_owned()),
            scope.sets_id,
        );
        if let Some(service) = self.services.get(&key) {
            return service.clone();
        }
        let around = match environment {
            Some(environment) => Around::Of(environment.name_text()),
            None => Around::Any,
        };
        let scope = &Scope { around, sets: scope.sets, sets_id: scope.sets_id, ..Scope::file() };
        let found = self.found(block, scope);
        let workload = self.workload(block, &found);
        self.mutable_tag(block, &found);
        let version = self.service_version(block, scope);
        let mut env = self.open_map(block, Id::Env, scope);
        if let Some(environment) = environment {
            for (name, value) in self.open_map(
                environment,
                Id::Vars,
                &Scope { sets: scope.sets, sets_id: scope.sets_id, ..Scope::file() },
            ) {
                env.entry(name).or_insert(value);
            }
        }
        let health = block.children(Id::Health).map(|health| self.health(health, scope)).collect();
        let mut extra = BTreeMap::new();
        for (label, id) in [
            ("labels", Id::Labels),
            ("logs", Id::Logs),
            ("secrets", Id::Secrets),
            ("configs", Id::Configs),
            ("resources", Id::Resources),
        ] {
            if let Some(child) = block.child(id) {
                let values = if id != Id::Resources {
                    self.open_map(block, id, scope)
                        .into_iter()
                        .filter_map(|(key, value)| value.known().cloned().map(|value| (key, value)))
                        .collect()
                } else {
                    self.settings(child, scope)
                };
                extra.insert(label.to_owned(), Value::Map(values));
            }
        }
        for label in
            ["container", "mounts", "restart", "user", "workdir", "stop_signal", "entrypoint", "placement"]
        {
            if let Some(word) = found.word(label) {
                extra.insert(label.to_owned(), Value::Str(word.to_owned()));
            } else if let Some(value) = found.value(label) {
                extra.insert(label.to_owned(), value.clone());
            }
        }
        let route = self.route(block, environment, scope);
        let service = Service {
            name: ServiceName::from(name),
            platform_name: found.text("name"),
            adopt: found.bool("adopt").unwrap_or(false),
            workload: workload.unwrap_or(Workload::Command { argv: Vec::new(), artifact: None }),
            version: version.expr.unwrap_or_else(|| Lowered::text("")),
            port: found.int("port").and_then(|port| u16::try_from(port).ok()),
            // Manifests say it themselves, or leave it to whatever scales the workload.
            replicas: found
                .expr("replicas")
                .or_else(|| (!found.has("manifest")).then_some(Lowered::Value(Value::Int(1)))),
            env,
            health,
            route,
            drain_ms: found.ms("drain").unwrap_or(30_000),
            retain: found.count_u32("retain").unwrap_or(5),
            extra,
        };
        self.services.insert(key, service.clone());
        service
    }

    fn workload(&mut self, block: &'b Block<'b>, found: &Found) -> Option<Workload> {
        let name = block.name_text();
        let made_of: Vec<&str> =
            ["image", "command", "compose", "manifest"].into_iter().filter(|word| found.has(word)).collect();
        match made_of.as_slice() {
            [] if super::place::is_empty(block) => return None,
            [] => {
                self.report(
                    Diagnostic::new(
                        &code::MISSING_STATEMENT,
                        block.head(),
                        format!("`service {name}` says nothing of what it is made from"),
                    )
                    .label("expected `image`, `command`, `compose` or `manifest` in its body")
                    .help(
                        "for a process: `command = [\"./web\"]`; for a container: `image = \"acme/web:1.0\"`",
                    ),
                );
                return None;
            }
            [_] | ["image", "command" | "manifest"] => {}
            [one, two, ..] => {
                let diag = Diagnostic::new(
                    &code::EXCLUSIVE,
                    found.span(two).unwrap_or(block.head()),
                    format!("`service {name}` is made from `{one}` and from `{two}`"),
                )
                .also(found.span(one).unwrap_or(block.head()), "the other one")
                .help("keep one of them");
                self.report(diag);
            }
        }
        if let (Some(artifact), None) = (found.span("artifact"), found.get("command")) {
            self.report(
                Diagnostic::new(
                    &code::EXCLUSIVE,
                    artifact,
                    "`artifact` belongs to `command`, and there is none",
                )
                .help("say how it is started: `command = [\"./web\"]`"),
            );
        }
        if let (Some(span), None) =
            (found.span("workload").or(found.span("container")), found.get("manifest"))
        {
            self.report(
                Diagnostic::new(&code::EXCLUSIVE, span, "this belongs to `manifest`, and there is none")
                    .help("name the manifests: `manifest = \"k8s/*.yaml\"`"),
            );
        }
        if found.text("workload").is_some_and(|text| text.starts_with("DaemonSet/"))
            && let Some(span) = found.span("replicas")
        {
            self.report(
                Diagnostic::new(
                    &code::EXCLUSIVE,
                    span,
                    "a DaemonSet has a pod on each node, and no `replicas`",
                )
                .also(found.span("workload").unwrap_or(block.head()), "the workload")
                .help("leave `replicas` out"),
            );
        }
        let words = |expr: Option<Lowered>| match expr {
            Some(Lowered::List(items)) => items,
            Some(Lowered::Value(Value::List(items))) => items.into_iter().map(Lowered::Value).collect(),
            Some(other) => vec![other],
            None => Vec::new(),
        };
        let made_of = if found.has("manifest") { "manifest" } else { made_of.first().copied()? };
        Some(match made_of {
            "image" => Workload::Image {
                reference: super::or_blank(found.expr("image")),
                args: words(found.expr("command")),
            },
            "command" => {
                Workload::Command { argv: words(found.expr("command")), artifact: found.expr("artifact") }
            }
            "compose" => {
                let text = found.text("compose").unwrap_or_default();
                let (file, service) = text.split_once('#').unwrap_or((&text, ""));
                Workload::Compose { file: file.to_owned(), service: service.to_owned() }
            }
            _ => Workload::Manifest {
                path: found.text("manifest").unwrap_or_default(),
                workload: found.text("workload"),
                image: found.expr("image"),
                text: None,
            },
        })
    }

    /// A tag that can move, or none at all.
    fn mutable_tag(&mut self, block: &Block<'_>, found: &Found) {
        let Some(Value::Str(image)) = found.value("image") else { return };
        // Once inputs are there, what was a parameter is a text too; the lint is about what the file says.
        if self.planning() || image.is_empty() || image.contains('@') {
            return;
        }
        let Some(span) = block.setting("image").map(|setting| setting.value.span) else { return };
        let tag = image_tag(image);
        if tag.is_none_or(|tag| {
            matches!(tag, "latest" | "main" | "master" | "edge" | "nightly" | "stable" | "dev")
        }) {
            let what =
                tag.map_or("no tag, which means `latest`".to_owned(), |tag| format!("the tag `{tag}`"));
            self.report(
                Diagnostic::new(
                    &security::MUTABLE_TAG,
                    span,
                    format!("the image has {what}, and that can name another image tomorrow"),
                )
                .help("name a version (`:1.4.2`, `:${version}`) or a digest (`@sha256:…`)"),
            );
        }
    }

    fn health(&mut self, block: &Block<'_>, scope: &Scope<'_>) -> Health {
        let found = self.found(block, scope);
        let check = match block.word() {
            "http" => HealthCheck::Http { path: found.text("PATH").unwrap_or_else(|| "/".to_owned()) },
            "command" => HealthCheck::Command { script: found.text("SCRIPT").unwrap_or_default() },
            _ => HealthCheck::Tcp,
        };
        Health {
            kind: if found.word("KIND") == Some("live") { HealthKind::Live } else { HealthKind::Ready },
            check,
            every_ms: found.ms("every").unwrap_or(2_000),
            timeout_ms: found.ms("timeout").unwrap_or(5_000),
            failures: found.count_u32("failures").unwrap_or(3),
            within_ms: found.ms("within").unwrap_or(60_000),
        }
    }

    /// Where users reach it: its own settings, then those of the environment. None where nothing steers traffic.
    fn route(
        &mut self,
        block: &'b Block<'b>,
        environment: Option<&'b Block<'b>>,
        scope: &Scope<'_>,
    ) -> Option<Route> {
        let own = block.child(Id::ServiceRoute).map(|route| self.found(route, scope));
        let environment = environment?;
        let traffic = environment.child(Id::Traffic)?;
        let kind = traffic_kind(environment)?;
        let shared = environment.child(Id::ServiceRoute).map(|route| self.found(route, scope));
        let router = self.found(traffic, scope);
        let pick = |name: &str| {
            own.as_ref()
                .and_then(|found| found.text(name))
                .or_else(|| shared.as_ref().and_then(|found| found.text(name)))
        };
        let default_listen = if kind == TrafficKind::Proxy { Some(":8080".to_owned()) } else { None };
        let object = pick("object").or_else(|| match kind {
            TrafficKind::Istio => router.text("virtual_service"),
            TrafficKind::Gateway => router.text("http_route"),
            TrafficKind::Service => router.text("name"),
            TrafficKind::Nginx => router.text("config"),
            TrafficKind::Haproxy => router.text("backend"),
            TrafficKind::Proxy | TrafficKind::Replicas => None,
        });
        Some(Route {
            service: ServiceName::from(block.name_text()),
            host: pick("host"),
            path: pick("path"),
            listen: pick("listen").or_else(|| router.text("listen")).or(default_listen),
            object,
        })
    }

    /// Whether the environment's target can run it; says so if not.
    pub(crate) fn fits_target(&mut self, block: &Block<'_>, environment: &Block<'_>, span: Span) {
        let Some(target) = target_kind(environment) else { return };
        let Some(word) = ["manifest", "image", "compose", "command"]
            .into_iter()
            .find(|word| block.setting(word).is_some())
        else {
            return;
        };
        let fine = match word {
            "command" => matches!(target, TargetKind::Local | TargetKind::Hosts),
            "image" => target != TargetKind::Local,
            "compose" => target == TargetKind::Swarm,
            _ => target == TargetKind::Kubernetes,
        };
        if !fine {
            let takes = match target {
                TargetKind::Local => "`command`",
                TargetKind::Hosts => "`command` or `image`",
                TargetKind::Docker => "`image`",
                TargetKind::Swarm => "`image` or `compose`",
                TargetKind::Kubernetes => "`image` or `manifest`",
            };
            self.report(
                Diagnostic::new(
                    &strategy_code::WRONG_WORKLOAD,
                    span,
                    format!(
                        "the service `{}` is made from `{word}`, which a `{}` target can't run",
                        block.name_text(),
                        target.as_str()
                    ),
                )
                .also(block.setting(word).map_or(block.head(), |setting| setting.span), "made from this")
                .also(
                    environment.child(Id::Target).map_or(environment.head(), |target| target.head()),
                    "the target",
                )
                .help(format!("a `{}` target runs services with {takes}", target.as_str())),
            );
        }
    }

    /// Whether the workload that a service names can be deployed so; says so if not. Which one it is where none is named is seen when
    /// the manifests are read.
    pub(crate) fn fits_strategy(
        &mut self,
        block: &Block<'_>,
        service: &Service,
        strategy: &Strategy,
        place: Span,
    ) {
        let Workload::Manifest { workload: Some(workload), .. } = &service.workload else { return };
        if workload.starts_with("Deployment/") || matches!(strategy, Strategy::Rolling(_)) {
            return;
        }
        self.report(
            Diagnostic::new(
                &strategy_code::REFUSED,
                place,
                format!(
                    "`{}` can't be done with {workload}: only a Deployment can be there once for each release",
                    strategy.kind().as_str()
                ),
            )
            .also(
                block.setting("workload").map_or(block.head(), |setting| setting.span),
                "the workload of the service",
            )
            .help("use `rolling`, which the cluster does by itself"),
        );
    }

    /// What the service says that a target does not read.
    pub(crate) fn unread(&mut self, block: &Block<'_>, environment: &Block<'_>, deploy: Span) {
        let Some(target) = target_kind(environment) else { return };
        let is_image = block.setting("image").is_some();
        let said = capability::SERVICE_SETTINGS.iter().filter(|(_, readers)| {
            // There a process is what its command makes it.
            !readers.contains(&target) || (target == TargetKind::Hosts && !is_image)
        });
        for (word, all) in said {
            let child = || block.inner.children.iter().find(|child| child.spec.keyword == *word);
            let Some(span) =
                block.setting(word).map(|setting| setting.span).or_else(|| child().map(Block::head))
            else {
                continue;
            };
            let readers: Vec<String> = all
                .iter()
                .filter(|kind| **kind != target)
                .map(|kind| format!("`target {}`", kind.as_str()))
                .collect();
            self.report(
                Diagnostic::new(
                    &strategy_code::NOT_READ,
                    span,
                    format!("`{word}` means nothing in `{}`", environment.name_text()),
                )
                .also(deploy, format!("deployed to `target {}`", target.as_str()))
                .help(if target == TargetKind::Hosts && all.contains(&target) {
                    "on machines it is read of a service with an `image`: leave it out".to_owned()
                } else {
                    format!("it is read by {}: leave it out, or make a service for each", readers.join(", "))
                }),
            );
        }
    }

    /// Two services of one environment that are reached by the same route.
    pub(crate) fn routes(&mut self) {
        let mut claimed: BTreeMap<Claim, (String, Span)> = BTreeMap::new();
        for (_, service, environment, span) in self.deploys.clone() {
            let Some(route) = self
                .services
                .iter()
                .find(|((name, env, _), _)| *name == service && *env == environment)
                .and_then(|(_, found)| found.route.clone())
            else {
                continue;
            };
            let Some(kind) = self.names.get(Names::Environment, &environment).and_then(traffic_kind) else {
                continue;
            };
            if !matches!(kind, TrafficKind::Proxy | TrafficKind::Nginx) {
                continue;
            }
            let path = route.path.clone().filter(|path| path != "/");
            let key = (environment.clone(), route.listen.clone(), route.host.clone(), path);
            match claimed.get(&key) {
                Some((other, first)) if *other != service => {
                    self.report(
                        Diagnostic::new(
                            &crate::codes::graph::SAME_ROUTE,
                            span,
                            format!("`{service}` and `{other}` are reached by the same route in `{environment}`"),
                        )
                        .also(*first, format!("`{other}` is deployed here"))
                        .help("tell them apart: `route { host = … }`, `route { path = … }` or `route { listen = … }` in the service"),
                    );
                }
                Some(_) => {}
                None => {
                    claimed.insert(key, (service, span));
                }
            }
        }
    }
}
