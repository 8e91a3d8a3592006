//! Attributes by the original's names, with values as it writes them: times and counts as numbers, speeds as they are.

use crate::attribute::{AttributeFrom, AttributeKey, AttributeView};
use std::collections::BTreeMap;

fn text(key: AttributeKey, attribute: &AttributeView) -> Option<(String, String)> {
    let value = match key {
        AttributeKey::DownloadSpeed | AttributeKey::UploadSpeed => attribute.value.clone(),
        AttributeKey::Frequency | AttributeKey::NextSync | AttributeKey::SyncWorkers => {
            attribute.number.map(|number| number.to_string())
        }
    };
    value.map(|value| (key.original().to_owned(), value))
}

/// A volume's own, and when its next write-back is due; what it inherits is not its own.
pub fn volume_values(attributes: &[AttributeView]) -> BTreeMap<String, String> {
    let known = attributes.iter().filter_map(|a| a.key.parse::<AttributeKey>().ok().map(|key| (key, a)));
    let own = known.filter(|(key, a)| a.from == AttributeFrom::Volume || *key == AttributeKey::NextSync);
    own.filter_map(|(key, a)| text(key, a)).collect()
}

/// Those that are set of a NAS, its notes, and two that the original always has.
pub fn nas_values(attributes: &[AttributeView]) -> BTreeMap<String, String> {
    let value = |a: &AttributeView| match a.key.parse::<AttributeKey>() {
        Ok(key) => {
            let always = matches!(key, AttributeKey::Frequency | AttributeKey::SyncWorkers);
            if always || a.from == AttributeFrom::Nas { text(key, a) } else { None }
        }
        Err(_) => a.value.clone().map(|value| (a.key.clone(), value)),
    };
    attributes.iter().filter_map(value).collect()
}
