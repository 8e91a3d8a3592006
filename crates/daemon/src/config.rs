//! The configuration file: TOML, every key known, every value checked before anything starts.

mod bus;
mod check;
mod files;
mod import;
mod kernel;

pub use bus::{Address, Auth, Bus, Hosts, Issued};
pub use check::{Line, check};
pub use files::DIRECTORY;
use img_storage_host::net::Network;
use img_storage_model::{
    Dataset, Fault, HostName, Interval, PoolName,
    attribute::{Speed, SyncWorkers},
    node::kernel::Quota,
};
pub use import::{Role as ImportAs, import};
pub use kernel::Ssh;
use serde::Deserialize;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// What can be configured; command-line options win over it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How old the NAS's copy of a volume may get while its node has newer writes.
    pub frequency: Option<Interval>,
    /// How fast volumes may go to nodes.
    #[serde(default, deserialize_with = "speed")]
    pub download_speed: Option<Speed>,
    /// How fast changes may go home.
    #[serde(default, deserialize_with = "speed")]
    pub upload_speed: Option<Speed>,
    /// How many transfers a NAS lets run at once in each direction.
    pub sync_workers: Option<SyncWorkers>,
    /// The front end.
    #[serde(default)]
    pub frontend: Frontend,
    /// The NAS.
    #[serde(default)]
    pub nas: Nas,
    /// Every node.
    #[serde(default)]
    pub vm: Vm,
    /// The broker between hosts; without it, roles reach each other on one machine only.
    pub bus: Option<Bus>,
    /// Who has a say.
    #[serde(default)]
    pub cluster: Hosts,
    /// The certificates.
    #[serde(default)]
    pub pki: Issued,
}

/// A speed as operators write it.
fn speed<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Speed>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(serde::de::Error::custom)
}

/// `[frontend]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frontend {
    /// Its name on the bus.
    pub name: Option<HostName>,
}

/// `[nas]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nas {
    /// Its name on the bus.
    pub name: Option<HostName>,
    /// The address its exports listen on and nodes connect to.
    pub data_address: Option<IpAddr>,
    /// The network in which this host's address is that.
    pub data_network: Option<Network>,
    /// An older name of `data_address`.
    pub address: Option<IpAddr>,
    /// Its pools: name to directory. Without any, one named `tank` under the state directory.
    #[serde(default)]
    pub pools: std::collections::BTreeMap<PoolName, PathBuf>,
    /// Its ZFS pools: name to the dataset that the volumes lie in.
    #[serde(default)]
    pub zfs: std::collections::BTreeMap<PoolName, Dataset>,
    /// How it reaches its nodes for streams of snapshots.
    #[serde(default)]
    pub ssh: Ssh,
}

impl Nas {
    /// The address that was given, under whichever name.
    pub fn data_address(&self) -> Option<IpAddr> {
        self.data_address.or(self.address)
    }
}

/// `[vm]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Its name on the bus.
    pub name: Option<HostName>,
    /// How many nodes `up` runs.
    pub nodes: Option<u16>,
    /// The directory for local copies; without it, one under the state directory.
    pub pool: Option<PathBuf>,
    /// The dataset for local copies of volumes in ZFS pools; without it, the node serves none of those.
    pub zfs: Option<Dataset>,
    /// How much room the copies may take that are kept for the next start of their volumes here.
    pub warm_copies: Option<Quota>,
    /// How long a guest waits for a NAS that is away before its reads and writes fail.
    pub nas_timeout: Option<Interval>,
    /// The address by which NAS servers reach it for streams; without it, its name.
    pub data_address: Option<IpAddr>,
}

impl Config {
    /// Reads a file, or a directory with `config.toml` and `conf.d/*.toml`; without either what is in [`DIRECTORY`], if anything.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::Invalid`], with file and line, for a file that cannot be read or has an unknown key or a bad
    /// value, and for what does not go together.
    pub fn read(path: Option<&Path>) -> Result<Self, Fault> {
        Ok(files::read(path)?.config)
    }

    /// What no single key can say.
    fn check(&self) -> Result<(), Fault> {
        let invalid = |why: &str, next: &str| Err(Fault::invalid(why).next(format!("nothing was started; {next}")));
        let nas = &self.nas;
        if self.vm.warm_copies.is_some() && self.vm.zfs.is_none() {
            let next = "name the dataset for local copies in zfs, or take warm_copies away";
            return invalid("[vm] warm_copies is given without [vm] zfs, in which there would be any", next);
        }
        if nas.address.is_some() && nas.data_address.is_some() {
            return invalid("[nas] address and data_address are the same thing", "give data_address alone");
        }
        if nas.data_address().is_some() && nas.data_network.is_some() {
            return invalid("[nas] data_address and data_network are both given", "give one of them");
        }
        if nas.data_address().is_some_and(|a| a.is_unspecified() || a.is_multicast()) {
            let (why, next) = ("[nas] data_address is not an address that nodes can connect to", "name an address of this host");
            return invalid(why, next);
        }
        if let Some(pool) = nas.zfs.keys().find(|pool| nas.pools.contains_key(*pool)) {
            return invalid(&format!("the pool {pool} is in [nas.pools] and in [nas.zfs]"), "give one of them another name");
        }
        self.broker()?;
        match self.vm.nodes {
            None | Some(1..=64) => Ok(()),
            Some(nodes) => invalid(&format!("[vm] nodes = {nodes}"), "1 to 64 nodes are possible"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Config, Fault> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(Some(&path))
    }

    #[test]
    fn unknown_keys_and_bad_values_name_the_line() {
        for bad in [
            "frequncy = \"60s\"",
            "frequency = \"often\"",
            "upload_speed = \"fast\"",
            "download_speed = \"0\"",
            "sync_workers = 0",
            "[nas]\nadress = \"127.0.0.1\"",
            "[nas.pools]\n\"a/b\" = \"/x\"",
            "[vm]\nnodes = -1",
            "[vm]\nzfs = \"p/i\"\nwarm_copies = \"lots\"",
            "[vm]\nzfs = \"p/i\"\nwarm_copies = \"101%\"",
        ] {
            let fault = read(bad).unwrap_err();
            assert!(fault.message.contains("line"), "{bad}: {fault}");
        }
        let alone = read("[vm]\nwarm_copies = \"1G\"").unwrap_err();
        assert!(alone.message.contains("[vm] zfs"), "{alone}");
        let warm = |text: &str| read(&format!("[vm]\nzfs = \"p/i\"\nwarm_copies = \"{text}\"")).unwrap().vm.warm_copies.unwrap();
        assert_eq!(
            (warm("2G"), warm("0"), warm("none"), warm("5%")),
            (Quota::Bytes(2 << 30), Quota::Bytes(0), Quota::Bytes(0), Quota::Percent(5))
        );
        let good = read("frequency = \"5m\"\n[nas.pools]\ntank = \"/srv/tank\"\n[vm]\nnodes = 3\n").unwrap();
        assert_eq!((good.frequency.unwrap().to_string(), good.nas.pools.len(), good.vm.nodes), ("5m".to_owned(), 1, Some(3)));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = toml::from_str::<Config>(&text);
        }
    }
}
