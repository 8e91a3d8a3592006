//! By what our things are known on the kernel plane, whatever their names.
//!
//! | thing | mark |
//! |---|---|
//! | zvol | user property `img-storage:volume`; of an overlay also `img-storage:epoch`, of a local copy `img-storage:receives`; `img-storage:noted` |
//! | snapshot | its name, `IMG-STORAGE-<uuid>`, and our hold on it; user property `img-storage:taken` where it was taken |
//! | target | its name, [`img_storage_model::nas::kernel::iqn`] |
//! | backstore | its name, `img-storage-<volume>-e<epoch>` |
//! | disk | its serial number, `<volume>e<epoch>` |
//! | device-mapper device | its UUID, `IMG-STORAGE-<volume>-e<epoch>` |

use super::{
    fault, until,
    zfs::{Look, PASSING, SnapshotFacts, Zfs, Zvol},
};
use crate::HostError;
use img_storage_model::{Dataset, Epoch, SnapshotId, VolumeId, snapshot::Snapshot};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What the names of all our targets begin with.
pub const TARGETS: &str = "iqn.2026-11.org.img-storage:";
/// What the names of all our backstores begin with.
pub const BACKSTORES: &str = "img-storage-";
/// What the UUIDs of all our device-mapper devices begin with.
pub const DEVICES: &str = "IMG-STORAGE-";
/// The tag of our holds.
pub const HOLD: &str = "img-storage";
/// The property that says of which epoch an overlay is.
pub const EPOCH: &str = "img-storage:epoch";
/// The property that says of which epoch a local zvol takes streams.
pub const RECEIVES: &str = "img-storage:receives";
/// What that is where it takes none, as where it is not there.
pub const NOBODY: &str = "none";

/// The property that says that a zvol, as far as ZFS counted `BYTES` as written since the snapshot of this identity, had nothing written to
/// it: `GUID:BYTES`. Whatever is written, ZFS counts more from then on.
pub const NOTED: &str = "img-storage:noted";

/// The properties to look at besides the volume's.
pub fn zfs() -> Zfs {
    Zfs::new([EPOCH, RECEIVES, NOTED])
}

/// The backstore of a volume's export.
pub fn backstore(volume: VolumeId, epoch: Epoch) -> String {
    format!("{BACKSTORES}{}-e{epoch}", volume.0.simple())
}

/// The UUID of a guest's device.
pub fn device(volume: VolumeId, epoch: Epoch) -> String {
    format!("{DEVICES}{}-e{epoch}", volume.0.simple())
}

/// The epoch at the end of a name of ours.
pub fn epoch(name: &str) -> Option<Epoch> {
    let (_, digits) = name.rsplit_once('e')?;
    (!digits.is_empty()).then(|| digits.parse().ok().map(Epoch)).flatten()
}

/// The volume in a name of ours, before its epoch.
pub fn volume(name: &str) -> Option<VolumeId> {
    let (rest, _) = name.rsplit_once('e')?;
    let rest = rest.strip_suffix(['.', '-'])?;
    let id = rest.get(rest.len().checked_sub(32)?..)?;
    id.parse().ok().map(VolumeId)
}

/// An epoch in a property of a zvol.
pub fn epoch_in(zvol: &Zvol, property: &str) -> Option<Epoch> {
    zvol.marks.get(property)?.parse().ok().map(Epoch)
}

/// How long a zvol may be there without its mark: `zfs receive` makes it first, and then sets its properties.
const MARKED: Duration = Duration::from_secs(5);

/// A zvol of ours: nothing where there is none.
///
/// # Errors
/// When it cannot be told, and when what has the name is not the volume's.
pub async fn ours(zfs: &Zfs, name: &Dataset, volume: VolumeId) -> Result<Option<Look>, HostError> {
    let [found] = look(zfs, [name]).await?;
    of(found, volume)
}

/// Looks at zvols, which may be somebody else's; see [`of`].
///
/// # Errors
/// When it cannot be told.
pub async fn look<const N: usize>(zfs: &Zfs, names: [&Dataset; N]) -> Result<[Option<Look>; N], HostError> {
    let begun = Instant::now();
    loop {
        let found = zfs.look(names).await?;
        if begun.elapsed() >= MARKED || found.iter().flatten().all(|look| look.zvol.volume().is_some()) {
            return Ok(found);
        }
        sleep(MARKED / 10).await;
    }
}

/// What was found, when it is the volume's.
///
/// # Errors
/// When it is not.
pub fn of(found: Option<Look>, volume: VolumeId) -> Result<Option<Look>, HostError> {
    match found {
        Some(look) if look.zvol.volume() != Some(&volume.to_string()) => Err(fault(
            format_args!("the zvol {} is not of this volume", look.zvol.name),
            look.zvol
                .volume()
                .map_or_else(|| "it has no mark of ours".to_owned(), |id| format!("its mark names the volume {id}")),
            "it is left alone; rename it, or give the volume another name",
        )),
        found => Ok(found),
    }
}

/// A snapshot of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Which.
    pub snapshot: Snapshot,
    /// Somebody holds it.
    pub held: bool,
    /// It was taken on this host, and did not come in a stream.
    pub taken: bool,
}

impl Point {
    /// It came in a stream, so that the other side had it. One that was taken here before there was a mark for that is held, and is not
    /// taken for one that came: it may be the only one.
    pub fn received(self) -> bool {
        !self.taken && !self.held
    }
}

/// What is there of snapshots: ours, oldest first, and whether somebody else's is newer than all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Points {
    /// Ours.
    pub ours: Vec<Point>,
    /// The newest of somebody else that is newer than ours.
    pub foreign: Option<String>,
}

/// Sorts a zvol's snapshots, which come oldest first.
pub fn points(all: &[SnapshotFacts]) -> Points {
    let mut points = Points::default();
    for found in all {
        match found.name.name().parse::<SnapshotId>() {
            Ok(id) => {
                let snapshot = Snapshot { id, guid: found.guid.0 };
                points.ours.push(Point { snapshot, held: found.holds > 0, taken: found.taken });
                points.foreign = None;
            }
            Err(_) => points.foreign = Some(found.name.name().to_owned()),
        }
    }
    points
}

/// What was written to a zvol since the newest of our snapshots: ZFS counts from the newest of anybody. Nothing, where it was noted ([`NOTED`]) that
/// it was nothing.
///
/// # Errors
/// When it cannot be told.
pub async fn written(zfs: &Zfs, zvol: &Zvol, points: &Points) -> Result<u64, HostError> {
    let newest = points.ours.last();
    let counted = match (&points.foreign, newest) {
        (Some(_), Some(newest)) => zfs.written_since(&at(&zvol.name, newest.snapshot.id)?).await?,
        // Without one of ours everything counts.
        (Some(_), None) => zvol.referenced,
        (None, _) => zvol.written,
    };
    let noted = newest.is_some_and(|newest| zvol.marks.get(NOTED) == Some(&note(newest.snapshot, counted)));
    Ok(if noted { 0 } else { counted })
}

/// What [`NOTED`] is when ZFS counts so many bytes as written since a snapshot.
fn note(since: Snapshot, counted: u64) -> String {
    format!("{}:{counted}", since.guid)
}

/// Bytes that ZFS may count as written although nothing of what a zvol holds was changed: what it notes about the log of a zvol, a block
/// of up to 4 KiB, several times, on disks whose blocks may be as large. In the lab it is 1 KiB after a power cut. ZFS does not hold that against
/// a stream either (`dsl_dataset_modified_since_snap` in `module/zfs/dsl_dataset.c` of OpenZFS), and does not tell.
const BOOKKEEPING: u64 = 64 << 10;

/// Whether all that ZFS counts in [`written`] is bookkeeping, where it is shown to be so or not to be. Of a zvol that is in use that cannot be told;
/// whoever has it open in passing is given `patience`.
pub async fn unchanged(zfs: &Zfs, zvol: &Dataset, newest: Option<SnapshotId>, counted: u64, patience: Duration) -> Option<bool> {
    let newest = newest.and_then(|newest| at(zvol, newest).ok()).filter(|_| counted > 0)?;
    if counted > BOOKKEEPING {
        return Some(false);
    }
    until(patience, || async { Ok(zfs.is_as(&newest).await) }).await.ok().flatten()
}

/// Notes on a zvol that nothing was written to it since its newest snapshot, where ZFS counts something and that is shown; says whether nothing
/// counts now.
///
/// # Errors
/// When it cannot be looked at, or noted.
pub async fn settle(zfs: &Zfs, name: &Dataset, volume: VolumeId) -> Result<bool, HostError> {
    let Some(Look { zvol, snapshots }) = ours(zfs, name, volume).await? else { return Ok(true) };
    let points = points(&snapshots);
    let counted = written(zfs, &zvol, &points).await?;
    match points.ours.last().map(|newest| newest.snapshot) {
        _ if counted == 0 => Ok(true),
        Some(newest) if unchanged(zfs, name, Some(newest.id), counted, PASSING).await == Some(true) => {
            zfs.set(name, NOTED, &note(newest, counted)).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// A snapshot of ours by name.
///
/// # Errors
/// When the zvol's name leaves no room for it.
pub fn at(zvol: &Dataset, id: SnapshotId) -> Result<img_storage_model::Snapshot, HostError> {
    zvol.at(&id.to_string()).map_err(|why| HostError(why.to_string()))
}

/// Takes a snapshot and holds it.
///
/// # Errors
/// When it is not there, held, afterwards.
pub async fn take(zfs: &Zfs, zvol: &Dataset, id: SnapshotId) -> Result<(), HostError> {
    let name = at(zvol, id)?;
    zfs.snapshot(&name).await?;
    zfs.hold(&name, HOLD).await
}

/// Takes our hold away and destroys a snapshot; nothing to do where there is none.
///
/// # Errors
/// When it is still there.
pub async fn give_up(zfs: &Zfs, zvol: &Dataset, id: SnapshotId, volume: VolumeId) -> Result<(), HostError> {
    zfs.destroy_snapshot(&at(zvol, id)?, &volume.to_string(), HOLD).await
}

/// A length in whole blocks of a zvol.
pub fn whole_blocks(size: u64) -> u64 {
    size.next_multiple_of(16 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_storage_model::Guid;
    use uuid::Uuid;

    #[test]
    fn names_carry_the_epoch() {
        let volume = VolumeId(Uuid::from_u128(0xeee));
        let iqn = img_storage_model::nas::kernel::iqn("Nas-0-0", volume, Epoch(17));
        assert!(iqn.starts_with(TARGETS) && !iqn.chars().any(char::is_uppercase), "{iqn}");
        for name in [iqn, backstore(volume, Epoch(17)), device(volume, Epoch(17))] {
            assert_eq!((epoch(&name), super::volume(&name)), (Some(Epoch(17)), Some(volume)), "{name}");
        }
        assert_eq!(epoch("iqn.2026-11.org.img-storage:nas.0123e"), None);
        for short in ["iqn.2026-11.org.img-storage:nas.0123.e1", "e1", "", ".e1", "ééééééééééééééééé-e1"] {
            assert_eq!(super::volume(short), None, "{short}");
        }
    }

    #[test]
    fn a_snapshot_of_somebody_else_counts_only_when_it_is_newer() {
        let of = Dataset::new("tank/vol1").unwrap();
        let found = |name: &str, guid, holds| SnapshotFacts {
            name: of.at(name).unwrap(),
            guid: Guid(guid),
            created_txg: guid,
            holds,
            written: 0,
            referenced: 0,
            taken: true,
        };
        let id = SnapshotId(Uuid::from_u128(5));
        let ours = id.to_string();
        let all = [found("hourly-1", 1, 0), found(&ours, 2, 1), found("hourly-2", 3, 0)];
        assert_eq!(points(&all).foreign.as_deref(), Some("hourly-2"));
        let ours = vec![Point { snapshot: Snapshot { id, guid: 2 }, held: true, taken: true }];
        assert_eq!(points(&all[..2]), Points { ours, foreign: None });
        for (held, taken, received) in [(false, false, true), (true, false, false), (false, true, false), (true, true, false)] {
            assert_eq!(Point { snapshot: Snapshot { id, guid: 2 }, held, taken }.received(), received, "{held} {taken}");
        }
    }
}
