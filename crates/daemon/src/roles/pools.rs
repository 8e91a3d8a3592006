//! The directory pools of a role, and the ledger that has to know what is in them.

use super::LOCAL_POOL;
use crate::{config::Config, layout::Layout, store::LEDGER};
use img_storage_host::qemu::pool::{self, PoolError};
use img_storage_model::{Fault, HostName, PoolName};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn unusable(error: PoolError) -> Fault {
    match error {
        PoolError::NotOurs { .. } => Fault::refused(error.to_string()).next("name an empty directory, or one that was this pool"),
        PoolError::Io { .. } => Fault::failed(error.to_string()).next("mend its permissions, or name another directory"),
    }
}

pub(super) fn claim(path: &Path, host: &HostName, name: &str) -> Result<(), Fault> {
    pool::claim(path, host.as_str(), name).map_err(unusable)
}

pub(crate) fn nas_pools(layout: &Layout, config: &Config, name: &HostName) -> Result<BTreeMap<PoolName, PathBuf>, Fault> {
    if config.nas.pools.is_empty() && config.nas.zfs.is_empty() {
        return Ok(BTreeMap::from([(PoolName::new("tank")?, layout.pools(name).join("tank"))]));
    }
    Ok(config.nas.pools.clone())
}

pub(crate) fn node_pool(layout: &Layout, config: &Config, name: &HostName) -> Result<PathBuf, Fault> {
    let own = || Ok::<_, Fault>(layout.host(name)?.join("pool"));
    config.vm.pool.as_ref().map_or_else(own, |pool| Ok(pool.join(name.as_str())))
}

/// Looks, before anything is made, whether a NAS's pools can be its own, and whether what is in them is on its ledger.
pub(super) fn check_nas(layout: &Layout, config: &Config, name: &HostName) -> Result<(), Fault> {
    let pools = nas_pools(layout, config, name)?;
    for (pool, path) in &pools {
        pool::check(path, name.as_str(), pool.as_str()).map_err(unusable)?;
    }
    pools.values().try_for_each(|path| ledger_of(layout, name, path))
}

/// The same for a node.
pub(super) fn check_node(layout: &Layout, config: &Config, name: &HostName) -> Result<(), Fault> {
    let path = node_pool(layout, config, name)?;
    pool::check(&path, name.as_str(), LOCAL_POOL).map_err(unusable)?;
    ledger_of(layout, name, &path)
}

/// Whether a host has no ledger yet.
pub(super) fn is_new(dir: &Path) -> bool {
    fs::metadata(dir.join(LEDGER)).map_or(true, |meta| meta.len() == 0)
}

/// A new ledger is begun only where there is nothing that an old one would know.
fn ledger_of(layout: &Layout, name: &HostName, pool: &Path) -> Result<(), Fault> {
    let ledger = layout.host(name)?.join(LEDGER);
    let what = match fs::metadata(&ledger) {
        Ok(meta) if meta.len() == 0 => "is empty",
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "is not there",
        // What is wrong with it is said when it is opened.
        _ => return Ok(()),
    };
    let found = match pool.is_dir() {
        true => pool::anything_in(pool).map_err(unusable)?,
        false => None,
    };
    found.map_or(Ok(()), |found| {
        Err(Fault::failed(format!("the ledger {} {what}, and the pool {} holds {found}", ledger.display(), pool.display()))
            .next("nothing was changed; restore the ledger from a backup, or move away what is in the pool to begin anew"))
    })
}
