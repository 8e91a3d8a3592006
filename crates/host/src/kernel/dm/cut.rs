//! Taking a device away from who does not let go of it.

use super::{CHANGE, Dm};
use crate::HostError;

impl Dm {
    /// Cuts a device off: from now on every read and write of who has it open fails, its name is free, and it goes when it is
    /// closed. Nothing to do when it is not there.
    ///
    /// # Errors
    /// When it is still there under its name.
    pub async fn cut_off(&self, name: &str) -> Result<(), HostError> {
        let Some(state) = self.find(name).await? else { return Ok(()) };
        // What waits on it is let go, into errors.
        self.run(&["wipe_table", "--noudevrules", "--noudevsync", name], CHANGE).await?;
        let aside = format!("{}.cut", state.uuid);
        self.run(&["rename", "--noudevrules", "--noudevsync", name, &aside], CHANGE).await?;
        self.run(&["remove", "--deferred", "--noudevrules", "--noudevsync", &aside], CHANGE).await?;
        match self.find(name).await? {
            None => Ok(()),
            Some(_) => Err(HostError(format!("the device {name} was cut off, but is still there under its name"))),
        }
    }
}
