//! Images: pulled with progress, and pinned to what was pulled.

use crate::client::Session;
use crate::credentials;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptions;
use cdpipe_host::Masker;
use cdpipe_model::Fault;
use futures_util::StreamExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a pull may stand still.
const STILL_LIMIT: Duration = Duration::from_secs(60);
/// Between two lines of progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// An image reference, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Without tag and digest.
    pub repository: String,
    /// `latest` where none is given.
    pub tag: String,
    /// `sha256:…`, where it is pinned.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads one. Never fails: what is wrong with it the engine says.
    pub fn parse(text: &str) -> Self {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.to_owned())),
            None => (text, None),
        };
        // A colon before the last slash is a port.
        let (repository, tag) = match name.rfind(':').filter(|at| !name[*at..].contains('/')) {
            Some(at) => (&name[..at], &name[at + 1..]),
            None => (name, "latest"),
        };
        Self { repository: repository.to_owned(), tag: tag.to_owned(), digest }
    }

    /// What the engine is asked for.
    pub fn wanted(&self) -> String {
        match &self.digest {
            Some(digest) => format!("{}@{digest}", self.repository),
            None => format!("{}:{}", self.repository, self.tag),
        }
    }
}

/// Has the image of this reference on the engine, and answers its digest: that of the registry, or the image's id where it came from none.
///
/// # Errors
/// `artifact-missing` with what to do, `no-space`, `credentials`.
pub async fn resolve(
    session: &Session<'_>,
    reference: &str,
    docker_config: &Path,
    masker: &Masker,
) -> Result<String, Fault> {
    let parsed = Reference::parse(reference);
    let wanted = parsed.wanted();
    if parsed.digest.is_some()
        && let Some(image) = inspect(session, &wanted).await?
    {
        return Ok(digest_of(&image, &parsed));
    }
    if let Err(fault) = pull(session, reference, &wanted, docker_config, masker).await {
        // Built here and pushed nowhere is an image, too.
        let local = inspect(session, &wanted).await?.filter(|_| fault.kind == "artifact-missing");
        return match local {
            Some(image) => {
                session
                    .call
                    .sink
                    .progress(&format!("the image {wanted} of this engine is used: {}", fault.message));
                Ok(digest_of(&image, &parsed))
            }
            None => Err(fault),
        };
    }
    match inspect(session, &wanted).await? {
        Some(image) => Ok(digest_of(&image, &parsed)),
        None => Err(missing(reference, "it was pulled, and is not there")),
    }
}

/// What to make a container of: the image of this digest, which is pulled if it is gone.
///
/// # Errors
/// Those of [`resolve`].
pub async fn pinned(
    session: &Session<'_>,
    reference: &str,
    digest: Option<&str>,
    docker_config: &Path,
    masker: &Masker,
) -> Result<String, Fault> {
    let Some(digest) = digest else {
        resolve(session, reference, docker_config, masker).await?;
        return Ok(Reference::parse(reference).wanted());
    };
    let by_digest = format!("{}@{digest}", Reference::parse(reference).repository);
    for name in [by_digest.as_str(), digest] {
        if inspect(session, name).await?.is_some() {
            return Ok(name.to_owned());
        }
    }
    pull(session, reference, &by_digest, docker_config, masker).await?;
    Ok(by_digest)
}

async fn inspect(session: &Session<'_>, name: &str) -> Result<Option<ImageInspect>, Fault> {
    session.ask_for("look at an image", session.api.inspect_image(name)).await
}

fn digest_of(image: &ImageInspect, reference: &Reference) -> String {
    registry_digest(image, reference).or_else(|| image.id.clone()).unwrap_or_default()
}

/// The digest that the registry of this reference gave the image; `None` for one that came from elsewhere.
pub(crate) fn registry_digest(image: &ImageInspect, reference: &Reference) -> Option<String> {
    let wanted = familiar(&reference.repository);
    image.repo_digests.iter().flatten().find_map(|text| {
        let (repository, digest) = text.split_once('@')?;
        (familiar(repository) == wanted).then(|| digest.to_owned())
    })
}

/// A repository without what Docker leaves out of those of its own hub, so that two names of one are the same.
fn familiar(repository: &str) -> &str {
    match repository.split_once('/') {
        Some((registry, path)) if credentials::is_hub(registry) => {
            path.strip_prefix("library/").unwrap_or(path)
        }
        Some(("library", path)) => path,
        _ => repository,
    }
}

async fn pull(
    session: &Session<'_>,
    reference: &str,
    wanted: &str,
    docker_config: &Path,
    masker: &Masker,
) -> Result<(), Fault> {
    let credentials = credentials::of(docker_config, reference, masker).await?;
    let known = credentials.is_some();
    let options = CreateImageOptions { from_image: Some(wanted.to_owned()), ..Default::default() };
    let mut progress = std::pin::pin!(session.api.create_image(Some(options), None, credentials));
    let mut layers: std::collections::BTreeMap<String, (i64, i64)> = std::collections::BTreeMap::new();
    let mut said = Instant::now();
    session.call.sink.progress(&format!("pulling {wanted}"));
    loop {
        // A stream ends with nothing: that is an answer, too.
        let next = async { Ok(progress.next().await) };
        let info = match session.ask_within("pull an image", STILL_LIMIT, next).await? {
            None => return Ok(()),
            Some(Ok(info)) => info,
            Some(Err(error)) => {
                return Err(explain(reference, known, session.fault("pull the image", &error)));
            }
        };
        if let (Some(layer), Some(detail)) = (&info.id, &info.progress_detail)
            && info.status.as_deref() == Some("Downloading")
        {
            layers.insert(layer.clone(), (detail.current.unwrap_or(0), detail.total.unwrap_or(0)));
        }
        if said.elapsed() >= PROGRESS_PAUSE && !layers.is_empty() {
            said = Instant::now();
            let (have, all) = layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
            session.call.sink.progress(&format!(
                "pulling {wanted}: {} of {} MB",
                have / 1_000_000,
                all / 1_000_000
            ));
        }
    }
}

fn missing(reference: &str, why: &str) -> Fault {
    Fault::new("artifact-missing", format!("the image {reference} can't be had: {why}"))
}

/// What a failed pull means for people.
fn explain(reference: &str, known: bool, fault: Fault) -> Fault {
    if !matches!(fault.kind.as_str(), "not-found" | "engine-refused") {
        return fault;
    }
    let registry = credentials::registry_of(reference);
    // What the engine said, without our words before it.
    let said = fault
        .message
        .split_once("could not pull the image: ")
        .map_or(fault.message.as_str(), |(_, said)| said);
    let lower = said.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let found = missing(reference, said);
    if has(&["no basic auth", "unauthorized", "authentication required", "access denied"])
        && !has(&["manifest unknown"])
    {
        let help = if known {
            format!(
                "the credentials for {registry} are refused: `docker login {registry}` again, and check the name of the image"
            )
        } else {
            format!(
                "if the registry wants a password: `docker login {registry}` on this machine; else check the name of the image"
            )
        };
        return found.help(help);
    }
    if is_unreachable(said) {
        return found
            .help(format!("see whether the registry {registry} is up and can be reached from the engine"))
            .transient();
    }
    found.help("check name and tag; push the image before it is deployed")
}

/// Whether an engine says so that it could not speak with a registry.
pub(crate) fn is_unreachable(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    let words = ["connection refused", "no such host", "timeout", "connection reset", "eof", "tls"];
    words.iter().any(|word| said.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        let parse = |text| {
            let reference = Reference::parse(text);
            (reference.repository, reference.tag, reference.digest)
        };
        let owned = |repository: &str, tag: &str, digest: Option<&str>| {
            (repository.to_owned(), tag.to_owned(), digest.map(str::to_owned))
        };
        assert_eq!(parse("nginx"), owned("nginx", "latest", None));
        assert_eq!(parse("127.0.0.1:5000/shop"), owned("127.0.0.1:5000/shop", "latest", None));
        assert_eq!(parse("127.0.0.1:5000/shop:1.0"), owned("127.0.0.1:5000/shop", "1.0", None));
        assert_eq!(parse("a/b:1@sha256:ff"), owned("a/b", "1", Some("sha256:ff")));
        assert_eq!(Reference::parse("a/b:1@sha256:ff").wanted(), "a/b@sha256:ff");
    }

    #[test]
    fn the_digest_of_a_registry_is_found_however_its_hub_is_named() {
        let image = |repo_digest: &str| ImageInspect {
            id: Some("sha256:id".to_owned()),
            repo_digests: Some(vec!["ghcr.io/acme/web@sha256:no".to_owned(), repo_digest.to_owned()]),
            ..Default::default()
        };
        for (reference, repo_digest) in [
            ("docker.io/acme/web:1", "acme/web@sha256:ff"),
            ("acme/web:1", "docker.io/acme/web@sha256:ff"),
            ("index.docker.io/library/nginx", "nginx@sha256:ff"),
            ("library/nginx", "docker.io/library/nginx@sha256:ff"),
            ("127.0.0.1:5000/library/shop", "127.0.0.1:5000/library/shop@sha256:ff"),
        ] {
            let digest = digest_of(&image(repo_digest), &Reference::parse(reference));
            assert_eq!(digest, "sha256:ff", "{reference}");
        }
        let other = digest_of(&image("127.0.0.1:5000/library/shop@sha256:ff"), &Reference::parse("shop"));
        assert_eq!(other, "sha256:id");
    }

    #[test]
    fn a_failed_pull_says_what_to_do() {
        let of = |said: &str| {
            let fault =
                Fault::new("engine-refused", format!("the engine at x could not pull the image: {said}"));
            explain("127.0.0.1:5000/shop:9", false, fault)
        };
        let unknown = of("manifest for 127.0.0.1:5000/shop:9 not found: manifest unknown");
        assert_eq!(unknown.kind, "artifact-missing");
        assert!(unknown.help.unwrap().contains("name and tag"));
        assert!(of("no basic auth credentials").help.unwrap().contains("docker login 127.0.0.1:5000"));
        let down = of("dial tcp 127.0.0.1:5000: connect: connection refused");
        assert!(down.transient && down.help.unwrap().contains("is up"));
    }
}
