//! Every call ends: when it is done, cancelled, or out of time.

use cdpipe_model::fault::Fault;
use cdpipe_model::observe::{Instance, RouteTable};
use cdpipe_model::ports::Call;
use cdpipe_model::service::Route;
use std::time::Duration;

/// Runs a call until it is done, cancelled, or out of time. `what` is the router, for people.
pub(crate) async fn bounded<T>(
    call: Call<'_>,
    what: &str,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    tokio::select! {
        biased;
        done = tokio::time::timeout(call.deadline, work) => done.unwrap_or_else(|_| {
            let ms = call.deadline.as_millis();
            Err(Fault::new("timed-out", format!("{what} was not where it should be after {ms} ms")).transient())
        }),
        () = call.cancel.cancelled() => Err(Fault::new("cancelled", format!("cancelled while {what} was asked"))),
    }
}

/// The same call with less time.
pub(crate) fn within(call: Call<'_>, deadline: Duration) -> Call<'_> {
    Call { deadline: deadline.min(call.deadline), ..call }
}

/// Whether two routes are the same one: service, listen address, host and path.
pub(crate) fn same_route(a: &Route, b: &Route) -> bool {
    let path = |route: &Route| route.path.as_deref().unwrap_or("/").trim_end_matches('/').to_owned();
    (&a.service, &a.listen, &a.host) == (&b.service, &b.listen, &b.host) && path(a) == path(b)
}

/// Refuses to drain what is still in the table.
pub(crate) fn not_routed(
    table: Option<&RouteTable>,
    release: &cdpipe_model::ReleaseId,
    instances: &[Instance],
    router: &str,
) -> Result<(), Fault> {
    let Some(entry) = table.and_then(|table| table.entries.iter().find(|entry| entry.release == *release))
    else {
        return Ok(());
    };
    let routed = if instances.is_empty() {
        !entry.members.is_empty()
    } else {
        instances.iter().any(|instance| entry.members.iter().any(|member| member.instance == instance.id))
    };
    if routed {
        return Err(Fault::new(
            "still-routed",
            format!("release {release} is still in the table of {router}, so it can not drain"),
        ));
    }
    Ok(())
}

/// What `apply` refuses before it changes anything: a newer owner, and what somebody else has done.
pub(crate) fn may_change(
    found: Option<(&RouteTable, u64)>,
    table: &RouteTable,
    seen: Option<&RouteTable>,
    epoch: u64,
    whose: &str,
) -> Result<(), Fault> {
    if let Some((_, owner)) = found
        && owner > epoch
    {
        return Err(Fault::new(
            "stale-epoch",
            format!(
                "a newer owner (epoch {owner}) has written the route of service {} in {whose}; this run has epoch {epoch}",
                table.route.service
            ),
        )
        .help("a newer run owns this service: look at `cdpipe status`"));
    }
    let found = found.map(|(table, _)| table);
    if found.is_some_and(|found| found == table) || found == seen {
        return Ok(());
    }
    Err(moved(format!(
        "the route of service {} in {whose} is not what this run has seen: expected {}, found {}",
        table.route.service,
        shares(seen),
        shares(found)
    )))
}

/// Somebody else's change: held, and said.
pub(crate) fn moved(what: String) -> Fault {
    Fault::new("moved", what).help("somebody else changed the route: plan again and look at what serves now")
}

/// A table in a few words.
pub(crate) fn shares(table: Option<&RouteTable>) -> String {
    match table {
        None => "no route".to_owned(),
        Some(table) if table.entries.is_empty() => "a closed route".to_owned(),
        Some(table) => table
            .entries
            .iter()
            .map(|entry| {
                let (whole, rest) = (entry.weight_bp / 100, entry.weight_bp % 100);
                let percent = if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:02}") };
                format!("{percent}% {} ({} instances)", entry.release, entry.members.len())
            })
            .collect::<Vec<_>>()
            .join(", "),
    }
}
