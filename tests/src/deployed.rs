//! The shop as a test deploys it: a pipeline with quick steps, behind the built-in proxy on a port of its own.

use crate::place::{Place, PlaceError, binary};
use crate::processes::{Ended, RunError};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The pipeline's file in the working folder.
pub const FILE: &str = "shop.cd";

/// The shop's pipeline in a place of its own.
#[derive(Debug)]
pub struct Deployed {
    /// Where it runs.
    pub place: Place,
    /// Where users reach it.
    pub address: SocketAddr,
}

/// What users are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// The version that answered; empty where the answer names none.
    pub version: String,
    /// The release that answered; empty where the answer names none.
    pub release: String,
}

impl Deployed {
    /// Writes the pipeline: `pipeline` with `@LISTEN@` and `@SHOP@` replaced by a free address and the shop's binary.
    ///
    /// # Errors
    /// When the binaries are not there or the place can't be made.
    pub fn with(pipeline: &str) -> Result<Self, PlaceError> {
        let (place, shop) = (Place::new()?, binary("shop")?);
        let address = SocketAddr::from(([127, 0, 0, 1], crate::ports::free()?));
        let text =
            pipeline.replace("@LISTEN@", &address.to_string()).replace("@SHOP@", &shop.to_string_lossy());
        place.write(FILE, text)?;
        Ok(Self { place, address })
    }

    /// Deploys a version with a fault (none if empty).
    ///
    /// # Errors
    /// When the command can't be run; how it ended is the answer.
    pub fn deploy(&self, version: &str, fault: &str) -> Result<Ended, RunError> {
        self.deploy_with(version, fault, &[])
    }

    /// The same with more arguments, such as `--json`.
    ///
    /// # Errors
    /// When the command can't be run; how it ended is the answer.
    pub fn deploy_with(&self, version: &str, fault: &str, more: &[&str]) -> Result<Ended, RunError> {
        let (version, fault) = (format!("version={version}"), format!("fault={fault}"));
        let arguments = ["run", FILE, "--set", &version, "--set", &fault];
        self.place.run(arguments.iter().chain(more))
    }

    /// Asks once, as a user.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn ask(&self) -> std::io::Result<Answer> {
        ask(self.address, "")
    }
}

/// Asks once, at an address, with more header lines, each with its line end (`x-a: b\r\n`).
///
/// # Errors
/// When nobody answers.
pub fn ask(address: SocketAddr, headers: &str) -> std::io::Result<Answer> {
    ask_host(address, "shop", headers)
}

/// The same of another host than `shop`.
///
/// # Errors
/// When nobody answers.
pub fn ask_host(address: SocketAddr, host: &str, headers: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let header = |name: &str| {
        let line = answer.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        });
        line.unwrap_or_default()
    };
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Answer {
        status,
        version: header(cdpipe_demo::VERSION_HEADER),
        release: header(cdpipe_demo::RELEASE_HEADER),
    })
}

/// Waits until something holds, looking every 10 ms; says whether it came to hold in time.
pub fn comes_true(within: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
