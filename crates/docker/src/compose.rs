//! A service of a compose file as the engine's API says it. What a compose file can say and a Swarm service can't is an error that
//! names it: a setting that is passed over in silence is one that somebody misses in production.

use bollard::models::ServiceSpec;
use cdpipe_model::Fault;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What only says how a person works with it on one machine, or what cdpipe does in its place.
const PASSED_OVER: [&str; 5] = ["build", "container_name", "depends_on", "expose", "profiles"];

/// Reads `FILE#SERVICE`.
///
/// # Errors
/// `artifact-missing`, `compose-invalid`, `compose-unsupported`.
pub(crate) fn read(base: &Path, source: &str) -> Result<ServiceSpec, Fault> {
    let (file, service) = source.split_once('#').unwrap_or((source, ""));
    let path = base.join(file);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Fault::new("artifact-missing", format!("the compose file {} cannot be read: {error}", path.display()))
            .help("its path is relative to the pipeline's file")
    })?;
    parse(&text, file, service)
}

fn parse(text: &str, file: &str, service: &str) -> Result<ServiceSpec, Fault> {
    let invalid = |why: String| Fault::new("compose-invalid", format!("{file}: {why}"));
    let document: Value = serde_saphyr::from_str(text).map_err(|error| invalid(error.to_string()))?;
    let services = document.get("services").and_then(Value::as_object);
    let services = services.ok_or_else(|| invalid("there are no `services`".to_owned()))?;
    let found = services.get(service).and_then(Value::as_object).ok_or_else(|| {
        let names: Vec<&str> = services.keys().map(String::as_str).collect();
        invalid(format!("there is no service `{service}`; there are {}", names.join(", ")))
    })?;
    let mut reader = Reader { unknown: Vec::new(), wrong: Vec::new() };
    let found: Map<String, Value> =
        found.iter().map(|(key, value)| (key.clone(), reader.filled_in(key, value))).collect();
    let spec = reader.service(&found, &document);
    if let Some(wrong) = reader.wrong.first() {
        return Err(invalid(format!("`services.{service}`: {wrong}")));
    }
    if !reader.unknown.is_empty() {
        let names = reader.unknown.join("`, `");
        return Err(Fault::new("compose-unsupported", format!("{file}: `services.{service}` says what a Swarm service cannot have, or cdpipe does not know: `{names}`"))
            .help("take it out, or say it in the pipeline's `service`"));
    }
    serde_json::from_value(spec).map_err(|error| invalid(error.to_string()))
}

struct Reader {
    unknown: Vec<String>,
    wrong: Vec<String>,
}

impl Reader {
    fn service(&mut self, said: &Map<String, Value>, document: &Value) -> Value {
        let mut container = Map::new();
        let mut task = Map::new();
        let mut spec = Map::new();
        for (key, value) in said {
            match key.as_str() {
                "image" => set(&mut container, "Image", value.clone()),
                "entrypoint" => set(&mut container, "Command", self.words(key, value)),
                "command" => set(&mut container, "Args", self.words(key, value)),
                "environment" => set(&mut container, "Env", self.pairs(key, value)),
                "working_dir" => set(&mut container, "Dir", value.clone()),
                "user" => set(&mut container, "User", json!(plain(value))),
                "hostname" => set(&mut container, "Hostname", value.clone()),
                "stop_signal" => set(&mut container, "StopSignal", value.clone()),
                "stop_grace_period" => set(&mut container, "StopGracePeriod", self.duration(key, value)),
                "init" => set(&mut container, "Init", value.clone()),
                "read_only" => set(&mut container, "ReadOnly", value.clone()),
                "tty" => set(&mut container, "TTY", value.clone()),
                "cap_add" => set(&mut container, "CapabilityAdd", value.clone()),
                "cap_drop" => set(&mut container, "CapabilityDrop", value.clone()),
                "labels" => set(&mut container, "Labels", self.map(key, value)),
                "healthcheck" => set(&mut container, "HealthCheck", self.health(value)),
                "volumes" => set(&mut container, "Mounts", self.mounts(value, document)),
                "secrets" => {
                    set(&mut container, "Secrets", self.files(key, "Secret", 0o400, value, document))
                }
                "configs" => {
                    set(&mut container, "Configs", self.files(key, "Config", 0o444, value, document))
                }
                "ports" => set(&mut spec, "EndpointSpec", json!({ "Ports": self.ports(value) })),
                "networks" => set(&mut task, "Networks", self.networks(value, document)),
                "deploy" => self.deploy(value, &mut spec, &mut task),
                other if PASSED_OVER.contains(&other) => {}
                other => self.unknown.push(other.to_owned()),
            }
        }
        if !container.contains_key("Image") {
            self.wrong.push("it has no `image`".to_owned());
        }
        task.insert("ContainerSpec".to_owned(), Value::Object(container));
        spec.insert("TaskTemplate".to_owned(), Value::Object(task));
        Value::Object(spec)
    }

    /// What a compose file says with `$$` for a dollar sign. A variable would be one of whoever deploys: the same file would be another
    /// release on another machine.
    fn filled_in(&mut self, of: &str, value: &Value) -> Value {
        match value {
            Value::String(text) if text.contains('$') => {
                if text.replace("$$", "").contains('$') {
                    self.wrong.push(format!(
                        "`{of}` has a variable in `{text}`, and those of this machine are not taken: say it in the pipeline, or write `$$` for a dollar sign"
                    ));
                }
                json!(text.replace("$$", "$"))
            }
            Value::Array(list) => list.iter().map(|value| self.filled_in(of, value)).collect(),
            Value::Object(map) => {
                let filled = map.iter().map(|(key, value)| (key.clone(), self.filled_in(key, value)));
                Value::Object(filled.collect())
            }
            other => other.clone(),
        }
    }

    fn deploy(&mut self, value: &Value, spec: &mut Map<String, Value>, task: &mut Map<String, Value>) {
        for (key, value) in self.entries("deploy", value) {
            match key.as_str() {
                // How many, and how they change over, is what the pipeline says.
                "replicas" => {}
                "mode" if value == "replicated" => {}
                "endpoint_mode" => {
                    let endpoint = spec.entry("EndpointSpec").or_insert_with(|| json!({}));
                    if let Some(endpoint) = endpoint.as_object_mut() {
                        endpoint.insert("Mode".to_owned(), value);
                    }
                }
                "labels" => {
                    let labels = self.map("deploy.labels", &value);
                    set(spec, "Labels", labels);
                }
                "update_config" => {
                    let config = self.update(&key, &value);
                    set(spec, "UpdateConfig", config);
                }
                "rollback_config" => {
                    let config = self.update(&key, &value);
                    set(spec, "RollbackConfig", config);
                }
                "restart_policy" => {
                    let mut policy = Map::new();
                    for (key, value) in self.entries("restart_policy", &value) {
                        match key.as_str() {
                            "condition" => set(&mut policy, "Condition", value),
                            "delay" => set(&mut policy, "Delay", self.duration(&key, &value)),
                            "window" => set(&mut policy, "Window", self.duration(&key, &value)),
                            "max_attempts" => set(&mut policy, "MaxAttempts", value),
                            other => self.unknown.push(format!("deploy.restart_policy.{other}")),
                        }
                    }
                    set(task, "RestartPolicy", Value::Object(policy));
                }
                "placement" => {
                    let mut placement = Map::new();
                    for (key, value) in self.entries("placement", &value) {
                        match key.as_str() {
                            "constraints" => set(&mut placement, "Constraints", value),
                            "max_replicas_per_node" => set(&mut placement, "MaxReplicas", value),
                            "preferences" => {
                                let spread = value.as_array().into_iter().flatten();
                                let spread = spread.map(
                                    |one| json!({ "Spread": { "SpreadDescriptor": one.get("spread") } }),
                                );
                                let spread: Vec<Value> = spread.collect();
                                set(&mut placement, "Preferences", json!(spread));
                            }
                            other => self.unknown.push(format!("deploy.placement.{other}")),
                        }
                    }
                    set(task, "Placement", Value::Object(placement));
                }
                "resources" => {
                    let mut resources = Map::new();
                    for (key, value) in self.entries("resources", &value) {
                        let name = match key.as_str() {
                            "limits" => "Limits",
                            "reservations" => "Reservations",
                            other => {
                                self.unknown.push(format!("deploy.resources.{other}"));
                                continue;
                            }
                        };
                        let mut amounts = Map::new();
                        for (key, value) in self.entries("resources", &value) {
                            match key.as_str() {
                                "cpus" => set(&mut amounts, "NanoCPUs", self.cpus(&value)),
                                "memory" => set(&mut amounts, "MemoryBytes", self.size(&key, &value)),
                                "pids" if name == "Limits" => set(&mut amounts, "Pids", value),
                                other => self.unknown.push(format!("deploy.resources.{other}")),
                            }
                        }
                        set(&mut resources, name, Value::Object(amounts));
                    }
                    set(task, "Resources", Value::Object(resources));
                }
                other => self.unknown.push(format!("deploy.{other}")),
            }
        }
    }

    fn update(&mut self, of: &str, value: &Value) -> Value {
        let mut config = Map::new();
        for (key, value) in self.entries(of, value) {
            match key.as_str() {
                "parallelism" => set(&mut config, "Parallelism", value),
                "delay" => set(&mut config, "Delay", self.duration(&key, &value)),
                "failure_action" => set(&mut config, "FailureAction", value),
                "monitor" => set(&mut config, "Monitor", self.duration(&key, &value)),
                "max_failure_ratio" => set(&mut config, "MaxFailureRatio", value),
                "order" => set(&mut config, "Order", value),
                other => self.unknown.push(format!("deploy.{of}.{other}")),
            }
        }
        Value::Object(config)
    }

    fn health(&mut self, value: &Value) -> Value {
        let mut health = Map::new();
        for (key, value) in self.entries("healthcheck", value) {
            match key.as_str() {
                "test" => {
                    let test = match &value {
                        Value::String(script) => json!(["CMD-SHELL", script]),
                        other => other.clone(),
                    };
                    set(&mut health, "Test", test);
                }
                "interval" => set(&mut health, "Interval", self.duration(&key, &value)),
                "timeout" => set(&mut health, "Timeout", self.duration(&key, &value)),
                "start_period" => set(&mut health, "StartPeriod", self.duration(&key, &value)),
                "retries" => set(&mut health, "Retries", value),
                "disable" if value == true => set(&mut health, "Test", json!(["NONE"])),
                "disable" => {}
                other => self.unknown.push(format!("healthcheck.{other}")),
            }
        }
        Value::Object(health)
    }

    /// `8080:80/tcp`, `80`, or the long form.
    fn ports(&mut self, value: &Value) -> Value {
        let mut ports = Vec::new();
        for one in value.as_array().into_iter().flatten() {
            if let Some(long) = one.as_object() {
                if let Some(other) = long.keys().find(|key| {
                    !["target", "published", "protocol", "mode", "name", "app_protocol"]
                        .contains(&key.as_str())
                }) {
                    self.unknown.push(format!("ports.{other}"));
                }
                let number = |key: &str| long.get(key).map(plain).and_then(|text| text.parse::<i64>().ok());
                ports.push(json!({
                    "TargetPort": number("target"),
                    "PublishedPort": number("published"),
                    "Protocol": long.get("protocol").map_or("tcp".to_owned(), plain),
                    "PublishMode": long.get("mode").map_or("ingress".to_owned(), plain),
                }));
                continue;
            }
            let text = plain(one);
            let (numbers, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
            let (published, target) = match numbers.split_once(':') {
                Some((published, target)) => (published.parse::<i64>().ok(), target.parse::<i64>().ok()),
                None => (None, numbers.parse().ok()),
            };
            if target.is_none() || (numbers.contains(':') && published.is_none()) {
                self.wrong.push(format!("the port `{text}` is not `PUBLISHED:TARGET` with two numbers"));
            }
            ports.push(json!({ "TargetPort": target, "PublishedPort": published, "Protocol": protocol, "PublishMode": "ingress" }));
        }
        json!(ports)
    }

    fn networks(&mut self, value: &Value, document: &Value) -> Value {
        let named = |name: &str| {
            let known = document.pointer(&format!("/networks/{name}/name")).and_then(Value::as_str);
            known.unwrap_or(name).to_owned()
        };
        if let Some(list) = value.as_array() {
            return list.iter().map(|name| json!({ "Target": named(&plain(name)) })).collect();
        }
        let mut networks = Vec::new();
        for (name, value) in self.entries("networks", value) {
            networks.push(json!({ "Target": named(&name), "Aliases": value.get("aliases") }));
            for key in value.as_object().into_iter().flat_map(Map::keys).filter(|key| *key != "aliases") {
                self.unknown.push(format!("networks.{name}.{key}"));
            }
        }
        json!(networks)
    }

    /// Secrets and configs: names of the Swarm's own.
    fn files(&mut self, of: &str, word: &str, mode: u32, value: &Value, document: &Value) -> Value {
        let mut files = Vec::new();
        for one in value.as_array().into_iter().flatten() {
            let long = one.as_object().cloned().unwrap_or_default();
            let source = long.get("source").map_or_else(|| plain(one), plain);
            let known = document.pointer(&format!("/{of}/{source}/name")).and_then(Value::as_str);
            let target = long.get("target").map_or_else(|| source.clone(), plain);
            // A config's place is absolute, a secret's is in /run/secrets.
            let target =
                if word == "Config" && !target.starts_with('/') { format!("/{target}") } else { target };
            let number = |key: &str| long.get(key).map_or("0".to_owned(), plain);
            files.push(json!({
                format!("{word}Name"): known.unwrap_or(&source),
                "File": { "Name": target, "UID": number("uid"), "GID": number("gid"), "Mode": long.get("mode").cloned().unwrap_or(json!(mode)) },
            }));
        }
        json!(files)
    }

    /// `volume:/path:ro`, `/here:/there`, or the long form.
    fn mounts(&mut self, value: &Value, document: &Value) -> Value {
        let named = |name: &str| {
            let known = document.pointer(&format!("/volumes/{name}/name")).and_then(Value::as_str);
            known.unwrap_or(name).to_owned()
        };
        let mut mounts = Vec::new();
        for one in value.as_array().into_iter().flatten() {
            if let Some(long) = one.as_object() {
                if let Some(other) =
                    long.keys().find(|key| !["type", "source", "target", "read_only"].contains(&key.as_str()))
                {
                    self.unknown.push(format!("volumes.{other}"));
                }
                let kind = long.get("type").map_or("volume".to_owned(), plain);
                let source = long.get("source").map(plain);
                let source = if kind == "volume" { source.map(|name| named(&name)) } else { source };
                mounts.push(json!({ "Type": kind, "Source": source, "Target": long.get("target"), "ReadOnly": long.get("read_only").cloned().unwrap_or(json!(false)) }));
                continue;
            }
            let text = plain(one);
            let parts: Vec<&str> = text.split(':').collect();
            let (source, target, flags) = match parts.as_slice() {
                [target] => (None, *target, ""),
                [source, target] => (Some(*source), *target, ""),
                [source, target, flags] => (Some(*source), *target, *flags),
                _ => {
                    self.wrong.push(format!("the volume `{text}` is not `SOURCE:TARGET:FLAGS`"));
                    continue;
                }
            };
            let is_path = source.is_some_and(|source| source.starts_with(['/', '.', '~']));
            if source.is_some_and(|source| source.starts_with(['.', '~'])) {
                self.wrong.push(format!("the volume `{text}` names a folder beside the file, which the nodes of a Swarm do not have"));
            }
            let source = source.map(|source| if is_path { source.to_owned() } else { named(source) });
            mounts.push(json!({ "Type": if is_path { "bind" } else { "volume" }, "Source": source, "Target": target, "ReadOnly": flags.split(',').any(|flag| flag == "ro") }));
        }
        json!(mounts)
    }

    // -- values --

    fn entries(&mut self, of: &str, value: &Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map.clone(),
            Value::Null => Map::new(),
            _ => {
                self.wrong.push(format!("`{of}` is no mapping"));
                Map::new()
            }
        }
    }

    /// A list, or one text that a shell would cut at blanks.
    fn words(&mut self, of: &str, value: &Value) -> Value {
        match value {
            Value::Array(_) => value.clone(),
            Value::String(text) if text.contains(['"', '\'', '\\']) => {
                self.wrong.push(format!("`{of}` is a text with quotes: write it as a list"));
                Value::Null
            }
            other => plain(other).split_whitespace().collect(),
        }
    }

    fn pairs(&mut self, of: &str, value: &Value) -> Value {
        match value {
            Value::Array(list) => {
                if let Some(bare) = list.iter().map(plain).find(|pair| !pair.contains('=')) {
                    self.wrong.push(format!("`{of}`: `{bare}` has no value; those of this machine are not taken: say it in the pipeline's `env`"));
                }
                value.clone()
            }
            other => {
                self.entries(of, other).iter().map(|(key, value)| format!("{key}={}", plain(value))).collect()
            }
        }
    }

    fn map(&mut self, of: &str, value: &Value) -> Value {
        let pairs: Map<String, Value> = match value {
            Value::Array(list) => {
                let pair = |pair: &Value| {
                    let text = plain(pair);
                    let (key, value) = text.split_once('=').unwrap_or((&text, ""));
                    (key.to_owned(), json!(value))
                };
                list.iter().map(pair).collect()
            }
            other => self
                .entries(of, other)
                .iter()
                .map(|(key, value)| (key.clone(), json!(plain(value))))
                .collect(),
        };
        Value::Object(pairs)
    }

    /// `1m30s`, `500ms` in nanoseconds.
    fn duration(&mut self, of: &str, value: &Value) -> Value {
        let text = plain(value);
        match nanos(&text) {
            Some(nanos) => json!(nanos),
            None => {
                self.wrong.push(format!("`{of}` is `{text}`, which is no duration"));
                Value::Null
            }
        }
    }

    fn cpus(&mut self, value: &Value) -> Value {
        let text = plain(value);
        #[allow(clippy::cast_possible_truncation, reason = "processors are few")]
        match text.parse::<f64>() {
            Ok(cpus) => json!((cpus * 1_000_000_000.0).round() as i64),
            Err(_) => {
                self.wrong.push(format!("`cpus` is `{text}`, which is no number"));
                Value::Null
            }
        }
    }

    /// `512M`, `1g`, `2048` in bytes.
    fn size(&mut self, of: &str, value: &Value) -> Value {
        let text = plain(value).to_ascii_lowercase();
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match text.get(number.len()..).unwrap_or_default().trim_end_matches('b') {
            "" => Some(1),
            "k" | "ki" => Some(1_i64 << 10),
            "m" | "mi" => Some(1 << 20),
            "g" | "gi" => Some(1 << 30),
            _ => None,
        };
        match (number.parse::<i64>(), factor) {
            (Ok(number), Some(factor)) => json!(number.saturating_mul(factor)),
            _ => {
                self.wrong.push(format!("`{of}` is `{text}`, which is no size"));
                Value::Null
            }
        }
    }
}

fn set(map: &mut Map<String, Value>, key: &str, value: Value) {
    map.insert(key.to_owned(), value);
}

/// A scalar as it was written.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn nanos(text: &str) -> Option<i64> {
    let mut rest = text.trim();
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match rest.get(..unit)? {
                "us" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = rest.get(unit..)?;
    }
    #[allow(clippy::cast_possible_truncation, reason = "a duration that a person wrote")]
    (!text.trim().is_empty()).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
services:
  app:
    image: shop:1.0
    command: /bin/shop --quiet
    environment:
      MODE: live
      LIMIT: 5
    ports: ["8080:80", { target: 9090, mode: host }]
    healthcheck: { test: wget -q -O - http://127.0.0.1/, interval: 1m30s, timeout: 500ms, retries: 3 }
    volumes: ["data:/var/lib/shop", "/etc/ssl:/etc/ssl:ro"]
    networks: [front]
    secrets: [key]
    deploy:
      replicas: 3
      update_config: { parallelism: 2, delay: 10s, failure_action: pause, order: start-first }
      restart_policy: { condition: on-failure, delay: 5s }
      placement: { constraints: [node.role == worker] }
      resources: { limits: { cpus: "0.5", memory: 256M } }
  odd:
    image: shop:1.0
    privileged: true
    deploy: { mode: global }
networks:
  front: { name: shop_front }
"#;

    #[test]
    fn a_service_is_read_as_the_api_has_it() {
        let spec = parse(FILE, "compose.yml", "app").unwrap();
        let value = serde_json::to_value(&spec).unwrap();
        let at = |path: &str| value.pointer(path).cloned().unwrap_or(Value::Null);
        assert_eq!(at("/TaskTemplate/ContainerSpec/Image"), json!("shop:1.0"));
        assert_eq!(at("/TaskTemplate/ContainerSpec/Args"), json!(["/bin/shop", "--quiet"]));
        assert_eq!(at("/TaskTemplate/ContainerSpec/Env"), json!(["LIMIT=5", "MODE=live"]));
        assert_eq!(at("/TaskTemplate/ContainerSpec/HealthCheck/Interval"), json!(90_000_000_000_i64));
        assert_eq!(at("/TaskTemplate/ContainerSpec/Mounts/0/Type"), json!("volume"));
        assert_eq!(at("/TaskTemplate/ContainerSpec/Mounts/1/ReadOnly"), json!(true));
        assert_eq!(at("/TaskTemplate/ContainerSpec/Secrets/0/SecretName"), json!("key"));
        assert_eq!(at("/TaskTemplate/Networks/0/Target"), json!("shop_front"));
        assert_eq!(at("/TaskTemplate/RestartPolicy/Condition"), json!("on-failure"));
        assert_eq!(at("/TaskTemplate/Placement/Constraints/0"), json!("node.role == worker"));
        assert_eq!(at("/TaskTemplate/Resources/Limits/MemoryBytes"), json!(268_435_456));
        assert_eq!(at("/EndpointSpec/Ports/0/PublishedPort"), json!(8080));
        assert_eq!(at("/EndpointSpec/Ports/1/PublishMode"), json!("host"));
        assert_eq!(at("/UpdateConfig/FailureAction"), json!("pause"));
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let fault = parse(FILE, "compose.yml", "odd").unwrap_err();
        assert_eq!(fault.kind, "compose-unsupported");
        assert!(fault.message.ends_with("`deploy.mode`, `privileged`"), "{}", fault.message);
        let fault = parse(FILE, "compose.yml", "none").unwrap_err();
        assert_eq!(fault.message, "compose.yml: there is no service `none`; there are app, odd");
    }

    #[test]
    fn a_variable_is_refused_and_two_dollar_signs_are_one() {
        let of = |said: &str| {
            let text = format!(
                "services:\n  app:\n    image: shop:1.0\n    {said}\n  other: {{ image: \"x:${{TAG}}\" }}\n"
            );
            parse(&text, "compose.yml", "app")
        };
        let spec = of("environment: { COST: 5$$, BOTH: \"$$${X}\" }").unwrap_err();
        assert!(spec.message.contains("`BOTH` has a variable in `$$${X}`"), "{}", spec.message);
        for said in
            ["environment: [\"A=${B}\"]", "environment: { A: $B }", "healthcheck: { test: [CMD, \"$B\"] }"]
        {
            let fault = of(said).unwrap_err();
            assert_eq!(fault.kind, "compose-invalid", "{said}");
            assert!(fault.message.contains("a variable"), "{}", fault.message);
        }
        let spec = of("environment: { COST: 5$$ }\n    healthcheck: { test: \"test $$HOME = /\" }").unwrap();
        let container = spec.task_template.unwrap().container_spec.unwrap();
        assert_eq!(container.env.unwrap(), ["COST=5$"]);
        assert_eq!(container.health_check.unwrap().test.unwrap(), ["CMD-SHELL", "test $HOME = /"]);
    }
}
