//! Redis: a real one for feature flags. Empty at every start, in memory only.

use std::process::Command;

use super::daemon::Daemon;
use super::{For, Part, Place, Trouble, Up, install};
use crate::net;

pub(crate) struct Redis;

fn daemon(place: &Place) -> Daemon {
    Daemon { dir: place.dir.clone(), name: "redis" }
}

fn ready(port: u16) -> bool {
    net::talk(port, "PING\r\n").is_some_and(|answer| answer.starts_with("+PONG"))
}

fn up(port: u16) -> Up {
    let url = format!("redis://127.0.0.1:{port}");
    Up { at: url.clone(), env: vec![("CDPIPE_LAB_REDIS".to_owned(), url)] }
}

impl Part for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn about(&self) -> &'static str {
        "feature flags are kept in it"
    }

    fn used_by(&self) -> &'static [For] {
        &[For::Test]
    }

    fn up(&self, place: &Place) -> Result<Up, Trouble> {
        let binary = install::debian("redis-server", "redis-server")?;
        let command = |port: u16| {
            let mut command = Command::new(&binary);
            command.arg("--port").arg(port.to_string()).args(["--bind", "127.0.0.1", "--daemonize", "no"]);
            command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(&place.dir);
            Ok(command)
        };
        daemon(place).up(command, ready).map(up)
    }

    fn down(&self, place: &Place) -> Result<bool, String> {
        daemon(place).down()
    }

    fn status(&self, place: &Place) -> Option<Up> {
        daemon(place).port(ready).map(up)
    }
}
