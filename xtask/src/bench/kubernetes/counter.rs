//! Counts what a client asks of the API server and reads from it: plain HTTP/1.1 through a relay, `kubectl proxy`, and then the API server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a head of a request ends its first line.
const MARK: &[u8] = b" HTTP/1.1\r\n";

/// So many requests, so many bytes of answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sum {
    pub(super) calls: u64,
    pub(super) bytes: u64,
}

impl Sum {
    pub(super) fn less(self, other: &Self) -> Self {
        Self { calls: self.calls.saturating_sub(other.calls), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

pub(super) struct Counter {
    proxy: Child,
    port: u16,
    calls: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl Counter {
    /// Stands before the API server of a kubeconfig.
    ///
    /// # Errors
    /// `kubectl proxy` does not serve.
    pub(super) fn before(kubectl: &str, kubeconfig: &str) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("kubectl proxy: {error}");
        let mut command = Command::new(kubectl);
        command.args(["proxy", "--port=0"]).env("KUBECONFIG", kubeconfig);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut proxy = command.spawn().map_err(failed)?;
        let mut line = String::new();
        if let Some(stdout) = proxy.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        let (calls, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut counter = Self { proxy, port: 0, calls: Arc::clone(&calls), bytes: Arc::clone(&bytes) };
        let upstream: u16 = line
            .trim()
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .ok_or_else(|| format!("kubectl proxy does not serve: {line:?}"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        counter.port = listener.local_addr().map_err(failed)?.port();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)) else { continue };
                let (calls, bytes) = (Arc::clone(&calls), Arc::clone(&bytes));
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
                std::thread::spawn(move || {
                    copy(from, to, |some, last| {
                        // A mark may be cut in two.
                        let whole = [last, some].concat();
                        let found = whole.windows(MARK.len()).filter(|window| *window == MARK).count();
                        calls.fetch_add(found as u64, Ordering::Relaxed);
                    })
                });
                std::thread::spawn(move || {
                    copy(server, client, |some, _| {
                        bytes.fetch_add(some.len() as u64, Ordering::Relaxed);
                    })
                });
            }
        });
        Ok(counter)
    }

    pub(super) fn sum(&self) -> Sum {
        Sum { calls: self.calls.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// A kubeconfig that leads here.
    pub(super) fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- {{name: lab, cluster: {{server: \"http://127.0.0.1:{}\"}}}}\n\
             users:\n- {{name: lab, user: {{}}}}\ncontexts:\n- {{name: lab, context: {{cluster: lab, user: lab, namespace: default}}}}\n",
            self.port
        )
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// Passes on until one side ends; `seen` gets each piece, and the end of what was before it that is shorter than a mark.
fn copy(mut from: TcpStream, mut to: TcpStream, seen: impl Fn(&[u8], &[u8])) {
    let (mut bytes, mut last) = ([0; 64 * 1024], Vec::new());
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 || to.write_all(&bytes[..count]).is_err() {
            break;
        }
        seen(&bytes[..count], &last);
        last.extend_from_slice(&bytes[..count]);
        let keep = last.len().saturating_sub(MARK.len() - 1);
        last.drain(..keep);
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
