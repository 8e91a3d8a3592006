//! `remove host storageimg`: destroys an unmapped volume. It does not ask, as the original does not.

use super::words::{Words, parsed};
use crate::{client::Client, stop::Done, verbs::Context};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{HostName, PoolName, Selector, VolumeName};

pub async fn run(context: &mut Context, words: Words) -> Done {
    let [nas, zpool, volume] = words.positional(["nas", "zpool", "volume"])?;
    let (nas, zpool): (HostName, PoolName) = (parsed("nas", &nas)?, parsed("zpool", &zpool)?);
    let volume: VolumeName = parsed("volume", &volume)?;
    if context.out.format.for_people() {
        context.out.line(&format!("removing   {nas} : {zpool} / {volume}"))?;
    }
    let found = context.client.volume(&Selector { nas: Some(nas), pool: Some(zpool), name: volume }).await?;
    let order = wire::Plain { id: Some(Client::id()), timeout: Some(300), dry_run: false, expect: Some(found.id) };
    context.client.order(&found, "delete", &order).await?;
    super::success(context)
}
