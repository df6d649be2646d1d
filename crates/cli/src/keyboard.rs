//! Keys of the person at the terminal while a run goes on: they are read one by one and not echoed, so that the drawing stays whole.

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use std::io::IsTerminal;

/// Takes the keyboard until it is dropped. Ctrl-C still interrupts.
pub(crate) struct Keyboard {
    before: Termios,
}

impl Keyboard {
    /// Takes it, if there is one and this process is in the foreground of it.
    pub(crate) fn take() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        // A background job that touched the terminal would be stopped.
        let foreground = rustix::termios::tcgetpgrp(&stdin).ok()?;
        if foreground != rustix::process::getpgrp() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut modes = before.clone();
        modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        // A read answers after a tenth of a second without a key, so that the reader can end.
        modes.special_codes[SpecialCodeIndex::VMIN] = 0;
        modes.special_codes[SpecialCodeIndex::VTIME] = 1;
        tcsetattr(&stdin, OptionalActions::Now, &modes).ok()?;
        Some(Self { before })
    }

    /// The next key, if one comes within a tenth of a second.
    pub(crate) fn key(&self) -> Option<char> {
        let mut byte = [0u8; 1];
        let count = rustix::io::read(std::io::stdin(), &mut byte).ok()?;
        (count == 1).then(|| char::from(byte[0]))
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}
