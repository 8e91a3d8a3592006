//! `set host storageattr`: an attribute of a NAS, or a note that has no effect.

use super::words::{Words, parsed};
use crate::{
    client::{Client, encode},
    stop::Done,
    verbs::Context,
};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{HostName, attribute::Changes};

pub async fn run(context: &mut Context, words: Words) -> Done {
    let [nas, attribute, value] = words.positional(["nas", "attr", "value"])?;
    let nas: HostName = parsed("nas", &nas)?;
    let path = format!("/api/nas/{}/attributes", encode(nas.as_str()));
    let changes = Changes::from([(attribute, given(value))]);
    let order = wire::Set { id: Some(Client::id()), timeout: None, dry_run: false, expect: None, changes, notes: true };
    context.client.post(&path, &order).await.map(drop).map_err(Into::into)
}

/// A value; `None`, however it is written, takes the attribute away.
pub fn given(value: String) -> Option<String> {
    (!value.eq_ignore_ascii_case("none")).then_some(value)
}
