//! Room in the pool for every block of a zvol.

use super::{CHANGE, LOOK, Zfs, change::our, unreadable};
use crate::HostError;
use img_storage_model::Dataset;

impl Zfs {
    /// Gives every block of a zvol its place, and sets a user property of ours by the same start of `zfs`; where that fails, it may have set the one
    /// and not the other.
    ///
    /// Room is looked for first: where `zfs set refreservation=auto` finds none, it sets the size that the zvol has anew, which is a
    /// write, and the zvol receives nothing any more until it is rolled back (ZFS 2.1, `zfs_prop_set_list`).
    ///
    /// # Errors
    /// When the pool has no room for it; nothing is changed then, but in the moment between looking and setting.
    pub async fn reserve(&self, name: &Dataset, mark: Option<(&str, &str)>) -> Result<(), HostError> {
        let place = self.place(name).await?;
        let missing = place.size.saturating_sub(place.written).saturating_sub(place.available);
        if !holds_all(place.reserved, place.size) && missing > 0 {
            return Err(HostError(format!(
                "the pool of {name} lacks {missing} bytes of room for all that a guest may write to it; make room there"
            )));
        }
        let mark = mark.map(|(property, value)| our(property).map(|property| format!("{property}={value}"))).transpose()?;
        // `auto` counts the metadata in.
        let mut args = vec!["set", "refreservation=auto"];
        args.extend(mark.as_deref());
        args.push(name.as_str());
        let Err(error) = self.run(&args, CHANGE).await else { return Ok(()) };
        let place = self.place(name).await?;
        if mark.is_none() && holds_all(place.reserved, place.size) { Ok(()) } else { Err(error) }
    }

    /// Lets others have the room that a zvol does not use.
    ///
    /// # Errors
    /// When that was not done.
    pub async fn unreserve(&self, name: &Dataset) -> Result<(), HostError> {
        self.run(&["set", "refreservation=none", name.as_str()], CHANGE).await.map(drop)
    }

    async fn place(&self, name: &Dataset) -> Result<Place, HostError> {
        let fields = "volsize,refreservation,written,available";
        let lines = self.run(&["get", "-Hp", "-o", "value", fields, name.as_str()], LOOK).await?;
        place(&lines).ok_or_else(|| unreadable(format_args!("the room of {name}"), &lines))
    }
}

/// What a zvol has and may have, in bytes.
struct Place {
    size: u64,
    reserved: u64,
    /// Since its newest snapshot: what that holds is no room for the guest's writes.
    written: u64,
    available: u64,
}

/// Whether a reservation has room for every block of a zvol, so that no write to it can meet a full pool.
pub(super) fn holds_all(reserved: u64, size: u64) -> bool {
    size > 0 && reserved >= size
}

/// Four values, a line each; no reservation is `0` or `none`.
fn place(lines: &str) -> Option<Place> {
    let mut lines = lines.lines().map(str::trim);
    let mut number = || lines.next().and_then(|line| if line == "none" { Some(0) } else { line.parse().ok() });
    Some(Place { size: number()?, reserved: number()?, written: number()?, available: number()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_read() {
        assert!(place("67108864\n0\n24576\n").is_none(), "a value is missing");
        let read = place("67108864\nnone\n24576\n7795113984\n").unwrap();
        assert_eq!((read.size, read.reserved, read.written, read.available), (67_108_864, 0, 24_576, 7_795_113_984));
        assert!(!holds_all(0, 67_108_864) && holds_all(71_327_744, 67_108_864) && !holds_all(0, 0));
        assert!(place("67108864\n-\n24576\n7795113984\n").is_none());
    }
}
