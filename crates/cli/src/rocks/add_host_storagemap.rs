//! `add host storagemap`: maps a volume, and makes it when it is not there.

use super::words::{USAGE, Words, parsed};
use crate::{
    client::Client,
    follow::{self, Goal},
    stop::Done,
    verbs::Context,
};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{Fault, FaultKind, HostName, PoolName, Selector, VolumeName, messages::DeviceKind, original::gigabytes};
use std::time::Duration;
use tokio::time::Instant;

/// How long the device may take.
const USABLE: Duration = Duration::from_secs(120);

pub async fn run(context: &mut Context, words: Words) -> Done {
    let [nas, zpool, volume, remotehost, size] = words.positional(["nas", "zpool", "volume", "remotehost", "size"])?;
    let (nas, zpool): (HostName, PoolName) = (parsed("nas", &nas)?, parsed("zpool", &zpool)?);
    let (volume, node): (VolumeName, HostName) = (parsed("volume", &volume)?, parsed("remotehost", &remotehost)?);
    let size = gigabytes(&size).map_err(|why| Fault::invalid(format!("size: {why}")).next(USAGE))?;
    let sync = words.flag("img_sync")?.unwrap_or(false);
    if let Some(pool) = words.param("remotepool") {
        parsed::<PoolName>("remotepool", pool)?;
    }
    if context.out.format.for_people() {
        context.out.line(&format!("mapping  {nas} : {zpool} / {volume}  on  {node}"))?;
    }
    let name = Selector { nas: Some(nas), pool: Some(zpool), name: volume };
    let found = match context.client.volume(&name).await {
        Err(fault) if fault.kind == FaultKind::NotFound => {
            let order = wire::Create {
                id: Some(Client::id()),
                timeout: None,
                dry_run: false,
                expect: None,
                name: name.clone(),
                size: Some(size),
                from: None,
            };
            let made = context.client.post("/api/volumes", &order).await?.volume;
            made.ok_or_else(|| Fault::failed("the front end did not say which volume it created"))?
        }
        found => found?,
    };
    let begun = Instant::now();
    let order = wire::Map {
        id: Some(Client::id()),
        timeout: Some(USABLE.as_secs()),
        dry_run: false,
        expect: Some(found.id),
        node,
        sync,
        device: DeviceKind::Nbd,
    };
    let mapped = context.client.order(&found, "map", &order).await?.volume.unwrap_or(found);
    let usable = follow::volume(&context.client, mapped, Goal::Usable, begun + USABLE).await?;
    let device = usable.device.clone().unwrap_or_default();
    if context.out.format.for_people() {
        return context.out.line(&device);
    }
    context.out.value(&serde_json::json!({ "device": device }), Some(&[vec![("device", device.clone())]]))
}
