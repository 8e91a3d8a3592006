//! Identities: of volumes, epochs, snapshots and requests.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// The identity of a volume; it outlives renames and is what our marks carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(pub Uuid);

impl FromStr for VolumeId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(VolumeId)
    }
}

/// Identity of one request of a front end (UUID v7): the answer to a repeated one is the stored answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub Uuid);

/// Counts the mappings of one volume. Whoever holds a lower epoch must stop touching the volume, and is locked out at
/// the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Epoch(self.0 + 1)
    }
}

/// A point in time of a volume, written `IMG-STORAGE-<uuid>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub Uuid);

const SNAPSHOT_PREFIX: &str = "IMG-STORAGE-";

/// Why a text is no [`SnapshotId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no snapshot name (IMG-STORAGE-<uuid>)")]
pub struct NoSnapshotName(String);

impl FromStr for SnapshotId {
    type Err = NoSnapshotName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix(SNAPSHOT_PREFIX)
            .and_then(|rest| Uuid::try_parse(rest).ok())
            .map(SnapshotId)
            .filter(|id| id.to_string() == text)
            .ok_or_else(|| NoSnapshotName(text.to_owned()))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SNAPSHOT_PREFIX}{}", self.0)
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! display_inner {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_inner!(VolumeId, RequestId, Epoch);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_names_round_trip_and_refuse_the_rest() {
        let id = SnapshotId(Uuid::from_u128(7));
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "IMG-STORAGE-",
            "IMG-STORAGE-x",
            "img-storage-00000000-0000-0000-0000-000000000007",
            "IMG-STORAGE-00000000000000000000000000000007",
        ] {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad}");
        }
    }
}
