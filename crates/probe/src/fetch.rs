//! HTTP GET with a deadline and a bound on the answer.

use std::collections::BTreeMap;
use std::time::Duration;

/// The largest answer that is read.
pub(crate) const LARGEST_ANSWER_BYTES: usize = 16 << 20;

/// Asks with GET and answers the body.
pub(crate) async fn get(
    client: &reqwest::Client,
    url: &str,
    headers: &BTreeMap<String, String>,
    timeout: Duration,
) -> Result<String, String> {
    let mut request = client.get(url).timeout(timeout);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut answer = request.send().await.map_err(|error| describe(&error))?;
    let status = answer.status();
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| describe(&error))? {
        if body.len() + chunk.len() > LARGEST_ANSWER_BYTES {
            return Err(format!("the answer is larger than {} MiB", LARGEST_ANSWER_BYTES >> 20));
        }
        body.extend_from_slice(&chunk);
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    if !status.is_success() {
        let start: String = body.chars().take(200).collect();
        return Err(format!("it answered {status}: {}", start.trim()));
    }
    Ok(body)
}

/// The innermost cause, which says what happened; without the URL, which may hold a secret.
fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if error.is_connect() { format!("it cannot be reached: {cause}") } else { cause.to_string() }
}
