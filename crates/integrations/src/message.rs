//! `notify`: messages in the shape of Slack's incoming webhooks, or as a plain JSON document.

use crate::http::{exposed_headers, unreachable};
use cdpipe_model::Fault;
use cdpipe_model::plan::Channel;
use cdpipe_model::ports::{Call, expose};
use cdpipe_model::value::Value;
use serde_json::{Map, json};
use std::collections::BTreeMap;

/// Sends the message.
///
/// # Errors
/// `notify-failed`; transient if another try can help.
pub(crate) async fn send(
    client: &reqwest::Client,
    call: Call<'_>,
    channel: Channel,
    url: &Value,
    headers: &BTreeMap<String, Value>,
    text: &str,
    fields: &BTreeMap<String, String>,
) -> Result<(), Fault> {
    let body = body(channel, text, fields);
    let mut request = client
        .post(expose(url, call.secrets).await?)
        .timeout(call.deadline)
        .header("content-type", "application/json")
        .body(body.to_string());
    for (name, value) in exposed_headers(call, headers).await? {
        request = request.header(name, value);
    }
    let answer = request.send().await.map_err(|error| {
        let fault = unreachable(url, &error);
        Fault { kind: "notify-failed".to_owned(), ..fault }
    })?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said = answer.text().await.unwrap_or_default();
    let mut fault = Fault::new("notify-failed", format!("the message was refused with {status}"))
        .details(said.lines().take(3).map(|line| line.chars().take(200).collect()));
    fault.transient = status.is_server_error() || status.as_u16() == 429;
    Err(fault)
}

fn body(channel: Channel, text: &str, fields: &BTreeMap<String, String>) -> serde_json::Value {
    match channel {
        Channel::Slack => json!({ "text": slack_escape(text) }),
        Channel::Webhook => {
            let mut document: Map<_, _> =
                fields.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
            document.insert("text".to_owned(), text.into());
            document.into()
        }
    }
}

/// Slack reads `&`, `<` and `>` as markup (its "Formatting text" page); a value must stay text.
fn slack_escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let fields = BTreeMap::from([("stage".to_owned(), "production".to_owned())]);
        assert_eq!(
            body(Channel::Slack, "a < b & <!here>", &fields).to_string(),
            r#"{"text":"a &lt; b &amp; &lt;!here&gt;"}"#
        );
        assert_eq!(
            body(Channel::Webhook, "say \"hi\"", &fields).to_string(),
            r#"{"stage":"production","text":"say \"hi\""}"#
        );
    }
}
