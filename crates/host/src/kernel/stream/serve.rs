//! The node's end of a stream: what sshd starts for the NAS's key, whatever that asked for.

use super::local::Side;
use crate::{HostError, exec::Program};
use img_storage_model::stream::{Ask, Command, Holdings, Source};
use std::{os::unix::process::CommandExt as _, process::Stdio};

/// What became of a request that was not a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served(
    /// What to print for the NAS.
    pub String,
);

/// Carries out one request. What is sent is the end of this process: it becomes `zfs send`. What is received has `zfs receive` on this
/// process's own standard input. So nothing is between ssh and ZFS. Where this process is killed, what is on its way into `zfs receive` may
/// still arrive.
///
/// # Errors
/// When the line is no request, or may not be carried out here, or a program cannot be started.
pub async fn serve(side: &Side, line: &str) -> Result<Served, HostError> {
    let Command { volume, ask } = line.parse().map_err(|fault: img_storage_model::Fault| HostError(fault.to_string()))?;
    match ask {
        Ask::State(of) => {
            let found = if side.check(volume, &of).await? { side.holdings(&of).await? } else { Default::default() };
            told(&found)
        }
        Ask::Discard(of) => {
            if side.check(volume, &of).await? {
                side.zfs().discard_partial(&of).await?;
            }
            Ok(Served(String::new()))
        }
        Ask::Estimate(source) => {
            check_source(side, volume, &source).await?;
            Ok(Served(side.estimate(&source).await?.to_string()))
        }
        Ask::Send(source) => {
            check_source(side, volume, &source).await?;
            Err(become_program(&side.send(&source)))
        }
        Ask::Receive { into, epoch } => {
            let Program { path, args } = side.receive(volume, &into, Some(epoch)).await?;
            // What it says of a failure goes where this process's words go. It ends with its input, however long that takes.
            let mut receive = tokio::process::Command::new(&path);
            let ended = receive.args(&args).env("LC_ALL", "C").stdout(Stdio::null()).status().await;
            let ended = ended.map_err(|why| HostError(format!("cannot start {}: {why}", path.display())))?;
            if !ended.success() {
                return Err(HostError(format!("`zfs receive` into {into} failed with {ended}")));
            }
            told(&side.holdings(&into).await?)
        }
    }
}

fn told(found: &Holdings) -> Result<Served, HostError> {
    serde_json::to_string(found).map(Served).map_err(|why| HostError(why.to_string()))
}

/// A token says by itself what is sent, so it is looked into.
async fn check_source(side: &Side, volume: img_storage_model::VolumeId, source: &Source) -> Result<(), HostError> {
    let of = source.dataset();
    if !side.check(volume, of).await? {
        return Err(HostError(format!("there is no zvol {of} on this host")));
    }
    if let Source::Rest { token, .. } = source {
        let facts = side.token(token).await?;
        if facts.to_name.split('@').next() != Some(of.as_str()) {
            return Err(HostError(format!("that token is of {}, not of {of}", facts.to_name)));
        }
    }
    Ok(())
}

/// Returns only when it cannot be done.
fn become_program(program: &Program) -> HostError {
    let why = std::process::Command::new(&program.path).args(&program.args).env("LC_ALL", "C").exec();
    HostError(format!("cannot start {}: {why}", program.path.display()))
}
