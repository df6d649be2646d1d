//! Who we are to a registry: what `docker login` left in `config.json`, or a credential helper says.

use bollard::auth::DockerCredentials;
use cdpipe_host::Masker;
use cdpipe_model::Fault;
use cdpipe_model::secret::{SecretValue, base64_decode};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// Docker Hub as `config.json` calls it.
const HUB: &str = "https://index.docker.io/v1/";
/// How long a credential helper may take.
const HELPER_LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// Whether a reference that begins so names Docker Hub.
pub(crate) fn is_hub(registry: &str) -> bool {
    matches!(registry, "docker.io" | "index.docker.io")
}

/// The registry of an image reference, as `config.json` calls it.
pub(crate) fn registry_of(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((first, _)) if is_hub(first) => HUB,
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => HUB,
    }
}

/// The credentials for an image, from `folder/config.json`; `None` where there are none.
///
/// # Errors
/// `credentials` if the file can't be read, or a helper fails.
pub(crate) async fn of(
    folder: &Path,
    reference: &str,
    masker: &Masker,
) -> Result<Option<DockerCredentials>, Fault> {
    let path = folder.join("config.json");
    let wrong = |why: String| {
        Fault::new(
            "credentials",
            format!("the registry credentials of {} can't be used: {why}", path.display()),
        )
        .help("log in again with `docker login`")
    };
    let config: Config = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let registry = registry_of(reference);
    let helper = config.cred_helpers.get(registry).or(config.creds_store.as_ref());
    if let Some(helper) = helper
        && let Some(found) = ask_helper(helper, registry, masker).await.map_err(wrong)?
    {
        return Ok(Some(found));
    }
    let names = [registry.to_owned(), format!("https://{registry}"), format!("https://{registry}/v1/")];
    let Some(auth) = names.iter().find_map(|name| config.auths.get(name)) else { return Ok(None) };
    let mut credentials =
        DockerCredentials { serveraddress: Some(registry.to_owned()), ..Default::default() };
    if let Some(token) = &auth.identitytoken {
        masker.learn(&SecretValue::new(token.clone()));
        credentials.identitytoken = Some(token.clone());
    } else if let Some(encoded) = auth.auth.as_ref().filter(|text| !text.is_empty()) {
        let decoded = base64_decode(encoded).and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) else {
            return Err(wrong(format!("`auth` of {registry} is not base64 of `user:password`")));
        };
        let password = password.trim_end_matches('\0');
        masker.learn(&SecretValue::new(password.to_owned()));
        credentials.username = Some(user.to_owned());
        credentials.password = Some(password.to_owned());
    } else {
        return Ok(None);
    }
    Ok(Some(credentials))
}

async fn ask_helper(
    helper: &str,
    registry: &str,
    masker: &Masker,
) -> Result<Option<DockerCredentials>, String> {
    let program = format!("docker-credential-{helper}");
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program} could not be started: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has its answer already may not read.
        let _ = stdin.write_all(registry.as_bytes()).await;
    }
    let output = tokio::time::timeout(HELPER_LIMIT, child.wait_with_output())
        .await
        .map_err(|_| format!("{program} said nothing for {}s", HELPER_LIMIT.as_secs()))?
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        // By its protocol that is how it says that it knows of none.
        return Ok(None);
    }
    let helped: Helped =
        serde_json::from_slice(&output.stdout).map_err(|_| format!("{program} did not answer JSON"))?;
    masker.learn(&SecretValue::new(helped.secret.clone()));
    let mut credentials =
        DockerCredentials { serveraddress: Some(registry.to_owned()), ..Default::default() };
    if helped.username == "<token>" {
        credentials.identitytoken = Some(helped.secret);
    } else {
        credentials.username = Some(helped.username);
        credentials.password = Some(helped.secret);
    }
    Ok(Some(credentials))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_a_reference() {
        for (reference, registry) in [
            ("nginx:1", HUB),
            ("acme/web:1", HUB),
            ("docker.io/acme/web:1", HUB),
            ("index.docker.io/acme/web:1", HUB),
            ("ghcr.io/acme/web:1", "ghcr.io"),
            ("127.0.0.1:5000/shop", "127.0.0.1:5000"),
            ("localhost/shop", "localhost"),
        ] {
            assert_eq!(registry_of(reference), registry, "{reference}");
        }
    }
}
