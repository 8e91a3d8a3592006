//! The one place in the product that destroys zvols and snapshots. Whether it may be done is the planner's to know; here is only
//! made sure that it is the thing that was meant, that it has our mark, and that nobody uses it.

use super::{DESTROY, Look, SnapshotFacts, Zfs, Zvol};
use crate::HostError;
use img_storage_model::{Dataset, Snapshot};

impl Zfs {
    /// Destroys one snapshot of a zvol of ours, after releasing our own hold on it. Nothing to do when it is not there.
    ///
    /// # Errors
    /// When the zvol is not of the volume, when somebody else holds it, or when it is still there.
    pub async fn destroy_snapshot(&self, snapshot: &Snapshot, volume: &str, our_tag: &str) -> Result<(), HostError> {
        let [found] = self.look([snapshot.dataset()]).await?;
        let Some(Look { zvol, snapshots }) = found else { return Ok(()) };
        let Some(found) = snapshots.into_iter().find(|found| found.name == *snapshot) else { return Ok(()) };
        refuse_foreign(&zvol, volume)?;
        self.destroy_found(&found, our_tag).await
    }

    /// Destroys a snapshot that was just found, and is the one that is meant.
    async fn destroy_found(&self, snapshot: &SnapshotFacts, our_tag: &str) -> Result<(), HostError> {
        let SnapshotFacts { name, guid, holds, .. } = snapshot;
        if *holds > 0 {
            self.release(name, our_tag).await?;
        }
        let Err(error) = self.run(&["destroy", &name.to_string()], DESTROY).await else { return Ok(()) };
        match self.find_snapshot(name).await? {
            Some(left) if left.guid == *guid && left.holds > 0 => Err(HostError(format!(
                "{name} is not destroyed because it is held by {}; `zfs release` of that tag lets it go",
                self.holds(name).await?.join(", ")
            ))),
            Some(left) if left.guid == *guid => Err(error),
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
        let [found] = self.look([name]).await?;
        let Some(Look { zvol, snapshots }) = found else { return Ok(()) };
        refuse_foreign(&zvol, volume)?;
        self.refuse_in_use(name, "destroyed").await?;
        if zvol.resume_token.is_some() {
            self.discard_partial(name).await?;
        }
        // What others hold is found before anything is gone.
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
            self.destroy_found(snapshot, our_tag).await?;
        }
        // Not -r: that takes the snapshots of what turns out to be busy.
        let done = self.run(&["destroy", name.as_str()], DESTROY).await;
        // Looked for whatever it said: that a volume is gone goes into the ledger, and nobody looks again.
        match self.volume(name).await? {
            Some(left) if left.guid == zvol.guid => {
                Err(done.err().unwrap_or_else(|| HostError(format!("{name} is still there although it was destroyed"))))
            }
            _ => Ok(()),
        }
    }
}

fn refuse_foreign(zvol: &Zvol, volume: &str) -> Result<(), HostError> {
    match zvol.volume() {
        Some(mark) if mark == volume => Ok(()),
        Some(mark) => Err(HostError(format!("{} is of the volume {mark}, not of {volume}; nothing was destroyed", zvol.name))),
        None => Err(HostError(format!("{} has no mark of ours ({}); nothing was destroyed", zvol.name, super::VOLUME))),
    }
}
