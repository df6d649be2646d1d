//! Reading and writing pipeline files: limits, errors with a way out, and writes that are whole or not at all.

use crate::failure::{self, Failure};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The longest source that is read, in bytes.
pub(crate) const MAX_SOURCE_BYTES: u64 = 16 << 20;

/// How the standard input is named where a path would stand.
pub(crate) const STDIN: &str = "-";

/// The text of a file, or of the standard input for `-`.
pub(crate) fn read(path: &str) -> Result<String, Failure> {
    let bytes = if path == STDIN {
        read_limited(std::io::stdin().lock(), "<stdin>")?
    } else {
        let file = std::fs::File::open(path).map_err(|error| unreadable(path, &error))?;
        let meta = file.metadata().map_err(|error| unreadable(path, &error))?;
        if meta.is_dir() {
            return Err(Failure::new(&failure::IS_DIRECTORY, format!("`{path}` is a directory")).help(
                match pipelines_under(Path::new(path)).first() {
                    Some(first) => format!("name a file in it, such as `{}`", first.display()),
                    None => "name a pipeline file; there is none in it".to_owned(),
                },
            ));
        }
        if meta.len() > MAX_SOURCE_BYTES {
            return Err(too_large(path, Some(meta.len())));
        }
        read_limited(file, path)?
    };
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let line = bytes.get(..at).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count() + 1;
        let byte = bytes.get(at).copied().unwrap_or_default();
        let looks_binary = bytes.iter().take(1024).any(|byte| *byte == 0);
        Failure::new(
            &failure::NOT_UTF8,
            format!("`{}` is not UTF-8 text: byte {at} (line {line}) is 0x{byte:02x}", show(path)),
        )
        .help(if looks_binary {
            "it looks like a binary file; is this the file you mean?"
        } else {
            "convert it, for example with `iconv -f LATIN1 -t UTF-8`"
        })
    })
}

/// As messages name a path.
pub(crate) fn show(path: &str) -> &str {
    if path == STDIN { "<stdin>" } else { path }
}

fn read_limited(from: impl Read, path: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    from.take(MAX_SOURCE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > MAX_SOURCE_BYTES { Err(too_large(path, None)) } else { Ok(bytes) }
}

fn too_large(path: &str, bytes: Option<u64>) -> Failure {
    let size =
        bytes.map_or("more than 16 MiB".to_owned(), |bytes| format!("{} MiB", bytes.div_ceil(1 << 20)));
    Failure::new(&failure::TOO_LARGE, format!("`{path}` has {size}; a source may have 16 MiB"))
        .help("is this the file you mean? a pipeline this long can be split with `use`")
}

fn unreadable(path: &str, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::NotFound {
        let failure = Failure::new(&failure::NO_SUCH_FILE, format!("there is no file `{path}`"));
        return match near(Path::new(path)) {
            Near::Like(names) => failure.help(format!("did you mean {}?", names.join(" or "))),
            Near::Others(names) => failure.help(format!("there is {}", names.join(", "))),
            Near::NoDirectory(dir) => failure.help(format!("there is no directory `{dir}` either")),
            Near::Nothing => failure
                .help("there is no `*.cd` file in that directory; `cdpipe help run` shows how to begin"),
        };
    }
    Failure::new(&failure::UNREADABLE, format!("`{path}` cannot be read: {}", reason(error)))
        .help("look at its permissions with `ls -l`, and at who you are with `id`")
}

/// The system's reason without Rust's `(os error 13)`.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

enum Near {
    Like(Vec<String>),
    Others(Vec<String>),
    NoDirectory(String),
    Nothing,
}

/// Which pipeline files could have been meant by a path that does not exist.
fn near(path: &Path) -> Near {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if !dir.is_dir() {
        return Near::NoDirectory(dir.display().to_string());
    }
    let wanted = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let names: Vec<(usize, String)> = pipelines_under(dir)
        .into_iter()
        .take(1000)
        .filter_map(|found| {
            let name = found.file_name()?.to_string_lossy().into_owned();
            let shown = found.strip_prefix("./").unwrap_or(&found).display().to_string();
            Some((distance(&wanted, &name), shown))
        })
        .collect();
    let mut like: Vec<_> = names.iter().filter(|(far, _)| *far <= 1 + wanted.chars().count() / 3).collect();
    like.sort();
    if !like.is_empty() {
        return Near::Like(like.into_iter().take(3).map(|(_, name)| format!("`{name}`")).collect());
    }
    match names.len() {
        0 => Near::Nothing,
        _ => Near::Others(names.into_iter().take(4).map(|(_, name)| format!("`{name}`")).collect()),
    }
}

/// Damerau-Levenshtein distance (adjacent swaps count once), in characters.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Every `*.cd` file under a directory, sorted; hidden directories, `target` and `node_modules` are not entered.
fn pipelines_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    // A directory that can't be listed holds nothing for us; links are not followed, so this ends.
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
                open.push(entry.path());
            } else if !kind.is_dir() && name.ends_with(".cd") {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// The files that arguments stand for: a file is itself, a directory all pipelines in it.
pub(crate) fn expand(arguments: &[String]) -> Result<Vec<String>, Failure> {
    let mut files = Vec::new();
    for argument in arguments {
        let path = Path::new(argument);
        if argument == STDIN || !path.is_dir() {
            files.push(argument.clone());
            continue;
        }
        let found = pipelines_under(path);
        if found.is_empty() {
            return Err(Failure::new(
                &failure::IS_DIRECTORY,
                format!("there is no `*.cd` file in `{argument}`"),
            )
            .help("name a pipeline file, or a directory that has one"));
        }
        files.extend(
            found.iter().map(|file| file.strip_prefix("./").unwrap_or(file).to_string_lossy().into_owned()),
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    files.retain(|file| seen.insert(file.clone()));
    Ok(files)
}

/// Replaces a file's content whole or not at all, and keeps its permissions. A link stays a link.
pub(crate) fn replace(path: &str, content: &str) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        let path = match std::fs::canonicalize(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => PathBuf::from(path),
            other => other?,
        };
        let permissions = std::fs::metadata(&path).ok().map(|meta| meta.permissions());
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
        let result = (|| {
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(content.as_bytes())?;
            if let Some(permissions) = permissions {
                file.set_permissions(permissions)?;
            }
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        })();
        if result.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        result
    };
    write().map_err(|error| {
        Failure::new(&failure::UNWRITABLE, format!("`{path}` cannot be written: {}", reason(&error)))
            .help("the file is as it was; look at the permissions of its directory and at the space left on the disk")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits_and_swaps() {
        assert_eq!(distance("quickstart.cd", "quikstart.cd"), 1);
        assert_eq!(distance("ab", "ba"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("äb", "ab"), 1);
    }
}
