//! How a command ends that does not end well: exit codes, and what stands on stderr.

use img_storage_model::{Fault, FaultKind};
use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

/// Why a command stops.
#[derive(Debug)]
pub enum Stop {
    /// Something a person should read.
    Fault(Fault),
    /// Nobody reads our output any more (`| head`).
    Quiet,
    /// `doctor` found something, and has shown it.
    Found,
}

/// What a verb returns.
pub type Done = Result<(), Stop>;

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Stop::Quiet
        } else {
            Stop::Fault(Fault::failed(format!("cannot write the output: {error}")))
        }
    }
}

/// The exit code of a kind of fault.
pub fn code(kind: FaultKind) -> u8 {
    match kind {
        FaultKind::NotFound | FaultKind::Failed => 1,
        FaultKind::Invalid => 2,
        FaultKind::Refused => 3,
        FaultKind::Unfinished => 4,
        FaultKind::Unreachable => 5,
    }
}

/// The exit code of a `doctor` that found something.
const FOUND: u8 = 6;

/// Says why on stderr.
pub fn report(stop: Stop) -> ExitCode {
    let fault = match stop {
        Stop::Fault(fault) => fault,
        Stop::Quiet => return ExitCode::SUCCESS,
        Stop::Found => return ExitCode::from(FOUND),
    };
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(text(&fault, std::io::stderr().is_terminal() && coloured()).as_bytes());
    ExitCode::from(code(fault.kind))
}

/// Whether colours are wanted at all.
pub fn coloured() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// The lines that say what is wrong and what to do next.
pub fn text(fault: &Fault, colour: bool) -> String {
    let error = if colour { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
    let mut text = format!("{error} {}\n", clean(&fault.message));
    if !fault.next.is_empty() {
        text.push_str(&format!(" next: {}\n", clean(&fault.next)));
    }
    text
}

/// Text that others wrote, without what would move the cursor or break the line.
pub fn clean(text: &str) -> std::borrow::Cow<'_, str> {
    // Bytes decide for ASCII; the controls beyond it begin with 0xC2.
    if text.bytes().any(|b| b < 0x20 || b == 0x7f || b == 0xc2) && text.chars().any(char::is_control) {
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().into()
    } else {
        text.into()
    }
}

/// A remark that is no error and no result: stderr.
pub fn remark(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", clean(text));
}
