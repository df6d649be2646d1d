//! Docker engines of this checkout's own: data, state and socket in its `.lab` folder, a bridge and address pool of its own, no
//! iptables rules (published ports go through Docker's userland proxy), so that two checkouts, and an engine that the machine has
//! anyway, never meet. One plain, one that is a Swarm of one node.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::daemon::Daemon;
use super::{For, Part, Place, Trouble, Up, images, install, registry};
use crate::process::{Job, write_file};
use crate::{net, project, sys};

/// One answer of the command line of Docker.
const ONE_CALL_WITHIN: Duration = Duration::from_secs(60);
/// Longest path of a socket on Linux, less what containerd appends to its folder.
const LONGEST_FOLDER: usize = 70;

/// The plain engine, with the lab's images in the registry beside it.
pub(crate) const DOCKER: Engine = Engine { name: "docker", swarm: false };
/// A Swarm of one node.
pub(crate) const SWARM: Engine = Engine { name: "swarm", swarm: true };

pub(crate) struct Engine {
    name: &'static str,
    swarm: bool,
}

impl Engine {
    fn daemon(&self, place: &Place) -> Daemon {
        Daemon { dir: place.dir.clone(), name: "dockerd" }
    }

    fn ready(place: &Place) -> impl Fn(u16) -> bool {
        let socket = socket(place);
        move |_| {
            net::talk_unix(&socket, "GET /_ping HTTP/1.0\r\n\r\n").is_some_and(|said| said.contains(" 200 "))
        }
    }

    /// Two numbers from 0 to 255 that other checkouts most likely do not have.
    fn numbers(&self) -> (u8, u8) {
        let text = format!("{} {}", project::root().display(), self.name);
        let hash = images::fnv(text.as_bytes());
        let [first, second, ..] = hash.to_le_bytes();
        (first, second)
    }

    fn bridge(&self) -> String {
        let (first, second) = self.numbers();
        format!("cdp-{}{first:02x}{second:02x}", if self.swarm { "s" } else { "d" })
    }

    /// The bridge of containers that name no network. Made by us: the engine would use one that all engines share.
    fn make_bridge(&self) -> Result<(), Trouble> {
        let ip = install::debian("iproute2", "ip")?;
        let (bridge, (first, second)) = (self.bridge(), self.numbers());
        let run = |args: &[&str]| Job::new(&ip, args, ONE_CALL_WITHIN).capture();
        if !run(&["link", "show", &bridge])?.ok() {
            Job::new(&ip, ["link", "add", &bridge, "type", "bridge"], ONE_CALL_WITHIN).must()?;
        }
        let address = format!("172.{}.{second}.1/24", 16 + first % 16);
        let has = run(&["-4", "address", "show", "dev", &bridge])?.output.contains(&address);
        if !has {
            Job::new(&ip, ["address", "add", &address, "dev", &bridge], ONE_CALL_WITHIN).must()?;
        }
        Job::new(&ip, ["link", "set", &bridge, "up"], ONE_CALL_WITHIN).must()?;
        Ok(())
    }

    fn command(&self, place: &Place) -> Result<Command, Trouble> {
        let binary = install::debian("docker.io", "dockerd")?;
        self.make_bridge()?;
        let config = place.dir.join("daemon.json");
        write_file(&config, "{}\n")?;
        let (first, second) = self.numbers();
        let pool = format!("base=10.{}.0.0/16,size=24", 64 + u16::from(first ^ second) % 128);
        let mut command = Command::new(binary);
        command.arg("--config-file").arg(config);
        command.arg("--data-root").arg(place.dir.join("data"));
        command.arg("--exec-root").arg(place.dir.join("exec"));
        command.arg("--pidfile").arg(place.dir.join("dockerd.own.pid"));
        command.arg("--host").arg(format!("unix://{}", socket(place).display()));
        command.arg("--bridge").arg(self.bridge()).arg("--default-address-pool").arg(pool);
        command.args([
            "--iptables=false",
            "--ip-masq=false",
            "--userland-proxy=true",
            "--oom-score-adjust=0",
        ]);
        command.args(["--log-driver=json-file", "--log-opt=max-size=1m", "--log-opt=max-file=1"]);
        command.args(["--shutdown-timeout=5", "--log-level=warn"]);
        Ok(command)
    }

    fn docker(place: &Place, args: &[&str]) -> Result<Job, Trouble> {
        docker(&socket(place), args, ONE_CALL_WITHIN)
    }

    /// Removes every container: what a run has left is nothing that the next one should find.
    fn clear(place: &Place) -> Result<(), Trouble> {
        let listed = Self::docker(place, &["ps", "--all", "--quiet"])?.must()?.output;
        let ids: Vec<&str> = listed.split_whitespace().collect();
        if !ids.is_empty() {
            Self::docker(place, &[&["rm", "--force", "--volumes"], ids.as_slice()].concat())?.must()?;
        }
        Ok(())
    }

    fn is_swarm(place: &Place) -> Result<bool, Trouble> {
        let state = Self::docker(place, &["info", "--format", "{{.Swarm.LocalNodeState}}"])?.must()?.output;
        Ok(state.trim() == "active")
    }

    fn init_swarm(&self, place: &Place) -> Result<(), Trouble> {
        if Self::is_swarm(place)? {
            return Ok(());
        }
        // An address of its own on the loopback device: the ports of a Swarm are fixed.
        let (first, second) = self.numbers();
        let address = format!("127.{}.{second}.2", 1 + u16::from(first) % 250);
        let listen = format!("{address}:2377");
        Self::docker(place, &["swarm", "init", "--advertise-addr", &address, "--listen-addr", &listen])?
            .must()?;
        Ok(())
    }

    fn is_there(&self, place: &Place) -> Up {
        let url = format!("unix://{}", socket(place).display());
        let mut env = Vec::new();
        if self.swarm {
            env.push(("CDPIPE_LAB_SWARM".to_owned(), url.clone()));
        } else {
            env.push(("CDPIPE_LAB_DOCKER".to_owned(), url.clone()));
            env.push(("DOCKER_HOST".to_owned(), url.clone()));
        }
        Up { at: url, env }
    }
}

/// The command line of Docker, on the engine of this socket.
pub(super) fn docker(socket: &Path, args: &[&str], within: Duration) -> Result<Job, Trouble> {
    let binary = install::debian("docker.io", "docker")?;
    Ok(Job::new(binary, args, within)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env("DOCKER_CONFIG", project::root().join(".lab").join("registry"))
        .env("DOCKER_BUILDKIT", "0"))
}

pub(super) fn socket(place: &Place) -> PathBuf {
    place.dir.join("docker.sock")
}

impl Part for Engine {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        if self.swarm { "a Swarm of one node" } else { "a Docker engine; images for it are in the registry" }
    }

    fn used_by(&self) -> &'static [For] {
        &[For::Test, For::Bench]
    }

    fn needs(&self) -> &'static [&'static str] {
        if self.swarm { &["registry", "docker"] } else { &["registry"] }
    }

    fn up(&self, place: &Place) -> Result<Up, Trouble> {
        if !sys::is_root() {
            return Err(Trouble::Missing {
                why: "a Docker engine of its own needs root".to_owned(),
                install: "run it as root".to_owned(),
            });
        }
        if place.dir.as_os_str().len() > LONGEST_FOLDER {
            return Err(Trouble::Missing {
                why: format!("{} is too long for sockets to be in it", place.dir.display()),
                install: "put the checkout where its path is shorter".to_owned(),
            });
        }
        // The engine calls it although it makes no rules.
        install::debian("iptables", "iptables")?;
        let daemon = self.daemon(place);
        if daemon.port(Self::ready(place)).is_none() {
            daemon.up(|_| self.command(place), Self::ready(place))?;
            Self::clear(place)?;
        }
        if self.swarm {
            self.init_swarm(place)?;
        } else {
            images::push(place, &Place::named("registry"))?;
        }
        Ok(self.is_there(place))
    }

    fn down(&self, place: &Place) -> Result<bool, String> {
        let daemon = self.daemon(place);
        if daemon.port(Self::ready(place)).is_some() {
            if self.swarm {
                let left =
                    Self::docker(place, &["swarm", "leave", "--force"]).and_then(|job| Ok(job.capture()?));
                left.map_err(|trouble| trouble.text())?;
            }
            Self::clear(place).map_err(|trouble| trouble.text())?;
        }
        let ended = daemon.down()?;
        if let (true, Some(ip)) = (ended, project::find("ip")) {
            Job::new(ip, ["link", "delete", &self.bridge()], ONE_CALL_WITHIN).capture()?;
        }
        Ok(ended)
    }

    fn status(&self, place: &Place) -> Option<Up> {
        self.daemon(place).port(Self::ready(place))?;
        let whole = match self.swarm {
            true => Self::is_swarm(place).unwrap_or(false),
            false => registry::ports(&Place::named("registry"))
                .is_some_and(|_| images::are_pushed(&Place::named("registry"))),
        };
        whole.then(|| self.is_there(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_engines_of_a_checkout_do_not_share_a_bridge() {
        assert_ne!(DOCKER.bridge(), SWARM.bridge());
        // The kernel cuts names of interfaces at 15.
        assert!(DOCKER.bridge().len() <= 15);
    }
}
