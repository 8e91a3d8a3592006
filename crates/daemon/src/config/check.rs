//! What would be used of a configuration, key by key, and where each value is from.

use super::{Config, files};
use img_storage_model::{Fault, Interval, attribute::Defaults, node::kernel::Quota};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A key as it would be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its name, with dots.
    pub key: String,
    /// Its value, as TOML.
    pub value: String,
    /// The file it is from; none when nothing was said.
    pub from: Option<PathBuf>,
}

/// Reads and checks a configuration; gives the files, and what would be used.
///
/// # Errors
/// As [`Config::read`].
pub fn check(path: Option<&Path>) -> Result<(Config, Vec<PathBuf>, Vec<Line>), Fault> {
    let read = files::read(path)?;
    let mut lines: Vec<Line> =
        read.keys.into_iter().map(|(key, (value, file))| Line { key, value: value.to_string(), from: Some(file) }).collect();
    for (key, value) in defaults(&read.config)? {
        // A pool of one's own takes the place of the one that is there without any.
        let given = lines.iter().any(|line| line.key == key) || (key == "nas.pools.tank" && !read.config.nas.pools.is_empty());
        if !given {
            lines.push(Line { key: key.to_owned(), value, from: None });
        }
    }
    // Keys of no section come first, as they do in a file.
    lines.sort_by_key(|line| (line.key.contains('.'), line.key.clone()));
    Ok((read.config, read.files, lines))
}

fn defaults(config: &Config) -> Result<Vec<(&'static str, String)>, Fault> {
    let quoted = |value: &dyn ToString| toml::Value::String(value.to_string()).to_string();
    let built_in = Defaults::of(Interval::seconds(crate::roles::FREQUENCY)?);
    let mut all = vec![
        ("frequency", quoted(&built_in.frequency)),
        ("download_speed", quoted(&built_in.download_speed)),
        ("upload_speed", quoted(&built_in.upload_speed)),
        ("sync_workers", built_in.sync_workers.to_string()),
        ("frontend.name", quoted(&"frontend")),
        ("nas.name", quoted(&"nas-0-0")),
        ("nas.pools.tank", quoted(&"DIR/pools/NAS/tank")),
        ("vm.name", quoted(&"compute-0-0")),
        ("vm.nodes", crate::roles::NODES.to_string()),
        ("vm.pool", quoted(&"DIR/HOST/pool")),
    ];
    if config.vm.zfs.is_some() {
        all.push(("vm.warm_copies", quoted(&Quota::default())));
    }
    if config.nas.data_address().is_none() && config.nas.data_network.is_none() && !config.is_for_many() {
        all.push(("nas.data_address", quoted(&"127.0.0.1")));
    }
    if let Some(settings) = config.broker()? {
        all.push(("bus.vhost", quoted(&settings.vhost)));
        all.push(("bus.heartbeat", quoted(&format!("{}s", settings.heartbeat.as_secs()))));
        all.push(("bus.tls", settings.tls.is_some().to_string()));
        if let Some(tls) = settings.tls {
            all.push(("bus.ca", quoted(&tls.ca.display())));
            if let Some((certificate, key)) = tls.identity {
                all.push(("bus.certificate", quoted(&certificate.display())));
                all.push(("bus.key", quoted(&key.display())));
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_there_once_with_where_it_is_from() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "frequency = \"5m\"\n[nas]\naddress = \"10.0.0.1\"\n[nas.pools]\nfast = \"/srv\"\n").unwrap();
        let (_, files, lines) = check(Some(&file)).unwrap();
        assert_eq!(files, std::slice::from_ref(&file));
        let mut keys: Vec<&str> = lines.iter().map(|l| l.key.as_str()).collect();
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all);
        let of = |key: &str| lines.iter().find(|l| l.key == key).map(|l| (l.value.as_str(), l.from.clone()));
        assert_eq!(of("frequency"), Some(("\"5m\"", Some(file.clone()))));
        assert_eq!(of("sync_workers"), Some(("4", None)));
        assert_eq!(of("nas.pools.fast"), Some(("\"/srv\"", Some(file))));
        assert!(of("nas.pools.tank").is_none() && of("nas.data_address").is_none() && of("bus.vhost").is_none());
    }
}
