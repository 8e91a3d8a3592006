//! `list`: the volumes.

use super::Context;
use crate::{args::Watch, client, output::Output, rows, stop::Done};
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
            let unread = context.client.volumes_unread(self.volume.as_ref()).await?;
            if context.out.format.for_people() {
                let mut lines: rows::Lines = client::read(&unread)?;
                lines.volumes.retain(|v| self.wanted(&v.nas, v.node.as_deref(), v.phase));
                let wide = context.out.format == Output::Wide;
                return context.out.table(&rows::volumes(&lines.volumes, wide, Timestamp::now()));
            }
            let mut all: Volumes = client::read(&unread)?;
            all.volumes.retain(|v| self.wanted(v.nas.as_str(), v.node.as_ref().map(HostName::as_str), v.phase));
            match context.out.format {
                Output::Csv => context.out.value(&(), Some(&rows::volume_records(&all.volumes))),
                _ => context.out.value(&all, None),
            }
        })
        .await
    }

    fn wanted(&self, nas: &str, node: Option<&str>, phase: Phase) -> bool {
        self.nas.as_ref().is_none_or(|wanted| wanted.as_str() == nas)
            && self.node.as_ref().is_none_or(|wanted| Some(wanted.as_str()) == node)
            && self.phase.is_none_or(|wanted| wanted == phase)
    }
}
