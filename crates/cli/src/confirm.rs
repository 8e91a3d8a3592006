//! Asks before something is destroyed.

use img_storage_model::Fault;
use std::io::{IsTerminal, Write};

/// Goes on when the operator says so; without a terminal only `--yes` says so.
pub fn confirm(question: &str, yes: bool) -> Result<(), Fault> {
    if yes {
        return Ok(());
    }
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Fault::invalid(format!("{question} There is no terminal to ask on")).next("give --yes if you mean it"));
    }
    let failed = |error: std::io::Error| Fault::failed(format!("cannot ask on the terminal: {error}"));
    let mut err = std::io::stderr().lock();
    write!(err, "{question} [y/N] ").and_then(|()| err.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(failed)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Fault::failed("nothing was done: the answer was not yes")),
    }
}
