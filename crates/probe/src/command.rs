//! Metrics from a command: it prints a number, placeholders come as environment variables.

use cdpipe_model::measure::MeasureScope;
use cdpipe_model::ports::Call;
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// The longest output that is read; a number is short.
const LONGEST_OUTPUT_BYTES: u64 = 4096;

/// Runs it and reads the number it prints.
///
/// # Errors
/// Why there is none, in one sentence.
pub(crate) async fn run(
    script: &str,
    scope: &MeasureScope,
    directory: &Path,
    call: Call<'_>,
) -> Result<f64, String> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(directory);
    for (name, value) in crate::placeholder::values(scope) {
        command.env(format!("CDPIPE_{}", name.to_uppercase()), value);
    }
    // Its own process group, killed as a whole when the question is dropped.
    command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    let mut group = Group(child.id());
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let work = async {
        if let Some(pipe) = child.stdout.take() {
            let _ = pipe.take(LONGEST_OUTPUT_BYTES).read_to_string(&mut stdout).await;
        }
        if let Some(pipe) = child.stderr.take() {
            let _ = pipe.take(LONGEST_OUTPUT_BYTES).read_to_string(&mut stderr).await;
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(call.deadline, work).await {
        Ok(status) => status.map_err(|error| format!("it cannot be waited for: {error}"))?,
        Err(_) => return Err("it did not end in time".to_owned()),
    };
    // It has ended: its number may belong to another group from now on.
    group.0 = None;
    if !status.success() {
        let last = stderr.lines().last().unwrap_or_default();
        return Err(format!("it ended with {status}: {last}").trim_end_matches([':', ' ']).to_owned());
    }
    let text = stdout.trim();
    text.parse::<f64>()
        .ok()
        .filter(|number| number.is_finite())
        .ok_or_else(|| format!("it printed {:?}, not a number", text.chars().take(80).collect::<String>()))
}

/// Kills the whole group when it goes.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}
