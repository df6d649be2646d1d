//! The words of HAProxy's runtime socket: what is asked, and what its answers mean.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bits of the administrative state that take a server out: maintenance (forced, inherited, by DNS) or drain (forced, inherited).
const OUT: u32 = 0x01 | 0x02 | 0x08 | 0x10 | 0x20;
/// The operational state of a server that runs.
const RUNNING: u32 = 2;

/// A server of a backend, as `show servers state` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) name: String,
    pub(crate) address: String,
    /// It may get requests, as far as people and cdpipe are concerned.
    pub(crate) in_use: bool,
    /// Its health checks, if it has any, agree.
    pub(crate) running: bool,
    pub(crate) weight: u32,
}

/// The classes of answers that HAProxy counts, as its columns and as labels.
pub(crate) const CLASSES: [(&str, &str); 5] =
    [("hrsp_1xx", "1xx"), ("hrsp_2xx", "2xx"), ("hrsp_3xx", "3xx"), ("hrsp_4xx", "4xx"), ("hrsp_5xx", "5xx")];

/// What is counted of a server besides its requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Answers {
    /// By class: 1xx to 5xx.
    pub(crate) of_class: [u64; 5],
    /// Connections to it that could not be opened.
    pub(crate) connect_errors: u64,
    /// Answers that began and did not end.
    pub(crate) aborted: u64,
}

/// A line of `show stat` for a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) answers: Answers,
    /// A sliding mean of the times to the head of an answer, in milliseconds, rounded up. See [`mean_ms`].
    pub(crate) response_ms: u64,
    /// Requests in flight.
    pub(crate) in_flight: u64,
    /// Requests since HAProxy started.
    pub(crate) requests: u64,
}

/// Reads `show servers state BACKEND`: the servers whose names begin with `prefix`. `None` if it is no such answer.
pub(crate) fn servers(text: &str, backend: &str, prefix: &str) -> Option<Vec<Live>> {
    let mut columns: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# ") {
            columns = head.split_whitespace().collect();
            continue;
        }
        let fields: Vec<&str> = line.split_whitespace().collect();
        let field = |name: &str| fields.get(columns.iter().position(|column| *column == name)?).copied();
        if field("be_name") != Some(backend)
            || !field("srv_name").is_some_and(|name| name.starts_with(prefix))
        {
            continue;
        }
        let number = |name: &str| field(name)?.parse::<u32>().ok();
        let ip = field("srv_addr")?;
        let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        found.push(Live {
            name: field("srv_name")?.to_owned(),
            address: format!("{ip}:{}", number("srv_port")?),
            in_use: number("srv_admin_state")? & OUT == 0,
            running: number("srv_op_state")? == RUNNING,
            weight: number("srv_uweight")?,
        });
    }
    (!columns.is_empty()).then_some(found)
}

/// Reads `show stat`: requests of each server of a backend. `None` if it is no such answer.
pub(crate) fn stat(text: &str, backend: &str) -> Option<BTreeMap<String, Counted>> {
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next()?.strip_prefix("# ")?.split(',').collect();
    let at = |name: &str| columns.iter().position(|column| *column == name);
    let (proxy, server, current, total) = (at("pxname")?, at("svname")?, at("scur")?, at("stot")?);
    let named =
        |fields: &[&str], name: &str| at(name).and_then(|at| fields.get(at)?.parse().ok()).unwrap_or(0);
    let counted = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse().ok()).unwrap_or(0);
        (fields.get(proxy) == Some(&backend)).then(|| {
            let counted = Counted {
                answers: Answers {
                    of_class: CLASSES.map(|(column, _)| named(&fields, column)),
                    connect_errors: named(&fields, "econ"),
                    aborted: named(&fields, "eresp").saturating_add(named(&fields, "srv_abrt")),
                },
                response_ms: named(&fields, "rtime"),
                in_flight: number(current),
                requests: number(total),
            };
            (fields.get(server).copied().unwrap_or_default().to_owned(), counted)
        })
    };
    Some(lines.filter_map(counted).collect())
}

/// HAProxy's sliding means forget one part of so many at each sample (`TIME_STATS_SAMPLES` of its `defaults.h`).
const SAMPLES: u64 = 512;

/// The mean time of the last `new` answers, in milliseconds, out of a server's sliding mean before and after them: what the sum of
/// `swrate_add` has lost of its former value and gained since. Also of a server that has had few samples, of which HAProxy itself shows
/// too small a mean.
///
/// `before` and `now` are a mean and how many requests it is after. `None` where there are too few new ones to say anything.
#[allow(clippy::cast_precision_loss, reason = "means and counts, far below 2^53")]
pub(crate) fn mean_ms(before: (u64, u64), now: (u64, u64)) -> Option<f64> {
    const FEWEST: u64 = 5;
    let new = now.1.checked_sub(before.1)?;
    if new < FEWEST {
        return None;
    }
    let samples = SAMPLES as f64;
    let sum = |(mean, count): (u64, u64)| (mean * count.min(SAMPLES)) as f64;
    let kept = (1.0 - 1.0 / samples).powf(new as f64);
    Some(((sum(now) - sum(before) * kept) / (samples * (1.0 - kept))).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_by_the_names_of_the_columns() {
        let text = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight x y z srv_port\n\
            3 web 1 cdpipe1 127.0.0.1 2 0 99 1 0 0 0 4001\n3 web 2 cdpipe2 ::1 0 5 1 1 0 0 0 1\n\
            3 web 3 spare 127.0.0.1 2 0 1 1 0 0 0 5\n";
        let live = |name: &str, address: &str, in_use, running, weight| Live {
            name: name.to_owned(),
            address: address.to_owned(),
            in_use,
            running,
            weight,
        };
        assert_eq!(
            servers(text, "web", "cdpipe"),
            Some(vec![
                live("cdpipe1", "127.0.0.1:4001", true, true, 99),
                live("cdpipe2", "[::1]:1", false, false, 1)
            ])
        );
        assert_eq!(servers("Can't find backend.\n", "web", "cdpipe"), None);
    }

    /// HAProxy's own arithmetic: `swrate_add` and `swrate_avg` of its `freq_ctr.h`.
    fn told(sum: &mut u64, count: &mut u64, time_ms: u64, answers: u64) -> (u64, u64) {
        for _ in 0..answers {
            *sum = *sum - sum.div_ceil(SAMPLES) + time_ms;
            *count += 1;
        }
        (sum.div_ceil((*count).clamp(1, SAMPLES)), *count)
    }

    #[test]
    fn the_mean_of_one_release_is_told_from_that_of_the_one_before_it_on_the_same_server() {
        for (old, before_ms, new, now_ms) in
            [(0, 0, 20, 40), (0, 0, 512, 40), (5000, 20, 100, 300), (300, 250, 60, 30), (5000, 200, 3000, 10)]
        {
            let (mut sum, mut count) = (0, 0);
            let before = told(&mut sum, &mut count, before_ms, old);
            let now = told(&mut sum, &mut count, now_ms, new);
            let mean = mean_ms(before, now).expect("enough of them");
            assert!((mean - now_ms as f64).abs() < 12.0, "{old} of {before_ms}, {new} of {now_ms}: {mean}");
        }
        assert_eq!(mean_ms((20, 100), (20, 103)), None);
        assert_eq!(mean_ms((20, 100), (20, 3)), None);
    }

    #[test]
    fn counts_are_read_by_the_names_of_the_columns() {
        let text = "# pxname,svname,qcur,qmax,scur,smax,slim,stot,hrsp_5xx,rtime\nweb,cdpipe1,0,0,2,5,,70,3,12\nweb,BACKEND,0,0,2,5,,70,3,12\nother,cdpipe1,0,0,9,9,,9,9,9\n";
        let counts = stat(text, "web").expect("an answer");
        assert_eq!(
            counts.get("cdpipe1"),
            Some(&Counted {
                answers: Answers { of_class: [0, 0, 0, 0, 3], ..Answers::default() },
                response_ms: 12,
                in_flight: 2,
                requests: 70
            })
        );
        assert_eq!(counts.len(), 2);
        assert_eq!(stat("Permission denied\n", "web"), None);
    }
}
