//! What only volumes in ZFS pools do: mapped elsewhere while they are copied, started again where a copy was kept, made longer
//! under their guests.

use super::act::{Act, LARGER};
use img_storage_model::{Size, VolumeId, api::Phase};
use std::sync::Arc;
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

/// Several volumes on one node, which may keep one copy. One is deleted while the node is away, another while it is there.
pub async fn quota(act: &mut Act) -> Result<(), String> {
    used(act).await?;
    let mut second = act.another("vol2").await?;
    used(&mut second).await?;
    keeps(act, second.volume).await?;
    let site = Arc::clone(&act.site);
    site.while_away(&act.node(0), second.delete()).await?;
    nothing_kept(act, second.volume).await?;
    let mut third = act.another("vol3").await?;
    used(&mut third).await?;
    used(act).await?;
    keeps(act, act.volume).await?;
    // Used last, it stays while one comes that is not kept.
    third.map(0, false).await?;
    third.is(Phase::Remote).await?;
    third.guest_works(50).await;
    third.unmap(false).await?;
    third.delete().await?;
    nothing_kept(act, third.volume).await?;
    keeps(act, act.volume).await
}

/// Local on the first node, and unmapped.
async fn used(act: &mut Act) -> Result<(), String> {
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(100).await;
    act.unmap(false).await
}

/// The first node keeps a copy of this volume, and soon of no other.
async fn keeps(act: &Act, volume: VolumeId) -> Result<(), String> {
    let mut kept = Vec::new();
    for _ in 0..60 {
        kept = act.site.world.local_copies(&act.node(0));
        if kept == [volume] {
            return Ok(());
        }
        sleep(Duration::from_secs(5)).await;
    }
    Err(format!("{} is to keep a copy of {volume} alone, and keeps {kept:?}", act.node(0)))
}

/// No node keeps a copy of a volume that was deleted, soon.
pub async fn nothing_kept(act: &Act, volume: VolumeId) -> Result<(), String> {
    let keeps = || act.site.nodes.iter().find(|node| act.site.world.local_copies(node).contains(&volume));
    for _ in 0..60 {
        if keeps().is_none() {
            return Ok(());
        }
        sleep(Duration::from_secs(5)).await;
    }
    keeps().map_or(Ok(()), |node| Err(format!("{node} keeps a copy of {volume}, which was deleted")))
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
