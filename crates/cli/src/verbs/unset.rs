//! `unset`: what is inherited counts again.

use super::{
    Context,
    target::{self, Name},
};
use crate::{args::Dry, stop::Done};
use clap::Args;

/// Takes attributes of a NAS or a volume away; what is inherited counts again
#[derive(Debug, Args)]
pub struct Unset {
    /// A NAS, or NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "NAS|VOLUME")]
    name: Name,
    /// The attributes
    #[arg(value_name = "KEY", required = true)]
    keys: Vec<String>,
    #[command(flatten)]
    dry: Dry,
}

impl Unset {
    pub async fn run(self, context: Context) -> Done {
        let changes = self.keys.into_iter().map(|key| (key, None)).collect();
        target::change(context, self.name, changes, self.dry.dry_run).await
    }
}
