//! Everything about a few zvols, by one start of `zfs`.
//!
//! A daemon looks before and after most of its steps, and every start of `zfs` costs; with one for each question most of a switch
//! was spent asking. A channel program (zfs-program(8)) would tell as much at one moment, and absence as an answer; but the pool's history
//! keeps each of them, also of those that only read, so that is nothing to be done every few seconds.

use super::{FIELDS, LOOK, SnapshotFacts, TAKEN, Zfs, Zvol, parse, unreadable};
use crate::{HostError, exec};
use img_storage_model::Dataset;

/// A zvol with its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// It.
    pub zvol: Zvol,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotFacts>,
}

impl Zfs {
    /// Looks at these zvols, with their snapshots: nothing for each that is not there.
    ///
    /// # Errors
    /// When it cannot be told, and when a name is a file system's.
    pub async fn look<const N: usize>(&self, names: [&Dataset; N]) -> Result<[Option<Look>; N], HostError> {
        let properties = format!("{},userrefs,{TAKEN}", self.properties());
        let mut args = vec!["get", "-Hp", "-d", "1", "-t", "volume,snapshot", "-o", FIELDS, &properties];
        args.extend(names.iter().map(|name| name.as_str()));
        // It tells of what is there, also where it fails because something is not.
        let (asked, listed) = tokio::join!(exec::run_to_status(&self.zfs, &args, LOOK), async {
            // Of several some are not there most of the time.
            let place = if N > 1 { names.first().and_then(|name| name.parent()) } else { None };
            match place {
                Some(place) => self.children(&place).await.ok().map(|all| (place, all)),
                None => None,
            }
        });
        let (status, output) = asked.map_err(|error| HostError(error.to_string()))?;
        let what = || names.map(Dataset::as_str).join(" and ");
        let said = output.stderr.trim().to_owned();
        let lines = super::output(Ok(output))?;
        let mut seen = parse::looks(&lines).map_err(|why| unreadable(what(), &why))?;
        let found = names.map(|name| seen.remove(name));
        let missing: Vec<&Dataset> =
            names.into_iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(name, _)| name).collect();
        if let Some(there) = if status.success() { missing.first().copied() } else { self.any(&missing, listed).await? } {
            let why = if said.is_empty() { "it is no zvol but something else; img-storage leaves it alone" } else { &said };
            return Err(unreadable(there, why));
        }
        Ok(found)
    }

    /// The first of these that there is, whatever it is: what they would lie in is listed.
    async fn any<'d>(
        &self,
        names: &[&'d Dataset],
        listed: Option<(Dataset, Vec<String>)>,
    ) -> Result<Option<&'d Dataset>, HostError> {
        for name in names {
            let there = match &listed {
                Some((of, all)) if name.parent().as_ref() == Some(of) => all.iter().any(|line| line == name.as_str()),
                _ => self.exists(name).await?,
            };
            if there {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}
