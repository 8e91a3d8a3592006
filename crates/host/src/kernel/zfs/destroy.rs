//! The one place in the product that destroys zvols and snapshots. Whether it may be done is the planner's to know; here is only
//! made sure that it is the thing that was meant, that it has our mark, and that nobody uses it.

use super::{DESTROY, Zfs};
use crate::HostError;
use img_storage_model::{Dataset, Guid, Snapshot};

impl Zfs {
    /// Destroys one snapshot of a zvol of ours, after releasing our own hold on it. Nothing to do when it is not there.
    ///
    /// # Errors
    /// When another snapshot has its name, when the zvol is not of the volume, when somebody else holds it, or when it is still there.
    pub async fn destroy_snapshot(&self, snapshot: &Snapshot, guid: Guid, volume: &str, our_tag: &str) -> Result<(), HostError> {
        let Some(found) = self.find_snapshot(snapshot).await? else { return Ok(()) };
        if found.guid != guid {
            return Err(HostError(format!("{snapshot} is not the snapshot {guid} but {}; it is left alone", found.guid)));
        }
        self.refuse_foreign(snapshot.dataset(), volume).await?;
        if found.holds > 0 {
            self.release(snapshot, our_tag).await?;
            let left = self.holds(snapshot).await?;
            if !left.is_empty() {
                return Err(HostError(format!(
                    "{snapshot} is not destroyed because it is held by {}; `zfs release` of that tag lets it go",
                    left.join(", ")
                )));
            }
        }
        let done = self.run(&["destroy", &snapshot.to_string()], DESTROY).await;
        match self.find_snapshot(snapshot).await? {
            Some(left) if left.guid == guid => {
                Err(done.err().unwrap_or_else(|| HostError(format!("{snapshot} is still there although it was destroyed"))))
            }
            _ => Ok(()),
        }
    }

    /// Destroys a zvol of ours with its snapshots. Nothing to do when it is not there.
    ///
    /// First it is made sure that nobody uses the device, then the snapshots go one by one, oldest first, and then the zvol itself:
    /// what has become busy in between loses no more than snapshots, of which the caller knows that they are not needed, and keeps the
    /// one that says what it is.
    ///
    /// # Errors
    /// When it is not of the volume, is in use, has snapshots that somebody else holds, or is still there.
    pub async fn destroy_volume(&self, name: &Dataset, volume: &str, our_tag: &str) -> Result<(), HostError> {
        let Some(found) = self.volume(name).await? else { return Ok(()) };
        self.refuse_foreign(name, volume).await?;
        self.refuse_in_use(name, "destroyed").await?;
        self.discard_partial(name).await?;
        // What others hold is found before anything is gone.
        let snapshots = self.snapshots(name).await?.unwrap_or_default();
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.holds > 0) {
            let tags = self.holds(&snapshot.name).await?;
            if let Some(tag) = tags.iter().find(|tag| *tag != our_tag) {
                return Err(HostError(format!(
                    "{name} is not destroyed because {} is held by {tag}; `zfs release` of that tag lets it go",
                    snapshot.name
                )));
            }
        }
        for snapshot in &snapshots {
            self.destroy_snapshot(&snapshot.name, snapshot.guid, volume, our_tag).await?;
        }
        // Not -r: that takes the snapshots of what turns out to be busy.
        let done = self.run(&["destroy", name.as_str()], DESTROY).await;
        match self.volume(name).await? {
            Some(left) if left.guid == found.guid => {
                Err(done.err().unwrap_or_else(|| HostError(format!("{name} is still there although it was destroyed"))))
            }
            _ => Ok(()),
        }
    }

    async fn refuse_foreign(&self, name: &Dataset, volume: &str) -> Result<(), HostError> {
        match self.must(name).await?.volume() {
            Some(mark) if mark == volume => Ok(()),
            Some(mark) => Err(HostError(format!("{name} is of the volume {mark}, not of {volume}; nothing was destroyed"))),
            None => Err(HostError(format!("{name} has no mark of ours ({}); nothing was destroyed", super::VOLUME))),
        }
    }
}
