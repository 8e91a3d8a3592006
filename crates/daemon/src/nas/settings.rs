//! What operators set of this NAS and its volumes: where it is kept, and what counts of it.

use super::{Nas, volume::Mail};
use img_storage_model::{
    Fault, RequestId, VolumeId,
    api::{Answer, AttributesOf},
    attribute::{self, Attributes, Changes, Effective},
    nas::Intent,
};
use std::sync::{Arc, PoisonError};

impl Nas {
    /// What counts for a volume with these attributes of its own.
    pub(super) fn effective(&self, own: &Attributes) -> Effective {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        attribute::effective(own, &settings.attributes, &self.config.defaults)
    }

    /// How many transfers may run at once in each direction.
    pub(super) fn sync_workers(&self) -> usize {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        attribute::sync_workers(&settings.attributes, &self.config.defaults).get()
    }

    pub(super) fn attributes(&self, of: AttributesOf) -> Result<Answer, Fault> {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let attributes = match of {
            AttributesOf::Nas => attribute::views(None, &settings, &self.config.defaults, None),
            AttributesOf::Volume(volume) => {
                let entries = self.entries();
                let shown = entries.get(&volume).ok_or_else(|| super::requests::no_such(volume))?.shown.borrow();
                attribute::views(Some(&shown.attributes), &settings, &self.config.defaults, shown.due)
            }
        };
        Ok(Answer::Attributes { attributes })
    }

    pub(super) async fn set_attributes(
        self: &Arc<Self>,
        id: RequestId,
        of: AttributesOf,
        changes: Changes,
        notes: bool,
    ) -> Result<Answer, Fault> {
        match of {
            AttributesOf::Volume(volume) => {
                self.intend(volume, id, Intent::Attributes { changes }).await?;
            }
            AttributesOf::Nas => {
                // From what they are now to what is durable, one at a time.
                let _turn = self.setting.lock().await;
                let settings = || self.settings.lock().unwrap_or_else(PoisonError::into_inner);
                let now = settings().clone();
                let next = now.changed(&changes, notes, id, self.clock.now())?;
                if next != now {
                    self.store.put_attributes(&next).await?;
                    *settings() = next;
                    for (name, value) in &changes {
                        tracing::info!("{name} is {}", value.as_deref().unwrap_or("not set any more"));
                    }
                    self.look_again();
                }
            }
        }
        self.attributes(of)
    }

    /// What counts has changed: every volume's actor looks again.
    fn look_again(self: &Arc<Self>) {
        let awake: Vec<VolumeId> = self.entries().iter().filter(|(_, e)| e.asleep.is_none()).map(|(id, _)| *id).collect();
        self.nudge(&awake);
    }

    /// Has these volumes' actors look again.
    pub(super) fn nudge(self: &Arc<Self>, volumes: &[VolumeId]) {
        for volume in volumes {
            if let Some((mailbox, _)) = self.wake(*volume) {
                let _ = mailbox.send(Mail::Look);
            }
        }
    }

    /// A volume has no transfer and wants none: whose turn it is now may begin.
    pub(super) fn leave_the_line(self: &Arc<Self>, volume: VolumeId) {
        if self.turns.leave(volume) {
            self.nudge(&self.turns.next(self.sync_workers()));
        }
    }
}
