//! The system's `ssh`: its command line, the script that brings the agent to a machine, and what its complaints mean.

use crate::agent::HOST_AGENT;
use cdpipe_host::Units;
use cdpipe_model::{EnvName, Fault, ServiceName};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// How long one machine may take to accept a connection.
const CONNECT_TIMEOUT_S: u32 = 6;

/// After so many seconds without a sign of life `ssh` asks for one.
const ALIVE_INTERVAL_S: u32 = 2;

/// So many unanswered questions end the connection.
const ALIVE_COUNT: u32 = 4;

/// What the script says about itself on standard output begins so; a login shell may print other things before.
pub(crate) const SAYS: &str = "cdpipe-agent ";

/// A machine as it is written in the pipeline: `host`, `user@host`, `host:port`, `user@host:port`, `[2001:db8::1]:22`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// As it was written.
    pub written: String,
    /// User, if one is named.
    pub user: Option<String>,
    /// Name or address, or what the SSH configuration calls it.
    pub host: String,
    /// Port, if one is named.
    pub port: Option<u16>,
}

impl HostName {
    /// Reads it.
    ///
    /// # Errors
    /// `host-unfit` for what is none, or could be taken for an option.
    pub fn parse(written: &str) -> Result<Self, Fault> {
        let unfit = || {
            Fault::new("host-unfit", format!("`{written}` is not a machine"))
                .help("write `host`, `user@host`, `host:port` or `user@host:port`")
        };
        let (user, rest) = match written.rsplit_once('@') {
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (None, written),
        };
        let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
            let (host, after) = inner.split_once(']').ok_or_else(unfit)?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(unfit()),
            }
        } else {
            match rest.split_once(':') {
                // More than one colon: an address without a port.
                Some((_, port)) if port.contains(':') => (rest, None),
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        let port = port.map(str::parse::<u16>).transpose().map_err(|_| unfit())?;
        let plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte))
        };
        if !plain(host) || user.as_deref().is_some_and(|user| !plain(user)) {
            return Err(unfit());
        }
        Ok(Self { written: written.to_owned(), user, host: host.to_owned(), port })
    }
}

/// How machines of one environment are reached, and what the agent on them is told.
#[derive(Debug, Clone)]
pub struct SshConfig {
    /// User where a machine names none.
    pub user: Option<String>,
    /// Private key; by default those of the agent and of the SSH configuration.
    pub identity: Option<PathBuf>,
    /// Another configuration than the user's and the system's.
    pub config: Option<PathBuf>,
    /// Jump hosts, as `ssh -J` takes them; by default those of the SSH configuration.
    pub jump: Option<String>,
    /// Folder on each machine.
    pub dir: String,
    /// Whether the agent works as root, by `sudo -n`.
    pub sudo: bool,
    /// The binary that becomes the agent.
    pub agent: PathBuf,
    /// Which environment.
    pub environment: EnvName,
    /// Address that instances listen on.
    pub listen: IpAddr,
    /// What keeps instances.
    pub units: Units,
    /// Where images run there; `None` where there are none.
    pub containers: Option<ContainersThere>,
    /// The sum of the agent, once the first machine was reached.
    pub sum: AgentSum,
}

/// Each machine's own engine, as the agent there finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainersThere {
    /// `unix://…` or `tcp://…`; by default that of the machine.
    pub engine: String,
    /// The network that instances join; made if it is not there.
    pub network: String,
    /// Services whose containers of before are taken over.
    pub adopt: Vec<ServiceName>,
}

/// The agent's length in bytes and its SHA-256 in hexadecimal digits: summed once, also for fifty machines.
pub type AgentSum = Arc<OnceCell<(u64, String)>>;

impl SshConfig {
    /// The command that runs this text in the shell of a machine. It never asks anybody anything, and shares no connection.
    pub(crate) fn command(&self, host: &HostName, remote: &str) -> Command {
        let mut command = Command::new("ssh");
        if let Some(config) = &self.config {
            command.arg("-F").arg(config);
        }
        let options = [
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "UpdateHostKeys=no".to_owned(),
            format!("ConnectTimeout={CONNECT_TIMEOUT_S}"),
            format!("ServerAliveInterval={ALIVE_INTERVAL_S}"),
            format!("ServerAliveCountMax={ALIVE_COUNT}"),
            "ControlMaster=no".to_owned(),
            "ControlPath=none".to_owned(),
            "ClearAllForwardings=yes".to_owned(),
            "ForwardAgent=no".to_owned(),
            "ForwardX11=no".to_owned(),
            "PermitLocalCommand=no".to_owned(),
            "RequestTTY=no".to_owned(),
            "LogLevel=ERROR".to_owned(),
        ];
        for option in options {
            command.arg("-o").arg(option);
        }
        if let Some(user) = host.user.as_ref().or(self.user.as_ref()) {
            command.arg("-l").arg(user);
        }
        if let Some(port) = host.port {
            command.arg("-p").arg(port.to_string());
        }
        if let Some(identity) = &self.identity {
            command.arg("-i").arg(identity).args(["-o", "IdentitiesOnly=yes"]);
        }
        if let Some(jump) = &self.jump {
            command.arg("-J").arg(jump);
        }
        // A jump host is reached by another `ssh`, which does not know of `BatchMode`: nobody must be asked by that one either.
        command.env("SSH_ASKPASS", "/bin/false").env("SSH_ASKPASS_REQUIRE", "force").env("LC_ALL", "C");
        command.arg("--").arg(&host.host).arg(remote);
        // A group of its own: Ctrl-C on the terminal is for cdpipe, which still needs its connections to undo.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command.kill_on_drop(true);
        command
    }

    /// What brings the agent to a machine and becomes it. It says `need MACHINE` if the binary is not there, and takes it then; `ready`
    /// before it becomes the agent; `failed …` if it can't.
    pub(crate) fn script(&self, identity: &str) -> String {
        let script = format!(
            "umask 077; d=$1; b=$d/bin/cdpipe-$2; export SSH_CONNECTION=\"$3\"; shift 3; \
             say() {{ printf \"{SAYS}%s\\n\" \"$*\"; }}; \
             if [ -x \"$b\" ]; then :; else \
             say need \"$(uname -s)\" \"$(uname -m)\"; read -r size sum || exit 97; \
             mkdir -p \"$d/bin\" || {{ say failed folder; exit 97; }}; \
             t=$b.$$.tmp; trap \"rm -f $t\" EXIT; \
             head -c \"$size\" > \"$t\" || {{ say failed disk; exit 97; }}; \
             s=$(sha256sum < \"$t\"); s=${{s%% *}}; \
             [ \"$s\" = \"$sum\" ] || {{ say failed checksum; exit 97; }}; \
             chmod 755 \"$t\"; \
             if v=$(\"$t\" --version 2>&1); then mv \"$t\" \"$b\"; trap - EXIT; else say failed unfit \"$v\"; exit 97; fi; \
             fi; say ready; exec \"$b\" {HOST_AGENT} \"$d\" \"$@\""
        );
        let units = match self.units {
            Units::Process => "process",
            Units::Systemd => "systemd",
        };
        let sudo = if self.sudo { "sudo -n " } else { "" };
        let listen = self.listen.to_string();
        let mut options = vec![self.environment.as_str(), &listen, units];
        if let Some(there) = &self.containers {
            options.extend([there.engine.as_str(), &there.network]);
            options.extend(there.adopt.iter().map(ServiceName::as_str));
        }
        let options: Vec<String> = options.into_iter().map(quoted).collect();
        format!(
            // What sudo would take away, and the agent tells its address by.
            "exec {sudo}sh -c {} cdpipe {} {} \"$SSH_CONNECTION\" {}",
            quoted(&script),
            quoted(&self.dir),
            quoted(identity),
            options.join(" "),
        )
    }
}

/// A word that no shell changes.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Whether a fault says that a machine is away, which another try may mend.
pub(crate) fn is_away(fault: &Fault) -> bool {
    matches!(fault.kind.as_str(), "ssh-unreachable" | "host-lost")
}

/// What `ssh` meant when it ended before the agent spoke, by what it wrote on standard error.
pub fn fault_of(host: &str, said: &str) -> Fault {
    let lines: Vec<String> = said
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with("@@@@"))
        .collect();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let name = host.rsplit('@').next().unwrap_or(host);
    let last = lines.last().cloned().unwrap_or_else(|| "it said nothing".to_owned());
    let fault = if has(&["HOST IDENTIFICATION HAS CHANGED", "differs from the key for the IP"]) {
        Fault::new("ssh-host-key-changed", format!("{host} shows another host key than the one that is known"))
            .help(format!(
                "either the machine was set up anew or someone else answers in its place; compare the fingerprint with what its console \
                 says (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`); if it is the machine, `ssh-keygen -R {name}` forgets the old key"
            ))
    } else if has(&["host key is known", "Host key verification failed", "host key for"]) {
        Fault::new("ssh-host-key-unknown", format!("the host key of {host} is not known"))
            .help(format!(
                "compare its fingerprint (`ssh-keyscan {name} | ssh-keygen -lf -`) with what its console says, then add it: \
                 `ssh-keyscan -H {name} >> ~/.ssh/known_hosts`"
            ))
    } else if has(&["Permission denied", "Too many authentication failures", "No supported authentication"]) {
        Fault::new("ssh-auth", format!("{host} lets nobody in with these keys: {last}")).help(format!(
            "check `user` and `identity` of the target and the keys of the agent (`ssh-add -l`); `ssh {host}` must work without a password"
        ))
    } else if has(&["a password is required", "is not in the sudoers", "sudo: not found"]) {
        Fault::new("sudo-refused", format!("sudo on {host} does not let this user in without a password"))
            .help("allow it (`NOPASSWD` in sudoers), log in as root, or leave out `sudo`")
    } else if has(&[
        "Bad configuration option",
        "Bad owner or permissions",
        "Can't open user config",
        "terminating, ",
        "UNPROTECTED PRIVATE KEY",
    ]) {
        Fault::new("ssh-config", format!("ssh does not take its configuration: {last}"))
            .help("correct the SSH configuration; `ssh -G HOST` shows what it comes to")
    } else if has(&[
        "Could not resolve",
        "Connection refused",
        "timed out",
        "No route to host",
        "unreachable",
        "Connection closed",
        "Connection reset",
        "closed by remote host",
        "kex_exchange_identification",
        "not responding",
        "Broken pipe",
    ]) {
        Fault::new("ssh-unreachable", format!("{host} can't be reached: {last}"))
            .help("check that the machine runs and that this one reaches its SSH port")
            .transient()
    } else {
        Fault::new("ssh-failed", format!("ssh to {host} ended: {last}"))
            .help(format!("`ssh {host} true` says more"))
    };
    if lines.len() > 1 { fault.details(lines.into_iter().rev().take(12).rev()) } else { fault }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    pub(crate) fn config() -> SshConfig {
        SshConfig {
            user: None,
            identity: None,
            config: None,
            jump: None,
            dir: "/opt/cdpipe".into(),
            sudo: false,
            agent: "/nonexistent/cdpipe".into(),
            environment: "here".into(),
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            units: Units::Process,
            containers: None,
            sum: AgentSum::default(),
        }
    }

    #[test]
    fn machines_are_read_and_options_are_not() {
        let parse = |text: &str| {
            let name = HostName::parse(text).ok()?;
            Some((name.user, name.host, name.port))
        };
        let some =
            |user: Option<&str>, host: &str, port| Some((user.map(str::to_owned), host.to_owned(), port));
        assert_eq!(parse("web-1"), some(None, "web-1", None));
        assert_eq!(parse("deploy@web-1:2222"), some(Some("deploy"), "web-1", Some(2222)));
        assert_eq!(parse("[2001:db8::1]:22"), some(None, "2001:db8::1", Some(22)));
        assert_eq!(parse("2001:db8::1"), some(None, "2001:db8::1", None));
        for bad in ["", "-oProxyCommand=x", "a b", "web:99999", "@web", "web;rm", "-x@web"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn words_stay_one_word() {
        assert_eq!(quoted("a'b $c"), "'a'\\''b $c'");
    }
}
