//! Taking a write-back in: a file of its own over the volume's file, which is touched only when all of it is here and right.

use std::fs;
use std::time::Duration;

use img_storage_model::{Extents, HostName, SnapshotId, messages::ContentDigest};
use serde_json::json;

use super::{Steps, one};
use crate::HostError;
use crate::digest::digest as digest_of;
use crate::exec;
use crate::nbd::{Nbd, NbdError};
use crate::qemu::session::Session;
use crate::qemu::{GRACE, during, file_node, sync_parent};

/// The private export for the verification.
const VERIFY: &str = "verify";
/// For one read of the verification.
const READ: Duration = Duration::from_secs(60);
/// Committing moves as much as came in; a disk that needs longer is broken.
const COMMIT: Duration = Duration::from_secs(6 * 3600);

impl Steps<'_> {
    pub(super) async fn create_incoming(&self, push: SnapshotId) -> Result<(), HostError> {
        match one("incoming", &self.home.beside()?.incoming)? {
            Some(found) if found == push => Ok(()),
            Some(found) => Err(HostError(format!("the incoming file of {found} is in the way"))),
            None => self.layer_over_disk(&self.home.incoming(push)).await,
        }
    }

    pub(super) async fn serve_incoming(&self, push: SnapshotId, peer: HostName, port: u16) -> Result<(), HostError> {
        if let Some(found) = self.look_at_incoming(&[]).await? {
            return match found.push == push {
                true => Ok(()),
                false => Err(HostError(format!("the incoming file of {} is being served; stop that first", found.push))),
            };
        }
        let mut args = self.gate(&peer, port)?;
        let name = push.to_string();
        args.push(("--blockdev", self.disk_node(false)?));
        let file = file_node(&self.home.ours(self.home.incoming(push))?, self.host.aio, true);
        args.push((
            "--blockdev",
            json!({"driver": "qcow2", "node-name": "inc", "discard": "unmap", "file": file, "backing": "disk"}),
        ));
        args.push(("--export", json!({"type": "nbd", "id": name, "name": name, "node-name": "inc", "writable": true})));
        self.incoming.socket("verify.sock").map_err(during("serve the incoming file"))?;
        self.start(&self.incoming, &self.incoming_mark(push, peer, port), args).await
    }

    /// The peer is cut off first, for good: what is verified is what will be committed.
    pub(super) async fn verify_incoming(
        &self,
        push: SnapshotId,
        extents: &Extents,
        digest: &ContentDigest,
    ) -> Result<bool, HostError> {
        if self.look_at_incoming(&[]).await?.is_none_or(|found| found.push != push) {
            return Err(HostError(format!("the incoming file of {push} is not being served")));
        }
        let socket = self.incoming.socket("verify.sock").map_err(during("verify the incoming file"))?;
        let mut session = Session::with(&self.incoming).await?;
        if !session.graph().await?.exports.contains_key(VERIFY) {
            // A process has one NBD server: the public one makes way for a private one. Cut off in between, neither is there.
            for export in session.graph().await?.exports.keys() {
                session.remove_export(export).await?;
            }
            if let Err(error) = session.call("nbd-server-stop", json!({})).await
                && !error.is_refusal()
            {
                return Err(error.into());
            }
            session.call("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}})).await?;
            let export = json!({"type": "nbd", "id": VERIFY, "name": VERIFY, "node-name": "inc", "writable": false});
            session.call("block-export-add", export).await?;
        }
        drop(session);
        let read = async {
            let export = Nbd::unix(&socket, VERIFY, &[], READ).await?;
            if extents.end() > export.info().size {
                return Ok(false);
            }
            let found = digest_of(&export, extents).await?;
            export.disconnect().await;
            Ok::<_, NbdError>(found == *digest)
        };
        read.await.map_err(during("read the incoming file"))
    }

    pub(super) async fn seal_incoming(&self, push: SnapshotId) -> Result<(), HostError> {
        let (from, to) = (self.home.incoming(push), self.home.pending(push));
        if self.home.beside()?.pending == [push] {
            return self.incoming.stop(GRACE).await.map_err(during("stop the incoming file's daemon"));
        }
        // One that died may have taken with it what was read from it a moment ago.
        if self.look_at_incoming(&[]).await?.is_none_or(|found| found.push != push) {
            return Err(HostError(format!(
                "the daemon of the incoming file of {push} is gone; not everything need be in the file"
            )));
        }
        // It may still die before it ends by itself; what it has flushed and said so is in the file then.
        let socket = self.incoming.socket("verify.sock").map_err(during("flush the incoming file"))?;
        let flush = async {
            let export = Nbd::unix(&socket, VERIFY, &[], READ).await?;
            export.flush().await?;
            export.disconnect().await;
            Ok::<_, NbdError>(())
        };
        flush.await.map_err(during("flush the incoming file"))?;
        self.incoming.stop(GRACE).await.map_err(during("stop the incoming file's daemon"))?;
        self.home.sync(&self.home.ours(from.clone())?)?;
        let rename = || {
            fs::rename(&from, &to)?;
            sync_parent(&to)
        };
        rename().map_err(during(format!("rename {}", from.display())))
    }

    pub(super) async fn discard_incoming(&self) -> Result<(), HostError> {
        self.incoming.stop(GRACE).await.map_err(during("stop the incoming file's daemon"))?;
        for push in self.home.beside()?.incoming {
            self.home.remove(self.home.incoming(push))?;
        }
        Ok(())
    }

    pub(super) async fn commit_pending(&self, push: SnapshotId) -> Result<(), HostError> {
        let pending = self.home.ours(self.home.pending(push))?;
        if !pending.exists() {
            return Err(HostError(format!("{} is not there", pending.display())));
        }
        // -d keeps the file as it is, so that this can be repeated.
        let name = pending.to_string_lossy().into_owned();
        let arguments = ["commit", "-q", "-d", "-f", "qcow2", "-t", "writeback", &name];
        exec::run(&self.host.plane.qemu_img, &arguments, COMMIT).await.map_err(during("commit the write-back"))?;
        self.home.sync(&self.home.disk())
    }
}
