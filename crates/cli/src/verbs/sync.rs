//! `sync`: brings the NAS up to date now.

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

/// Brings the NAS's copy of a volume up to date now, and waits until it is (5m by default)
#[derive(Debug, Args)]
pub struct Sync {
    /// NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "VOLUME")]
    volume: Selector,
    #[command(flatten)]
    ending: Ending,
    #[command(flatten)]
    dry: Dry,
}

impl Sync {
    pub async fn run(self, mut context: Context) -> Done {
        let volume = context.client.volume(&self.volume).await?;
        let name = volume.full_name();
        let begun = Instant::now();
        let order = wire::Plain {
            id: Some(Client::id()),
            timeout: Some(super::timeout(&self.ending, Duration::from_secs(300))),
            dry_run: self.dry.dry_run,
            expect: Some(volume.id),
        };
        let answer = follow::order(&context.client, &volume, "sync", &order).await;
        let Some(outcome) = super::under_way(answer, &self.ending, &volume, "the write-back")? else { return Ok(()) };
        if outcome.dry_run {
            return context.would(&outcome);
        }
        let now = context.wait(outcome.volume.unwrap_or(volume), &self.ending.waiting, begun).await?;
        context.volume(Some(&now), &format!("{name} is up to date on {}", now.nas))
    }
}
