//! `delete`: destroys a volume.

use super::Context;
use crate::{
    args::{Dry, timeout},
    client::Client,
    confirm::confirm,
    stop::Done,
};
use clap::Args;
use img_storage_daemon::frontend::http::wire;
use img_storage_model::Selector;
use std::time::Duration;

/// Destroys an unmapped volume; asks first
#[derive(Debug, Args)]
pub struct Delete {
    /// NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "VOLUME")]
    volume: Selector,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Give up waiting after this long; what was begun goes on (exit code 4)
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    #[command(flatten)]
    dry: Dry,
}

impl Delete {
    pub async fn run(self, mut context: Context) -> Done {
        let volume = context.client.volume(&self.volume).await?;
        let name = volume.full_name();
        let mut order = wire::Plain {
            id: Some(Client::id()),
            timeout: self.timeout.map(|t| t.as_secs()),
            dry_run: true,
            expect: Some(volume.id),
        };
        if self.dry.dry_run {
            let outcome = context.client.order(&volume, "delete", &order).await?;
            return context.would(&outcome);
        }
        confirm(&format!("{name} ({}, {}) will be destroyed with all its contents.", volume.size, volume.phase), self.yes)?;
        order.dry_run = false;
        let outcome = context.client.order(&volume, "delete", &order).await?;
        context.volume(outcome.volume.as_ref(), &format!("{name} is deleted"))
    }
}
