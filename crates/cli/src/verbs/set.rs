//! `set`: attributes of a NAS or a volume.

use super::{
    Context,
    target::{self, Name},
};
use crate::{args::Dry, stop::Done};
use clap::Args;
use img_storage_model::{Fault, attribute::Changes};

/// Sets attributes of a NAS or a volume; a volume inherits what is not set of it
///
/// Attributes are frequency (how old the NAS's copy may get: 90s, 10m), next-sync (when the next write-back is made: now, +10m,
/// 2031-05-01T03:00:00Z), download-speed and upload-speed (to the node and to the NAS, bytes per second: 10M, 1G, unlimited), and of a
/// NAS sync-workers (how many transfers run at once in each direction).
#[derive(Debug, Args)]
pub struct Set {
    /// A NAS, or NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "NAS|VOLUME")]
    name: Name,
    /// Attribute and value; several pairs are set all, or none
    #[arg(value_name = "KEY VALUE", num_args = 2.., required = true)]
    pairs: Vec<String>,
    #[command(flatten)]
    dry: Dry,
}

impl Set {
    pub async fn run(self, context: Context) -> Done {
        let mut changes = Changes::new();
        for pair in self.pairs.chunks(2) {
            let [key, value] = pair else {
                return Err(Fault::invalid(format!("{} has no value", pair.concat()))
                    .next("give a value after every name")
                    .into());
            };
            if changes.insert(key.clone(), Some(value.clone())).is_some() {
                return Err(Fault::invalid(format!("{key} is given twice")).next("give it once").into());
            }
        }
        target::change(context, self.name, changes, self.dry.dry_run).await
    }
}
