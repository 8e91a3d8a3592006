//! The verbs of a NAS on the qemu plane.
//!
//! A storage daemon has one NBD server with one list of who may come in, so there is one process per volume and purpose, with
//! its own port: `VOLUME.x` exports the volume to its node, `VOLUME.i` takes a write-back in, `VOLUME.r` serves a reader.

mod files;
mod incoming;
mod serve;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use img_storage_model::{
    Epoch, Fact, HostName, PoolName, SnapshotId, VolumeId,
    messages::PoolReport,
    nas::{
        self, NasLayer,
        qemu::{ExportFacts, IncomingFacts, NasFacts, NasStep},
    },
    node::StepResult,
};
use serde::{Deserialize, Serialize};

use super::session::Session;
use super::{Daemons, boxed, during, listening, pool_report};
use crate::qsd::Qsd;
use crate::{HostError, NasHost, VolumeRef, Work};
use files::Home;

/// A NAS of the qemu plane.
#[derive(Debug, Clone)]
pub struct QemuNas {
    plane: Daemons,
    pools: BTreeMap<PoolName, PathBuf>,
    listen: String,
    ports: RangeInclusive<u16>,
    next_port: Arc<AtomicU16>,
    aio: &'static str,
}

/// What a storage daemon was started for.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    volume: VolumeId,
    epoch: Epoch,
    peer: HostName,
    port: u16,
    push: Option<SnapshotId>,
}

impl QemuNas {
    /// A NAS with these pools (directories), which serves at the address `listen` on `ports`.
    pub async fn new(plane: Daemons, pools: BTreeMap<PoolName, PathBuf>, listen: &str, ports: RangeInclusive<u16>) -> Self {
        let aio = plane.asynchronous_io().await;
        // Somebody else may take a port between the look and the use; two of us on one machine do not begin at the same.
        let scattered = std::process::id().wrapping_mul(0x9e37_79b1) >> 16;
        let first = usize::try_from(scattered).unwrap_or(0) % ports.len().max(1);
        let next_port = Arc::new(AtomicU16::new(ports.start().saturating_add(u16::try_from(first).unwrap_or(0))));
        Self { plane, pools, listen: listen.to_owned(), ports, next_port, aio }
    }

    fn at(&self, volume: &VolumeRef) -> Result<Steps<'_>, HostError> {
        let pool = self.pools.get(&volume.pool).ok_or_else(|| HostError(format!("this NAS has no pool {}", volume.pool)))?;
        Ok(Steps {
            host: self,
            volume: volume.id,
            home: Home::new(pool, volume),
            export: self.plane.qsd(volume.id, ".x"),
            incoming: self.plane.qsd(volume.id, ".i"),
            reader: self.plane.qsd(volume.id, ".r"),
        })
    }

    /// What is there of a volume.
    pub async fn look(&self, volume: &VolumeRef) -> NasFacts {
        match self.at(volume) {
            Ok(steps) => steps.look().await,
            Err(error) => NasFacts {
                disk: Fact::Unknown(error.0.clone()),
                export: Fact::Unknown(error.0.clone()),
                incoming: Fact::Unknown(error.0.clone()),
                pending: Fact::Unknown(error.0.clone()),
                overlay: Fact::Unknown(error.0.clone()),
                reader: Fact::Unknown(error.0),
            },
        }
    }

    /// Carries a step out.
    ///
    /// # Errors
    /// When it could not be done; what became of it is found by looking.
    pub async fn carry_out(&self, volume: &VolumeRef, step: NasStep) -> Result<StepResult, HostError> {
        let at = self.at(volume)?;
        match step {
            NasStep::CreateDisk { size } => at.home.create(size.bytes())?,
            NasStep::GrowDisk { size } => at.home.grow(size.bytes())?,
            NasStep::SyncDisk => at.home.sync(&at.home.ours(at.home.disk())?)?,
            NasStep::RemoveDisk => at.remove_disk().await?,
            NasStep::StartExport { epoch, name, peer, port, layer } => at.start_export(epoch, &name, peer, port, layer).await?,
            NasStep::StopExport => at.stop_export().await?,
            NasStep::AddExport { name } => at.add_export(&name).await?,
            NasStep::RemoveExport { name } => at.remove_export(&name).await?,
            NasStep::CreateIncoming { push } => at.create_incoming(push).await?,
            NasStep::ServeIncoming { push, peer, port } => at.serve_incoming(push, peer, port).await?,
            NasStep::VerifyIncoming { push, extents, digest } => {
                return Ok(StepResult::Verified(at.verify_incoming(push, &extents, &digest).await?));
            }
            NasStep::SealIncoming { push } => at.seal_incoming(push).await?,
            NasStep::DiscardIncoming => at.discard_incoming().await?,
            NasStep::CommitPending { push } => at.commit_pending(push).await?,
            NasStep::RemovePending { push } => at.home.remove(at.home.pending(push))?,
            NasStep::CreateOverlay { epoch } => at.create_overlay(epoch).await?,
            NasStep::RemoveOverlay => at.remove_overlay().await?,
            NasStep::StartCommit => at.start_commit().await?,
            NasStep::CompleteCommit => at.session().await?.complete("commit").await?,
            NasStep::FinalizeCommit => at.finalize_commit().await?,
            NasStep::EndCommit => at.session().await?.cancel("commit").await?,
            NasStep::StartReader { peer, port } => at.start_reader(peer, port).await?,
            NasStep::StopReader => at.stop_reader().await?,
        }
        Ok(StepResult::Done)
    }
}

impl NasHost for QemuNas {
    fn observe(&self, volume: VolumeRef, _: Option<nas::kernel::Zvol>) -> Work<'_, nas::Facts> {
        boxed(async move { nas::Facts::Qemu(self.look(&volume).await) })
    }

    fn run(&self, volume: VolumeRef, step: nas::Step) -> Work<'_, Result<StepResult, HostError>> {
        boxed(async move {
            match step {
                nas::Step::Qemu(step) => self.carry_out(&volume, step).await,
                nas::Step::Kernel(_) => Err(crate::other_plane(img_storage_model::Plane::Kernel)),
            }
        })
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        boxed(async move { self.pools.iter().map(|(name, path)| pool_report(name.as_str(), path)).collect() })
    }

    fn free_port(&self) -> Result<u16, HostError> {
        for _ in 0..self.ports.len() {
            let port = self.next_port.fetch_add(1, Ordering::Relaxed);
            let span = u16::try_from(self.ports.len()).unwrap_or(u16::MAX);
            let port = self.ports.start() + port.wrapping_sub(*self.ports.start()) % span;
            if TcpListener::bind(listening(&self.listen, port)?).is_ok() {
                return Ok(port);
            }
        }
        let (first, last) = (self.ports.start(), self.ports.end());
        Err(HostError(format!("every port from {first} to {last} is taken; widen the range in the configuration")))
    }
}

/// The steps on one volume.
struct Steps<'a> {
    host: &'a QemuNas,
    volume: VolumeId,
    home: Home,
    export: Qsd,
    incoming: Qsd,
    reader: Qsd,
}

fn fact<T>(found: Result<T, HostError>) -> Fact<T> {
    match found {
        Ok(found) => Fact::Known(found),
        Err(error) => Fact::Unknown(error.0),
    }
}

fn one<T: Copy>(what: &str, found: &[T]) -> Result<Option<T>, HostError> {
    match found {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        _ => Err(HostError(format!("there are {} {what} files; only one can be right", found.len()))),
    }
}

impl Steps<'_> {
    /// The session of the export's daemon, which must run.
    async fn session(&self) -> Result<Session, HostError> {
        Session::with(&self.export).await
    }

    async fn look(&self) -> NasFacts {
        let beside = self.home.beside();
        let overlay = beside.as_ref().map_err(HostError::clone).and_then(|b| one("overlay", &b.overlay));
        let pending = beside.as_ref().map_err(HostError::clone).and_then(|b| one("pending", &b.pending));
        let incoming = match beside {
            Ok(beside) => self.look_at_incoming(&beside.incoming).await,
            Err(error) => Err(error),
        };
        NasFacts {
            disk: fact(self.home.look()),
            export: fact(self.look_at_export().await),
            incoming: fact(incoming),
            pending: fact(pending),
            overlay: fact(overlay),
            reader: fact(Session::find(&self.reader).await.map(|session| session.is_some())),
        }
    }

    async fn look_at_incoming(&self, files: &[SnapshotId]) -> Result<Option<IncomingFacts>, HostError> {
        let serving = Session::find(&self.incoming).await?.is_some();
        let push = match one("incoming", files)? {
            Some(push) => push,
            None if serving => {
                let mark: Mark = self.incoming.mark().map_err(during("tell what a storage daemon was started for"))?;
                mark.push.ok_or_else(|| HostError("a storage daemon serves no write-back in its place".into()))?
            }
            None => return Ok(None),
        };
        Ok(Some(IncomingFacts { push, serving }))
    }

    async fn look_at_export(&self) -> Result<Option<ExportFacts>, HostError> {
        let Some(mut session) = Session::find(&self.export).await? else { return Ok(None) };
        let mark: Mark = self.export.mark().map_err(during("tell what the storage daemon was started for"))?;
        let mut graph = session.graph().await?;
        let over = match graph.exports.values().any(|node| node == "overlay") {
            true => NasLayer::Overlay,
            false => NasLayer::Disk,
        };
        Ok(Some(ExportFacts {
            epoch: mark.epoch,
            peer: mark.peer,
            port: mark.port,
            names: graph.exports.keys().cloned().collect(),
            over,
            commit: graph.jobs.remove("commit"),
        }))
    }
}
