//! `bring-back`: from local back to remote.

use super::Context;
use crate::{
    args::{Dry, Ending},
    client::Client,
    follow,
    stop::Done,
};
use clap::Args;
use img_storage_daemon::frontend::http::wire;
use img_storage_model::Selector;
use std::time::Duration;
use tokio::time::Instant;

/// Moves a volume from its node back to the NAS while the guest runs, and waits until it is there (1h by default)
#[derive(Debug, Args)]
pub struct BringBack {
    /// NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "VOLUME")]
    volume: Selector,
    #[command(flatten)]
    ending: Ending,
    #[command(flatten)]
    dry: Dry,
}

impl BringBack {
    pub async fn run(self, mut context: Context) -> Done {
        let volume = context.client.volume(&self.volume).await?;
        let name = volume.full_name();
        let begun = Instant::now();
        let order = wire::Plain {
            id: Some(Client::id()),
            timeout: Some(super::timeout(&self.ending, Duration::from_secs(3600))),
            dry_run: self.dry.dry_run,
            expect: Some(volume.id),
        };
        let answer = follow::order(&context.client, &volume, "bring-back", &order).await;
        let Some(outcome) = super::under_way(answer, &self.ending, &volume, "the way back")? else { return Ok(()) };
        if outcome.dry_run {
            return context.would(&outcome);
        }
        let now = context.wait(outcome.volume.unwrap_or(volume), &self.ending.waiting, begun).await?;
        context.volume(Some(&now), &format!("{name} is on {} again", now.nas))
    }
}
