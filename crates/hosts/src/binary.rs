//! The binary that is the agent on a machine: what it is known by, and how it gets there.

use crate::protocol::CHUNK_LIMIT_BYTES;
use crate::ssh::SshConfig;
use cdpipe_model::Fault;
use sha2::{Digest as _, Sha256};
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::ChildStdin;

/// How many digits of its sum name an agent.
const IDENTITY_DIGITS: usize = 16;

/// Sends it to whoever asks on the machine's side, which says first what it is: `Linux x86_64`.
///
/// # Errors
/// `agent-unfit`, `agent-missing`, `ssh-unreachable`.
pub(crate) async fn send(
    config: &SshConfig,
    host: &str,
    machine: &str,
    stdin: &mut ChildStdin,
    within: Duration,
) -> Result<(), Fault> {
    let ours = format!("Linux {}", std::env::consts::ARCH);
    let own = std::env::current_exe().is_ok_and(|own| own == config.agent);
    // The kernel says `arm64` nowhere but on other systems; names agree for what we are built for.
    if own && machine != ours {
        return Err(Fault::new(
            "agent-unfit",
            format!("{host} is a {machine}, and this cdpipe is built for {ours}"),
        )
        .help("set `agent` of the target to the path of a cdpipe that is built for that machine"));
    }
    let (bytes, sum) = summed(config).await?;
    let file =
        tokio::fs::File::open(&config.agent).await.map_err(|error| unreadable(&config.agent, &error))?;
    let sending = async {
        stdin.write_all(format!("{bytes} {sum}\n").as_bytes()).await?;
        // Never all of it at once: fifty machines take it at the same time.
        let mut file = BufReader::with_capacity(CHUNK_LIMIT_BYTES, file.take(*bytes));
        let sent = tokio::io::copy_buf(&mut file, stdin).await?;
        stdin.flush().await?;
        Ok::<_, std::io::Error>(sent)
    };
    // If the other side has ended, what it said is the better message.
    match tokio::time::timeout(within, sending).await {
        Ok(Ok(sent)) if sent < *bytes => Err(Fault::new(
            "agent-missing",
            format!("the agent {} was replaced while it was sent to {host}", config.agent.display()),
        )
        .help("run it again")),
        Ok(_) => Ok(()),
        Err(_) => {
            Err(Fault::new("ssh-unreachable", format!("the agent could not be sent to {host} in time"))
                .transient())
        }
    }
}

/// What its place on a machine is named by.
///
/// # Errors
/// `agent-missing` if it can't be read.
pub(crate) async fn identity(config: &SshConfig) -> Result<&str, Fault> {
    let (_, sum) = summed(config).await?;
    Ok(sum.get(..IDENTITY_DIGITS).unwrap_or(sum))
}

/// Its length and sum, which is checked when it is uploaded, too. The same binary is the same agent, whenever and by whom it was
/// downloaded.
async fn summed(config: &SshConfig) -> Result<&(u64, String), Fault> {
    let path = config.agent.clone();
    let sum = async || match tokio::task::spawn_blocking(move || sum_of(&path)).await {
        Ok(summed) => summed.map_err(|error| unreadable(&config.agent, &error)),
        Err(error) => Err(Fault::new("internal", format!("reading the agent ended early: {error}"))),
    };
    config.sum.get_or_try_init(sum).await
}

/// The length and the sum of a file, which may be larger than what should be held in memory.
fn sum_of(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = std::fs::File::open(path)?;
    let mut sum = Sha256::new();
    let (mut bytes, mut buffer) = (0, vec![0; CHUNK_LIMIT_BYTES]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => {
                sum.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
    Ok((bytes, crate::protocol::to_hex(&sum.finalize())))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new("agent-missing", format!("the agent {} can't be read: {error}", path.display()))
        .help("correct `agent` of the target")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_binary_is_the_same_agent_whenever_it_was_downloaded() {
        let folder = tempfile::tempdir().unwrap();
        let mut sums = Vec::new();
        for (name, bytes) in [("first", "one"), ("again", "one"), ("other", "two")] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let day = Duration::from_secs(86_400 * (1 + sums.len() as u64));
            std::fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(std::time::UNIX_EPOCH + day)
                .unwrap();
            sums.push(
                summed(&SshConfig { agent: path, ..crate::ssh::tests::config() }).await.unwrap().clone(),
            );
        }
        assert_eq!(sums[0], sums[1]);
        assert_ne!(sums[0], sums[2]);
        assert_eq!(sums[0].0, 3);
    }
}
