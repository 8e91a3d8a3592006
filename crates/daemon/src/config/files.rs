//! Where the configuration is read from: one file, or a directory with `config.toml` and what is in `conf.d`.
//!
//! Every file is checked by itself, so that what is wrong is said with its file and line, and then laid over those before it: a
//! later one wins, key by key.

use super::Config;
use img_storage_model::Fault;
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};
use toml::{Table, Value};

/// Where it is when nothing else is said.
pub const DIRECTORY: &str = "/etc/img-storage";
/// The file in a directory that is read first.
const FIRST: &str = "config.toml";
/// The directory in it whose files are read in the order of their names.
const MORE: &str = "conf.d";

/// What was read.
#[derive(Debug, Default)]
pub struct Read {
    /// It.
    pub config: Config,
    /// The files, in their order.
    pub files: Vec<PathBuf>,
    /// All keys, with dots, their values and the file each is from.
    pub keys: BTreeMap<String, (Value, PathBuf)>,
}

/// Reads and checks everything.
pub fn read(path: Option<&Path>) -> Result<Read, Fault> {
    let files = match path {
        Some(path) => files(path)?,
        None if Path::new(DIRECTORY).exists() => files(Path::new(DIRECTORY))?,
        None => Vec::new(),
    };
    let mut keys = BTreeMap::new();
    let mut all = Table::new();
    for file in &files {
        let text = fs::read_to_string(file).map_err(|e| unreadable(file, &e))?;
        let wrong = |e: toml::de::Error| {
            Fault::invalid(format!("the configuration {} is not right: {}", file.display(), e.to_string().trim()))
                .next("nothing was started; the keys are described in docs/configuration.md")
        };
        toml::from_str::<Config>(&text).map_err(wrong)?;
        let table: Table = toml::from_str(&text).map_err(wrong)?;
        note(&table, "", file, &mut keys);
        lay_over(&mut all, table);
    }
    let named = files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
    let wrong = |why: String| format!("the configuration {named} is not right: {why}");
    let config: Config = all.try_into().map_err(|e: toml::de::Error| Fault::invalid(wrong(e.to_string().trim().to_owned())))?;
    config.check().map_err(|fault| Fault { message: wrong(fault.message), ..fault })?;
    Ok(Read { config, files, keys })
}

fn unreadable(path: &Path, why: &std::io::Error) -> Fault {
    Fault::invalid(format!("the configuration {} cannot be read: {why}", path.display()))
        .next("nothing was started; --config takes the path of a TOML file, or of a directory with config.toml and conf.d")
}

/// The file, or those of the directory.
fn files(path: &Path) -> Result<Vec<PathBuf>, Fault> {
    if !fs::metadata(path).map_err(|e| unreadable(path, &e))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    let more = path.join(MORE);
    match fs::read_dir(&more) {
        Ok(entries) => {
            for entry in entries {
                let file = entry.map_err(|e| unreadable(&more, &e))?.path();
                // Others are editors' and package managers'.
                let hidden = file.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
                if !hidden && file.extension().is_some_and(|e| e == "toml") {
                    found.push(file);
                }
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(unreadable(&more, &e)),
    }
    found.sort();
    let first = path.join(FIRST);
    match fs::metadata(&first) {
        Ok(_) => found.insert(0, first),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(unreadable(&first, &e)),
    }
    Ok(found)
}

fn lay_over(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => lay_over(below, above),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

fn note(table: &Table, prefix: &str, file: &Path, keys: &mut BTreeMap<String, (Value, PathBuf)>) {
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => note(inner, &format!("{name}."), file, keys),
            value => drop(keys.insert(name, (value.clone(), file.to_owned()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir.join(MORE)).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn later_files_win_key_by_key() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("config.toml", "frequency = \"5m\"\n[nas]\nname = \"n1\"\n[nas.pools]\ntank = \"/a\"\n"),
                ("conf.d/20-more.toml", "[nas.pools]\nfast = \"/c\"\ntank = \"/b\"\n"),
                ("conf.d/10-early.toml", "frequency = \"6m\"\n[nas.pools]\ntank = \"/x\"\n"),
                ("conf.d/.hidden.toml", "nonsense"),
                ("conf.d/notes.txt", "nonsense"),
            ],
        );
        let read = read(Some(dir.path())).unwrap();
        let config = &read.config;
        assert_eq!(config.frequency.unwrap().to_string(), "6m");
        assert_eq!(config.nas.name.as_ref().unwrap().as_str(), "n1");
        let pools: Vec<(&str, &str)> = config.nas.pools.iter().map(|(n, p)| (n.as_str(), p.to_str().unwrap())).collect();
        assert_eq!(pools, [("fast", "/c"), ("tank", "/b")]);
        assert!(read.keys["nas.pools.tank"].1.ends_with("conf.d/20-more.toml"));
        assert_eq!(read.files.len(), 3);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_file_and_key() {
        for (files, says) in [
            (
                &[("config.toml", "frequency = \"1m\"\n"), ("conf.d/a.toml", "[nas]\nadress = \"::1\"\n")][..],
                ["a.toml", "adress"],
            ),
            (&[("conf.d/a.toml", "[nas]\ndata_network = \"10.0.0.0/40\"\n")], ["a.toml", "10.0.0.0/40"]),
            (&[("conf.d/a.toml", "sync_workers = 0\n")], ["a.toml", "sync_workers"]),
            (&[("config.toml", "[vm]\nnodes = 0\n"), ("conf.d/a.toml", "")], ["config.toml", "nodes = 0"]),
            (&[("config.toml", "[bus]\nhosts = [\"mq\"]\n")], ["config.toml", "[bus] needs a ca"]),
            (&[("config.toml", "[nas]\naddress = \"::1\"\ndata_address = \"::1\"\n")], ["config.toml", "the same thing"]),
            (&[("config.toml", "[nas]\ndata_network = \"::/8\"\ndata_address = \"::1\"\n")], ["config.toml", "both given"]),
            (&[("config.toml", "[nas]\ndata_address = \"0.0.0.0\"\n")], ["config.toml", "data_address"]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), files);
            let fault = read(Some(dir.path())).unwrap_err();
            assert!(says.iter().all(|word| fault.message.contains(word)), "{says:?}: {fault}");
        }
        let nowhere = read(Some(Path::new("/nonexistent/x"))).unwrap_err();
        assert!(nowhere.message.contains("/nonexistent/x"), "{nowhere}");
    }

    #[test]
    fn a_section_can_come_from_several_files() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("config.toml", "[bus]\nhosts = [\"mq\"]\n[pki]\ndir = \"/p\"\n"),
                ("conf.d/beat.toml", "[bus]\nheartbeat = \"5s\"\n"),
            ],
        );
        let settings = read(Some(dir.path())).unwrap().config.broker().unwrap().unwrap();
        assert_eq!(settings.heartbeat.as_secs(), 5);
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(read(Some(empty.path())).unwrap().config, Config::default());
    }
}
