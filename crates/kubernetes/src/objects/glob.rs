//! Which files a path or a glob names.

use cdpipe_model::Fault;
use regex::Regex;
use std::path::{Path, PathBuf};

/// Folders below the fixed part of a glob.
const MAX_DEPTH: usize = 16;
/// Entries that are looked at for one glob.
const MAX_ENTRIES: usize = 20_000;
/// What a folder is read for.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// The files, sorted by their path relative to `base`: a path is itself, a folder its manifests. Not empty.
pub(super) fn expand(base: &Path, pattern: &str) -> Result<Vec<String>, Fault> {
    let missing = |why: String| {
        Fault::new("artifact-missing", why)
            .help(format!("paths are relative to the pipeline's file, here {}", base.display()))
    };
    let unreadable =
        |path: &Path, error: &std::io::Error| missing(format!("{} cannot be read: {error}", path.display()));
    if !pattern.contains(['*', '?', '[', '{', '\\']) {
        let path = base.join(pattern);
        let about = std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
        if !about.is_dir() {
            return Ok(vec![pattern.to_owned()]);
        }
        let folder = pattern.trim_end_matches('/');
        let mut found = Vec::new();
        for (name, is_dir) in entries(&path).map_err(|error| unreadable(&path, &error))? {
            let ending = Path::new(&name).extension().and_then(|ending| ending.to_str());
            if !is_dir && ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
                found.push(format!("{folder}/{name}"));
            }
        }
        if found.is_empty() {
            return Err(missing(format!("there is no .yaml, .yml or .json in {}", path.display())));
        }
        return Ok(found);
    }
    let matcher = regex(pattern)
        .map_err(|error| Fault::new("bad-value", format!("{pattern:?} is no glob: {error}")))?;
    let fixed: String =
        match pattern.split(['*', '?', '[', '{', '\\']).next().unwrap_or_default().rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/"),
            None => String::new(),
        };
    let hidden = pattern.starts_with('.') || pattern.contains("/.");
    let mut found = Vec::new();
    let mut seen = 0_usize;
    let mut folders = vec![(fixed, 0_usize)];
    while let Some((folder, depth)) = folders.pop() {
        let path = base.join(&folder);
        // One that can't be read below the first is nobody's manifest.
        let inside = match entries(&path) {
            Ok(inside) => inside,
            Err(_) if depth > 0 => continue,
            Err(error) => return Err(unreadable(&path, &error)),
        };
        for (name, is_dir) in inside {
            seen += 1;
            if seen > MAX_ENTRIES {
                return Err(Fault::new(
                    "bad-value",
                    format!("{pattern:?} means looking at more than {MAX_ENTRIES} files"),
                )
                .help("name a folder that holds manifests and little else"));
            }
            if name.starts_with('.') && !hidden {
                continue;
            }
            let relative = format!("{folder}{name}");
            if is_dir && depth < MAX_DEPTH {
                folders.push((format!("{relative}/"), depth + 1));
            } else if !is_dir && matcher.is_match(&relative) {
                found.push(relative);
            }
        }
    }
    if found.is_empty() {
        return Err(missing(format!("no file matches {pattern:?}")));
    }
    found.sort();
    Ok(found)
}

/// Names in a folder, sorted, and whether each is a folder. Links are followed.
fn entries(folder: &Path) -> std::io::Result<Vec<(String, bool)>> {
    let folder: PathBuf = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let entry = entry?;
        // A name that is no text can't be meant by a pattern that is one.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_dir = std::fs::metadata(entry.path()).is_ok_and(|about| about.is_dir());
        found.push((name, is_dir));
    }
    found.sort();
    Ok(found)
}

fn regex(pattern: &str) -> Result<Regex, regex::Error> {
    let mut out = String::from("^");
    let mut chars = pattern.chars().peekable();
    let mut braces = 0_u32;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                if chars.peek() == Some(&'/') {
                    chars.next();
                    out.push_str("(?:[^/]+/)*");
                } else {
                    out.push_str(".*");
                }
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '[' => {
                out.push('[');
                if matches!(chars.peek(), Some('!' | '^')) {
                    chars.next();
                    out.push('^');
                }
                for inside in chars.by_ref() {
                    match inside {
                        ']' => break,
                        '-' => out.push('-'),
                        other => out.push_str(&regex::escape(&other.to_string())),
                    }
                }
                out.push(']');
            }
            '{' => {
                braces += 1;
                out.push_str("(?:");
            }
            '}' if braces > 0 => {
                braces -= 1;
                out.push(')');
            }
            ',' if braces > 0 => out.push('|'),
            '\\' => out.push_str(&regex::escape(&chars.next().unwrap_or('\\').to_string())),
            other => out.push_str(&regex::escape(&other.to_string())),
        }
    }
    out.push('$');
    Regex::new(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in
            ["k8s/a.yaml", "k8s/b.yml", "k8s/deep/er/c.yaml", "k8s/.hidden.yaml", "k8s/x.txt", "one.yaml"]
        {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    #[test]
    fn a_path_a_folder_and_a_glob_name_files() {
        let folder = folder();
        for (pattern, wanted) in [
            ("one.yaml", vec!["one.yaml"]),
            ("k8s", vec!["k8s/.hidden.yaml", "k8s/a.yaml", "k8s/b.yml"]),
            ("k8s/*.yaml", vec!["k8s/a.yaml"]),
            ("*.yaml", vec!["one.yaml"]),
            ("k8s/*.{yaml,yml}", vec!["k8s/a.yaml", "k8s/b.yml"]),
            ("k8s/[!a].y?l", vec!["k8s/b.yml"]),
            ("k8s/**/*.yaml", vec!["k8s/a.yaml", "k8s/deep/er/c.yaml"]),
            ("**/c.yaml", vec!["k8s/deep/er/c.yaml"]),
        ] {
            assert_eq!(expand(folder.path(), pattern).unwrap(), wanted, "{pattern}");
        }
    }

    #[test]
    fn what_names_no_file_is_a_fault_that_says_where_it_was_looked_for() {
        let folder = folder();
        for pattern in ["no.yaml", "k8s/*.json", "nowhere/*.yaml", "k8s/deep"] {
            let fault = expand(folder.path(), pattern).unwrap_err();
            assert_eq!(fault.kind, "artifact-missing", "{pattern}");
            assert!(fault.help.is_some_and(|help| help.contains(&*folder.path().display().to_string())));
        }
    }
}
