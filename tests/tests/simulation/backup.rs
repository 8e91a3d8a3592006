//! Ledgers that were put back to an earlier state, from a backup, while the pools have what came after it.
//!
//! What the guest was told is done is then known to nobody but the disks. Nothing of it may be destroyed by what an operator tries:
//! the volume says what is in the way, and goes on when that is mended.

use super::{
    act::Act,
    kernel::{asked, used},
};
use img_storage_model::{
    HostName,
    api::{Phase, Request, VolumeView},
    messages::DeviceKind,
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// How long hosts are left alone with what they have to say to each other.
const TALKED: Duration = Duration::from_secs(120);

/// The node's, from before the mapping: under its guest, and with a machine that was restarted.
pub async fn of_node(act: &mut Act) -> Result<(), String> {
    used(act).await?;
    let (site, node) = (Arc::clone(&act.site), act.node(0));
    let old = site.back_up(&node).await?;
    is_local(act).await?;
    writes_home_and_on(act).await?;
    // What the guest works on is believed, and not the ledger.
    site.restore(&node, &old, false).await?;
    act.guest_works(100).await;
    act.is(Phase::Local).await?;
    writes_home_and_on(act).await?;
    act.guest_off().await;
    let newest = site.back_up(&node).await?;
    site.restore(&node, &old, true).await?;
    let contents = holds(act, &node)?;
    is_stuck(act, "does not know of them any more").await?;
    tries(act).await;
    is_stuck(act, "is its ledger an old one").await?;
    keeps(act, &node, &contents)?;
    // With one that knows of the mapping it goes on where it was.
    site.restore(&node, &newest, true).await?;
    act.unmap(false).await
}

/// The node's, of a mapping that came home since: the NAS knows nothing of it any more, and neither ends talking of it at once nor takes
/// anything away.
pub async fn of_what_is_over(act: &mut Act) -> Result<(), String> {
    used(act).await?;
    let (site, node) = (Arc::clone(&act.site), act.node(0));
    is_local(act).await?;
    let old = site.back_up(&node).await?;
    writes_home_and_on(act).await?;
    act.guest_off().await;
    act.unmap(false).await?;
    let newest = site.back_up(&node).await?;
    let contents = holds(act, &node)?;
    site.restore(&node, &old, true).await?;
    sleep(TALKED).await;
    keeps(act, &node, &contents)?;
    // With the one that knows it can have the volume again. What the old one did to the copy may look like a guest's writes: it was saved.
    site.restore(&node, &newest, true).await?;
    site.world.destroy_by_hand(&node, act.volume);
    used(act).await
}

/// The NAS's, from before the mapping: the node shows what it was given, and has it still.
pub async fn of_nas(act: &mut Act) -> Result<(), String> {
    used(act).await?;
    let (site, nas) = (Arc::clone(&act.site), act.site.nas.clone());
    let old = site.back_up(&nas).await?;
    for machine in [false, true] {
        is_local(act).await?;
        writes_home_and_on(act).await?;
        site.restore(&nas, &old, machine).await?;
        act.is(Phase::Local).await?;
        writes_home_and_on(act).await?;
        act.unmap(false).await?;
    }
    Ok(())
}

/// Both, from before the mapping: nobody knows that the copy on the node is the only one, and it is not overwritten.
pub async fn of_both(act: &mut Act) -> Result<(), String> {
    used(act).await?;
    for pushed in [true, false] {
        let (site, nas, node) = (Arc::clone(&act.site), act.site.nas.clone(), act.node(0));
        let (old_nas, old_node) = (site.back_up(&nas).await?, site.back_up(&node).await?);
        is_local(act).await?;
        if pushed {
            writes_home_and_on(act).await?;
        }
        act.guest_off().await;
        // Neither hears of the other what its ledger does not say.
        let (first, second) = tokio::join!(site.restore(&nas, &old_nas, true), site.restore(&node, &old_node, true));
        first.and(second)?;
        let contents = holds(act, &node)?;
        site.world.forget_newer(act.volume);
        let map = || Request::Map { volume: act.volume, node: node.clone(), sync: true, device: DeviceKind::Block };
        asked(act, map()).await;
        // In the middle of other troubles it is refused, as to a node that is not there.
        while act.view().await.is_none_or(|v| v.phase == Phase::Unmapped) {
            sleep(Duration::from_secs(5)).await;
            asked(act, map()).await;
        }
        is_stuck(act, "may be the only one").await?;
        tries(act).await;
        keeps(act, &node, &contents)?;
        act.unmap(true).await?;
        keeps(act, &node, &contents)?;
        // It was saved.
        site.world.destroy_by_hand(&node, act.volume);
        used(act).await?;
    }
    Ok(())
}

/// The guest works on a copy of its node, which has what is nowhere else.
async fn is_local(act: &mut Act) -> Result<(), String> {
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(100).await;
    Ok(())
}

/// Its writes go home, and it works on.
async fn writes_home_and_on(act: &mut Act) -> Result<(), String> {
    act.sync().await?;
    act.guest_works(100).await;
    Ok(())
}

/// What an operator tries who does not believe what is said.
async fn tries(act: &mut Act) {
    let (volume, node) = (act.volume, act.node(0));
    for request in [
        Request::Map { volume, node: node.clone(), sync: true, device: DeviceKind::Block },
        Request::Sync { volume },
        Request::BringBack { volume },
        Request::Unmap { volume, force: false },
        Request::Unmap { volume, force: true },
        Request::Map { volume, node, sync: true, device: DeviceKind::Block },
    ] {
        asked(act, request).await;
    }
}

/// It is shown as stuck, with a reason that says what is in the way.
async fn is_stuck(act: &Act, why: &str) -> Result<(), String> {
    let stuck = |v: &VolumeView| v.stuck.as_ref().is_some_and(|trouble| trouble.why.contains(why));
    act.site.until(act.volume, &format!("stuck because of {why:?}"), stuck).await
}

/// The node's copy, which has everything that was answered.
fn holds(act: &Act, node: &HostName) -> Result<Vec<u64>, String> {
    let contents = act.site.world.local_contents(node, act.volume).ok_or("there is no local copy")?;
    let blocks = contents.len();
    if act.site.world.newest(act.volume, blocks).iter().zip(&contents).any(|(newest, have)| have < newest) {
        return Err(format!("the copy on {node} lacks what was answered"));
    }
    if act.site.world.check_holds(act.volume, &act.site.world.newest(act.volume, blocks)).is_ok() {
        act.site.world.note("the NAS has everything as well: nothing is at stake".to_owned());
    }
    Ok(contents)
}

/// The only copy of the newest writes is as it was.
fn keeps(act: &Act, node: &HostName, contents: &[u64]) -> Result<(), String> {
    match act.site.world.local_contents(node, act.volume) {
        Some(now) if now == contents => Ok(()),
        Some(_) => Err(format!("the only copy of the newest writes, on {node}, was written over")),
        None => Err(format!("the only copy of the newest writes, on {node}, was destroyed")),
    }
}
