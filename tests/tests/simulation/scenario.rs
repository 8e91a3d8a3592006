//! Lives of a volume: what an operator does with it, one thing after the other.

use super::{
    act::{Act, LARGER},
    backup, kernel,
    site::Site,
};
use img_storage_model::{
    api::{Phase, Request},
    messages::DeviceKind,
};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::time::sleep;

type Play = for<'a> fn(&'a mut Act) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// All scenarios.
pub const SCENARIOS: &[(&str, Play)] = &[
    ("remote", |a| Box::pin(remote(a))),
    ("local", |a| Box::pin(local(a))),
    ("back", |a| Box::pin(back(a))),
    ("move", |a| Box::pin(move_on(a))),
    ("restart", |a| Box::pin(restart(a))),
    ("resize", |a| Box::pin(resize(a))),
    ("turn", |a| Box::pin(turn(a))),
    ("waver", |a| Box::pin(waver(a))),
    ("force", |a| Box::pin(force(a))),
    ("read", |a| Box::pin(read(a))),
    ("pace", |a| Box::pin(pace(a))),
    ("import", |a| Box::pin(remote(a))),
    ("original", |a| Box::pin(original(a))),
    ("k-remote", |a| Box::pin(remote(a))),
    ("k-local", |a| Box::pin(local(a))),
    ("k-back", |a| Box::pin(back(a))),
    ("k-move", |a| Box::pin(move_on(a))),
    ("k-restart", |a| Box::pin(restart(a))),
    ("k-resize", |a| Box::pin(resize(a))),
    ("k-turn", |a| Box::pin(turn(a))),
    ("k-waver", |a| Box::pin(waver(a))),
    ("k-force", |a| Box::pin(force(a))),
    ("k-read", |a| Box::pin(read(a))),
    ("k-pace", |a| Box::pin(pace(a))),
    ("k-import", |a| Box::pin(remote(a))),
    ("k-original", |a| Box::pin(original(a))),
    ("k-elsewhere", |a| Box::pin(kernel::elsewhere(a))),
    ("k-warm", |a| Box::pin(kernel::warm(a))),
    ("k-quiet", |a| Box::pin(kernel::quiet(a))),
    ("k-grow", |a| Box::pin(kernel::grow(a))),
    ("k-quota", |a| Box::pin(kernel::quota(a))),
    ("k-full", |a| Box::pin(kernel::full(a))),
    ("k-backup-node", |a| Box::pin(backup::of_node(a))),
    ("k-backup-over", |a| Box::pin(backup::of_what_is_over(a))),
    ("k-backup-nas", |a| Box::pin(backup::of_nas(a))),
    ("k-backup-both", |a| Box::pin(backup::of_both(a))),
];

/// Plays one.
///
/// # Errors
/// What did not come about, or came about wrongly.
pub async fn play(site: &Arc<Site>, name: &str, seed: u64) -> Result<(), String> {
    let (_, play) = SCENARIOS.iter().find(|(n, _)| *n == name).ok_or_else(|| format!("there is no scenario {name}"))?;
    let mut act = Act::begin(site, name.ends_with("import"), seed).await?;
    play(&mut act).await?;
    act.guest = None;
    if act.view().await.is_some_and(|v| v.node.is_some()) {
        act.unmap(true).await?;
    }
    act.is_clean().await?;
    act.delete().await?;
    kernel::nothing_kept(&act, act.volume).await
}

/// Its attributes change while it is copied and while it is local; a guest that rests leaves nothing to be brought home.
async fn pace(act: &mut Act) -> Result<(), String> {
    act.set(&[("frequency", Some("10s")), ("download-speed", Some("128K")), ("upload-speed", Some("128K"))]).await?;
    act.map(0, true).await?;
    act.guest_works(2000).await;
    act.set(&[("downloadspeed", Some("unlimited"))]).await?;
    act.is(Phase::Local).await?;
    act.guest_works(500).await;
    act.set(&[("nextsync", Some("now"))]).await?;
    act.guest_works(1500).await;
    act.set(&[("uploadspeed", None)]).await?;
    act.rests_and_is_home().await?;
    act.guest_works(300).await;
    act.set(&[("frequency", None), ("nextsync", Some("+1h"))]).await?;
    act.unmap(false).await
}

/// Mapped without a local copy, twice, on different nodes.
async fn remote(act: &mut Act) -> Result<(), String> {
    act.map(0, false).await?;
    act.is(Phase::Remote).await?;
    act.guest_works(500).await;
    act.unmap(false).await?;
    act.map(1, false).await?;
    act.is(Phase::Remote).await?;
    act.guest_works(300).await;
    act.unmap(false).await
}

/// As the original's commands do it: onto a local copy, home, and to another node over the network.
async fn original(act: &mut Act) -> Result<(), String> {
    act.map_as_original(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(300).await;
    act.unmap_as_original().await?;
    act.map_as_original(1, false).await?;
    act.is(Phase::Remote).await?;
    act.guest_works(200).await;
    act.unmap_as_original().await
}

/// Onto a local copy, two write-backs, and home.
async fn local(act: &mut Act) -> Result<(), String> {
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(300).await;
    act.sync().await?;
    act.guest_works(200).await;
    act.sync().await?;
    act.guest_works(100).await;
    act.unmap(false).await
}

/// Onto a local copy and back to the NAS under the guest; then unmapped.
async fn back(act: &mut Act) -> Result<(), String> {
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.sync().await?;
    act.guest_works(200).await;
    act.bring_back().await?;
    act.is(Phase::Remote).await?;
    // What came back is folded into the volume meanwhile.
    act.guest_works(4000).await;
    act.unmap(false).await
}

/// Local on one node, then on another.
async fn move_on(act: &mut Act) -> Result<(), String> {
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(200).await;
    act.unmap(false).await?;
    act.map(1, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(200).await;
    act.unmap(false).await
}

/// Daemons restart in every phase.
async fn restart(act: &mut Act) -> Result<(), String> {
    let site = Arc::clone(&act.site);
    let (nas, node) = (site.nas.clone(), act.node(0));
    act.map(0, true).await?;
    site.restart(&nas).await;
    site.restart(&node).await;
    act.is(Phase::Local).await?;
    site.restart(&node).await;
    site.restart(&nas).await;
    let (synced, ()) = tokio::join!(act.sync(), async {
        sleep(Duration::from_millis(100)).await;
        site.restart(&node).await;
        site.restart(&nas).await;
    });
    synced?;
    act.guest_off().await;
    let (unmapped, ()) = tokio::join!(act.unmap(false), async {
        sleep(Duration::from_millis(50)).await;
        site.restart(&nas).await;
        site.restart(&node).await;
    });
    unmapped
}

/// Made longer between two mappings.
async fn resize(act: &mut Act) -> Result<(), String> {
    act.map(0, false).await?;
    act.is(Phase::Remote).await?;
    act.guest_works(200).await;
    act.unmap(false).await?;
    act.grow(LARGER).await?;
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(300).await;
    act.unmap(false).await
}

/// An operator who changes his mind: remote, then local, unmapped during the copy; local, brought back, and local again.
async fn turn(act: &mut Act) -> Result<(), String> {
    act.map(0, false).await?;
    act.is(Phase::Remote).await?;
    act.map(0, true).await?;
    act.guest_works(120).await;
    act.unmap(false).await?;
    act.map(0, true).await?;
    act.sync().await?;
    act.is(Phase::Local).await?;
    act.guest_works(100).await;
    act.bring_back().await?;
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(100).await;
    // On its way back, and no further.
    let request = Request::BringBack { volume: act.volume };
    let asked = tokio::time::timeout(Duration::from_millis(150), act.site.ask(request)).await;
    act.site.world.note(format!("bring-back: {}", if asked.is_ok() { "done" } else { "under way" }));
    act.unmap(false).await
}

/// Unmapped by force under a working guest, remote and local.
async fn force(act: &mut Act) -> Result<(), String> {
    act.map(0, false).await?;
    act.is(Phase::Remote).await?;
    act.guest_works(100).await;
    act.unmap(true).await?;
    act.guest = None;
    act.map(1, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(300).await;
    act.unmap(true).await?;
    act.guest = None;
    act.map(0, false).await?;
    act.is(Phase::Remote).await?;
    act.guest_works(100).await;
    act.unmap(false).await
}

/// Exported to a file while the guest works on its local copy and a write-back is asked for; and once more when it is home.
async fn read(act: &mut Act) -> Result<(), String> {
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(200).await;
    let (exported, synced) = tokio::join!(act.export(), async {
        sleep(Duration::from_millis(100)).await;
        act.sync().await
    });
    exported.and(synced)?;
    act.guest_works(100).await;
    act.unmap(false).await?;
    act.export().await
}

/// Asked back and forth while nothing is written: what is taken up again must be what was left.
async fn waver(act: &mut Act) -> Result<(), String> {
    act.map(0, true).await?;
    act.is(Phase::Local).await?;
    act.guest_works(200).await;
    if let Some(guest) = &act.guest {
        guest.idle(true);
    }
    let mut asked = tokio::task::JoinSet::new();
    for millis in [30, 150, 215, 225, 240] {
        let back = Request::BringBack { volume: act.volume };
        let again = Request::Map { volume: act.volume, node: act.node(0), sync: true, device: DeviceKind::Nbd };
        for (request, pause) in [(back, millis), (again, 30)] {
            let site = Arc::clone(&act.site);
            asked.spawn(async move { site.ask(request).await.map(drop) });
            sleep(Duration::from_millis(pause)).await;
        }
    }
    // Whatever order they arrived in, each is answered, and then none comes any more.
    while asked.join_next().await.is_some() {}
    act.bring_back().await?;
    if let Some(guest) = &act.guest {
        guest.idle(false);
    }
    act.is(Phase::Remote).await?;
    act.guest_works(300).await;
    act.unmap(false).await
}
