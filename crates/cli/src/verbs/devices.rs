//! `devices`: what guests use.

use super::Context;
use crate::{
    args::Watch,
    output::Output,
    rows,
    stop::Done,
    table::{Table, elastic, text},
};
use clap::Args;
use img_storage_daemon::frontend::http::wire::Volumes;
use img_storage_model::HostName;
use jiff::Timestamp;

/// Lists mapped volumes with the devices that guests use
#[derive(Debug, Args)]
pub struct Devices {
    /// Only those on this node
    #[arg(value_name = "HOST")]
    node: Option<HostName>,
    #[command(flatten)]
    watch: Watch,
}

impl Devices {
    pub async fn run(self, mut context: Context) -> Done {
        super::again(&mut context, &self.watch, async |context| {
            let mut volumes = context.client.volumes(None).await?;
            volumes.retain(|v| v.node.as_ref().is_some_and(|node| self.node.as_ref().is_none_or(|wanted| wanted == node)));
            volumes.sort_by(|a, b| a.node.cmp(&b.node));
            match context.out.format {
                Output::Csv => return context.out.value(&(), Some(&rows::volume_records(&volumes))),
                Output::Json | Output::Yaml => return context.out.value(&Volumes { volumes }, None),
                Output::Table | Output::Wide => {}
            }
            let mut table =
                Table::new(vec![elastic("NODE"), elastic("DEVICE"), elastic("VOLUME"), text("PHASE"), elastic("NOTE")]);
            for v in &volumes {
                let row = vec![
                    v.node.as_ref().map(ToString::to_string).unwrap_or_default(),
                    v.device.clone().unwrap_or_default(),
                    v.full_name(),
                    v.phase.to_string(),
                    rows::note(v, Timestamp::now()),
                ];
                table.row(row, v.stuck.is_some());
            }
            context.out.table(&table)
        })
        .await
    }
}
