//! What an operator does with one volume, and what must hold after each thing that was answered.

use super::{
    guest::Guest,
    site::{Site, host},
};
use img_storage_model::{
    HostName, Size, VolumeId, VolumeName,
    api::{Answer, AttributesOf, Phase, Request, VolumeView},
    attribute::Changes,
    messages::{DeviceKind, Endpoint},
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// How long a volume is.
pub const SIZE: u64 = 1 << 20;
/// What it is made longer to.
pub const LARGER: u64 = SIZE + 4 * Size::GRAIN;

/// The operator, with one volume and at most one guest.
pub struct Act {
    pub site: Arc<Site>,
    pub volume: VolumeId,
    pub guest: Option<Guest>,
    bytes: u64,
    seed: u64,
}

async fn create(site: &Arc<Site>, name: &str) -> Result<VolumeId, String> {
    let name = VolumeName::new(name).map_err(|f| f.to_string())?;
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
    /// With a new volume, empty or filled by a front end.
    pub async fn begin(site: &Arc<Site>, imported: bool, seed: u64) -> Result<Self, String> {
        let volume = if imported { import(site).await? } else { create(site, "vol1").await? };
        Ok(Act { site: Arc::clone(site), volume, guest: None, bytes: SIZE, seed })
    }

    /// The same operator, with another volume.
    pub async fn another(&self, name: &str) -> Result<Self, String> {
        let volume = create(&self.site, name).await?;
        Ok(Act { site: Arc::clone(&self.site), volume, guest: None, bytes: SIZE, seed: self.seed + 1 })
    }

    /// Reads the whole volume through a front end, slowly: what it gets is a point in time.
    pub async fn export(&self) -> Result<(), String> {
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

    pub fn node(&self, n: usize) -> HostName {
        self.site.nodes[n].clone()
    }

    pub async fn view(&self) -> Option<VolumeView> {
        self.site.find(self.volume).await
    }

    fn excite(&self) {
        if let Some(guest) = &self.guest {
            guest.excite();
        }
    }

    /// The guest writes and reads nothing from now on, or does.
    pub fn idle(&self, idle: bool) {
        if let Some(guest) = &self.guest {
            guest.idle(idle);
        }
    }

    /// Maps it, starts a guest if there is none, and waits until it is in the phase.
    pub async fn map(&mut self, node: usize, sync: bool) -> Result<(), String> {
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
    pub fn guest_on(&mut self, node: usize) {
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

    pub async fn map_as_original(&mut self, node: usize, sync: bool) -> Result<(), String> {
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
    pub async fn unmap_as_original(&mut self) -> Result<(), String> {
        self.guest_off().await;
        let unmapped = |v: &VolumeView| v.phase == Phase::Unmapped;
        self.as_original("{\"action\": \"unmap_zvol\", \"zvol\": \"vol1\"}", unmapped).await?;
        let final_copy = self.site.world.check_final(self.volume, None);
        final_copy.map_err(|why| format!("it is unmapped, but on the NAS {why}"))
    }

    pub async fn is(&self, phase: Phase) -> Result<(), String> {
        self.excite();
        self.site.until(self.volume, &format!("{phase}"), |v| v.phase == phase && v.device.is_some()).await?;
        self.excite();
        Ok(())
    }

    pub async fn guest_works(&self, millis: u64) {
        self.excite();
        sleep(Duration::from_millis(millis)).await;
    }

    pub async fn guest_off(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.stop().await;
        }
    }

    /// Brings the NAS's copy up to date, and checks that it is when that was answered.
    pub async fn sync(&self) -> Result<(), String> {
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

    pub async fn unmap(&mut self, force: bool) -> Result<(), String> {
        self.excite();
        if !force {
            if let Some(guest) = &self.guest {
                guest.is_answered().await?;
            }
            self.guest_off().await;
        }
        let request = Request::Unmap { volume: self.volume, force };
        self.site.want(self.volume, request, |v| v.phase == Phase::Unmapped).await?;
        let final_copy = self.site.world.check_final(self.volume, None);
        final_copy.map_err(|why| format!("unmap was answered, but on the NAS {why}"))
    }

    pub async fn set(&self, changes: &[(&str, Option<&str>)]) -> Result<(), String> {
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
    pub async fn rests_and_is_home(&self) -> Result<(), String> {
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

    pub async fn bring_back(&self) -> Result<(), String> {
        self.excite();
        let request = Request::BringBack { volume: self.volume };
        self.site.want(self.volume, request, |v| v.phase == Phase::Remote && !v.sync).await
    }

    pub async fn grow(&mut self, bytes: u64) -> Result<(), String> {
        let size = Size::exact(bytes).map_err(|f| f.to_string())?;
        self.site.want(self.volume, Request::Resize { volume: self.volume, size }, |v| v.size == size).await?;
        self.bytes = bytes;
        Ok(())
    }

    /// Nothing but the volume's file is left, soon.
    pub async fn is_clean(&self) -> Result<(), String> {
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

    pub async fn delete(&self) -> Result<(), String> {
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
