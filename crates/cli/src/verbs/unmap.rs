//! `unmap`: ends a mapping.

use super::Context;
use crate::{
    args::{Dry, Ending},
    client::Client,
    confirm::confirm,
    follow,
    stop::Done,
};
use clap::Args;
use img_storage_daemon::frontend::http::wire;
use img_storage_model::Selector;
use std::time::Duration;
use tokio::time::Instant;

/// Ends a volume's mapping, and waits until everything is home (5m by default)
#[derive(Debug, Args)]
pub struct Unmap {
    /// NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "VOLUME")]
    volume: Selector,
    /// Cut off whoever uses the device; asks first
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    ending: Ending,
    #[command(flatten)]
    dry: Dry,
}

impl Unmap {
    pub async fn run(self, mut context: Context) -> Done {
        let volume = context.client.volume(&self.volume).await?;
        let name = volume.full_name();
        if self.force && !self.dry.dry_run {
            let node = volume.node.as_ref().map_or_else(|| "its node".to_owned(), ToString::to_string);
            confirm(&format!("Whoever uses {name} on {node} will be cut off and lose what is not flushed."), self.yes)?;
        }
        let begun = Instant::now();
        let order = wire::Unmap {
            id: Some(Client::id()),
            timeout: Some(super::timeout(&self.ending, Duration::from_secs(300))),
            dry_run: self.dry.dry_run,
            expect: Some(volume.id),
            force: self.force,
        };
        let answer = follow::order(&context.client, &volume, "unmap", &order).await;
        let Some(outcome) = super::under_way(answer, &self.ending, &volume, "the way home")? else { return Ok(()) };
        if outcome.dry_run {
            return context.would(&outcome);
        }
        let now = context.wait(outcome.volume.unwrap_or(volume), &self.ending.waiting, begun).await?;
        context.volume(Some(&now), &format!("{name} is unmapped"))
    }
}
