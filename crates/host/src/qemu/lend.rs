//! Storage daemons over block devices: how a front end fills or reads a volume of the kernel plane.

use super::{Daemons, GRACE, during, listening, session::Session};
use crate::{HostError, qsd::Qsd};
use img_storage_model::{Epoch, HostName, VolumeId, nas::NasLayer, nas::qemu::ExportFacts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// Which of a volume's storage daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lent {
    /// The one through which it is filled.
    Filled,
    /// The one through which it is read.
    Read,
}

impl Lent {
    fn suffix(self) -> &'static str {
        match self {
            Lent::Filled => ".x",
            Lent::Read => ".r",
        }
    }
}

/// To whom a volume is lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct To {
    /// Of which mapping, or of none.
    pub epoch: Epoch,
    /// The one host that is let in.
    pub peer: HostName,
    /// TCP port to listen on.
    pub port: u16,
    /// The export's name.
    pub name: String,
}

/// What a daemon was started for.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    volume: VolumeId,
    epoch: Epoch,
    peer: HostName,
    port: u16,
}

/// Lends block devices over TLS.
#[derive(Debug, Clone)]
pub struct Lender {
    daemons: Daemons,
    listen: String,
}

impl Lender {
    /// A lender that listens at the address `listen`.
    pub fn new(daemons: Daemons, listen: impl Into<String>) -> Self {
        Self { daemons, listen: listen.into() }
    }

    fn qsd(&self, volume: VolumeId, lent: Lent) -> Qsd {
        self.daemons.qsd(volume, lent.suffix())
    }

    /// What a volume's daemon serves, when one runs.
    ///
    /// # Errors
    /// When that cannot be told.
    pub async fn look(&self, volume: VolumeId, lent: Lent) -> Result<Option<ExportFacts>, HostError> {
        let qsd = self.qsd(volume, lent);
        let Some(mut session) = Session::find(&qsd).await? else { return Ok(None) };
        let mark: Mark = qsd.mark().map_err(during("tell what the storage daemon was started for"))?;
        let names = session.graph().await?.exports.keys().cloned().collect();
        let over = NasLayer::Disk;
        Ok(Some(ExportFacts { epoch: mark.epoch, peer: mark.peer, port: mark.port, names, over, commit: None }))
    }

    /// Starts a daemon over a device; nothing to do when it runs for the same.
    ///
    /// # Errors
    /// When it cannot be started, or serves somebody else.
    pub async fn start(&self, volume: VolumeId, lent: Lent, device: &Path, to: &To) -> Result<(), HostError> {
        if let Some(found) = self.look(volume, lent).await? {
            if found.epoch == to.epoch && found.peer == to.peer && found.names.contains(&to.name) {
                return Ok(());
            }
            return Err(HostError(format!("the volume is lent to {} already; stop that first", found.peer)));
        }
        let writable = lent == Lent::Filled;
        let file = json!({
            "driver": "host_device", "filename": device, "aio": "threads", "discard": "unmap", "read-only": !writable,
            "cache": {"direct": true},
        });
        let disk = json!({"driver": "raw", "node-name": "disk", "discard": "unmap", "read-only": !writable, "file": file});
        let export = json!({"type": "nbd", "id": to.name, "name": to.name, "node-name": "disk", "writable": writable});
        let mut args = self.daemons.gate(&self.listen, &to.peer, to.port)?;
        args.push(("--blockdev", disk));
        args.push(("--export", export));
        let args: Vec<String> = args.iter().flat_map(|(option, value)| [(*option).to_owned(), value.to_string()]).collect();
        let mark = Mark { volume, epoch: to.epoch, peer: to.peer.clone(), port: to.port };
        self.qsd(volume, lent).start(&mark, &args).await.map_err(during("serve the volume")).map(drop)
    }

    /// Ends a daemon, whoever is connected.
    ///
    /// # Errors
    /// When it still runs.
    pub async fn stop(&self, volume: VolumeId, lent: Lent) -> Result<(), HostError> {
        self.qsd(volume, lent).stop(GRACE).await.map_err(during("stop the volume's export"))
    }
}

impl Daemons {
    /// Options that let one host in over TLS.
    pub(super) fn gate(&self, listen: &str, peer: &HostName, port: u16) -> Result<Vec<(&'static str, Value)>, HostError> {
        let rule = json!({"match": self.distinguished_name(peer), "policy": "allow"});
        let at = listening(listen, port)?;
        Ok(vec![
            ("--object", self.server("tls")?),
            ("--object", json!({"qom-type": "authz-list", "id": "peer", "policy": "deny", "rules": [rule]})),
            (
                "--nbd-server",
                json!({
                    "addr": {"type": "inet", "host": at.ip().to_string(), "port": at.port().to_string()},
                    "tls-creds": "tls", "tls-authz": "peer",
                }),
            ),
        ])
    }
}
