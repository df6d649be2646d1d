//! Feature flags: an HTTP admin API, Redis, or a JSON file. Each says what the flag was before, so that it can be taken back.

use crate::http::{exposed_headers, unreachable};
use cdpipe_model::Fault;
use cdpipe_model::expr::Expr;
use cdpipe_model::plan::FlagProvider;
use cdpipe_model::ports::{Call, expose};
use cdpipe_model::value::Value;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// Sets the flag (`None` removes it) and answers what it was.
///
/// # Errors
/// `flag-failed`; transient if another try can help.
pub(crate) async fn set(
    client: &reqwest::Client,
    directory: &Path,
    call: Call<'_>,
    provider: &FlagProvider,
    flag: &str,
    value: Option<&str>,
) -> Result<Option<String>, Fault> {
    match provider {
        FlagProvider::Redis { url, key } => {
            redis_flag(call, url, &key.replace("$flag", flag), flag, value).await
        }
        FlagProvider::File { path } => file_flag(&directory.join(path), flag, value),
        FlagProvider::Http { url, method, headers, body, read_url, read_path } => {
            let api = Api {
                client,
                call,
                headers,
                read_url: read_url.as_ref(),
                read_path: read_path.as_deref(),
                flag,
            };
            let was = api.read().await?;
            api.write(url, method, body.as_ref(), value).await?;
            let now = api.read().await?;
            // An API that can be read is believed only when it says what was written.
            if read_url.is_some() && value.is_some() && now.as_deref() != value {
                return Err(failed(flag, format!("it was written, but reads {}", shown(now.as_deref()))));
            }
            Ok(was)
        }
    }
}

fn failed(flag: &str, why: impl std::fmt::Display) -> Fault {
    Fault::new("flag-failed", format!("flag `{flag}` was not set: {why}"))
}

fn shown(value: Option<&str>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"))
}

fn known(expr: &Expr) -> &Value {
    static NOTHING: Value = Value::Bool(false);
    expr.known().unwrap_or(&NOTHING)
}

// ---------------------------------------------------------------- Redis

async fn redis_flag(
    call: Call<'_>,
    url: &Expr,
    key: &str,
    flag: &str,
    value: Option<&str>,
) -> Result<Option<String>, Fault> {
    let url = expose(known(url), call.secrets).await?;
    let trouble = |error: &redis::RedisError| {
        let mut fault = failed(flag, format!("Redis: {}", describe(error)));
        fault.transient = error.is_io_error() || error.is_timeout() || error.is_connection_dropped();
        fault
    };
    // The message of a URL that can't be read would hold the URL, and with it perhaps a password.
    let client = redis::Client::open(url).map_err(|_| failed(flag, "its `url` is not a Redis URL"))?;
    let mut connection = client.get_multiplexed_async_connection().await.map_err(|error| trouble(&error))?;
    let was: Option<String> =
        redis::cmd("GET").arg(key).query_async(&mut connection).await.map_err(|error| trouble(&error))?;
    match value {
        // KEEPTTL: a flag that expires goes on to do so. KEEPTTL came with Redis 6.0.
        Some(value) => {
            let _: () = redis::cmd("SET")
                .arg(key)
                .arg(value)
                .arg("KEEPTTL")
                .query_async(&mut connection)
                .await
                .map_err(|error| trouble(&error))?;
        }
        None => {
            let _: i64 = redis::cmd("DEL")
                .arg(key)
                .query_async(&mut connection)
                .await
                .map_err(|error| trouble(&error))?;
        }
    }
    let now: Option<String> =
        redis::cmd("GET").arg(key).query_async(&mut connection).await.map_err(|error| trouble(&error))?;
    if now.as_deref() != value {
        return Err(failed(flag, format!("it was written, but `{key}` reads {}", shown(now.as_deref()))));
    }
    Ok(was)
}

fn describe(error: &redis::RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        (None, _) => error.to_string(),
    }
}

// ---------------------------------------------------------------- file

fn file_flag(path: &Path, flag: &str, value: Option<&str>) -> Result<Option<String>, Fault> {
    let at = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "{}".to_owned(),
        Err(error) => return Err(failed(flag, format!("{at} cannot be read: {error}"))),
    };
    let mut document: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)
        .map_err(|error| failed(flag, format!("{at} is not a JSON object: {error}")))?;
    let was = match value {
        Some(value) => document.insert(flag.to_owned(), to_json(value)),
        None => document.remove(flag),
    };
    let mut text = serde_json::to_string_pretty(&document).map_err(|error| failed(flag, error))?;
    text.push('\n');
    // Whole or not at all: whoever reads the file never sees half of it.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(text.as_bytes())?;
        if let Ok(existing) = std::fs::metadata(path) {
            file.as_file().set_permissions(existing.permissions())?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map(|_| ()).map_err(|error| error.error)
    };
    write().map_err(|error| failed(flag, format!("{at} cannot be written: {error}")))?;
    Ok(was.map(|was| from_json(&was)))
}

/// `true`, `12` and the like stay what they are in JSON; anything else is a string.
fn to_json(value: &str) -> serde_json::Value {
    match serde_json::from_str(value) {
        Ok(json @ (serde_json::Value::Bool(_) | serde_json::Value::Number(_))) => json,
        _ => serde_json::Value::String(value.to_owned()),
    }
}

fn from_json(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

// ---------------------------------------------------------------- HTTP

struct Api<'a> {
    client: &'a reqwest::Client,
    call: Call<'a>,
    headers: &'a BTreeMap<String, Expr>,
    read_url: Option<&'a Expr>,
    read_path: Option<&'a str>,
    flag: &'a str,
}

impl Api<'_> {
    async fn request(
        &self,
        method: reqwest::Method,
        url: &Expr,
        value: &str,
    ) -> Result<reqwest::RequestBuilder, Fault> {
        let url = expose(known(url), self.call.secrets).await?;
        let url =
            url.replace("$flag", &percent_encoded(self.flag)).replace("$value", &percent_encoded(value));
        let headers: BTreeMap<String, Value> =
            self.headers.iter().map(|(name, expr)| (name.clone(), known(expr).clone())).collect();
        let mut request = self.client.request(method, url).timeout(self.call.deadline);
        for (name, value) in exposed_headers(self.call, &headers).await? {
            request = request.header(name, value);
        }
        Ok(request)
    }

    async fn write(
        &self,
        url: &Expr,
        method: &str,
        body: Option<&Expr>,
        value: Option<&str>,
    ) -> Result<(), Fault> {
        // An API that has no word for "not there" is told `false`, which is what an absent flag means to its users.
        let value = value.unwrap_or("false");
        let method = reqwest::Method::from_bytes(method.as_bytes())
            .map_err(|_| failed(self.flag, format!("`{method}` is not an HTTP method")))?;
        let mut request = self.request(method, url, value).await?;
        if let Some(body) = body {
            let body = expose(known(body), self.call.secrets).await?;
            let body = body.replace("$flag", &json_inside(self.flag)).replace("$value", &json_inside(value));
            request = request.header("content-type", "application/json").body(body);
        }
        let answer = request.send().await.map_err(|error| unreachable(known(url), &error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let said = answer.text().await.unwrap_or_default();
        let mut fault = failed(self.flag, format!("the provider answered {status}"))
            .details(said.lines().take(3).map(|line| line.chars().take(200).collect()));
        fault.transient = status.is_server_error() || status.as_u16() == 429;
        Err(fault)
    }

    /// The flag's value; `None` if there is no way to read it, or it is not there.
    async fn read(&self) -> Result<Option<String>, Fault> {
        let Some(url) = self.read_url else { return Ok(None) };
        let request = self.request(reqwest::Method::GET, url, "").await?;
        let answer = request.send().await.map_err(|error| unreachable(known(url), &error))?;
        let status = answer.status();
        if status.as_u16() == 404 {
            return Ok(None);
        }
        if !status.is_success() {
            let mut fault =
                failed(self.flag, format!("it could not be read: the provider answered {status}"));
            fault.transient = status.is_server_error() || status.as_u16() == 429;
            return Err(fault);
        }
        let body = answer.text().await.map_err(|error| unreachable(known(url), &error))?;
        let Some(path) = self.read_path else { return Ok(Some(body.trim().to_owned())) };
        let document: serde_json::Value = serde_json::from_str(&body)
            .map_err(|_| failed(self.flag, "it could not be read: the answer is not JSON"))?;
        let value = path
            .split('.')
            .filter(|part| !part.is_empty() && *part != "$")
            .try_fold(&document, |at, part| at.get(part));
        Ok(value.filter(|value| !value.is_null()).map(from_json))
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// As it stands inside the quotes of a JSON string, so that a value never becomes structure.
fn json_inside(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
