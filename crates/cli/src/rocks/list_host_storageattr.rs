//! `list host storageattr`: the attributes of NASes.

use super::{
    sheet::Sheet,
    words::{Words, parsed},
};
use crate::{client::encode, stop::Done, verbs::Context};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{HostName, original::nas_values};

pub async fn run(context: &mut Context, words: Words) -> Done {
    let mut sheet = Sheet::new(&["nas", "attr", "value"]);
    for name in words.several("nas")? {
        let nas: HostName = parsed("nas", &name)?;
        let path = format!("/api/nas/{}/attributes", encode(nas.as_str()));
        let kept: wire::Attributes = context.client.get(&path).await?;
        for (attribute, value) in nas_values(&kept.attributes) {
            sheet.row(vec![Some(nas.to_string()), Some(attribute), Some(value)]);
        }
    }
    sheet.print(context, &words)
}
