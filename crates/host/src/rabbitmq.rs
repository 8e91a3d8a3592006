//! The broker's own commands, for setting it up.

use crate::{HostError, exec};
use std::time::Duration;

/// A command waits for the broker's node, which may be slow to answer.
const WITHIN: Duration = Duration::from_secs(120);

/// Runs `rabbitmqctl` or `rabbitmq-plugins`; gives what it printed.
///
/// # Errors
/// What it said.
pub async fn run(program: &str, args: &[String]) -> Result<String, HostError> {
    let output = exec::run(program, args, WITHIN).await.map_err(|error| HostError(error.to_string()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
