//! The command line of a subcommand: `--name value`, `--name=value`, `--switch` and plain words. Nothing is ignored silently.

/// What was written after the subcommand's name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    /// Words that are no option, in order.
    pub(crate) words: Vec<String>,
    options: Vec<(String, String)>,
    switches: Vec<String>,
}

impl Args {
    /// Reads `raw`. `options` take a value, `switches` don't; both are named without their dashes.
    ///
    /// # Errors
    /// An option that is not known, or one without its value: the message says which are known.
    pub(crate) fn parse(raw: &[String], options: &[&str], switches: &[&str]) -> Result<Self, String> {
        let mut args = Self::default();
        let mut raw = raw.iter();
        while let Some(word) = raw.next() {
            let Some(name) = word.strip_prefix("--") else {
                args.words.push(word.clone());
                continue;
            };
            let (name, attached) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            if options.contains(&name) {
                let value = match attached {
                    Some(value) => value,
                    None => raw.next().cloned().ok_or(format!("--{name} needs a value"))?,
                };
                args.options.push((name.to_owned(), value));
            } else if switches.contains(&name) && attached.is_none() {
                args.switches.push(name.to_owned());
            } else {
                let known: Vec<String> =
                    options.iter().chain(switches).map(|name| format!("--{name}")).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(format!("`{word}` is not an option here; known: {known}"));
            }
        }
        Ok(args)
    }

    /// The last value given for an option.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A number given for an option, or `default`.
    ///
    /// # Errors
    /// A value that is no number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        match self.option(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| format!("--{name} wants a number, found `{text}`")),
        }
    }

    /// Whether a switch was given.
    pub(crate) fn switch(&self, name: &str) -> bool {
        self.switches.iter().any(|switch| switch == name)
    }

    /// A comma-separated list given for an option.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        self.option(name)
            .map(|text| {
                text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
            })
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_switches_and_words() {
        let args = Args::parse(&words("a --rounds 5 --write b --only=x,y"), &["rounds", "only"], &["write"])
            .unwrap();
        assert_eq!(args.words, ["a", "b"]);
        assert_eq!(args.number("rounds", 1), Ok(5));
        assert_eq!(args.list("only"), ["x", "y"]);
        assert!(args.switch("write") && !args.switch("quick"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let error = Args::parse(&words("--wirte"), &["rounds"], &["write"]).unwrap_err();
        assert_eq!(error, "`--wirte` is not an option here; known: --rounds, --write");
        assert_eq!(Args::parse(&words("--rounds"), &["rounds"], &[]).unwrap_err(), "--rounds needs a value");
        let args = Args::parse(&words("--rounds many"), &["rounds"], &[]).unwrap();
        assert_eq!(args.number("rounds", 1_u32), Err("--rounds wants a number, found `many`".to_owned()));
    }
}
