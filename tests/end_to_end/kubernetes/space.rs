//! A namespace of the lab's cluster, and what a test looks at in it.

use cdpipe_tests::deployed::comes_true;
use cdpipe_tests::lab;
use cdpipe_tests::place::{Place, repository};
use cdpipe_tests::processes::Ended;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) const LONG: Duration = Duration::from_secs(90);

/// A namespace of the lab's cluster, with a place to run cdpipe in.
pub(crate) struct Space {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) kubectl: String,
    pub(crate) kubeconfig: String,
}

impl Space {
    /// `None` where the lab has no cluster. The pipeline is one of `pipelines/`, with this namespace, `within` and `replicas`.
    pub(crate) fn new(test: &str, pipeline: &str) -> Option<Self> {
        let found: Vec<String> = ["CDPIPE_LAB_KUBERNETES", "CDPIPE_LAB_KUBECTL", "CDPIPE_LAB_REGISTRY"]
            .into_iter()
            .filter_map(|name| std::env::var(name).ok())
            .collect();
        let [kubeconfig, kubectl, registry] = found.as_slice() else {
            lab::skip(test, "CDPIPE_LAB_KUBERNETES (cargo xtask test, or cargo xtask lab up kubernetes)")
                .unwrap();
            return None;
        };
        let mut place = Place::new().unwrap();
        place.set("KUBECONFIG", kubeconfig.as_str());
        let name = format!("{}-{}", test.replace('_', "-"), std::process::id());
        let text = std::fs::read_to_string(repository().join("pipelines").join(pipeline)).unwrap();
        let text = text
            .replace("namespace = \"default\"", &format!("namespace = \"{name}\""))
            // Tests have one in `$KUBECONFIG`, and some have one of their own.
            .replace("kubeconfig = kubeconfig, ", "")
            .replace("127.0.0.1:5000", registry)
            .replace("within = 30s", "within = 15s");
        place.write("pipeline.cd", text).unwrap();
        let space = Self { place, name, kubectl: kubectl.clone(), kubeconfig: kubeconfig.clone() };
        space.kubectl(&["create", "namespace", &space.name]);
        // No pods before.
        let account = || space.field("serviceaccount/default", "{.metadata.name}") == "default";
        assert!(comes_true(LONG, account), "the namespace {} gets no account", space.name);
        Some(space)
    }

    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Option<String> {
        let output =
            Command::new(&self.kubectl).args(args).env("KUBECONFIG", &self.kubeconfig).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap_or_else(|| panic!("kubectl {args:?} failed"))
    }

    /// A field of an object, or nothing.
    pub(crate) fn field(&self, object: &str, path: &str) -> String {
        self.try_kubectl(&["-n", &self.name, "get", object, "-o", &format!("jsonpath={path}")])
            .unwrap_or_default()
    }

    /// The image that a Deployment has now.
    pub(crate) fn image(&self) -> String {
        let image = self.field("deployment/shop", "{.spec.template.spec.containers[0].image}");
        image.rsplit(':').next().unwrap_or_default().to_owned()
    }

    /// Has the pipeline be one deploy with this strategy, behind this router.
    pub(crate) fn strategy(&self, traffic: &str, strategy: &str) {
        let text = std::fs::read_to_string(self.place.work().join("pipeline.cd")).unwrap();
        let (head, _) = text.split_once("stage ").unwrap();
        let head: String =
            head.lines().filter(|line| !line.contains("traffic")).map(|line| format!("{line}\n")).collect();
        let head = head.replace("  target kubernetes", &format!("  {traffic}\n  target kubernetes"));
        let stage = format!("stage release {{\n  deploy shop to cluster {{\n    {strategy}\n  }}\n}}\n");
        self.place.write("pipeline.cd", head + &stage).unwrap();
    }

    pub(crate) fn begin(&self, version: &str) -> Child {
        let mut command = self.place.command(["run", "pipeline.cd", "--set", &format!("version={version}")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn run(&self, version: &str) -> Ended {
        self.place.run(["run", "pipeline.cd", "--set", &format!("version={version}")]).unwrap()
    }

    /// Every pod of a service that is not on its way out: its image's tag, and whether it is ready. Pods of commands may stay for a while
    /// after their end.
    pub(crate) fn pods(&self) -> Vec<String> {
        let text = self.try_kubectl(&["-n", &self.name, "get", "pods", "-o", "json"]).unwrap_or_default();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        pods.iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter(|pod| pod["metadata"]["labels"]["cdpipe.dev/kind"] != "run")
            .map(|pod| {
                let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
                let ready = pod["status"]["containerStatuses"][0]["ready"].as_bool().unwrap_or(false);
                format!(
                    "{} {}",
                    image.rsplit(':').next().unwrap_or_default(),
                    if ready { "ready" } else { "not ready" }
                )
            })
            .collect()
    }

    /// So many pods of this version are ready and no others are there.
    #[track_caller]
    pub(crate) fn serves(&self, version: &str, count: usize) {
        let wanted = vec![format!("{version} ready"); count];
        let mut found = Vec::new();
        let holds = comes_true(LONG, || {
            found = self.pods();
            found == wanted
        });
        assert!(holds, "wanted {count} pods of {version}, found {found:?}");
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

pub(crate) fn ended(child: Child) -> Ended {
    let done = child.wait_with_output().unwrap();
    Ended {
        code: done.status.code(),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        took: Duration::ZERO,
    }
}

#[track_caller]
pub(crate) fn assert_ended(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code, Some(code), "stdout:\n{}\nstderr:\n{}", ended.stdout, ended.stderr);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    for part in says {
        assert!(said.contains(part), "{part:?} is missing from\n{said}");
    }
}
