//! What only volumes in ZFS pools do: mapped elsewhere while they are copied, started again where a copy was kept, made longer
//! under their guests.

use super::act::{Act, LARGER};
use img_storage_model::{
    Size, VolumeId,
    api::{Phase, Request, VolumeView},
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

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
    act.idle(true);
    act.is(Phase::Local).await?;
    let moved = act.site.world.streamed() - before;
    if moved > 3 {
        return Err(format!("{moved} blocks were copied to a node that had everything"));
    }
    act.idle(false);
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

/// A guest that writes nothing is moved at once; one that begins to write at whatever moment of it, another way.
pub async fn quiet(act: &mut Act) -> Result<(), String> {
    for still in [None, Some(8), Some(18), Some(22), Some(26)] {
        act.map(0, false).await?;
        act.idle(true);
        act.is(Phase::Remote).await?;
        act.map(0, true).await?;
        if still == Some(18) {
            act.grow(LARGER).await?;
        }
        if let Some(millis) = still {
            sleep(Duration::from_millis(millis)).await;
            act.idle(false);
        }
        act.is(Phase::Local).await?;
        act.idle(false);
        act.guest_works(60).await;
        act.unmap(false).await?;
    }
    Ok(())
}

/// The overlay runs full, at the switch and while the guest is brought back.
pub async fn full(act: &mut Act) -> Result<(), String> {
    act.set(&[("download-speed", Some("64K")), ("upload-speed", Some("64K"))]).await?;
    act.site.world.overlays_hold(Some(1));
    act.map(0, true).await?;
    nothing_ends(act, Phase::Local).await?;
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(100).await;
    act.site.world.overlays_hold(Some(1));
    asked(act, Request::BringBack { volume: act.volume }).await;
    nothing_ends(act, Phase::Remote).await
}

/// Asks for something that is not expected to come about soon.
pub async fn asked(act: &Act, request: Request) {
    let _ = timeout(Duration::from_secs(30), act.site.ask(request)).await;
}

/// A full overlay is of no use to anybody, and has writes that were answered: it is said, and nothing is ended whatever is asked, until
/// somebody mends it. Where a fault let it get by without, it is in the phase.
async fn nothing_ends(act: &mut Act, phase: Phase) -> Result<(), String> {
    let (node, volume) = (act.node(0), act.volume);
    let says = |why: &str| why.contains("takes no more writes");
    let stuck = |v: &VolumeView| v.stuck.as_ref().is_some_and(|trouble| says(&trouble.why));
    act.site.until(volume, "full, or past it", |v| v.phase == phase || stuck(v)).await?;
    if act.site.world.ran_full(&node, volume) {
        act.site.until(volume, "full", stuck).await?;
        asked(act, Request::Unmap { volume, force: true }).await;
        if !act.site.world.ran_full(&node, volume) || act.view().await.is_some_and(|v| v.phase == Phase::Unmapped) {
            return Err("a full overlay with answered writes was given up".to_owned());
        }
    }
    act.site.world.overlays_hold(None);
    act.unmap(true).await?;
    act.guest = None;
    Ok(())
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
pub async fn used(act: &mut Act) -> Result<(), String> {
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
