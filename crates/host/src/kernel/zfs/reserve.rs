//! Room in the pool for every block of a zvol.

use super::{CHANGE, LOOK, Zfs};
use crate::HostError;
use img_storage_model::Dataset;

impl Zfs {
    /// Whether every block of a zvol has its place, so that no write to it can meet a full pool.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn is_reserved(&self, name: &Dataset) -> Result<bool, HostError> {
        let lines = self.run(&["get", "-Hp", "-o", "value", "volsize,refreservation", name.as_str()], LOOK).await?;
        let mut numbers = lines.lines().map(|line| line.trim().parse::<u64>().unwrap_or(0));
        let (size, reserved) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Ok(size > 0 && reserved >= size)
    }

    /// Gives every block of a zvol its place.
    ///
    /// # Errors
    /// When the pool has no room for it; nothing is changed then.
    pub async fn reserve(&self, name: &Dataset) -> Result<(), HostError> {
        // `auto` counts the metadata in.
        let done = self.run(&["set", "refreservation=auto", name.as_str()], CHANGE).await;
        if self.is_reserved(name).await? {
            return Ok(());
        }
        Err(done.err().unwrap_or_else(|| HostError(format!("{name} has no reservation; somebody takes it away"))))
    }

    /// Lets others have the room that a zvol does not use.
    ///
    /// # Errors
    /// When it is reserved afterwards.
    pub async fn unreserve(&self, name: &Dataset) -> Result<(), HostError> {
        let done = self.run(&["set", "refreservation=none", name.as_str()], CHANGE).await;
        if self.is_reserved(name).await? {
            return Err(done.err().unwrap_or_else(|| HostError(format!("{name} is still reserved; somebody reserves it anew"))));
        }
        Ok(())
    }
}
