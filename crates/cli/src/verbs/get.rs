//! `get`: the attributes of a NAS or a volume, as they count.

use super::{
    Context,
    target::{self, Name, Target},
};
use crate::stop::Done;
use clap::Args;
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{Fault, attribute::AttributeKey};

/// Shows the attributes of a NAS or a volume, and where each is from
#[derive(Debug, Args)]
pub struct Get {
    /// A NAS, or NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "NAS|VOLUME")]
    name: Name,
    /// Only this one; as a table, its value alone is printed
    #[arg(value_name = "KEY")]
    key: Option<String>,
}

impl Get {
    pub async fn run(self, mut context: Context) -> Done {
        let target = Target::find(&context.client, self.name).await?;
        let mut attributes = context.client.get::<wire::Attributes>(&target.path()).await?.attributes;
        if let Some(word) = self.key {
            // A note has the name it was given.
            let key = word.parse::<AttributeKey>();
            let name = key.as_ref().map_or(word.as_str(), |key| key.name());
            attributes.retain(|view| view.key == name);
            match (attributes.as_slice(), key) {
                ([], Ok(key)) => {
                    let what = format!("{key} is an attribute of a NAS; {} has none", target.name());
                    return Err(Fault::invalid(what).next("name the NAS").into());
                }
                ([], Err(fault)) => return Err(fault.into()),
                ([one], _) if context.out.format.for_people() => {
                    return context.out.line(one.value.as_deref().unwrap_or_default());
                }
                _ => {}
            }
        }
        target::show(&mut context, &attributes)
    }
}
