//! A Kubernetes cluster of this checkout's own, of one node: the real control plane, kubelet, kube-proxy and containerd, with data, ports
//! and a bridge of their own. `down` also ends the pods, which outlive the processes that started them ([`leftovers`]).
//!
//! kube-proxy's rules have one name for the whole machine: of two checkouts whose clusters are up only the first has ClusterIPs.

mod leftovers;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use self::settings::Settings;
use super::daemon::Daemon;
use super::{For, Part, Place, Trouble, Up, images, install, registry};
use crate::process::{Job, write_file};
use crate::{net, project, say, sys};

/// That of `xtask/lab/kubernetes/go.mod`.
const VERSION: &str = "1.36.3";
/// Building the components, cold, on two cores that others use too.
const BUILD_WITHIN: Duration = Duration::from_secs(40 * 60);
const ONE_CALL_WITHIN: Duration = Duration::from_secs(20);
/// From the last process that answers to a node that takes pods.
const NODE_WITHIN: Duration = Duration::from_secs(90);
/// Longest path of a socket on Linux, less what is appended to the folder.
const LONGEST_FOLDER: usize = 70;
const COMPONENTS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];
/// In the order of starting.
const PROCESSES: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
];

pub(crate) struct Kubernetes;

/// The components in the cache, each under its name.
fn components() -> Result<PathBuf, Trouble> {
    let binary = install::cached("kubernetes", VERSION, |dir| {
        let go = project::find("go").ok_or_else(|| Trouble::Missing {
            why: "there is no `go` on PATH".to_owned(),
            install: "install a Go toolchain (1.26 or newer)".to_owned(),
        })?;
        say::say(&format!(
            "lab  {:<12} not in the cache yet: building {VERSION}, some minutes …",
            "kubernetes"
        ));
        let set = |package: &str| {
            let set = |name: &str, value: &str| format!(" -X {package}.{name}={value}");
            set("gitVersion", &format!("v{VERSION}")) + &set("gitMajor", "1") + &set("gitMinor", "36")
        };
        // Without the second the components refuse each other's versions.
        let flags =
            format!("-s -w{}{}", set("k8s.io/component-base/version"), set("k8s.io/client-go/pkg/version"));
        let out = dir.join("bin").join("kubernetes");
        let args = ["-n", "10", &go.to_string_lossy(), "build", "-trimpath", "-ldflags", &flags, "-o"];
        let args = args.iter().map(std::ffi::OsStr::new).chain([out.as_os_str(), ".".as_ref()]);
        Job::new("nice", args, BUILD_WITHIN)
            .dir(project::root().join("xtask").join("lab").join("kubernetes"))
            .env("CGO_ENABLED", "0")
            .must()?;
        Ok(())
    })?;
    let bin = binary.parent().unwrap_or(&binary).to_owned();
    for name in COMPONENTS {
        let link = bin.join(name);
        if !link.exists() {
            match std::os::unix::fs::symlink("kubernetes", &link) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(Trouble::Broken(format!("{}: {error}", link.display())));
                }
                _ => {}
            }
        }
    }
    Ok(bin)
}

fn daemon(place: &Place, name: &'static str) -> Daemon {
    Daemon { dir: place.dir.clone(), name }
}

pub(super) fn kubeconfig(place: &Place) -> PathBuf {
    place.dir.join("kubeconfig")
}

fn kubectl(place: &Place, bin: &Path, args: &[&str]) -> Job {
    Job::new(bin.join("kubectl"), args, ONE_CALL_WITHIN)
        .env("KUBECONFIG", kubeconfig(place))
        .env("KUBECACHEDIR", place.dir.join("kubectl-cache"))
}

/// What kubectl answers, for parts that stand on this one.
pub(super) fn call(place: &Place, args: &[&str], within: Duration) -> Result<String, Trouble> {
    let bin = components()?;
    let job = Job::new(bin.join("kubectl"), args, within).env("KUBECONFIG", kubeconfig(place));
    Ok(job.env("KUBECACHEDIR", place.dir.join("kubectl-cache")).must()?.output)
}

fn answers(port: u16) -> bool {
    std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn answers_at(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

fn is_healthy(port: u16) -> bool {
    net::http_status(port, "/healthz") == Some(200)
}

/// The node takes pods, and the namespace `default` has its account.
fn takes_pods(place: &Place, bin: &Path) -> bool {
    let says = |args: &[&str], what: &str| {
        kubectl(place, bin, args).capture().is_ok_and(|ended| ended.ok() && ended.output.contains(what))
    };
    let condition = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
    says(&["get", "nodes", "-o", condition], "True") && says(&["get", "serviceaccount", "default"], "default")
}

impl Kubernetes {
    fn start(place: &Place, bin: &Path, settings: &Settings) -> Result<(), Trouble> {
        let etcd = daemon(place, "etcd")
            .up(|port| settings.etcd(port), |port| net::http_status(port, "/health") == Some(200))?;
        // The port is part of the kubeconfig that readiness is asked with.
        daemon(place, "kube-apiserver").up(
            |port| {
                settings.write_kubeconfig(&kubeconfig(place), port)?;
                settings.api_server(&bin.join("kube-apiserver"), port, etcd)
            },
            |port| {
                answers(port)
                    && kubectl(place, bin, &["get", "--raw", "/readyz"])
                        .capture()
                        .is_ok_and(|ended| ended.ok())
            },
        )?;
        daemon(place, "kube-controller-manager")
            .up(|port| settings.controllers(&bin.join("kube-controller-manager"), port), answers)?;
        daemon(place, "kube-scheduler")
            .up(|port| settings.scheduler(&bin.join("kube-scheduler"), port), answers)?;
        daemon(place, "containerd").up(|_| settings.containerd(), |_| answers_at(&settings.socket()))?;
        daemon(place, "kubelet").up(|port| settings.kubelet(&bin.join("kubelet"), port), is_healthy)?;
        if let Some(other) = leftovers::claimed() {
            say::say(&format!(
                "lab  {:<12} without kube-proxy, so without ClusterIPs: that of {other} is up",
                "kubernetes"
            ));
        } else {
            daemon(place, "kube-proxy")
                .up(|port| settings.proxy(&bin.join("kube-proxy"), port), is_healthy)?;
            leftovers::claim(place)?;
        }
        let ready = net::until(NODE_WITHIN, || takes_pods(place, bin), || false);
        if ready {
            return Ok(());
        }
        Err(Trouble::Broken(format!(
            "the node did not become ready; see the logs in {}",
            project::shown(&place.dir)
        )))
    }

    fn is_there(place: &Place, bin: &Path) -> Up {
        let path = kubeconfig(place).display().to_string();
        let env = [
            ("CDPIPE_LAB_KUBERNETES", path.clone()),
            ("KUBECONFIG", path.clone()),
            ("CDPIPE_LAB_KUBECTL", bin.join("kubectl").display().to_string()),
            // The process that it names starts the API server again when somebody has killed that.
            ("CDPIPE_LAB_KUBERNETES_KEEPER", place.dir.join("kube-apiserver.pid").display().to_string()),
        ];
        Up { at: path, env: env.map(|(name, value)| (name.to_owned(), value)).into() }
    }
}

impl Part for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn about(&self) -> &'static str {
        "a cluster of one node; images for it are in the registry"
    }

    fn used_by(&self) -> &'static [For] {
        &[For::Test]
    }

    fn needs(&self) -> &'static [&'static str] {
        // The engine makes and pushes the images.
        &["registry", "docker"]
    }

    fn up(&self, place: &Place) -> Result<Up, Trouble> {
        if !sys::is_root() {
            return Err(Trouble::Missing {
                why: "a node that runs containers needs root".to_owned(),
                install: "run it as root".to_owned(),
            });
        }
        if place.dir.as_os_str().len() > LONGEST_FOLDER {
            return Err(Trouble::Missing {
                why: format!("{} is too long for sockets to be in it", place.dir.display()),
                install: "put the checkout where its path is shorter".to_owned(),
            });
        }
        if let Some(there) = self.status(place) {
            return Ok(there);
        }
        let bin = components()?;
        let registry = Place::named("registry");
        let (images, _) =
            registry::ports(&registry).ok_or_else(|| Trouble::Broken("the registry is down".to_owned()))?;
        if !images::are_pushed(&registry) {
            return Err(Trouble::Broken(
                "the registry has no images: `cargo xtask lab up docker` pushes them".to_owned(),
            ));
        }
        // What is half there can't be mended piece by piece: ports and certificates belong together.
        self.down(place)?;
        let settings = Settings::new(place, images)?;
        settings.write()?;
        match Self::start(place, &bin, &settings) {
            Ok(()) => Ok(Self::is_there(place, &bin)),
            Err(trouble) => {
                self.down(place)?;
                Err(trouble)
            }
        }
    }

    fn down(&self, place: &Place) -> Result<bool, String> {
        let mut ended = false;
        // Whoever would start pods again goes first; containerd stays to end those that run.
        for name in PROCESSES.iter().rev().filter(|name| **name != "containerd") {
            ended |= daemon(place, name).down()?;
        }
        leftovers::end_pods(place)?;
        ended |= daemon(place, "containerd").down()?;
        leftovers::clear(place)?;
        // Logs stay: they are what a person looks at when something went wrong.
        for data in ["etcd", "kubelet", "root", "state", "certificates", "ipam"] {
            let path = place.dir.join(data);
            if path.exists() {
                fs::remove_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Ok(ended)
    }

    fn status(&self, place: &Place) -> Option<Up> {
        let binary = install::cached_path("kubernetes", VERSION).ok()?;
        // The one that may be left out has no pid file then.
        let is_left_out = |name: &str| name == "kube-proxy" && !place.dir.join("kube-proxy.pid").exists();
        for name in PROCESSES.into_iter().filter(|name| !is_left_out(name)) {
            daemon(place, name).port(|port| match name {
                "kubelet" | "kube-proxy" => is_healthy(port),
                "containerd" => answers_at(&settings::socket(place)),
                _ => answers(port),
            })?;
        }
        let bin = binary.parent()?;
        takes_pods(place, bin).then(|| Self::is_there(place, bin))
    }
}

/// Writes a file of settings.
fn write(path: &Path, text: &str) -> Result<(), Trouble> {
    write_file(path, text).map_err(Trouble::Broken)
}

/// A program that writes its log to where its output goes.
fn program(binary: &Path, args: &[String]) -> Command {
    let mut command = Command::new(binary);
    command.args(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_module() {
        let module = project::root().join("xtask/lab/kubernetes/go.mod");
        let text = fs::read_to_string(module).unwrap();
        assert!(text.contains(&format!("k8s.io/kubernetes v{VERSION}\n")), "{text}");
        assert!(text.contains(&format!("k8s.io/kubectl v0.{}\n", &VERSION[2..])), "{text}");
    }
}
