//! Everything about a few zvols at one moment, by one call.
//!
//! A daemon looks before and after each of its steps, and every start of `zfs` costs; with one for each question most of a switch
//! was spent asking. So the kernel is asked by a channel program (zfs-program(8)), which reads all of it under one lock: what is told of
//! the zvols and of their snapshots belongs together, and that there is no zvol is an answer, not a failure to be told from others.
//! It is read-only (`-n`), and for root alone; where it cannot be run, the questions are asked one by one.

use super::{LOOK, OURS, SnapshotFacts, Zfs, Zvol, parse, unreadable};
use crate::{HostError, exec};
use img_storage_model::Dataset;
use serde::Deserialize;
use std::collections::BTreeMap;

/// A zvol with its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// It.
    pub zvol: Zvol,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotFacts>,
}

/// Native properties of a zvol, see [`Zvol`].
pub(super) const NATIVE: [&str; 9] =
    ["volsize", "volblocksize", "used", "referenced", "written", "guid", "createtxg", "refreservation", "receive_resume_token"];
/// Those of a snapshot, see [`SnapshotFacts`].
const OF_SNAPSHOTS: [&str; 5] = ["guid", "createtxg", "userrefs", "written", "referenced"];

/// What the program returns.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    seen: BTreeMap<String, Seen>,
}

/// One dataset. Numbers are the kernel's, which has 64 bits with a sign; user properties are there only when set on itself.
#[derive(Debug, Deserialize)]
pub(super) struct Seen {
    pub(super) kind: String,
    pub(super) properties: BTreeMap<String, Value>,
    #[serde(default)]
    pub(super) snapshots: BTreeMap<String, BTreeMap<String, Value>>,
}

/// A property.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Value {
    Number(i64),
    Text(String),
}

impl Zfs {
    /// Looks at these zvols, which lie in one pool: nothing for each that is not there.
    ///
    /// # Errors
    /// When it cannot be told, and when a name is a file system's.
    pub async fn look<const N: usize>(&self, names: [&Dataset; N]) -> Result<[Option<Look>; N], HostError> {
        if rustix::process::geteuid().is_root() {
            match self.at_once(names).await {
                Ok(found) => return Ok(found),
                Err(error) => tracing::debug!(%error, "ZFS is asked one by one"),
            }
        }
        let mut found = [const { None }; N];
        for (place, name) in found.iter_mut().zip(names) {
            if let Some(zvol) = self.volume(name).await? {
                *place = self.snapshots(name).await?.map(|snapshots| Look { zvol, snapshots });
            }
        }
        Ok(found)
    }

    async fn at_once<const N: usize>(&self, names: [&Dataset; N]) -> Result<[Option<Look>; N], HostError> {
        let Some(pool) = names.first().and_then(|name| name.as_str().split('/').next()) else { return Ok([const { None }; N]) };
        let mut args = vec!["program", "-n", "-j", pool, "-"];
        args.extend(names.iter().map(|name| name.as_str()));
        let output = exec::run_with_input(&self.zfs, &args, self.program().as_bytes(), LOOK).await;
        let text = super::output(output)?;
        let what = || names.map(Dataset::as_str).join(" and ");
        let Answer { seen } = serde_json::from_str(&text).map_err(|why| unreadable(what(), &why.to_string()))?;
        let mut found = [const { None }; N];
        for (place, name) in found.iter_mut().zip(names) {
            if let Some(seen) = seen.get(name.as_str()) {
                *place = Some(parse::look(name, seen).map_err(|why| unreadable(name, &why))?);
            }
        }
        Ok(found)
    }

    /// The program. Its arguments are the zvols; what it returns is [`Answer`].
    fn program(&self) -> String {
        let list = |words: &mut dyn Iterator<Item = &str>| words.map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(",");
        let marks = self.marks.iter().map(String::as_str).filter(|mark| mark.starts_with(OURS));
        format!(
            "local native, marks, snapshot = {{{}}}, {{{}}}, {{{}}}\n{PROGRAM}",
            list(&mut NATIVE.into_iter()),
            list(&mut marks.into_iter()),
            list(&mut OF_SNAPSHOTS.into_iter())
        )
    }
}

/// What a property has no value of is nil, and is left out of a table.
const PROGRAM: &str = r#"
local function values(of, names)
  local found = {}
  for _, name in ipairs(names) do
    found[name] = (zfs.get_prop(of, name))
  end
  return found
end

local seen = {}
for _, name in ipairs((...)["argv"]) do
  if zfs.exists(name) then
    local one = { kind = (zfs.get_prop(name, "type")), properties = values(name, native), snapshots = {} }
    for _, mark in ipairs(marks) do
      local value, set_on = zfs.get_prop(name, mark)
      if set_on == name then
        one.properties[mark] = value
      end
    end
    for taken in zfs.list.snapshots(name) do
      one.snapshots[taken] = values(taken, snapshot)
    end
    seen[name] = one
  end
end
return seen
"#;
