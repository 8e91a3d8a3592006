//! What only volumes in ZFS pools do: mapped elsewhere while they are copied, started again where a copy was kept, made longer
//! under their guests.

use super::act::{Act, LARGER};
use img_storage_model::{Size, api::Phase};
use std::time::Duration;
use tokio::time::sleep;

/// Unmapped while it is copied and mapped to another node at once, and back.
pub async fn elsewhere(act: &mut Act) -> Result<(), String> {
    for (node, millis) in [(0, 10), (1, 60), (0, 150)] {
        act.map(node, true).await?;
        act.guest_works(millis).await;
        act.unmap(false).await?;
    }
    act.map(1, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(100).await;
    act.unmap(false).await
}

/// Started again where it was: only what changed is copied. And once more when nothing of the kept copy is home any more.
pub async fn warm(act: &mut Act) -> Result<(), String> {
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(300).await;
    act.unmap(false).await?;
    let before = act.site.world.streamed();
    act.map(0, true).await?;
    if let Some(guest) = &act.guest {
        guest.idle(true);
    }
    act.is(Phase::Local).await?;
    let moved = act.site.world.streamed() - before;
    if moved > 3 {
        return Err(format!("{moved} blocks were copied to a node that had everything"));
    }
    if let Some(guest) = &act.guest {
        guest.idle(false);
    }
    act.unmap(false).await?;
    act.map(1, true).await?;
    act.is(Phase::Local).await?;
    for _ in 0..3 {
        act.guest_works(60).await;
        act.sync().await?;
    }
    act.unmap(false).await?;
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(60).await;
    act.unmap(false).await
}

/// Made longer under its guest: over the network, while it is copied, and on the local copy.
pub async fn grow(act: &mut Act) -> Result<(), String> {
    act.map(0, false).await?;
    act.is(Phase::Remote).await?;
    longer(act, LARGER).await?;
    act.map(0, true).await?;
    act.guest_works(60).await;
    longer(act, LARGER + 4 * Size::GRAIN).await?;
    act.is(Phase::Local).await?;
    longer(act, LARGER + 8 * Size::GRAIN).await?;
    act.guest_works(100).await;
    act.sync().await?;
    act.unmap(false).await
}

/// The guest's device gets the new length while it is in use; a guest that starts then writes to all of it.
async fn longer(act: &mut Act, bytes: u64) -> Result<(), String> {
    act.grow(bytes).await?;
    for _ in 0..200 {
        if act.site.world.device_size(&act.node(0), act.volume) == Some(bytes) {
            act.guest_off().await;
            act.guest_on(0);
            act.guest_works(100).await;
            return Ok(());
        }
        sleep(Duration::from_secs(5)).await;
    }
    Err(format!("the guest's device is not {bytes} bytes long"))
}
