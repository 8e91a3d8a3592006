//! What doctor looks at on the qemu plane: what is in pools, and which storage daemons run. Nothing is said to any of them, for a
//! control socket has room for one, who may be our daemon.

use super::{look_at, pool, read_mark};
use crate::{HostError, qsd::Qsd};
use img_storage_model::{
    Epoch, Fact, SnapshotId, VolumeId,
    doctor::files::{Home, Purpose, Server},
};
use serde::Deserialize;
use std::{fs, io, path::Path};

/// What every mark says; the others' words are of no interest here.
#[derive(Debug, Deserialize)]
struct Mark {
    volume: VolumeId,
    #[serde(default)]
    epoch: Option<Epoch>,
}

fn fact<T>(what: String, found: io::Result<T>) -> Fact<T> {
    found.map_or_else(|why| Fact::Unknown(HostError(format!("cannot look at {what}: {why}")).0), Fact::Known)
}

/// What is in a pool. `file` is the name of a volume's, or a local copy's, file.
pub fn homes(pool: &Path, file: &str) -> Fact<Vec<Home>> {
    let look = || {
        pool::is_there(pool)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(pool)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Ours, and file systems'.
            if !name.starts_with('.') && name != "lost+found" {
                found.push(home(&path, name, file)?);
            }
        }
        found.sort_by(|a: &Home, b| a.name.cmp(&b.name));
        Ok(found)
    };
    fact(format!("the pool {}", pool.display()), look())
}

fn home(path: &Path, name: String, file: &str) -> io::Result<Home> {
    let mut home = Home { path: path.display().to_string(), name, ..Home::default() };
    if !path.is_dir() {
        return Ok(home);
    }
    // A mark that is no mark of ours is as none; one that cannot be read is another matter.
    home.mark = match read_mark::<Mark>(&path.join("mark")) {
        Ok(mark) => mark.map(|mark| mark.volume),
        Err(why) if why.kind() == io::ErrorKind::Other || why.kind() == io::ErrorKind::InvalidData => None,
        Err(why) => return Err(why),
    };
    home.size = look_at(&path.join(file))?.map(|(size, _)| size);
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".qcow2")) else { continue };
        let snapshot = |uuid: &str| format!("IMG-STORAGE-{uuid}").parse::<SnapshotId>().ok();
        home.incoming.extend(name.strip_prefix("incoming-").and_then(snapshot));
        home.pending.extend(name.strip_prefix("pending-").and_then(snapshot));
        home.overlays.extend(name.strip_prefix("overlay-").and_then(|epoch| epoch.parse().ok().map(Epoch)));
    }
    Ok(home)
}

/// The places of storage daemons in a run directory; none where that is not there, as after a reboot.
pub fn servers(run: &Path, of_nas: bool) -> Fact<Vec<Server>> {
    let look = || {
        let mut found = Vec::new();
        let entries = match fs::read_dir(run) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let dir = entry?.path();
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (volume, suffix) = name.split_once('.').unwrap_or((&name, ""));
            let purpose = match suffix {
                "x" => Purpose::Export,
                "i" => Purpose::Incoming,
                "r" => Purpose::Reader,
                "b" => Purpose::Relay,
                "" if !of_nas => Purpose::Guest,
                _ => continue,
            };
            let Ok(volume) = volume.parse() else { continue };
            let qsd = Qsd::new("qemu-storage-daemon", &dir);
            found.push(Server {
                dir: dir.display().to_string(),
                volume: VolumeId(volume),
                purpose,
                epoch: qsd.mark::<Mark>().ok().and_then(|mark| mark.epoch).filter(|_| of_nas),
                pid: qsd.pid().map_err(io::Error::other)?,
            });
        }
        found.sort_by(|a: &Server, b| a.dir.cmp(&b.dir));
        Ok(found)
    };
    fact(format!("the storage daemons in {}", run.display()), look())
}
