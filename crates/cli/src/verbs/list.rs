//! `list`: the volumes.

use super::Context;
use crate::{args::Watch, output::Output, rows, stop::Done};
use clap::Args;
use img_storage_daemon::frontend::http::wire::Volumes;
use img_storage_model::{HostName, Selector, api::Phase};
use jiff::Timestamp;

/// Lists volumes
#[derive(Debug, Args)]
pub struct List {
    /// Only those of this name: NAS:POOL/NAME or any shorter part of it
    #[arg(value_name = "VOLUME")]
    volume: Option<Selector>,
    /// Only those of this NAS
    #[arg(long, value_name = "HOST")]
    nas: Option<HostName>,
    /// Only those mapped to this node
    #[arg(long, value_name = "HOST")]
    node: Option<HostName>,
    /// Only those in this phase
    #[arg(long, value_name = "PHASE")]
    phase: Option<Phase>,
    #[command(flatten)]
    watch: Watch,
}

impl List {
    pub async fn run(self, mut context: Context) -> Done {
        super::again(&mut context, &self.watch, async |context| {
            let mut volumes = context.client.volumes(self.volume.as_ref()).await?;
            volumes.retain(|v| {
                self.nas.as_ref().is_none_or(|nas| v.nas == *nas)
                    && self.node.as_ref().is_none_or(|node| v.node.as_ref() == Some(node))
                    && self.phase.is_none_or(|phase| v.phase == phase)
            });
            match context.out.format {
                Output::Table | Output::Wide => {
                    let wide = context.out.format == Output::Wide;
                    context.out.table(&rows::volumes(&volumes, wide, Timestamp::now()))
                }
                Output::Csv => context.out.value(&(), Some(&rows::volume_records(&volumes))),
                Output::Json | Output::Yaml => context.out.value(&Volumes { volumes }, None),
            }
        })
        .await
    }
}
