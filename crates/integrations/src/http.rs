//! `http` steps.

use cdpipe_model::Fault;
use cdpipe_model::ports::{Call, HttpRequest, expose};
use cdpipe_model::value::Value;
use std::collections::BTreeMap;

/// The largest part of an answer that is read.
const LARGEST_ANSWER_BYTES: usize = 1 << 20;
/// How much of an unexpected answer is shown.
const SHOWN_LINES: usize = 5;

/// Status and the start of the body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Sends the request.
///
/// # Errors
/// `http-failed`, transient if the server could not be reached or did not answer.
pub(crate) async fn send(
    client: &reqwest::Client,
    call: Call<'_>,
    request: &HttpRequest<'_>,
) -> Result<Answer, Fault> {
    let url = expose(request.url, call.secrets).await?;
    let method = reqwest::Method::from_bytes(request.method.as_bytes())
        .map_err(|_| Fault::new("http-failed", format!("`{}` is not an HTTP method", request.method)))?;
    let mut builder = client.request(method, &url).timeout(call.deadline);
    for (name, value) in exposed_headers(call, request.headers).await? {
        builder = builder.header(name, value);
    }
    if let Some(body) = request.body {
        builder = builder.body(expose(body, call.secrets).await?);
    }
    let mut answer = builder.send().await.map_err(|error| unreachable(request.url, &error))?;
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    while body.len() < LARGEST_ANSWER_BYTES {
        match answer.chunk().await.map_err(|error| unreachable(request.url, &error))? {
            Some(chunk) => body.extend_from_slice(&chunk),
            None => break,
        }
    }
    body.truncate(LARGEST_ANSWER_BYTES);
    Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

/// Headers with their secrets.
pub(crate) async fn exposed_headers(
    call: Call<'_>,
    headers: &BTreeMap<String, Value>,
) -> Result<Vec<(String, String)>, Fault> {
    let mut out = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        out.push((name.clone(), expose(value, call.secrets).await?));
    }
    Ok(out)
}

/// Whether the answer is what the step expects.
///
/// # Errors
/// `http-failed` with what was expected, what came, and the first lines.
pub(crate) fn judge(request: &HttpRequest<'_>, answer: Answer) -> Result<u16, Fault> {
    let expected = if request.expect_status.is_empty() {
        (200..300).contains(&answer.status)
    } else {
        request.expect_status.contains(&answer.status)
    };
    let shown =
        || answer.body.lines().take(SHOWN_LINES).map(|line| line.chars().take(200).collect::<String>());
    if !expected {
        let wanted = match request.expect_status {
            [] => "2xx".to_owned(),
            codes => codes.iter().map(u16::to_string).collect::<Vec<_>>().join(" or "),
        };
        let mut fault = Fault::new(
            "http-failed",
            format!("{} {} answered {}; expected {wanted}", request.method, request.url, answer.status),
        )
        .details(shown());
        // The server may be well again in a moment; a wrong request stays wrong.
        fault.transient = answer.status >= 500 || answer.status == 429;
        return Err(fault);
    }
    if let Some(part) = request.expect_body
        && !answer.body.contains(part)
    {
        return Err(Fault::new(
            "http-failed",
            format!("the answer of {} {} does not contain {part:?}", request.method, request.url),
        )
        .details(shown()));
    }
    Ok(answer.status)
}

/// A fault without the URL's secrets: reqwest's own message holds the whole URL, so only its innermost cause is shown.
pub(crate) fn unreachable(url: &Value, error: &reqwest::Error) -> Fault {
    if error.is_builder() {
        return Fault::new("http-failed", format!("`{url}` is not a URL that can be asked"));
    }
    if error.is_timeout() {
        return Fault::new("http-failed", format!("{url} did not answer in time")).transient();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    Fault::new("http-failed", format!("{url} cannot be reached: {cause}")).transient()
}
