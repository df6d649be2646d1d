//! The fuzz targets of `fuzz/`, for a while each, on the repository's own pipelines as seeds.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::lab;
use crate::process::Job;
use crate::say::{complain, say};
use crate::{project, sys};

/// Building the targets with the sanitizer, cold, on two cores.
const BUILD_WITHIN: Duration = Duration::from_secs(20 * 60);
/// What libFuzzer may take over its own limit: it first reads the whole corpus, whatever that takes.
const SLACK: Duration = Duration::from_secs(10 * 60);
/// Asking rustup what there is.
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// Inputs past this length cost time and find nothing that a shorter one does not.
const LONGEST_INPUT_BYTES: u32 = 16 * 1024;
/// An input that takes longer than this is a finding.
const SLOWEST_INPUT_S: u32 = 10;

/// Runs every target for an equal share of `time`.
///
/// # Errors
/// A target found something (its input is kept in `fuzz/artifacts`), or in CI the means are missing.
pub(crate) fn run(time: Duration) -> Result<String, String> {
    let targets = targets()?;
    let fuzz = match means() {
        Ok(fuzz) => fuzz,
        Err(why) if project::ci() => return Err(why),
        Err(why) => {
            complain(&format!("SKIPPED fuzzing: {why}"));
            return Ok(format!("skipped: {why}"));
        }
    };
    let seeds = project::target().join("fuzz-seeds");
    let count = gather(&project::root(), &seeds)?;
    must(&fuzz, &["build"], BUILD_WITHIN)?;
    let mut found = Vec::new();
    let share = time / u32::try_from(targets.len().max(1)).unwrap_or(1);
    for target in &targets {
        say(&format!("fuzz {target}: {} s, {count} seeds", share.as_secs()));
        let corpus = project::root().join("fuzz").join("corpus").join(target);
        fs::create_dir_all(&corpus).map_err(|error| format!("{}: {error}", corpus.display()))?;
        let limits = [
            format!("-dict={}", project::root().join("fuzz").join("words.dict").display()),
            format!("-max_total_time={}", share.as_secs()),
            format!("-max_len={LONGEST_INPUT_BYTES}"),
            format!("-timeout={SLOWEST_INPUT_S}"),
            "-rss_limit_mb=2048".to_owned(),
            "-print_final_stats=1".to_owned(),
            "-verbosity=0".to_owned(),
        ];
        let (corpus, seeds) = (corpus.to_string_lossy().into_owned(), seeds.to_string_lossy().into_owned());
        let mut args = vec!["run", target.as_str(), &corpus, &seeds, "--"];
        args.extend(limits.iter().map(String::as_str));
        if let Err(error) = must(&fuzz, &args, share + SLACK) {
            found.push(format!("{target}: {error}"));
        }
        if sys::interrupted() {
            return Err("interrupted".to_owned());
        }
    }
    if !found.is_empty() {
        return Err(format!("{}\nwhat was found is in fuzz/artifacts", found.join("\n")));
    }
    Ok(format!("{} targets, {} s each", targets.len(), share.as_secs()))
}

fn must(fuzz: &str, args: &[&str], within: Duration) -> Result<(), String> {
    // cargo-fuzz calls `cargo` itself; both have to be the nightly one, and not the one that started us.
    let job = Job::new("rustup", [&["run", "nightly", fuzz], args].concat(), within)
        .without_env("CARGO")
        .without_env("RUSTC")
        .env("RUSTUP_TOOLCHAIN", "nightly");
    let ended = job.run()?;
    let what = args.iter().take(2).copied().collect::<Vec<_>>().join(" ");
    if ended.ok() { Ok(()) } else { Err(format!("`cargo fuzz {what} …`: {}", ended.how())) }
}

/// The path of cargo-fuzz, where a nightly toolchain is there too.
fn means() -> Result<String, String> {
    let list = Job::new("rustup", ["toolchain", "list"], LIST_WITHIN).capture();
    if !list.is_ok_and(|ended| ended.ok() && ended.output.lines().any(|line| line.starts_with("nightly"))) {
        return Err("there is no nightly toolchain (rustup toolchain install nightly)".to_owned());
    }
    let part = lab::part("cargo-fuzz")?;
    let report = lab::up(&[part], false)?;
    match report.env.first() {
        Some((_, path)) => Ok(path.clone()),
        None => Err(report.missing.join("; ")),
    }
}

/// The names of `fuzz/fuzz_targets/*.rs`.
fn targets() -> Result<Vec<String>, String> {
    let dir = project::root().join("fuzz").join("fuzz_targets");
    let entries = fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// Writes every pipeline of the repository, also those fenced in Markdown, into one flat folder, and says how many there are.
fn gather(root: &Path, into: &Path) -> Result<usize, String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    if into.exists() {
        fs::remove_dir_all(into).map_err(|error| failed(into, error))?;
    }
    fs::create_dir_all(into).map_err(|error| failed(into, error))?;
    let mut folders = vec![root.to_path_buf()];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| failed(&folder, error))?.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if path.is_dir() && !path.is_symlink() {
                if !name.starts_with('.') && name != "target" && path != root.join("fuzz") {
                    folders.push(path);
                }
                continue;
            }
            let seeds = match path.extension().and_then(std::ffi::OsStr::to_str) {
                Some("cd") => vec![fs::read(&path).map_err(|error| failed(&path, error))?],
                Some("md") => fenced(&fs::read_to_string(&path).map_err(|error| failed(&path, error))?),
                _ => Vec::new(),
            };
            for seed in seeds {
                fs::write(into.join(format!("{count:04}-{name}")), seed)
                    .map_err(|error| failed(&path, error))?;
                count += 1;
            }
        }
    }
    Ok(count)
}

/// The blocks of a Markdown text that are fenced as `cd`.
fn fenced(markdown: &str) -> Vec<Vec<u8>> {
    let mut blocks = Vec::new();
    let mut open: Option<Vec<u8>> = None;
    for line in markdown.lines() {
        match &mut open {
            Some(_) if line.trim_end() == "```" => blocks.extend(open.take()),
            Some(block) => block.extend(line.bytes().chain(*b"\n")),
            None if line
                .strip_prefix("```cd")
                .is_some_and(|rest| !rest.starts_with(char::is_alphanumeric)) =>
            {
                open = Some(Vec::new());
            }
            None => {}
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_all_pipelines_and_nothing_that_was_built() {
        let dir = std::env::temp_dir().join(format!("cdpipe-xtask-{}-seeds", std::process::id()));
        for file in ["a/x.cd", "a/corpus/x.cd", "target/no.cd", ".hidden/no.cd", "fuzz/corpus/no.cd"] {
            let file = dir.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "pipeline x {}").unwrap();
        }
        let into = dir.join("target").join("seeds");
        fs::write(
            dir.join("a/tour.md"),
            "# Tour\n```cd\nstage s {}\n```\n```cdx\nno\n```\n```cd title=x\n```\n",
        )
        .unwrap();
        assert_eq!(gather(&dir, &into), Ok(4));
        assert_eq!(fs::read_dir(&into).unwrap().count(), 4);
        let texts: Vec<_> =
            fs::read_dir(&into).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(texts.contains(&b"stage s {}\n".to_vec()), "{texts:?}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
