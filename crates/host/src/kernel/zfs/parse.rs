//! What `zfs` and `zpool` print with `-Hp`: tabs between fields, numbers whole, `-` for what there is not.

use super::{Allowed, OURS, Pool, Room, SnapshotFacts, Zvol};
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

/// Lines of `zfs get -o name,property,value,source`. Zvols whose names are none of ours are left out; they cannot be ours.
pub(super) fn volumes(text: &str) -> Result<Vec<Zvol>, String> {
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
    Ok(Zvol {
        size: may("volsize")?,
        block_size: may("volblocksize")?,
        used: must("used")?,
        referenced: must("referenced")?,
        written: may("written")?.unwrap_or_default(),
        guid: Guid(must("guid")?),
        created_txg: must("createtxg")?,
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
        });
    }
    found.sort_by_key(|snapshot| snapshot.created_txg);
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
            let mut permissions: Vec<String> = permissions.split(',').map(str::to_owned).collect();
            permissions.sort_unstable();
            found.push(Allowed { who: who.join(" "), on: on.clone(), permissions });
        }
    }
    found
}
