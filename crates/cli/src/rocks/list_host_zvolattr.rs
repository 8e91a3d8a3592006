//! `list host zvolattr`: the attributes of a volume.

use super::{
    sheet::Sheet,
    words::{Words, parsed},
};
use crate::{client::encode, stop::Done, verbs::Context};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{HostName, Selector, VolumeName, original::volume_values};

const HEADINGS: [&str; 6] = ["nas", "zvol", "frequency", "nextsync", "uploadspeed", "downloadspeed"];

pub async fn run(context: &mut Context, words: Words) -> Done {
    let [nas, zvol] = words.positional(["nas", "zvol"])?;
    let (nas, zvol): (HostName, VolumeName) = (parsed("nas", &nas)?, parsed("zvol", &zvol)?);
    let found = context.client.volume(&Selector { nas: Some(nas.clone()), pool: None, name: zvol.clone() }).await?;
    let path = format!("/api/volumes/{}/attributes", encode(&found.full_name()));
    let kept: wire::Attributes = context.client.get(&path).await?;
    let values = volume_values(&kept.attributes);
    let mut sheet = Sheet::new(&HEADINGS);
    let mut row = vec![Some(nas.to_string()), Some(zvol.to_string())];
    row.extend(HEADINGS[2..].iter().map(|name| values.get(*name).cloned()));
    sheet.row(row);
    sheet.print(context, &words)
}
