//! Machines to deploy to: containers with systemd as their first process and a real SSH server, in the lab's Docker engine, each with a
//! host key and a fixed address of its own. A key, an SSH configuration and the known hosts for them lie in the part's folder.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::{For, Part, Place, Trouble, Up, engine, images, install, locked};
use crate::process::{Job, write_file};
use crate::{net, project, sys};

/// How many there are unless `$CDPIPE_LAB_HOSTS_COUNT` says otherwise.
const COUNT: u32 = 3;
/// The most that are made.
const MOST: u32 = 60;
const ONE_CALL_WITHIN: Duration = Duration::from_secs(60);
const BUILD_WITHIN: Duration = Duration::from_secs(15 * 60);
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Counted up whenever what is written into the image changes.
const EDITION: u32 = 3;
const NETWORK: &str = "cdpipe-hosts";

const PACKAGES: &str = "systemd,systemd-sysv,dbus,openssh-server,iproute2,curl,ca-certificates,nginx-light,haproxy,sudo,python3,docker.io";

const SSHD: &str = "HostKey /lab/host_key\nAuthorizedKeysFile /lab/authorized_keys\nStrictModes no\n\
    PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\nMaxStartups 100\n";

/// Each machine's own Docker engine, which the first that asks it starts. Rules of the kernel and its switches are not a container's to
/// change, so published ports go through Docker's userland proxy.
const ENGINE: &str = "{\"bridge\": \"none\", \"iptables\": false, \"ip-masq\": false, \"ip-forward\": false, \"userland-proxy\": true, \
    \"default-address-pools\": [{\"base\": \"172.31.0.0/16\", \"size\": 24}], \"storage-driver\": \"overlay2\", \
    \"log-driver\": \"json-file\", \"shutdown-timeout\": 5}\n";

/// What starts containers there sees the groups of processes as the machine's own container has them, and may make more below them: the
/// machine's systemd has those of the whole kernel mounted over its own. Layers that the engine mounts must be seen there, too.
const ENGINE_UNIT: &str = "[Service]\nExecStartPre=mount --make-rshared /\nExecStart=\n\
    ExecStart=unshare --mount --propagation slave sh -c \"umount /sys/fs/cgroup/systemd; \
    for g in /sys/fs/cgroup/*; do mount -o remount,bind,rw $$g; done; exec containerd\"\n";

/// Commands in the new root, after the packages.
const FINISH: &str = "useradd --create-home --shell /bin/bash deploy; \
    echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy; \
    useradd --create-home --shell /bin/bash guest; \
    systemctl disable nginx haproxy apt-daily.timer apt-daily-upgrade.timer fstrim.timer e2scrub_all.timer; \
    systemctl mask systemd-logind systemd-timesyncd systemd-resolved getty.target console-getty; \
    systemctl disable docker containerd; systemctl enable docker.socket; usermod -aG docker deploy; \
    systemctl enable ssh; rm -f /etc/ssh/ssh_host_*; rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/*; mkdir /lab";

pub(crate) struct Hosts;

/// How many this process needs, where it needs another number.
static WANTED: OnceLock<u32> = OnceLock::new();

/// Lets this process bring up that many.
pub(super) fn want(count: u32) {
    // A second wish in one process would be about machines that are there already.
    let _ = WANTED.set(count.clamp(1, MOST));
}

fn count() -> u32 {
    let said = || std::env::var("CDPIPE_LAB_HOSTS_COUNT").ok().and_then(|count| count.parse().ok());
    WANTED.get().copied().or_else(said).unwrap_or(COUNT).clamp(1, MOST)
}

fn name(number: u32) -> String {
    format!("web-{number}")
}

/// The first three numbers of the addresses of this checkout's machines.
fn subnet() -> String {
    let hash = images::fnv(project::root().display().to_string().as_bytes());
    let [first, second, ..] = hash.to_le_bytes();
    format!("10.{}.{second}", 200 + u16::from(first) % 50)
}

fn address(number: u32) -> String {
    format!("{}.{}", subnet(), 10 + number)
}

fn docker(args: &[&str]) -> Result<Job, Trouble> {
    engine::docker(&engine::socket(&Place::named("docker")), args, ONE_CALL_WITHIN)
}

/// The root file system of a machine, as a tar in the cache.
fn root() -> Result<PathBuf, Trouble> {
    let tar = project::cache()?.join(format!("hosts-bookworm-{EDITION}.tar"));
    if tar.exists() {
        return Ok(tar);
    }
    let debootstrap = install::debian("debootstrap", "debootstrap")?;
    locked("hosts", || {
        if tar.exists() {
            return Ok(tar.clone());
        }
        // The mirror that this machine's own packages come from.
        let said =
            Job::new("apt-get", ["indextargets", "--format", "$(REPO_URI)"], ONE_CALL_WITHIN).must()?;
        let mirror = said.output.lines().next().unwrap_or_default().to_owned();
        if mirror.is_empty() {
            return Err(Trouble::Missing {
                why: "apt knows no mirror".to_owned(),
                install: "as root: apt-get update".to_owned(),
            });
        }
        let dir = project::cache()?.join("build").join("hosts");
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        let include = format!("--include={PACKAGES}");
        let folder = dir.to_string_lossy().into_owned();
        Job::new(debootstrap, ["--variant=minbase", &include, "bookworm", &folder, &mirror], BUILD_WITHIN)
            .must()?;
        write_file(&dir.join("etc/ssh/sshd_config.d/lab.conf"), SSHD)?;
        write_file(&dir.join("etc/docker/daemon.json"), ENGINE)?;
        write_file(&dir.join("etc/systemd/system/containerd.service.d/lab.conf"), ENGINE_UNIT)?;
        Job::new("chroot", [folder.as_str(), "/bin/sh", "-ec", FINISH], BUILD_WITHIN).must()?;
        let half = tar.with_extension("half");
        let half_name = half.to_string_lossy().into_owned();
        Job::new(
            "tar",
            ["-C", &folder, "--exclude=./dev/*", "--exclude=./proc/*", "-cf", &half_name, "."],
            BUILD_WITHIN,
        )
        .must()?;
        fs::rename(&half, &tar).map_err(|error| format!("{}: {error}", tar.display()))?;
        fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(tar.clone())
    })
}

fn image() -> Result<String, Trouble> {
    let image = format!("cdpipe-lab/host:{EDITION}");
    if !docker(&["image", "inspect", &image])?.capture()?.ok() {
        let tar = root()?;
        let tar = tar.to_string_lossy();
        docker(&["import", "--change", "CMD [\"/sbin/init\"]", &tar, &image])?.must()?;
    }
    Ok(image)
}

/// A key of this name in this folder, made if it is not there.
fn key(path: &Path) -> Result<String, Trouble> {
    if !path.exists() {
        let keygen = install::debian("openssh-client", "ssh-keygen")?;
        let file = path.to_string_lossy().into_owned();
        Job::new(keygen, ["-q", "-t", "ed25519", "-N", "", "-C", "cdpipe-lab", "-f", &file], ONE_CALL_WITHIN)
            .must()?;
    }
    let public = path.with_extension("pub");
    fs::read_to_string(&public).map_err(|error| Trouble::Broken(format!("{}: {error}", public.display())))
}

/// Keys, and what `ssh` has to know of `count` machines.
fn write_ssh(place: &Place, count: u32) -> Result<(), Trouble> {
    let own = key(&place.dir.join("key"))?;
    let (mut known, mut config) = (String::new(), String::new());
    for number in 1..=count {
        let dir = place.dir.join(name(number));
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let public = key(&dir.join("host_key"))?;
        write_file(&dir.join("authorized_keys"), &own)?;
        let words: Vec<&str> = public.split(' ').take(2).collect();
        known += &format!("{} {}\n", name(number), words.join(" "));
        config += &format!(
            "Host {}\n  HostName {}\n  HostKeyAlias {}\n",
            name(number),
            address(number),
            name(number)
        );
    }
    let dir = place.dir.display();
    config += &format!(
        "Host *\n  User root\n  IdentityFile \"{dir}/key\"\n  IdentitiesOnly yes\n  UserKnownHostsFile \"{dir}/known_hosts\"\n  \
         GlobalKnownHostsFile /dev/null\n"
    );
    write_file(&place.dir.join("known_hosts"), &known)?;
    write_file(&place.dir.join("ssh_config"), &config)?;
    // `ssh` refuses a configuration that others may write.
    fs::set_permissions(place.dir.join("ssh_config"), fs::Permissions::from_mode(0o600))
        .map_err(|error| Trouble::Broken(error.to_string()))
}

fn answers(number: u32) -> bool {
    let place = format!("{}:22", address(number)).parse::<std::net::SocketAddr>();
    let Ok(place) = place else { return false };
    let Ok(mut stream) = std::net::TcpStream::connect_timeout(&place, Duration::from_millis(300)) else {
        return false;
    };
    // The port is open before anybody is there who speaks.
    let mut banner = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.read_exact(&mut banner).is_ok()
        && &banner == b"SSH-"
}

fn run(place: &Place, image: &str, number: u32) -> Result<(), Trouble> {
    let name = name(number);
    if docker(&["container", "inspect", &name])?.capture()?.ok() {
        // Also one that a test has stopped or cut off.
        let cut = docker(&["network", "connect", "--ip", &address(number), NETWORK, &name])?;
        cut.capture()?;
        docker(&["start", &name])?.must()?;
        return Ok(());
    }
    let lab = format!("{}:/lab:ro", place.dir.join(&name).display());
    let ip = address(number);
    let args = [
        "run",
        "--detach",
        "--name",
        &name,
        "--hostname",
        &name,
        "--network",
        NETWORK,
        "--ip",
        &ip,
        "--cap-add",
        "SYS_ADMIN",
        "--cap-add",
        "NET_ADMIN",
        "--security-opt",
        "seccomp=unconfined",
        "--cgroupns=private",
        "--tmpfs",
        "/run",
        "--tmpfs",
        "/tmp:exec",
        "--volume",
        "/sys/fs/cgroup/systemd:/sys/fs/cgroup/systemd:rw",
        "--volume",
        &lab,
        // Layers of images can't lie on layers of an image.
        "--volume",
        "/var/lib/docker",
        "--env",
        "container=docker",
        image,
    ];
    docker(&args)?.must()?;
    Ok(())
}

/// What systemd needs to watch files: each machine takes some of the inotify instances that the kernel gives to one user, and with
/// the usual 128 about twenty machines come up.
fn make_room_for(count: u32) -> Result<(), Trouble> {
    const LIMIT: &str = "/proc/sys/fs/inotify/max_user_instances";
    const NEEDED: u32 = 8192;
    if count <= COUNT {
        return Ok(());
    }
    let now: u32 = fs::read_to_string(LIMIT).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if now >= NEEDED {
        return Ok(());
    }
    fs::write(LIMIT, NEEDED.to_string()).map_err(|error| Trouble::Missing {
        why: format!("{count} machines need more than {now} inotify instances: {error}"),
        install: format!("as root: sysctl fs.inotify.max_user_instances={NEEDED}"),
    })
}

fn up(place: &Place) -> Up {
    let names: Vec<String> = (1..=count()).map(name).collect();
    let config = place.dir.join("ssh_config").display().to_string();
    let socket = engine::socket(&Place::named("docker"));
    Up {
        at: format!("{} ({})", config, names.join(" ")),
        env: vec![
            ("CDPIPE_LAB_HOSTS".to_owned(), config),
            ("CDPIPE_LAB_HOSTS_ENGINE".to_owned(), format!("unix://{}", socket.display())),
            ("CDPIPE_LAB_HOSTS_NETWORK".to_owned(), format!("{NETWORK} {}", subnet())),
        ],
    }
}

impl Part for Hosts {
    fn name(&self) -> &'static str {
        "hosts"
    }

    fn about(&self) -> &'static str {
        "machines with systemd and an SSH server"
    }

    fn used_by(&self) -> &'static [For] {
        &[For::Test]
    }

    fn needs(&self) -> &'static [&'static str] {
        &["docker"]
    }

    fn up(&self, place: &Place) -> Result<Up, Trouble> {
        if !sys::is_root() || !Path::new("/sys/fs/cgroup/systemd").is_dir() {
            return Err(Trouble::Missing {
                why: "containers with systemd need root and /sys/fs/cgroup/systemd".to_owned(),
                install: "as root: mkdir -p /sys/fs/cgroup/systemd; mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd".to_owned(),
            });
        }
        install::debian("openssh-client", "ssh")?;
        make_room_for(count())?;
        let image = image()?;
        write_ssh(place, count())?;
        if !docker(&["network", "inspect", NETWORK])?.capture()?.ok() {
            let subnet = format!("{}.0/24", subnet());
            docker(&["network", "create", "--subnet", &subnet, NETWORK])?.must()?;
        }
        for number in 1..=count() {
            run(place, &image, number)?;
        }
        let there = net::until(READY_WITHIN, || (1..=count()).all(answers), || false);
        if there {
            Ok(up(place))
        } else {
            Err(Trouble::Broken("not every machine answers on its SSH port".to_owned()))
        }
    }

    fn down(&self, place: &Place) -> Result<bool, String> {
        let socket = engine::socket(&Place::named("docker"));
        if !place.dir.join("ssh_config").exists()
            || net::talk_unix(&socket, "GET /_ping HTTP/1.0\r\n\r\n").is_none()
        {
            return Ok(false);
        }
        let call = |args: &[&str]| docker(args).map_err(|trouble| trouble.text())?.capture();
        let listed = call(&["ps", "--all", "--quiet", "--filter", &format!("network={NETWORK}")])?.output;
        let mut names: Vec<String> = listed.split_whitespace().map(str::to_owned).collect();
        // One that was cut off is in no network.
        names.extend((1..=MOST).map(name).filter(|name| place.dir.join(name).is_dir()));
        let any = !listed.trim().is_empty();
        let mut args = vec!["rm", "--force", "--volumes"];
        args.extend(names.iter().map(String::as_str));
        if args.len() > 3 {
            call(&args)?;
        }
        call(&["network", "rm", NETWORK])?;
        Ok(any)
    }

    fn status(&self, place: &Place) -> Option<Up> {
        (place.dir.join("ssh_config").exists() && (1..=count()).all(answers)).then(|| up(place))
    }
}
