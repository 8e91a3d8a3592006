//! `set host zvolattr`: an attribute of a volume.

use super::{
    set_host_storageattr::given,
    words::{Words, parsed},
};
use crate::{
    client::{Client, encode},
    stop::Done,
    verbs::Context,
};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{HostName, Selector, VolumeName, attribute::Changes};

pub async fn run(context: &mut Context, words: Words) -> Done {
    let [nas, zvol, attribute, value] = words.positional(["nas", "zvol", "attr", "value"])?;
    let (nas, zvol): (HostName, VolumeName) = (parsed("nas", &nas)?, parsed("zvol", &zvol)?);
    let found = context.client.volume(&Selector { nas: Some(nas), pool: None, name: zvol }).await?;
    let path = format!("/api/volumes/{}/attributes", encode(&found.full_name()));
    let changes = Changes::from([(attribute, given(value))]);
    let expect = Some(found.id);
    let order = wire::Set { id: Some(Client::id()), timeout: None, dry_run: false, expect, changes, notes: false };
    context.client.post(&path, &order).await.map(drop).map_err(Into::into)
}
