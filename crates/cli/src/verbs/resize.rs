//! `resize`: a longer volume.

use super::Context;
use crate::{
    args::{Dry, timeout},
    client::Client,
    stop::Done,
};
use clap::Args;
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{Selector, Size};
use std::time::Duration;

/// Makes an unmapped volume longer
#[derive(Debug, Args)]
pub struct Resize {
    /// NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "VOLUME")]
    volume: Selector,
    /// Its new size, such as 512M, 35G or 2T (powers of 1024)
    #[arg(value_name = "SIZE")]
    size: Size,
    /// Give up waiting after this long; what was begun goes on (exit code 4)
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    #[command(flatten)]
    dry: Dry,
}

impl Resize {
    pub async fn run(self, mut context: Context) -> Done {
        let volume = context.client.volume(&self.volume).await?;
        let order = wire::Resize {
            id: Some(Client::id()),
            timeout: self.timeout.map(|t| t.as_secs()),
            dry_run: self.dry.dry_run,
            expect: Some(volume.id),
            size: self.size,
        };
        let outcome = context.client.order(&volume, "resize", &order).await?;
        if outcome.dry_run {
            return context.would(&outcome);
        }
        context.volume(outcome.volume.as_ref(), &format!("{} is {} now", volume.full_name(), self.size))
    }
}
