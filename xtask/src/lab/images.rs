//! The images of the lab, made without any registry but its own: the demo service, busybox and nginx with the libraries that they
//! are linked to, as one layer; its versions, good and bad, are settings on top of it. They are pushed to the registries and then
//! removed from the engine, so that who uses them pulls them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Place, Trouble, engine, install, registry};
use crate::process::{Job, write_file};
use crate::project;

const BUILD_WITHIN: Duration = Duration::from_secs(20 * 60);
const PUSH_WITHIN: Duration = Duration::from_secs(5 * 60);
/// Counted up whenever what is written here changes, so that the images are made again.
const EDITION: u32 = 4;
const BASE: &str = "cdpipe-lab/base:1";

/// Every image: name, tag, and what stands in its Dockerfile below `FROM`.
const IMAGES: [(&str, &str, &str); 12] = [
    ("shop", "1.0", "ENV VERSION=1.0\n"),
    ("shop", "1.1", "ENV VERSION=1.1\n"),
    ("shop", "1.2", "ENV VERSION=1.2\n"),
    ("shop", "errors", "ENV VERSION=errors FAULT=errors=30%,after=1s\n"),
    ("shop", "slow", "ENV VERSION=slow FAULT=latency=60ms\n"),
    ("shop", "never-healthy", "ENV VERSION=never-healthy FAULT=never-healthy\n"),
    (
        "shop",
        "exits",
        "ENV VERSION=exits\nCMD [\"/bin/sh\", \"-c\", \"echo cannot find my configuration >&2; exit 3\"]\n",
    ),
    ("shop", "no-command", "ENV VERSION=no-command\nCMD [\"/no/such/program\"]\n"),
    (
        "shop",
        "healthcheck",
        "ENV VERSION=healthcheck\nHEALTHCHECK --interval=500ms --timeout=2s --retries=3 CMD wget -q -O - http://127.0.0.1:8080/health\n",
    ),
    ("busybox", "1", "CMD [\"/bin/sh\"]\n"),
    // What holds the network of a pod.
    (
        "pause",
        "1",
        "CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM INT; while true; do sleep 3600 & wait; done\"]\n",
    ),
    ("nginx", "1", "EXPOSE 80\nCMD [\"/usr/sbin/nginx\", \"-e\", \"stderr\", \"-g\", \"daemon off;\"]\n"),
];

/// What every image of the shop has.
const SHOP: &str = "ENV HOST=0.0.0.0 PORT=8080\nEXPOSE 8080\nCMD [\"/bin/shop\"]\n";

/// A plain nginx: whoever uses it puts files into `conf.d`.
const NGINX_CONF: &str = "user root;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log stderr warn;\n\
     events { worker_connections 2048; }\nhttp {\n  access_log off;\n  include /etc/nginx/conf.d/*.conf;\n}\n";

/// FNV-1a: tells whether something is the same as before.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn mark(registry: &Place) -> PathBuf {
    registry.dir.join("images")
}

/// Whether the registry has them, as far as is known without building anything.
pub(super) fn are_pushed(registry: &Place) -> bool {
    mark(registry).exists()
}

/// Makes the images and pushes them, unless the registry has them, made from the same.
pub(super) fn push(engine: &Place, registry: &Place) -> Result<(), Trouble> {
    let (open, locked) =
        registry::ports(registry).ok_or_else(|| Trouble::Broken("the registry is down".to_owned()))?;
    login(registry, locked)?;
    let shop = shop()?;
    let bytes = fs::read(&shop).map_err(|error| format!("{}: {error}", shop.display()))?;
    let now = format!("{EDITION} {:016x}\n", fnv(&bytes));
    if fs::read_to_string(mark(registry)).is_ok_and(|former| former == now) {
        return Ok(());
    }
    let socket = engine::socket(engine);
    let docker = |args: &[&str]| engine::docker(&socket, args, PUSH_WITHIN).and_then(|job| Ok(job.must()?));
    let layer = layer(&engine.dir, &shop)?;
    docker(&["import", &layer.to_string_lossy(), BASE])?;
    for (name, tag, text) in IMAGES {
        let dir = engine.dir.join("image");
        let shop = if name == "shop" { SHOP } else { "" };
        write_file(&dir.join("Dockerfile"), &format!("FROM {BASE}\n{shop}{text}"))?;
        let local = format!("cdpipe-lab/{name}:{tag}");
        docker(&["build", "--quiet", "--tag", &local, &dir.to_string_lossy()])?;
        let mut ports = vec![open];
        if (name, tag) == ("shop", "1.0") {
            ports.push(locked);
        }
        for port in ports {
            let remote = format!("127.0.0.1:{port}/{name}:{tag}");
            docker(&["tag", &local, &remote])?;
            docker(&["push", "--quiet", &remote])?;
            docker(&["rmi", "--no-prune", &remote])?;
        }
        docker(&["rmi", "--no-prune", &local])?;
    }
    docker(&["rmi", BASE])?;
    docker(&["image", "prune", "--force"])?;
    fs::remove_file(&layer).map_err(|error| format!("{}: {error}", layer.display()))?;
    write_file(&mark(registry), &now)?;
    Ok(())
}

/// What `docker login` would have written.
fn login(registry: &Place, port: u16) -> Result<(), String> {
    // "lab:lab" in base64.
    let text = format!("{{\"auths\": {{\"127.0.0.1:{port}\": {{\"auth\": \"bGFiOmxhYg==\"}}}}}}\n");
    write_file(&registry.dir.join("config.json"), &text)
}

/// The demo service, built as the end-to-end tests build it.
fn shop() -> Result<PathBuf, Trouble> {
    Job::cargo(["build", "--quiet", "--package", "cdpipe-demo", "--bin", "shop"], BUILD_WITHIN).must()?;
    Ok(project::target().join("debug").join("shop"))
}

/// A tar of a small root file system.
fn layer(dir: &Path, shop: &Path) -> Result<PathBuf, Trouble> {
    let root = dir.join("root");
    let failed = |error: std::io::Error| format!("{}: {error}", root.display());
    if root.exists() {
        fs::remove_dir_all(&root).map_err(failed)?;
    }
    for folder in [
        "bin",
        "sbin",
        "tmp",
        "run",
        "etc/nginx/conf.d",
        "usr/bin",
        "usr/sbin",
        "var/log/nginx",
        "var/lib/nginx",
    ] {
        fs::create_dir_all(root.join(folder)).map_err(failed)?;
    }
    let busybox = install::debian("busybox-static", "busybox")?;
    let nginx = install::debian("nginx-light", "nginx")?;
    // Debian's busybox has none, and nginx's own images do.
    let flock = install::debian("util-linux", "flock")?;
    for (from, to) in
        [(shop, "bin/shop"), (&busybox, "bin/busybox"), (&nginx, "usr/sbin/nginx"), (&flock, "usr/bin/flock")]
    {
        fs::copy(from, root.join(to)).map_err(failed)?;
    }
    // Debug information is three quarters of it; nobody reads it in there. Without `strip` it is only larger.
    if let Some(strip) = project::find("strip") {
        Job::new(strip, [root.join("bin/shop")], PUSH_WITHIN).must()?;
    }
    let applets = Job::new(&busybox, ["--list"], PUSH_WITHIN).must()?.output;
    for applet in applets.split_whitespace().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).map_err(failed)?;
    }
    let mut libraries = BTreeSet::new();
    for binary in [shop, &nginx, &flock] {
        let said = Job::new("ldd", [binary], PUSH_WITHIN).must()?.output;
        libraries.extend(said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    for library in libraries {
        let to = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(to.parent().unwrap_or(&root)).map_err(failed)?;
        fs::copy(&library, to).map_err(failed)?;
    }
    write_file(
        &root.join("etc/passwd"),
        "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    )?;
    write_file(&root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    write_file(&root.join("etc/nginx/nginx.conf"), NGINX_CONF)?;
    let tar = dir.join("root.tar");
    let args = [
        "-C".as_ref(),
        root.as_os_str(),
        "--owner=0".as_ref(),
        "--group=0".as_ref(),
        "-cf".as_ref(),
        tar.as_os_str(),
        ".".as_ref(),
    ];
    Job::new("tar", args, PUSH_WITHIN).must()?;
    fs::remove_dir_all(&root).map_err(failed)?;
    Ok(tar)
}
