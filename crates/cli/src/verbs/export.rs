//! `export`: writes a volume into a file.

use super::Context;
use crate::{
    args::{Dry, Ending},
    client::Client,
    follow,
    stop::{Done, remark},
};
use clap::{Args, ValueEnum};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{Fault, Selector};
use std::path::{Path, PathBuf};
use tokio::time::Instant;

/// Writes an unmapped volume into a new file, and waits until it is complete
#[derive(Debug, Args)]
pub struct Export {
    /// NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "VOLUME")]
    volume: Selector,
    /// The file; it must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Its format [default: by the file's name, else raw]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    #[command(flatten)]
    ending: Ending,
    #[command(flatten)]
    dry: Dry,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
    Vmdk,
    Vhdx,
}

impl Format {
    fn by_name(file: &Path) -> Self {
        let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
        <Self as ValueEnum>::from_str(extension, true).unwrap_or(Format::Raw)
    }
}

impl Export {
    pub async fn run(self, mut context: Context) -> Done {
        if self.ending.waiting.wait.flatten().is_some() {
            return Err(Fault::invalid("an export has no phases to wait for").next("give --wait without one").into());
        }
        let begun = Instant::now();
        let volume = context.client.volume(&self.volume).await?;
        let name = volume.full_name();
        let file = super::absolute(&self.file)?;
        let format = match self.format.unwrap_or_else(|| Format::by_name(&file)) {
            Format::Raw => wire::Format::Raw,
            Format::Qcow2 => wire::Format::Qcow2,
            Format::Vmdk => wire::Format::Vmdk,
            Format::Vhdx => wire::Format::Vhdx,
        };
        let order = wire::Export {
            id: Some(Client::id()),
            timeout: self.ending.waiting.timeout.map(|t| t.as_secs()),
            dry_run: self.dry.dry_run,
            expect: Some(volume.id),
            file,
            format,
        };
        let outcome = context.client.order(&volume, "export", &order).await?;
        if outcome.dry_run {
            return context.would(&outcome);
        }
        let transfer = outcome.transfer.ok_or_else(|| Fault::failed("the front end did not say which transfer it began"))?;
        if self.ending.no_wait {
            remark(&format!("the export of {name} is under way"));
        } else {
            let deadline = begun + self.ending.waiting.timeout.unwrap_or(follow::DAY);
            follow::transfer(&context.client, transfer, &name, deadline).await?;
        }
        if context.out.format.for_people() {
            if self.ending.no_wait {
                return Ok(());
            }
            return context.out.line(&format!("{name} is in {}, {}", self.file.display(), format.name()));
        }
        context.out.value(&outcome, None)
    }
}
