//! `remove host storagemap`: ends a mapping. Done when the guest's device is gone; what a local copy has that the NAS lacks goes home
//! after that, as with the original.

use super::words::{Words, parsed};
use crate::{client::Client, stop::Done, verbs::Context};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{
    Fault, HostName, Selector, VolumeName,
    api::{Phase, VolumeView},
};
use std::time::Duration;

/// How long it may take.
const WITHIN: u64 = 300;
/// How often it is looked whether the device is gone.
const LOOK: Duration = Duration::from_millis(200);

pub async fn run(context: &mut Context, words: Words) -> Done {
    let [nas, volume] = words.positional(["nas", "volume"])?;
    let (nas, volume): (HostName, VolumeName) = (parsed("nas", &nas)?, parsed("volume", &volume)?);
    if context.out.format.for_people() {
        context.out.line(&format!("unmapping   {nas} : {volume}"))?;
    }
    let found = context.client.volume(&Selector { nas: Some(nas), pool: None, name: volume }).await?;
    let order =
        wire::Unmap { id: Some(Client::id()), timeout: Some(WITHIN), dry_run: false, expect: Some(found.id), force: false };
    tokio::select! {
        answer = context.client.order(&found, "unmap", &order) => drop(answer?),
        gone = gone(&context.client, &found) => gone?,
    }
    super::success(context)
}

/// Until nothing of it is left for a guest. The order goes on without us.
async fn gone(client: &Client, volume: &VolumeView) -> Result<(), Fault> {
    let name: Selector = volume.full_name().parse()?;
    loop {
        tokio::time::sleep(LOOK).await;
        // What is wrong with it the order says.
        let Ok(now) = client.volume(&name).await else { continue };
        if now.phase == Phase::Returning && now.device.is_none() && now.transfer_since.is_some() {
            return Ok(());
        }
    }
}
