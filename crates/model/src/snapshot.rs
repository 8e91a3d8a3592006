//! Snapshots of zvols, and which of them two sides have in common.

use crate::SnapshotId;
use serde::{Deserialize, Serialize};

/// A snapshot of ours, as ZFS shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name says `IMG-STORAGE-<id>`.
    pub id: SnapshotId,
    /// What ZFS gave its contents: two of one name are the same only when this is.
    pub guid: u64,
}

/// The newest snapshot that both sides have. Both lists are oldest first.
pub fn newest_common(here: &[Snapshot], there: &[Snapshot]) -> Option<Snapshot> {
    here.iter().rev().find(|snapshot| there.contains(snapshot)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_name_alone_is_no_common_snapshot() {
        let at = |id: u128, guid| Snapshot { id: SnapshotId(Uuid::from_u128(id)), guid };
        let here = [at(1, 11), at(2, 12), at(3, 13)];
        assert_eq!(newest_common(&here, &[at(1, 11), at(2, 12)]), Some(at(2, 12)));
        assert_eq!(newest_common(&here, &[at(1, 11), at(2, 99)]), Some(at(1, 11)));
        assert_eq!(newest_common(&here, &[at(3, 99)]), None);
        assert_eq!(newest_common(&[], &here), None);
    }
}
