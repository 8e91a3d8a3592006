//! What an operator does with one volume, and what must hold after each thing that was answered.

use super::{
    guest::Guest,
    kernel,
    site::{Site, host},
};
use img_storage_model::{
    HostName, Size, VolumeId, VolumeName,
    api::{Answer, AttributesOf, Phase, Request, VolumeView},
    attribute::Changes,
    messages::{DeviceKind, Endpoint},
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
    ("k-grow", |a| Box::pin(kernel::grow(a))),
];

/// Plays one.
///
/// # Errors
/// What did not come about, or came about wrongly.
pub async fn play(site: &Arc<Site>, name: &str, seed: u64) -> Result<(), String> {
    let (_, play) = SCENARIOS.iter().find(|(n, _)| *n == name).ok_or_else(|| format!("there is no scenario {name}"))?;
    let volume = if name.ends_with("import") { import(site).await? } else { create(site).await? };
    let mut act = Act { site: Arc::clone(site), volume, guest: None, bytes: SIZE, seed };
    play(&mut act).await?;
    act.guest = None;
    if act.view().await.is_some_and(|v| v.node.is_some()) {
        act.unmap(true).await?;
    }
    act.is_clean().await?;
    act.delete().await
}

const SIZE: u64 = 1 << 20;
pub(super) const LARGER: u64 = SIZE + 4 * Size::GRAIN;

/// The operator, with one volume and at most one guest.
pub struct Act {
    pub(super) site: Arc<Site>,
    pub(super) volume: VolumeId,
    pub(super) guest: Option<Guest>,
    bytes: u64,
    seed: u64,
}

async fn create(site: &Arc<Site>) -> Result<VolumeId, String> {
    let name = VolumeName::new("vol1").map_err(|f| f.to_string())?;
    let size = Size::exact(SIZE).map_err(|f| f.to_string())?;
    for _ in 0..200 {
        match site.ask(Request::Create { pool: None, name: name.clone(), size, import: false }).await {
            Ok(Answer::Volume { volume }) => return Ok(volume.id),
            Ok(other) => return Err(format!("create was answered {other:?}")),
            Err(fault) => site.world.note(format!("refused: {fault}")),
        }
        sleep(Duration::from_secs(2)).await;
        if let Ok(Answer::Volumes { volumes }) = site.ask(Request::Find { selector: None }).await
            && let Some(volume) = volumes.iter().find(|v| v.name == name && v.phase == Phase::Unmapped)
        {
            return Ok(volume.id);
        }
    }
    Err("it could not be created".to_owned())
}

/// A new volume, filled by a front end. One that breaks on the way is given up and made again.
async fn import(site: &Arc<Site>) -> Result<VolumeId, String> {
    let name = VolumeName::new("vol1").map_err(|f| f.to_string())?;
    let size = Size::exact(SIZE).map_err(|f| f.to_string())?;
    for _ in 0..100 {
        match site.ask(Request::Create { pool: None, name: name.clone(), size, import: true }).await {
            Ok(Answer::Served { volume, endpoint }) => {
                let complete = fill(site, volume.id, &endpoint).await;
                let done = site.ask(Request::Imported { volume: volume.id, complete }).await;
                if complete && done.is_ok() {
                    site.world.imported(volume.id);
                    return Ok(volume.id);
                }
                site.world.note(format!("the import came to nothing: {complete} {done:?}"));
            }
            Ok(other) => return Err(format!("create was answered {other:?}")),
            Err(fault) => site.world.note(format!("refused: {fault}")),
        }
        sleep(Duration::from_secs(2)).await;
        let Ok(Answer::Volumes { volumes }) = site.ask(Request::Find { selector: None }).await else { continue };
        for volume in volumes.iter().filter(|v| v.name == name && v.phase != Phase::Deleting) {
            site.world.note("an import that is left over goes".to_owned());
            let request = match volume.phase {
                Phase::Importing => Request::Imported { volume: volume.id, complete: false },
                _ => Request::Delete { volume: volume.id },
            };
            let _ = site.ask(request).await;
        }
    }
    Err("it could not be imported".to_owned())
}

async fn fill(site: &Site, volume: VolumeId, endpoint: &Endpoint) -> bool {
    for block in 0..usize::try_from(SIZE / Size::GRAIN).unwrap_or(0) {
        if let Err(why) = site.world.fill(&host("front"), endpoint, volume, block) {
            site.world.note(format!("the import broke: {why}"));
            return false;
        }
        sleep(Duration::from_millis(5)).await;
    }
    true
}

impl Act {
    /// Reads the whole volume through a front end, slowly: what it gets is a point in time.
    async fn export(&self) -> Result<(), String> {
        let mut last = String::new();
        'again: for _ in 0..100 {
            let served = match self.site.ask(Request::Read { volume: self.volume }).await {
                Ok(Answer::Served { endpoint, .. }) => Ok(endpoint),
                Ok(other) => return Err(format!("read was answered {other:?}")),
                Err(fault) => Err(fault.to_string()),
            };
            let mut copy = Vec::new();
            match served {
                Ok(endpoint) => {
                    for block in 0..usize::try_from(self.bytes / Size::GRAIN).unwrap_or(0) {
                        sleep(Duration::from_millis(30)).await;
                        match self.site.world.read(&host("front"), &endpoint, block) {
                            Ok(version) => copy.push(version),
                            Err(why) => {
                                last = why;
                                let _ = self.site.ask(Request::ReadDone { volume: self.volume }).await;
                                sleep(Duration::from_secs(2)).await;
                                continue 'again;
                            }
                        }
                    }
                    let _ = self.site.ask(Request::ReadDone { volume: self.volume }).await;
                    let whole = self.site.world.check_read(self.volume, &copy);
                    return whole.map_err(|why| format!("what was exported is no point in time: {why}"));
                }
                Err(why) => last = why,
            }
            self.site.world.note(format!("refused: {last}"));
            sleep(Duration::from_secs(2)).await;
        }
        Err(format!("it cannot be read: {last}"))
    }

    pub(super) fn node(&self, n: usize) -> HostName {
        self.site.nodes[n].clone()
    }

    async fn view(&self) -> Option<VolumeView> {
        self.site.find(self.volume).await
    }

    fn excite(&self) {
        if let Some(guest) = &self.guest {
            guest.excite();
        }
    }

    /// Maps it, starts a guest if there is none, and waits until it is in the phase.
    pub(super) async fn map(&mut self, node: usize, sync: bool) -> Result<(), String> {
        let name = self.node(node);
        self.excite();
        let request = Request::Map { volume: self.volume, node: name.clone(), sync, device: DeviceKind::Nbd };
        let there = name.clone();
        self.site.want(self.volume, request, |v| v.node.as_ref() == Some(&there) && v.sync == sync).await?;
        if self.guest.is_none() {
            self.guest_on(node);
        }
        Ok(())
    }

    /// A guest starts, which uses all of the volume.
    pub(super) fn guest_on(&mut self, node: usize) {
        let blocks = usize::try_from(self.bytes / Size::GRAIN).unwrap_or(0);
        self.guest = Some(Guest::start(&self.site.world, &self.node(node), self.volume, blocks, self.seed + node as u64));
    }

    /// Asks in the original's words until it is so; an answer that nobody gets is asked for anew, which may not happen often.
    async fn as_original(&self, message: &str, goal: impl Fn(&VolumeView) -> bool) -> Result<(), String> {
        let mut unanswered = 0;
        for _ in 0..200 {
            self.excite();
            match self.site.ask_as_original(message).await {
                Ok(answer) if answer.contains("\"success\"") => return self.site.until(self.volume, message, goal).await,
                Ok(_) => {}
                Err(why) => {
                    unanswered += 1;
                    if unanswered > 3 {
                        return Err(format!("{message}: {why}, again and again"));
                    }
                }
            }
            if self.view().await.is_some_and(|view| goal(&view)) {
                return Ok(());
            }
            sleep(Duration::from_secs(2)).await;
        }
        Err(format!("{message} is always refused"))
    }

    async fn map_as_original(&mut self, node: usize, sync: bool) -> Result<(), String> {
        let name = self.node(node);
        let message = format!(
            "{{\"action\": \"map_zvol\", \"zpool\": \"tank\", \"zvol\": \"vol1\", \"remotehost\": \"{name}\", \"size\": \"1\", \
             \"remotepool\": \"local\", \"sync\": {sync}, \"initiator\": \"iqn.1994-05.com.redhat:{name}\"}}"
        );
        let there = name.clone();
        self.as_original(&message, |v| v.node.as_ref() == Some(&there) && v.sync == sync && v.phase != Phase::Returning).await?;
        let blocks = usize::try_from(self.bytes / Size::GRAIN).unwrap_or(0);
        self.guest = Some(Guest::start(&self.site.world, &name, self.volume, blocks, self.seed + node as u64));
        Ok(())
    }

    /// The answer comes when the guest's device is gone; what is newer than the NAS's copy comes home after it.
    async fn unmap_as_original(&mut self) -> Result<(), String> {
        self.guest_off().await;
        let unmapped = |v: &VolumeView| v.phase == Phase::Unmapped;
        self.as_original("{\"action\": \"unmap_zvol\", \"zvol\": \"vol1\"}", unmapped).await?;
        let final_copy = self.site.world.check_final(self.volume, None);
        final_copy.map_err(|why| format!("it is unmapped, but on the NAS {why}"))
    }

    pub(super) async fn is(&self, phase: Phase) -> Result<(), String> {
        self.excite();
        self.site.until(self.volume, &format!("{phase}"), |v| v.phase == phase && v.device.is_some()).await?;
        self.excite();
        Ok(())
    }

    pub(super) async fn guest_works(&self, millis: u64) {
        self.excite();
        sleep(Duration::from_millis(millis)).await;
    }

    pub(super) async fn guest_off(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.stop().await;
        }
    }

    /// Brings the NAS's copy up to date, and checks that it is when that was answered.
    pub(super) async fn sync(&self) -> Result<(), String> {
        self.excite();
        let blocks = usize::try_from(self.bytes / Size::GRAIN).unwrap_or(0);
        for _ in 0..100 {
            let before = self.site.world.newest(self.volume, blocks);
            match self.site.ask(Request::Sync { volume: self.volume }).await {
                Ok(_) => {
                    return self
                        .site
                        .world
                        .check_holds(self.volume, &before)
                        .map_err(|why| format!("sync was answered, but {why}"));
                }
                Err(fault) => self.site.world.note(format!("refused: {fault}")),
            }
            sleep(Duration::from_secs(2)).await;
        }
        Err("sync is always refused".to_owned())
    }

    pub(super) async fn unmap(&mut self, force: bool) -> Result<(), String> {
        self.excite();
        if !force {
            self.guest_off().await;
        }
        let request = Request::Unmap { volume: self.volume, force };
        self.site.want(self.volume, request, |v| v.phase == Phase::Unmapped).await?;
        let final_copy = self.site.world.check_final(self.volume, None);
        final_copy.map_err(|why| format!("unmap was answered, but on the NAS {why}"))
    }

    async fn set(&self, changes: &[(&str, Option<&str>)]) -> Result<(), String> {
        let changes: Changes = changes.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
        for _ in 0..100 {
            let of = AttributesOf::Volume(self.volume);
            match self.site.ask(Request::SetAttributes { of, changes: changes.clone(), notes: false }).await {
                Ok(Answer::Attributes { .. }) => return Ok(()),
                Ok(other) => return Err(format!("set was answered {other:?}")),
                Err(fault) => self.site.world.note(format!("refused: {fault}")),
            }
            sleep(Duration::from_secs(2)).await;
        }
        Err(format!("{changes:?} is always refused"))
    }

    /// The guest rests; once the NAS says that it lacks nothing from before some moment, it has everything of then.
    async fn rests_and_is_home(&self) -> Result<(), String> {
        if let Some(guest) = &self.guest {
            guest.idle(true);
        }
        sleep(Duration::from_millis(500)).await;
        let (moment, blocks) = (self.site.now(), usize::try_from(self.bytes / Size::GRAIN).unwrap_or(0));
        let newest = self.site.world.newest(self.volume, blocks);
        self.site.until(self.volume, "home", |v| v.home.is_some_and(|at| at >= moment)).await?;
        let holds = self.site.world.check_holds(self.volume, &newest);
        if let Some(guest) = &self.guest {
            guest.idle(false);
        }
        holds.map_err(|why| format!("the NAS says that it lacks nothing, but {why}"))
    }

    async fn bring_back(&self) -> Result<(), String> {
        self.excite();
        let request = Request::BringBack { volume: self.volume };
        self.site.want(self.volume, request, |v| v.phase == Phase::Remote && !v.sync).await
    }

    pub(super) async fn grow(&mut self, bytes: u64) -> Result<(), String> {
        let size = Size::exact(bytes).map_err(|f| f.to_string())?;
        self.site.want(self.volume, Request::Resize { volume: self.volume, size }, |v| v.size == size).await?;
        self.bytes = bytes;
        Ok(())
    }

    /// Nothing but the volume's file is left, soon.
    async fn is_clean(&self) -> Result<(), String> {
        let mut left = Vec::new();
        for _ in 0..60 {
            left = self.site.world.leftovers(self.volume);
            if left.is_empty() {
                return self.site.world.check_final(self.volume, None).map_err(|why| format!("in the end, on the NAS {why}"));
            }
            sleep(Duration::from_secs(5)).await;
        }
        Err(format!("left behind after the unmap: {}", left.join(", ")))
    }

    async fn delete(&self) -> Result<(), String> {
        self.site.world.expect_delete(self.volume);
        for _ in 0..100 {
            match self.site.ask(Request::Delete { volume: self.volume }).await {
                Ok(_) => {}
                Err(fault) => self.site.world.note(format!("refused: {fault}")),
            }
            if self.view().await.is_none() {
                return if self.site.world.has_file(self.volume) {
                    Err("its deletion was answered, but its file is still there".to_owned())
                } else {
                    Ok(())
                };
            }
            sleep(Duration::from_secs(2)).await;
        }
        Err("it cannot be deleted".to_owned())
    }
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
