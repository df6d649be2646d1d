//! A way to the lab's real API server on which a test decides what becomes of single requests: a refusal, silence, an answer that is cut.
//!
//! `kubectl proxy` stands before the API server, speaks plain HTTP and brings the credentials; the relay stands before that. Each
//! connection carries one request, so that cutting one cuts nothing else.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a request that gets no answer is kept waiting: longer than anybody waits for one.
const SILENCE: Duration = Duration::from_secs(120);
/// How long `kubectl proxy` may take until it serves.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// A head of a request that is longer is nobody's.
const LONGEST_HEAD: usize = 64 * 1024;

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The API server answers it.
    Pass,
    /// This status, as the API server says it, with `Retry-After` in seconds where it is not 0. It never gets the request.
    Refuse(u16, u32),
    /// As its own overload guard says it: 429, plain text, `Retry-After` in seconds only in the header.
    Overload(u32),
    /// A watch whose first word is that its version is too old.
    Expire,
    /// Nobody answers.
    Hang,
    /// The API server answers it, and the connection is cut in the middle of the answer.
    Cut,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET`
    pub method: String,
    /// Path and query.
    pub target: String,
    /// When it came.
    pub at: Instant,
    /// What became of it.
    pub fate: Fate,
}

impl Asked {
    /// Whether it asks for a watch.
    pub fn is_watch(&self) -> bool {
        self.target.contains("watch=true") || self.target.contains("watch=1")
    }
}

type Decide = Box<dyn FnMut(&Asked) -> Fate + Send>;

/// The relay.
pub struct Relay {
    port: u16,
    proxy: Child,
    decide: Arc<Mutex<Decide>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a relay at {}", self.port)
    }
}

impl Relay {
    /// Before the API server of a kubeconfig; everything passes.
    ///
    /// # Errors
    /// When `kubectl proxy` does not serve.
    pub fn before(kubectl: &str, kubeconfig: &str) -> Result<Self> {
        let (proxy, upstream) = serve(kubectl, kubeconfig)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let decide: Arc<Mutex<Decide>> = Arc::new(Mutex::new(Box::new(|_| Fate::Pass)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let relay = Self { port, proxy, decide: Arc::clone(&decide), asked: Arc::clone(&asked) };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (decide, asked) = (Arc::clone(&decide), Arc::clone(&asked));
                // Who goes away in the middle is told nothing more.
                std::thread::spawn(move || drop(answer(client, upstream, &decide, &asked)));
            }
        });
        Ok(relay)
    }

    /// Decides from now on; what was asked before is forgotten.
    pub fn decide(&self, decide: impl FnMut(&Asked) -> Fate + Send + 'static) {
        if let (Ok(mut now), Ok(mut asked)) = (self.decide.lock(), self.asked.lock()) {
            *now = Box::new(decide);
            asked.clear();
        }
    }

    /// What was asked since, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().map(|asked| asked.clone()).unwrap_or_default()
    }

    /// How often a request met this fate.
    pub fn met(&self, fate: &Fate) -> usize {
        self.asked().iter().filter(|asked| asked.fate == *fate).count()
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- {{name: lab, cluster: {{server: \"http://127.0.0.1:{}\"}}}}\n\
             users:\n- {{name: lab, user: {{}}}}\ncontexts:\n- {{name: lab, context: {{cluster: lab, user: lab, namespace: default}}}}\n",
            self.port
        )
    }

    /// Merges a patch into an object by one request, as any other client does; the status.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn patch(&self, path: &str, patch: &str) -> Result<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "PATCH {path}?fieldManager=somebody HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/merge-patch+json\r\ncontent-length: \
             {}\r\nconnection: close\r\n\r\n{patch}",
            patch.len()
        )?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// `kubectl proxy` on a port that it chooses.
fn serve(kubectl: &str, kubeconfig: &str) -> Result<(Child, u16)> {
    let mut command = Command::new(kubectl);
    command.args(["proxy", "--port=0"]).env("KUBECONFIG", kubeconfig);
    let mut proxy = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (says, hears) = std::sync::mpsc::channel();
    if let Some(stdout) = proxy.stdout.take() {
        std::thread::spawn(move || {
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout)).map_while(Result::ok);
            let _ = says.send(lines.next());
            lines.for_each(drop);
        });
    }
    let line = hears.recv_timeout(READY_WITHIN).ok().flatten().unwrap_or_default();
    match line.trim().rsplit(':').next().and_then(|port| port.parse().ok()) {
        Some(port) => Ok((proxy, port)),
        None => {
            let _ = (proxy.kill(), proxy.wait());
            Err(std::io::Error::other(format!("kubectl proxy does not serve: {line:?}")))
        }
    }
}

fn answer(
    mut client: TcpStream,
    upstream: u16,
    decide: &Mutex<Decide>,
    log: &Mutex<Vec<Asked>>,
) -> Result<()> {
    let (head, mut rest) = head_of(&mut client)?;
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut asked =
        Asked { method: method.into(), target: target.into(), at: Instant::now(), fate: Fate::Pass };
    if let Ok(mut decide) = decide.lock() {
        asked.fate = decide(&asked);
    }
    let fate = asked.fate.clone();
    if let Ok(mut log) = log.lock() {
        log.push(asked);
    }
    // The whole request, so that an answer is not taken for one to half of it.
    let length = field(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let missing: usize = usize::saturating_sub(length, rest.len());
    let mut more = vec![0; missing];
    client.read_exact(&mut more)?;
    rest.extend(more);
    match fate {
        Fate::Refuse(code, after) => {
            let details = if after > 0 {
                format!(",\"details\":{{\"retryAfterSeconds\":{after}}}")
            } else {
                String::new()
            };
            let body = format!(
                "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\"message\":\"refused by a \
                 test\",\"reason\":\"Test\",\"code\":{code}{details}}}"
            );
            say(&mut client, code, "application/json", after, &body)
        }
        Fate::Overload(after) => {
            say(&mut client, 429, "text/plain", after, "Too many requests, please try again later.\n")
        }
        Fate::Expire => {
            let body = "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
                        \"message\":\"too old resource version: 1 (2)\",\"reason\":\"Expired\",\"code\":410}}\n";
            say(&mut client, 200, "application/json", 0, body)
        }
        Fate::Hang => {
            client.set_read_timeout(Some(SILENCE))?;
            // Until who asked has had enough.
            client.read(&mut [0; 1]).map(drop)
        }
        Fate::Pass | Fate::Cut => pass(client, upstream, &head, &rest, fate == Fate::Cut),
    }
}

fn say(client: &mut TcpStream, code: u16, kind: &str, after: u32, body: &str) -> Result<()> {
    let after = if after > 0 { format!("retry-after: {after}\r\n") } else { String::new() };
    let length = body.len();
    write!(
        client,
        "HTTP/1.1 {code} Test\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{after}connection: close\r\n\r\n{body}"
    )
}

fn pass(mut client: TcpStream, upstream: u16, head: &str, rest: &[u8], cut: bool) -> Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    // It says so to the client itself then.
    let kept = head.split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let head = kept.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\r\n");
    write!(server, "{head}\r\nconnection: close\r\n\r\n")?;
    server.write_all(rest)?;
    if cut {
        let mut whole = Vec::new();
        server.read_to_end(&mut whole)?;
        let body = whole.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(0) + 4;
        client.write_all(&whole[..body + whole.len().saturating_sub(body) / 2])?;
        return client.shutdown(Shutdown::Both);
    }
    let (mut from, to) = (client.try_clone()?, server.try_clone()?);
    // A client that has left a watch is not to be told of it any longer.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut std::io::sink());
        let _ = to.shutdown(Shutdown::Both);
    });
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)
}

/// The head with its empty line, and what came of the body with it.
fn head_of(client: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut some = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        match client.read(&mut some)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            _ if bytes.len() > LONGEST_HEAD => return Err(ErrorKind::InvalidData.into()),
            count => bytes.extend_from_slice(&some[..count]),
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(found, value)| found.eq_ignore_ascii_case(name).then(|| value.trim()))
}
