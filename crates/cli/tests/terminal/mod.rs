//! A command at a terminal: a real pseudo-terminal is its input and both its outputs, so it asks as it asks a person.
//!
//! What is typed is there before the command reads it, and is not echoed: what is seen does not depend on who was faster.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, OutputModes, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// How long a command may take; it has all that it waits for.
const WITHIN: Duration = Duration::from_secs(60);

/// Runs a command at a terminal at which these lines are typed, and answers all that is seen there.
pub(crate) fn run(command: &mut Command, typed: &[String]) -> (String, ExitStatus) {
    let mut person = File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let name = ptsname(&person, Vec::new()).unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut modes = tcgetattr(&terminal).unwrap();
    modes.local_modes -= LocalModes::ECHO;
    modes.output_modes -= OutputModes::OPOST;
    tcsetattr(&terminal, OptionalActions::Now, &modes).unwrap();
    for line in typed {
        let keys = if line == "^D" { "\u{4}".to_owned() } else { format!("{line}\n") };
        person.write_all(keys.as_bytes()).unwrap();
    }
    let stream = || terminal.try_clone().unwrap();
    let mut child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
    // The command holds the terminal alone from here, its reader comes to an end with it.
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null());
    drop(terminal);
    let reader = std::thread::spawn(move || {
        let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
        // At the end of a terminal stands an error.
        while let Ok(count @ 1..) = person.read(&mut chunk) {
            seen.extend_from_slice(&chunk[..count]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    });
    let until = Instant::now() + WITHIN;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            None => {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
        }
    };
    (reader.join().unwrap(), status)
}
