//! Two image registries: an open one, and one that wants a password. On port 5000 where that is free, because the example pipelines
//! name it; Docker trusts loopback registries without TLS.

use std::process::Command;

use super::daemon::Daemon;
use super::{For, Part, Place, Trouble, Up, install};
use crate::{net, process};

pub(crate) struct Registry;

/// The port that `pipelines/docker-*.cd` name.
const USUAL_PORT: u16 = 5000;
/// User and password of the second one.
pub(crate) const LOGIN: (&str, &str) = ("lab", "lab");
/// bcrypt of that password, which is all the registry reads.
const LOGIN_HASH: &str = "$2b$04$XWGLXGiGcCDVuGmC8lhDMOXsQucVyJHFfOuKqLzCC10r0aN8Vmw6C";

fn open(place: &Place) -> Daemon {
    Daemon { dir: place.dir.clone(), name: "open" }
}

fn locked(place: &Place) -> Daemon {
    Daemon { dir: place.dir.clone(), name: "locked" }
}

fn open_ready(port: u16) -> bool {
    net::http_status(port, "/v2/") == Some(200)
}

fn locked_ready(port: u16) -> bool {
    net::http_status(port, "/v2/") == Some(401)
}

fn command(place: &Place, name: &str, port: u16, auth: &str) -> Result<Command, Trouble> {
    let binary = install::debian("docker-registry", "docker-registry")?;
    let file = place.dir.join(format!("{name}.yml"));
    let data = place.dir.join(name);
    process::write_file(
        &file,
        &format!(
            "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: \
             {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
            data.display()
        ),
    )?;
    let mut command = Command::new(binary);
    command.arg("serve").arg(file).env("OTEL_TRACES_EXPORTER", "none");
    Ok(command)
}

fn up(open: u16, locked: u16) -> Up {
    Up {
        at: format!("127.0.0.1:{open}, with a password 127.0.0.1:{locked}"),
        env: vec![
            ("CDPIPE_LAB_REGISTRY".to_owned(), format!("127.0.0.1:{open}")),
            ("CDPIPE_LAB_REGISTRY_LOCKED".to_owned(), format!("127.0.0.1:{locked}")),
        ],
    }
}

/// The ports of both, if both serve.
pub(super) fn ports(place: &Place) -> Option<(u16, u16)> {
    Some((open(place).port(open_ready)?, locked(place).port(locked_ready)?))
}

impl Part for Registry {
    fn name(&self) -> &'static str {
        "registry"
    }

    fn about(&self) -> &'static str {
        "images are pushed to it and pulled from it; a second one wants a password"
    }

    fn used_by(&self) -> &'static [For] {
        &[For::Test, For::Bench]
    }

    fn up(&self, place: &Place) -> Result<Up, Trouble> {
        let first =
            open(place).up_at(Some(USUAL_PORT), |port| command(place, "open", port, ""), open_ready)?;
        let htpasswd = place.dir.join("htpasswd");
        process::write_file(&htpasswd, &format!("{}:{LOGIN_HASH}\n", LOGIN.0))?;
        let auth = format!("auth:\n  htpasswd:\n    realm: lab\n    path: {}\n", htpasswd.display());
        let second = locked(place).up(|port| command(place, "locked", port, &auth), locked_ready)?;
        Ok(up(first, second))
    }

    fn down(&self, place: &Place) -> Result<bool, String> {
        let first = open(place).down()?;
        Ok(locked(place).down()? || first)
    }

    fn status(&self, place: &Place) -> Option<Up> {
        ports(place).map(|(open, locked)| up(open, locked))
    }
}
