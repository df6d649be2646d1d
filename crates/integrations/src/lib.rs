//! Writes to the world outside: messages, HTTP requests, feature flags.
//!
//! Uses `model`. Deliberately not here: reading measurements (`probe`), and deciding what a failure means (`machine`).
//!
//! Invariants: every request has a deadline and a bound on its answer; a URL or header that may hold a secret never appears in a fault;
//! a flag is read before it is written, so that the write can be taken back, and read again after it where the provider can.

mod flag;
mod http;
mod message;

use cdpipe_model::Fault;
use cdpipe_model::plan::{Channel, FlagProvider};
use cdpipe_model::ports::{Call, HttpRequest, Messenger, PortResult};
use cdpipe_model::value::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// Everything that writes to the outside.
pub struct Integrations {
    client: OnceLock<reqwest::Client>,
    /// Where relative paths of flag files start: the directory of the pipeline's file.
    directory: PathBuf,
}

impl Integrations {
    /// `directory` is where relative paths start: that of the pipeline's file.
    pub fn new(directory: PathBuf) -> Self {
        Self { client: OnceLock::new(), directory }
    }

    fn client(&self) -> &reqwest::Client {
        self.client.get_or_init(|| {
            reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(10))
                .redirect(reqwest::redirect::Policy::none())
                .pool_max_idle_per_host(1)
                .build()
                // Without a usable TLS set-up the default client says so at its first request.
                .unwrap_or_default()
        })
    }
}

impl Messenger for Integrations {
    fn http<'a>(&'a self, call: Call<'a>, request: HttpRequest<'a>) -> PortResult<'a, u16> {
        Box::pin(async move {
            let answer = until_cancelled(call, http::send(self.client(), call, &request)).await?;
            http::judge(&request, answer)
        })
    }

    fn notify<'a>(
        &'a self,
        call: Call<'a>,
        channel: Channel,
        url: &'a Value,
        headers: &'a BTreeMap<String, Value>,
        text: &'a str,
        fields: &'a BTreeMap<String, String>,
    ) -> PortResult<'a, ()> {
        Box::pin(until_cancelled(
            call,
            message::send(self.client(), call, channel, url, headers, text, fields),
        ))
    }

    fn set_flag<'a>(
        &'a self,
        call: Call<'a>,
        provider: &'a FlagProvider,
        flag: &'a str,
        value: Option<&'a str>,
    ) -> PortResult<'a, Option<String>> {
        Box::pin(until_cancelled(call, async move {
            let work = flag::set(self.client(), &self.directory, call, provider, flag, value);
            match tokio::time::timeout(call.deadline, work).await {
                Ok(answer) => answer,
                Err(_) => {
                    Err(Fault::new("timed-out", format!("flag `{flag}` was not set in time")).transient())
                }
            }
        }))
    }
}

async fn until_cancelled<T>(
    call: Call<'_>,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    tokio::select! {
        answer = work => answer,
        () = call.cancel.cancelled() => Err(Fault::new("cancelled", "it was cancelled")),
    }
}
