//! A Docker engine of a test's own, on a disk of its own: one that may be restarted and may run full without hurting anybody.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to be there, or to end.
const WITHIN: Duration = Duration::from_secs(60);

/// The engine. It ends with its value, and so do its containers and its disk.
#[derive(Debug)]
pub struct OwnEngine {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
}

impl OwnEngine {
    /// Starts one whose disk (memory, in truth) has this many MiB. Needs root, `dockerd` and `docker`.
    ///
    /// # Errors
    /// What could not be done.
    pub fn start(disk_mib: u32) -> io::Result<Self> {
        // The path of a socket may not be long.
        let folder = tempfile::Builder::new().prefix("engine-").tempdir_in("/tmp")?;
        let mut engine = Self { folder, daemon: None };
        fs::create_dir(engine.disk())?;
        let disk = engine.disk();
        must(Command::new("mount").args(["-t", "tmpfs", "-o", &size(disk_mib), "tmpfs"]).arg(&disk))?;
        engine.begin()?;
        Ok(engine)
    }

    /// `unix://…`
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.folder.path().join("d.sock").display())
    }

    /// Where its images and containers are.
    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Gives its disk another size.
    ///
    /// # Errors
    /// What `mount` says.
    pub fn resize(&self, disk_mib: u32) -> io::Result<()> {
        let options = format!("remount,{}", size(disk_mib));
        must(Command::new("mount").args(["-o", &options]).arg(self.disk()))
    }

    /// Ends the daemon as its service manager does, and starts it again. Its containers end with it, and those that may are
    /// started again by it.
    ///
    /// # Errors
    /// What could not be done.
    pub fn restart(&mut self) -> io::Result<()> {
        self.end()?;
        self.begin()
    }

    fn begin(&mut self) -> io::Result<()> {
        let path = self.folder.path();
        fs::write(path.join("daemon.json"), "{}\n")?;
        let mut command = Command::new("dockerd");
        for (option, name) in [
            ("--config-file", "daemon.json"),
            ("--data-root", "disk"),
            ("--exec-root", "exec"),
            ("--pidfile", "d.pid"),
        ] {
            command.arg(option).arg(path.join(name));
        }
        // No bridge of its own, so nothing that another engine of this machine could have; networks have addresses that no other has.
        let pool = format!("base=10.{}.0.0/16,size=24", 192 + std::process::id() % 60);
        command.args(["--bridge=none", "--iptables=false", "--ip-masq=false", "--userland-proxy=true"]);
        command.args(["--shutdown-timeout=5", "--log-level=warn", "--default-address-pool", &pool]);
        command.args(["--host", &self.endpoint()]);
        let log = fs::File::options().create(true).append(true).open(path.join("log"))?;
        let daemon = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.daemon = Some(daemon);
        let begun = Instant::now();
        while !self.docker(&["version"])?.0 {
            if begun.elapsed() > WITHIN {
                let said = fs::read_to_string(path.join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("the engine did not start: {said}")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let begun = Instant::now();
        while daemon.try_wait()?.is_none() {
            if begun.elapsed() > WITHIN {
                daemon.kill()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether `docker` with these arguments succeeded, and what it said.
    ///
    /// # Errors
    /// When there is no `docker`.
    pub fn docker(&self, arguments: &[&str]) -> io::Result<(bool, String)> {
        let done = Command::new("docker").env("DOCKER_HOST", self.endpoint()).args(arguments).output()?;
        Ok((done.status.success(), String::from_utf8_lossy(&done.stdout).trim().to_owned()))
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if let Ok((true, ids)) = self.docker(&["ps", "--all", "--quiet"]) {
            let ids: Vec<&str> = ids.lines().collect();
            if !ids.is_empty() {
                let _ = self.docker(&[&["rm", "--force", "--volumes"], ids.as_slice()].concat());
            }
        }
        if let Ok((true, networks)) = self.docker(&["network", "ls", "--quiet", "--filter", "type=custom"]) {
            for network in networks.lines() {
                let _ = self.docker(&["network", "rm", network]);
            }
        }
        let _ = self.end();
        unmount(&self.disk());
    }
}

fn size(mib: u32) -> String {
    format!("size={mib}m")
}

fn unmount(path: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(path).output();
}

fn must(command: &mut Command) -> io::Result<()> {
    let done = command.output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned()))
}
