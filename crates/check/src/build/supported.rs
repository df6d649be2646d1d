//! Whether target and router can do what a strategy or a command says.

use super::place::{target_kind, traffic_kind};
use crate::checker::Checker;
use crate::codes::strategies as code;
use crate::schema::{Id, Names};
use crate::scope::{Around, Scope};
use crate::structure::Block;
use cdpipe_model::capability::{self, RouterCapabilities, Support};
use cdpipe_model::service::{TargetKind, TrafficKind};
use cdpipe_model::strategy::{RouteMatch, Sticky, Strategy, StrategyKind};
use cdpipe_syntax::tree::ExprKind;
use cdpipe_syntax::{Diagnostic, Span};

/// Whether Kubernetes takes it as the name of a Service.
fn is_service_name(text: &str) -> bool {
    let inner = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-';
    text.len() <= 63
        && text.bytes().all(inner)
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && !text.ends_with('-')
}

impl<'b> Checker<'b> {
    /// Whether there is something that runs a command in an image; says so if not.
    pub(super) fn runs_images(&mut self, image: Span, environment: Option<&str>, scope: &Scope<'_>) {
        let help = "run it in an environment with a target that runs containers, or leave `image` out";
        let Some(name) = environment else {
            if matches!(scope.around, Around::None) {
                let text = "this command goes to no environment, and this machine runs none in an image";
                self.report(
                    Diagnostic::new(&code::NO_CONTAINERS, image, text)
                        .help("say which: `environment = …`, one with a target that runs containers"),
                );
            }
            return;
        };
        let Some(block) = self.names.get(Names::Environment, name) else { return };
        let Some(target) = target_kind(block).filter(|target| !capability::runs_images(*target)) else {
            return;
        };
        let why = match target {
            TargetKind::Hosts => "its machines have an engine each, and none for commands",
            _ => "its target runs processes",
        };
        self.report(
            Diagnostic::new(
                &code::NO_CONTAINERS,
                image,
                format!("`{name}` can't run a command in an image: {why}"),
            )
            .also(block.child(Id::Target).map_or(block.head(), |target| target.head()), "its target")
            .help(help),
        );
    }

    /// Whether target and router can do it; says so if not.
    pub(crate) fn supported(
        &mut self,
        strategy: &Strategy,
        environment: &'b Block<'b>,
        named: Option<&'b Block<'b>>,
        own: Option<&'b Block<'b>>,
        deploy: &'b Block<'b>,
    ) {
        let Some(target) = target_kind(environment) else { return };
        if environment.child(Id::Traffic).is_some() && traffic_kind(environment).is_none() {
            return;
        }
        let traffic = traffic_kind(environment);
        let place = own.or(named).unwrap_or(deploy);
        let name = environment.name_text();
        if let Support::Refused(why) = capability::support(strategy.kind(), target, traffic) {
            let what = match traffic {
                Some(kind) => format!("`target {}` behind `traffic {}`", target.as_str(), kind.as_str()),
                None => format!("`target {}` without a `traffic`", target.as_str()),
            };
            self.report(
                Diagnostic::new(
                    &code::REFUSED,
                    place.head(),
                    format!("`{}` can't be done in `{name}`: {why}", strategy.kind().as_str()),
                )
                .also(
                    environment
                        .child(Id::Traffic)
                        .or(environment.child(Id::Target))
                        .map_or(environment.head(), |block| block.head()),
                    what,
                )
                .help(match (strategy.kind(), traffic) {
                    (StrategyKind::Canary | StrategyKind::BlueGreen, None) => {
                        "give the environment a router (`traffic proxy`), or use `rolling`".to_owned()
                    }
                    _ => "choose another strategy or another router for this environment".to_owned(),
                }),
            );
            return;
        }
        if let Strategy::Rolling(rolling) = strategy {
            let blocks = || [own, named].into_iter().flatten();
            for (setting, is_set) in [
                ("pause", rolling.pause_ms > 0),
                ("max_failures", rolling.max_failures_percent > 0.0),
                ("failure_action", rolling.failure_action.is_some()),
                ("rollback_config", rolling.back.is_some()),
            ] {
                if is_set && let Some(why) = capability::rolling_setting(target, traffic, setting) {
                    let set = blocks().find_map(|block| block.setting(setting).map(|setting| setting.span));
                    let child =
                        || blocks().find_map(|block| block.child(Id::RollbackConfig)).map(Block::head);
                    let span = set.or_else(|| child().filter(|_| setting == "rollback_config"));
                    self.report(
                        Diagnostic::new(
                            &code::REFUSED,
                            span.unwrap_or(place.head()),
                            format!("`{setting}` can't be kept in `{name}`: {why}"),
                        )
                        .also(
                            environment.child(Id::Target).map_or(environment.head(), |block| block.head()),
                            match setting {
                                "pause" | "max_failures" => {
                                    format!("`target {}` rolls by itself", target.as_str())
                                }
                                _ => format!("`target {}`", target.as_str()),
                            },
                        )
                        .help(format!("leave `{setting}` out")),
                    );
                }
            }
        }
        let blocks = || [own, named].into_iter().flatten();
        let router_head = environment.child(Id::Traffic).map_or(environment.head(), |block| block.head());
        if let (Strategy::BlueGreen(settings), Some(kind)) = (strategy, traffic)
            && settings.preview.is_some()
            && !capability::router(kind).preview
        {
            let span = blocks().find_map(|block| block.setting("preview"));
            self.report(
                Diagnostic::new(
                    &code::REFUSED,
                    span.map_or(place.head(), |setting| setting.span),
                    format!("`traffic {}` can't show a preview", kind.as_str()),
                )
                .also(router_head, "this router")
                .help(or_choose("preview", target, |router| router.preview)),
            );
        }
        if let (Strategy::BlueGreen(settings), Some(TrafficKind::Service)) = (strategy, traffic)
            && let Some((host, _)) = settings.preview.as_deref().and_then(|preview| preview.rsplit_once(':'))
            && !host.is_empty()
            && !is_service_name(host)
        {
            let span = blocks().find_map(|block| block.setting("preview"));
            self.report(
                Diagnostic::new(
                    &code::REFUSED,
                    span.map_or(place.head(), |setting| setting.span),
                    format!(
                        "`preview` names a Service of the cluster, and `{host}` can't be the name of one"
                    ),
                )
                .also(router_head, "this router")
                .help("write `\"web-preview:8080\"`, or the port alone"),
            );
        }
        let (Strategy::Canary(canary), Some(kind)) = (strategy, traffic) else { return };
        let router = capability::router(kind);
        for rule in &canary.rules {
            let (fine, what) = match rule {
                RouteMatch::Header { .. } => (router.header_rules, "header"),
                RouteMatch::Cookie { .. } => (router.cookie_rules, "cookie"),
            };
            if !fine {
                let span = [own, named]
                    .into_iter()
                    .flatten()
                    .find_map(|block| block.children(Id::CanaryRoute).find(|route| matches!(route.arg("MATCH").map(|expr| &expr.kind), Some(ExprKind::Call(name, _)) if name.text == what)))
                    .map_or(place.head(), |route| route.head());
                self.report(
                    Diagnostic::new(
                        &code::NO_MATCHING,
                        span,
                        format!("`traffic {}` can't route by {what}", kind.as_str()),
                    )
                    .also(
                        environment.child(Id::Traffic).map_or(environment.head(), |block| block.head()),
                        "this router",
                    )
                    .help(or_choose("the rule", target, |router| {
                        if what == "header" { router.header_rules } else { router.cookie_rules }
                    })),
                );
            }
        }
        let sticky = match canary.sticky {
            Sticky::None => true,
            Sticky::Cookie => router.sticky_cookie,
            Sticky::ClientAddress => router.sticky_client_address,
        };
        if !sticky {
            let span = [own, named]
                .into_iter()
                .flatten()
                .find_map(|block| block.setting("sticky"))
                .map_or(place.head(), |setting| setting.span);
            self.report(
                Diagnostic::new(
                    &code::NO_MATCHING,
                    span,
                    format!("`traffic {}` can't keep a user on a release so", kind.as_str()),
                )
                .also(
                    environment.child(Id::Traffic).map_or(environment.head(), |block| block.head()),
                    "this router",
                )
                .help(or_choose("sticky", target, |router| {
                    if canary.sticky == Sticky::Cookie {
                        router.sticky_cookie
                    } else {
                        router.sticky_client_address
                    }
                })),
            );
        }
    }
}

/// What is to be done about a thing that a router can't do.
fn or_choose(what: &str, target: TargetKind, can: impl Fn(&RouterCapabilities) -> bool) -> String {
    let what = if what.contains(' ') { what.to_owned() } else { format!("`{what}`") };
    let able: Vec<String> =
        capability::routers_that(target, can).iter().map(|kind| format!("`{}`", kind.as_str())).collect();
    match able.as_slice() {
        [] => format!("leave {what} out: no router before `target {}` can", target.as_str()),
        _ => format!("leave {what} out, or choose a router that can ({})", able.join(", ")),
    }
}
