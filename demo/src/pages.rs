//! What the shop says: the page for people, the facts for programs.

use std::time::Duration;

/// What a page can tell about the shop.
pub(crate) struct Facts<'a> {
    pub(crate) version: &'a str,
    pub(crate) release: &'a str,
    pub(crate) up: Duration,
}

impl Facts<'_> {
    /// The page for a terminal.
    pub(crate) fn text(&self) -> String {
        format!(
            "The shop, {version} (release {release}), open for {up_s} s.\n",
            version = self.version,
            release = self.release,
            up_s = self.up.as_secs()
        )
    }

    /// The page for a browser.
    pub(crate) fn html(&self) -> String {
        let (version, release) = (escape(self.version), escape(self.release));
        // A colour of its own for each version: with two versions serving, a reload shows which one answered.
        let hue = self.version.bytes().fold(200_u32, |hue, byte| (hue * 31 + u32::from(byte)) % 360);
        format!(
            r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>The shop, {version}</title>
<style>
  body {{ margin: 0; min-height: 100vh; display: grid; place-content: center; text-align: center;
         font: 1.1rem/1.6 system-ui, sans-serif; color: hsl({hue} 40% 20%); background: hsl({hue} 60% 94%); }}
  h1 {{ margin: 0; font-size: 3.5rem; }}
  code {{ font-size: .9rem; }}
</style>
</head>
<body>
<main>
<h1>{version}</h1>
<p>The shop is open.<br><code>release {release}</code></p>
</main>
</body>
</html>
"#
        )
    }

    /// `/version`.
    pub(crate) fn json(&self) -> String {
        let facts = serde_json::json!({
            "service": "shop",
            "version": self.version,
            "release": self.release,
            "pid": std::process::id(),
            "up_ms": u64::try_from(self.up.as_millis()).unwrap_or(u64::MAX),
        });
        format!("{facts}\n")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::Facts;
    use std::time::Duration;

    const FACTS: Facts<'_> = Facts { version: "v2<b>", release: "r\"1", up: Duration::from_millis(2_500) };

    #[test]
    fn says_its_version_in_text_and_json() {
        assert_eq!(FACTS.text(), "The shop, v2<b> (release r\"1), open for 2 s.\n");
        let json: serde_json::Value = serde_json::from_str(&FACTS.json()).unwrap();
        assert_eq!((json["version"].as_str(), json["up_ms"].as_u64()), (Some("v2<b>"), Some(2_500)));
    }

    #[test]
    fn a_version_never_becomes_markup() {
        let html = FACTS.html();
        assert!(html.contains("<h1>v2&lt;b&gt;</h1>") && html.contains("r&quot;1"), "{html}");
    }
}
