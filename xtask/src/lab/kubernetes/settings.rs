//! What each process of the cluster is started with.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::{Place, Trouble, images, install};
use super::{ONE_CALL_WITHIN, program, write};
use crate::process::Job;
use crate::{net, project};

/// Who the token of the kubeconfig speaks for. The cluster listens on loopback only and lives as long as a test run.
const TOKENS: &str =
    "cdpipe-lab,admin,admin,\"system:masters\"\ncdpipe-lab-viewer,viewer,viewer,\"lab:viewers\"\n";

/// Starts a program again when it was killed, so that a test can do that to the API server. It stays what the pid file names.
const KEEPER: &str = "trap 'kill -TERM $child; wait $child; exit 0' TERM INT; while :; do \"$0\" \"$@\" & child=$!; wait $child; code=$?; \
                      [ $code -gt 128 ] || exit $code; sleep 0.2; done";

pub(super) struct Settings {
    dir: PathBuf,
    registry: u16,
    numbers: (u8, u8),
}

pub(super) fn socket(place: &Place) -> PathBuf {
    place.dir.join("containerd.sock")
}

/// Two numbers that other checkouts most likely do not have.
fn numbers() -> (u8, u8) {
    let hash = images::fnv(format!("{} kubernetes", project::root().display()).as_bytes());
    let [first, second, ..] = hash.to_le_bytes();
    (first, second)
}

/// The bridge that pods are on; the name is also that of their network.
pub(super) fn bridge() -> String {
    let (first, second) = numbers();
    format!("cdp-k{first:02x}{second:02x}")
}

impl Settings {
    pub(super) fn new(place: &Place, registry: u16) -> Result<Self, Trouble> {
        for (package, program) in [
            ("containernetworking-plugins", "/usr/lib/cni/bridge"),
            ("runc", "runc"),
            ("conntrack", "conntrack"),
            ("nftables", "nft"),
            ("iproute2", "ip"),
        ] {
            if !Path::new(program).exists() {
                install::debian(package, program)?;
            }
        }
        Ok(Self { dir: place.dir.clone(), registry, numbers: numbers() })
    }

    fn at(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// The node's own address, which is that of the bridge: a loopback one would not do for `exec` and `logs`.
    fn node(&self) -> String {
        format!("10.{}.0.1", 192 + self.numbers.0 % 32)
    }

    fn pods(&self) -> String {
        format!("10.{}.0.0/16", 192 + self.numbers.0 % 32)
    }

    fn services(&self) -> String {
        format!("10.{}.0.0/16", 224 + self.numbers.1 % 31)
    }

    fn dns(&self) -> String {
        format!("10.{}.0.10", 224 + self.numbers.1 % 31)
    }

    /// All files, and the bridge.
    pub(super) fn write(&self) -> Result<(), Trouble> {
        let openssl = install::debian("openssl", "openssl")?;
        let file = |name: &str| self.dir.join(name);
        write(&file("tokens.csv"), TOKENS)?;
        let key = self.at("accounts.key");
        Job::new(openssl, ["genrsa", "-out", &key, "2048"], ONE_CALL_WITHIN).must()?;
        write(&file("containerd.toml"), &self.containerd_toml())?;
        write(&file("cni/10-lab.conflist"), &self.network())?;
        self.make_bridge()
    }

    fn make_bridge(&self) -> Result<(), Trouble> {
        let ip = install::debian("iproute2", "ip")?;
        let (bridge, address) = (bridge(), format!("{}/16", self.node()));
        let run = |args: &[&str]| Job::new(&ip, args, ONE_CALL_WITHIN);
        if !run(&["link", "show", &bridge]).capture()?.ok() {
            run(&["link", "add", &bridge, "type", "bridge"]).must()?;
        }
        if !run(&["-4", "address", "show", "dev", &bridge]).capture()?.output.contains(&address) {
            run(&["address", "add", &address, "dev", &bridge]).must()?;
        }
        run(&["link", "set", &bridge, "up"]).must()?;
        // Pods reach Services only where the node passes packets on.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
            .map_err(|error| Trouble::Broken(format!("net.ipv4.ip_forward: {error}")))
    }

    fn network(&self) -> String {
        format!(
            "{{\"cniVersion\": \"1.0.0\", \"name\": \"{bridge}\", \"plugins\": [{{\"type\": \"bridge\", \"bridge\": \"{bridge}\", \
             \"isGateway\": true, \"hairpinMode\": true, \"ipam\": {{\"type\": \"host-local\", \"dataDir\": \"{ipam}\", \"ranges\": \
             [[{{\"subnet\": \"{pods}\"}}]], \"routes\": [{{\"dst\": \"0.0.0.0/0\"}}]}}}}]}}\n",
            bridge = bridge(),
            ipam = self.at("ipam"),
            pods = self.pods(),
        )
    }

    fn containerd_toml(&self) -> String {
        let registry = format!("127.0.0.1:{}", self.registry);
        format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\ndisabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
             [grpc]\n  address = \"{socket}\"\n[ttrpc]\n  address = \"{socket}.ttrpc\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{registry}/pause:1\"\n  restrict_oom_score_adj = true\n  \
             stream_server_address = \"127.0.0.1\"\n  stream_server_port = \"0\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/usr/lib/cni\"\n  conf_dir = \"{cni}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"{registry}\"]\n  endpoint = [\"http://{registry}\"]\n",
            root = self.at("root"),
            state = self.at("state"),
            socket = self.socket().display(),
            cni = self.at("cni"),
        )
    }

    pub(super) fn write_kubeconfig(&self, path: &Path, port: u16) -> Result<(), Trouble> {
        let context = |user: &str| {
            format!("{{name: {user}, context: {{cluster: lab, user: {user}, namespace: default}}}}")
        };
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  cluster: {{server: \"https://127.0.0.1:{port}\", \
             certificate-authority: \"{ca}\"}}\nusers:\n- {{name: lab, user: {{token: cdpipe-lab}}}}\n- {{name: viewer, user: {{token: \
             cdpipe-lab-viewer}}}}\ncontexts:\n- {}\n- {}\n",
            context("lab"),
            context("viewer"),
            ca = self.at("certificates/apiserver.crt"),
        );
        write(path, &text)
    }

    pub(super) fn etcd(&self, port: u16) -> Result<Command, Trouble> {
        let binary = install::debian("etcd-server", "etcd")?;
        let client = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{}", net::free_port()?);
        let mut command = Command::new(binary);
        command.args(["--name", "lab", "--unsafe-no-fsync", "--log-level", "warn", "--logger", "zap"]);
        command.args(["--data-dir", &self.at("etcd")]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("lab={peer}")]);
        Ok(command)
    }

    pub(super) fn api_server(&self, binary: &Path, port: u16, etcd: u16) -> Result<Command, Trouble> {
        let args = [
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            format!("--service-account-key-file={}", self.at("accounts.key")),
            format!("--service-account-signing-key-file={}", self.at("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--token-auth-file={}", self.at("tokens.csv")),
            "--authorization-mode=Node,RBAC".to_owned(),
            format!("--cert-dir={}", self.at("certificates")),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--service-cluster-ip-range={}", self.services()),
            "--allow-privileged=true".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
        ];
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER]).arg(binary).args(args);
        Ok(command)
    }

    fn kubeconfig(&self) -> String {
        format!("--kubeconfig={}", self.at("kubeconfig"))
    }

    pub(super) fn controllers(&self, binary: &Path, port: u16) -> Result<Command, Trouble> {
        let args = [
            self.kubeconfig(),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", self.at("certificates")),
            format!("--service-account-private-key-file={}", self.at("accounts.key")),
            format!("--root-ca-file={}", self.at("certificates/apiserver.crt")),
            // Tests that run at a time would wait for each other at the twenty requests a second that are its default.
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
        ];
        Ok(program(binary, &args))
    }

    pub(super) fn scheduler(&self, binary: &Path, port: u16) -> Result<Command, Trouble> {
        let args = [
            self.kubeconfig(),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", self.at("certificates")),
        ];
        Ok(program(binary, &args))
    }

    pub(super) fn containerd(&self) -> Result<Command, Trouble> {
        let binary = install::debian("containerd", "containerd")?;
        Ok(program(&binary, &["--config".to_owned(), self.at("containerd.toml")]))
    }

    pub(super) fn kubelet(&self, binary: &Path, port: u16) -> Result<Command, Trouble> {
        // Free space is judged by the whole disk of the machine, which others fill: no eviction for that. An `eventRecordQPS` of 0 is no
        // limit by its documentation, but the client below it takes it for its default, five a second.
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\naddress: {node}\nport: {api}\nreadOnlyPort: 0\n\
             healthzBindAddress: 127.0.0.1\nhealthzPort: {port}\ncgroupDriver: cgroupfs\nfailCgroupV1: false\nfailSwapOn: false\n\
             cgroupsPerQOS: false\nenforceNodeAllocatable: []\nlocalStorageCapacityIsolation: false\ncontainerRuntimeEndpoint: \
             unix://{socket}\nauthentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\nauthorization: {{mode: \
             AlwaysAllow}}\nclusterDNS: [{dns}]\nclusterDomain: cluster.local\nserializeImagePulls: false\nregistryPullQPS: 0\n\
             eventRecordQPS: 500\neventBurst: 1000\nimageGCHighThresholdPercent: 100\nevictionHard: {{memory.available: 100Mi}}\n\
             syncFrequency: 10s\nfileCheckFrequency: 20s\nmaxPods: 250\npodLogsDir: {logs}\n",
            node = self.node(),
            api = net::free_port()?,
            socket = self.socket().display(),
            dns = self.dns(),
            logs = self.at("kubelet/logs"),
        );
        write(&self.dir.join("kubelet.yml"), &text)?;
        let args = [
            format!("--config={}", self.at("kubelet.yml")),
            self.kubeconfig(),
            "--hostname-override=lab".to_owned(),
            format!("--node-ip={}", self.node()),
            format!("--root-dir={}", self.at("kubelet")),
            format!("--cert-dir={}", self.at("certificates/kubelet")),
        ];
        Ok(program(binary, &args))
    }

    pub(super) fn proxy(&self, binary: &Path, port: u16) -> Result<Command, Trouble> {
        let args = [
            self.kubeconfig(),
            "--hostname-override=lab".to_owned(),
            "--proxy-mode=nftables".to_owned(),
            "--conntrack-max-per-core=0".to_owned(),
            format!("--cluster-cidr={}", self.pods()),
            format!("--healthz-bind-address=127.0.0.1:{port}"),
            format!("--metrics-bind-address=127.0.0.1:{}", net::free_port()?),
        ];
        Ok(program(binary, &args))
    }
}
