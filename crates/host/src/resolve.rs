//! Values into the text that a process gets: the one place where a secret's name becomes its value.

use crate::mask::Masker;
use cdpipe_model::ports::Secrets;
use cdpipe_model::secret::{SecretPart, SecretText, SecretValue, base64_decode};
use cdpipe_model::{Fault, Value};

/// The text of a value. Secrets in it are resolved, and masked from now on.
///
/// # Errors
/// What the source of a secret says; `bad-value` for one that should be base64 and is not, or for text after that.
pub(crate) async fn text(
    value: &Value,
    secrets: &dyn Secrets,
    masker: &Masker,
) -> Result<SecretValue, Fault> {
    match value {
        Value::Secret(text) => secret_text(text, secrets, masker).await,
        plain => Ok(SecretValue::new(plain.to_string())),
    }
}

async fn secret_text(
    text: &SecretText,
    secrets: &dyn Secrets,
    masker: &Masker,
) -> Result<SecretValue, Fault> {
    let mut whole = String::new();
    for part in &text.0 {
        match part {
            SecretPart::Text(text) => whole.push_str(text),
            SecretPart::Secret(name) => {
                let value = secrets.resolve(name).await?;
                masker.learn(&value);
                whole.push_str(value.expose());
            }
            SecretPart::Base64(name) => {
                let value = secrets.resolve(name).await?;
                masker.learn(&value);
                let decoded = base64_decode(value.expose()).and_then(|bytes| String::from_utf8(bytes).ok());
                let decoded = SecretValue::new(decoded.ok_or_else(|| {
                    Fault::new("bad-value", format!("the secret `{name}` is not base64 of a text"))
                        .help("use it without base64_decode, or store its base64 form")
                })?);
                masker.learn(&decoded);
                whole.push_str(decoded.expose());
            }
        }
    }
    Ok(SecretValue::new(whole))
}

/// Refuses a value that can't be in an environment.
///
/// # Errors
/// `value-unfit`.
pub(crate) fn fits_environment(name: &str, value: &str) -> Result<(), Fault> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(Fault::new(
            "value-unfit",
            format!("`{name}` cannot be the name of an environment variable"),
        ));
    }
    if value.contains('\0') {
        return Err(Fault::new(
            "value-unfit",
            format!("the value of `{name}` has a NUL in it, which no environment can hold"),
        ));
    }
    Ok(())
}
