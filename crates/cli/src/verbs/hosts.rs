//! `hosts`: the hosts that were heard of.

use super::Context;
use crate::{args::Watch, output::Output, rows, stop::Done};
use clap::Args;
use img_storage_daemon::frontend::http::wire;

/// Lists the hosts that were heard of
#[derive(Debug, Args)]
pub struct Hosts {
    #[command(flatten)]
    watch: Watch,
}

impl Hosts {
    pub async fn run(self, mut context: Context) -> Done {
        super::again(&mut context, &self.watch, async |context| {
            let hosts = context.client.hosts().await?;
            match context.out.format {
                Output::Table | Output::Wide => context.out.table(&rows::hosts(&hosts, context.out.format == Output::Wide)),
                Output::Csv => context.out.value(&(), Some(&rows::host_records(&hosts))),
                Output::Json | Output::Yaml => context.out.value(&wire::Hosts { hosts }, None),
            }
        })
        .await
    }
}
