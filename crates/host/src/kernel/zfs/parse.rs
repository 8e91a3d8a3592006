//! What `zfs` and `zpool` print with `-Hp`: tabs between fields, numbers whole, `-` for what there is not.

use super::{Allowed, Look, OURS, Pool, Room, SnapshotFacts, TAKEN, Zvol};
use img_storage_model::{Dataset, Guid, Snapshot};
use std::collections::BTreeMap;

/// The properties of one dataset: value and source by name.
type Properties<'a> = BTreeMap<&'a str, (&'a str, &'a str)>;

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn fields<const N: usize>(line: &str) -> Result<[&str; N], String> {
    let words: Vec<&str> = line.splitn(N, '\t').collect();
    words.try_into().map_err(|_| format!("{line:?} does not have {N} fields"))
}

/// Lines of `zpool list -o size,allocated,free,health,readonly,name`. A pool that is faulted has no numbers.
pub(super) fn pools(text: &str) -> Result<Vec<Pool>, String> {
    let or_none = |text: &str| if text == "-" { Ok(0) } else { number(text) };
    let pool = |line: &str| {
        let [size, allocated, free, health, read_only, name] = fields(line)?;
        Ok(Pool {
            name: name.to_owned(),
            size: or_none(size)?,
            allocated: or_none(allocated)?,
            free: or_none(free)?,
            health: health.to_owned(),
            read_only: read_only == "on",
        })
    };
    text.lines().map(pool).collect()
}

/// The line of `zfs list -o used,available`.
pub(super) fn room(text: &str) -> Result<Room, String> {
    let [used, available] = fields(text.trim_end_matches('\n'))?;
    Ok(Room { used: number(used)?, available: number(available)? })
}

/// The properties of each dataset, in the order of the lines.
fn by_name(text: &str) -> Result<Vec<(&str, Properties<'_>)>, String> {
    let mut found: Vec<(&str, Properties)> = Vec::new();
    for line in text.lines() {
        let [name, property, value, source] = fields(line)?;
        if found.last().is_none_or(|(last, _)| *last != name) {
            found.push((name, BTreeMap::new()));
        }
        if let Some((_, properties)) = found.last_mut() {
            properties.insert(property, (value, source));
        }
    }
    Ok(found)
}

/// Lines of `zfs get -o name,property,value,source`. Zvols whose names are none of ours are left out; they cannot be ours.
pub(super) fn volumes(text: &str) -> Result<Vec<Zvol>, String> {
    let found = by_name(text)?;
    let ours = found.into_iter().filter_map(|(name, properties)| Some((Dataset::new(name).ok()?, properties)));
    ours.map(|(name, properties)| volume(name, &properties)).collect()
}

fn volume(name: Dataset, properties: &Properties) -> Result<Zvol, String> {
    let value = |property: &str| match properties.get(property) {
        Some(("-", _)) | None => None,
        Some((value, _)) => Some(*value),
    };
    let must = |property: &str| number(value(property).ok_or_else(|| format!("{name} has no {property}"))?);
    let may = |property: &str| value(property).map(number).transpose();
    let own = properties.iter().filter(|(key, (value, source))| key.starts_with(OURS) && *source == "local" && *value != "-");
    // While a first stream is not complete the geometry is shown as 0 bytes, by default, in blocks that may not be those.
    let size = may("volsize")?.filter(|size| *size > 0);
    Ok(Zvol {
        block_size: may("volblocksize")?.filter(|_| size.is_some()),
        size,
        used: must("used")?,
        referenced: must("referenced")?,
        written: must("written")?,
        guid: Guid(must("guid")?),
        created_txg: must("createtxg")?,
        reserved: value("refreservation").filter(|none| *none != "none").map(number).transpose()?.unwrap_or_default(),
        resume_token: value("receive_resume_token").map(str::to_owned),
        marks: own.map(|(key, (value, _))| ((*key).to_owned(), (*value).to_owned())).collect(),
        name,
    })
}

/// Lines of `zfs list -t snapshot -o guid,createtxg,userrefs,written,referenced,name`. Snapshots whose names are none of ours are left out.
pub(super) fn snapshots(text: &str) -> Result<Vec<SnapshotFacts>, String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let [guid, created_txg, holds, written, referenced, name] = fields(line)?;
        let Ok(name) = Snapshot::new(name) else { continue };
        found.push(SnapshotFacts {
            name,
            guid: Guid(number(guid)?),
            created_txg: number(created_txg)?,
            holds: number(holds)?,
            written: number(written)?,
            referenced: number(referenced)?,
            taken: false,
        });
    }
    found.sort_by_key(|snapshot| snapshot.created_txg);
    Ok(found)
}

/// Lines of `zfs get -d 1 -t volume,snapshot -o name,property,value,source`: zvols, and their snapshots. What has no name of ours is left out.
pub(super) fn looks(text: &str) -> Result<BTreeMap<Dataset, Look>, String> {
    let mut found = BTreeMap::new();
    let mut taken: BTreeMap<Dataset, Vec<SnapshotFacts>> = BTreeMap::new();
    for (name, properties) in by_name(text)? {
        if let Ok(name) = Dataset::new(name) {
            found.insert(name.clone(), Look { zvol: volume(name, &properties)?, snapshots: Vec::new() });
        } else if let Ok(name) = Snapshot::new(name) {
            let must = |property: &str| match properties.get(property) {
                Some((value, _)) => number(value),
                None => Err(format!("{name} has no {property}")),
            };
            taken.entry(name.dataset().clone()).or_default().push(SnapshotFacts {
                guid: Guid(must("guid")?),
                created_txg: must("createtxg")?,
                holds: must("userrefs")?,
                written: must("written")?,
                referenced: must("referenced")?,
                taken: properties.get(TAKEN).is_some_and(|(_, source)| *source == "local"),
                name: name.clone(),
            });
        }
    }
    for (of, mut snapshots) in taken {
        snapshots.sort_by_key(|snapshot| snapshot.created_txg);
        found.get_mut(&of).ok_or_else(|| format!("there are snapshots of {of} without it"))?.snapshots = snapshots;
    }
    Ok(found)
}

/// Lines of `zfs holds -H`: snapshot, tag, when.
pub(super) fn holds(text: &str) -> Result<Vec<String>, String> {
    text.lines().map(|line| fields::<3>(line).map(|[_, tag, _]| tag.to_owned())).collect()
}

/// What `zfs allow` prints, which is for people: headings with the dataset, then lines of who and what.
pub(super) fn allowed(text: &str) -> Vec<Allowed> {
    let mut on = None;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("---- Permissions on ") {
            on = heading.split(' ').next().and_then(|name| Dataset::new(name).ok());
        } else if let (Some(on), true) = (&on, line.starts_with('\t')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some((permissions, who)) = words.split_last() else { continue };
            // Permission sets are listed as `@NAME what,…`, as if the set were somebody.
            let mut permissions: Vec<String> = permissions.split(',').map(str::to_owned).collect();
            permissions.sort_unstable();
            found.push(Allowed { who: who.join(" "), on: on.clone(), permissions });
        }
    }
    found
}

/// Whether a stream has nothing but its first and its last record.
///
/// Source: `dmu_replay_record` in `include/sys/zfs_ioctl.h` of OpenZFS. A record has 312 bytes, and in its first four what it is, in the byte order
/// of the host.
pub fn changes_nothing(stream: &[u8]) -> bool {
    const RECORD: usize = 312;
    const BEGIN: u32 = 0;
    const END: u32 = 5;
    let what = |at: usize| stream.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    stream.len() == 2 * RECORD && what(0) == Some(BEGIN) && what(RECORD) == Some(END)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::zfs::VOLUME;

    macro_rules! transcript {
        ($name:literal) => {
            include_str!(concat!("../../../tests/transcripts/", $name))
        };
    }

    #[test]
    fn a_whole_and_a_partly_received_zvol() {
        let found = volumes(transcript!("zfs-get-volumes.tsv")).unwrap();
        let [whole, partial] = &found[..] else { panic!("{found:?}") };
        assert_eq!((whole.size, whole.block_size, whole.written), (Some(64 << 20), Some(16 << 10), 0));
        assert_eq!((whole.guid, whole.created_txg, &whole.resume_token), (Guid(14_306_728_464_854_068_431), 136, &None));
        assert_eq!(whole.volume(), Some("00000000-0000-0000-0000-000000000007"));
        // ZFS shows defaults for what has not arrived, which are not what it will be.
        assert_eq!((partial.size, partial.block_size), (None, None));
        assert!(partial.resume_token.as_ref().is_some_and(|token| token.starts_with("1-10c3f95b31-")));
        assert_eq!(partial.volume(), whole.volume(), "the mark is there before the data");
    }

    #[test]
    fn zvols_come_with_their_snapshots() {
        let found = looks(transcript!("zfs-get-looks.tsv")).unwrap();
        let [whole, partial] = &found.values().collect::<Vec<_>>()[..] else { panic!("{found:?}") };
        assert_eq!(whole.zvol.name.as_str(), "loc/img/c1");
        assert!(whole.zvol.is_reserved() && whole.zvol.written > 1 << 20, "{:?}", whole.zvol);
        let names: Vec<&str> = whole.snapshots.iter().map(|found| found.name.name()).collect();
        assert_eq!(names, ["IMG-STORAGE-00000000-0000-0000-0000-000000000001", "daily"]);
        assert_eq!(whole.snapshots.iter().map(|found| found.holds).collect::<Vec<_>>(), [1, 0]);
        assert!(whole.snapshots[0].taken && !whole.snapshots[1].taken, "a mark that is inherited is none");
        assert!(whole.snapshots[0].written > 16 << 20 && whole.snapshots[1].written == 0);
        assert!(partial.zvol.size.is_none() && !partial.zvol.is_reserved() && partial.snapshots.is_empty());
        assert_eq!(partial.zvol.marks.get("img-storage:receives").map(String::as_str), Some("3"));
        // That nothing was written is never concluded from not knowing.
        for lost in ["c1\twritten", "c1@daily\tguid", "c1@daily\twritten"] {
            let text: String =
                transcript!("zfs-get-looks.tsv").lines().filter(|line| !line.contains(lost)).map(|l| format!("{l}\n")).collect();
            assert!(looks(&text).is_err(), "{lost}");
        }
        assert!(looks(&transcript!("zfs-get-looks.tsv").replace("c1\twritten\t", "c1\twritten\t-")).is_err());
    }

    #[test]
    fn an_inherited_mark_is_none() {
        let text = transcript!("zfs-get-volumes.tsv").replace("000007\tlocal", "000007\tinherited from loc");
        let found = volumes(&text).unwrap();
        assert!(found.iter().all(|volume| volume.volume().is_none() && !volume.marks.contains_key(VOLUME)));
    }

    #[test]
    fn snapshots_come_oldest_first() {
        let text = transcript!("zfs-list-snapshots.tsv");
        let reversed: String = text.lines().rev().map(|line| format!("{line}\n")).collect();
        for text in [text, &reversed] {
            let found = snapshots(text).unwrap();
            let names: Vec<&str> = found.iter().map(|snapshot| snapshot.name.name()).collect();
            assert_eq!((names, found[0].guid), (vec!["s1", "s4"], Guid(4_356_989_797_048_985_755)));
        }
    }

    #[test]
    fn pools_and_rights() {
        let found = pools(transcript!("zpool-list.tsv")).unwrap();
        assert_eq!((found[0].name.as_str(), found[0].size, found[0].health.as_str()), ("tank", 8_053_063_680, "ONLINE"));
        assert_eq!(pools("-\t-\t-\tFAULTED\t-\tbroken\n").unwrap()[0].health, "FAULTED");
        let rights = allowed(transcript!("zfs-allow.txt"));
        let named: Vec<(&str, &str, usize)> =
            rights.iter().map(|right| (right.who.as_str(), right.on.as_str(), right.permissions.len())).collect();
        let expected = [
            ("user img-storage", "loc/img", 10),
            ("everyone", "loc/img", 1),
            ("@streams", "loc", 2),
            ("user img-storage", "loc", 2),
        ];
        assert_eq!(named, expected);
    }

    #[test]
    fn what_is_no_answer_is_no_absence() {
        for bad in ["tank/v1", "tank/v1\tvolsize\t1", "tank/v1\tguid\tx\t-\n"] {
            assert!(volumes(bad).is_err(), "{bad:?}");
        }
        assert!(snapshots("1\t2\ttank/v1@s1").is_err() && room("1").is_err() && pools("x\ty").is_err());
        assert_eq!(volumes(""), Ok(Vec::new()));
    }

    #[test]
    fn a_stream_without_changes() {
        let nothing = include_bytes!("../../../tests/transcripts/zfs-send-nothing.bin");
        let changes = include_bytes!("../../../tests/transcripts/zfs-send-changes.bin");
        assert!(changes_nothing(nothing));
        assert!(!changes_nothing(changes));
        assert!(!changes_nothing(&changes[..nothing.len()]), "as long, and with other records");
        assert!(!changes_nothing(&nothing[..nothing.len() - 1]) && !changes_nothing(&[]), "cut off");
    }
}
