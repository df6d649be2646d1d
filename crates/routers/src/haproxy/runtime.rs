//! The words of HAProxy's runtime socket: what is asked, and what its answers mean.

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

/// A line of `show stat` for a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
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
    let counted = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse().ok()).unwrap_or(0);
        (fields.get(proxy) == Some(&backend)).then(|| {
            let counted = Counted { in_flight: number(current), requests: number(total) };
            (fields.get(server).copied().unwrap_or_default().to_owned(), counted)
        })
    };
    Some(lines.filter_map(counted).collect())
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

    #[test]
    fn counts_are_read_by_the_names_of_the_columns() {
        let text = "# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin\nweb,cdpipe1,0,0,2,5,,70,1\nweb,BACKEND,0,0,2,5,,70,1\nother,cdpipe1,0,0,9,9,,9,9\n";
        let counts = stat(text, "web").expect("an answer");
        assert_eq!(counts.get("cdpipe1"), Some(&Counted { in_flight: 2, requests: 70 }));
        assert_eq!(counts.len(), 2);
        assert_eq!(stat("Permission denied\n", "web"), None);
    }
}
