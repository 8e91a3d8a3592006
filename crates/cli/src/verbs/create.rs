//! `create`: a new volume, empty or from an image.

use super::Context;
use crate::{
    args::{Dry, Ending},
    client::Client,
    follow::{self, Goal},
    stop::{Done, remark},
};
use clap::Args;
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{Fault, Selector, Size, api::Phase};
use std::path::{Path, PathBuf};
use tokio::time::Instant;

/// Creates a volume, empty or filled from an image, and waits until it can be used
#[derive(Debug, Args)]
pub struct Create {
    /// NAS:POOL/NAME; NAS and pool may be left out where there is just one
    #[arg(value_name = "VOLUME")]
    volume: Selector,
    /// Its size, such as 512M, 35G or 2T (powers of 1024); of a volume from an image at least the image's
    #[arg(long, value_name = "SIZE", required_unless_present = "from")]
    size: Option<Size>,
    /// Fill it from this image: raw, qcow2, vmdk or vhdx
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    #[command(flatten)]
    ending: Ending,
    #[command(flatten)]
    dry: Dry,
}

impl Create {
    pub async fn run(self, mut context: Context) -> Done {
        let begun = Instant::now();
        let goal = self.ending.waiting.wait.flatten().unwrap_or(Phase::Unmapped);
        if !matches!(goal, Phase::Unmapped | Phase::Importing) {
            return Err(Fault::invalid(format!("creating a volume does not make it {goal}"))
                .next("to use it: img-storage map")
                .into());
        }
        let from = self.from.as_deref().map(image).transpose()?;
        let import = from.is_some();
        let order = wire::Create {
            id: Some(Client::id()),
            timeout: self.ending.waiting.timeout.map(|t| t.as_secs()),
            dry_run: self.dry.dry_run,
            expect: None,
            name: self.volume,
            size: self.size,
            from,
        };
        let outcome = context.client.post("/api/volumes", &order).await?;
        if outcome.dry_run {
            return context.would(&outcome);
        }
        let mut volume = outcome.volume.ok_or_else(|| Fault::failed("the front end did not say which volume it created"))?;
        let name = volume.full_name();
        if self.ending.no_wait {
            if import {
                remark(&format!("{name} is being filled; img-storage show {name} tells how far it is"));
            }
        } else if goal == Phase::Unmapped {
            let deadline = begun + self.ending.waiting.timeout.unwrap_or(follow::DAY);
            volume = follow::volume(&context.client, volume, Goal::Phase(goal), deadline).await?;
        }
        context.volume(Some(&volume), &format!("{name} is created, {}", volume.size))
    }
}

/// The image's absolute path; whether it is there is told at once.
fn image(path: &Path) -> Result<PathBuf, Fault> {
    let shown = path.display();
    let file = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Fault::not_found(format!("there is no image {shown}")).next("--from takes the path of a file")
        }
        _ => Fault::failed(format!("cannot read the image {shown}: {error}")).next("--from takes the path of a file"),
    })?;
    if file.is_dir() {
        return Err(Fault::refused(format!("{shown} is a directory, not an image")).next("name the image file in it"));
    }
    super::absolute(path)
}
