//! The verbs of a NAS on the kernel plane: zvols in its datasets, their iSCSI exports, and the streams to and from its nodes.

mod jobs;
mod see;

use super::{
    block,
    lio::{self, Chap, Lio, Target},
    marks,
    stream::{self, Streams},
    zfs::{Look, NewVolume, Zfs},
};
use crate::{
    HostError, VolumeRef,
    qemu::lend::{Lender, Lent, To},
};
use img_storage_model::{
    Dataset, Epoch, Fact, HostName, Plane, PoolName, VolumeId,
    messages::{IscsiLogin, Peer, PoolReport},
    nas::kernel::{self, Export, Held, NasFacts, NasStep, Way, Zvol},
    node::StepResult,
    snapshot,
};
use jobs::{Ends, Jobs, Plan};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

/// How long a zvol may take to put what is written to it on stable storage.
const FLUSH: Duration = Duration::from_secs(60);
/// The name of a reader's export.
const READER: &str = "reader";

/// A NAS of the kernel plane.
pub struct KernelNas {
    name: HostName,
    zfs: Zfs,
    lio: Lio,
    pools: BTreeMap<PoolName, Dataset>,
    portal: SocketAddr,
    lender: Lender,
    streams: Streams,
    ssh_port: u16,
    jobs: Jobs,
}

/// What a NAS of the kernel plane is told.
pub struct Settings {
    /// Its name.
    pub name: HostName,
    /// Its pools, and the dataset each lies in.
    pub pools: BTreeMap<PoolName, Dataset>,
    /// Where its targets listen.
    pub portal: SocketAddr,
    /// What lends volumes to front ends.
    pub lender: Lender,
    /// How it reaches its nodes.
    pub ssh: stream::Ssh,
    /// The port of their sshd.
    pub ssh_port: u16,
}

fn fact<T>(found: Result<T, HostError>) -> Fact<T> {
    match found {
        Ok(found) => Fact::Known(found),
        Err(error) => Fact::Unknown(error.0),
    }
}

impl KernelNas {
    /// A NAS with these settings.
    pub fn new(settings: Settings) -> Self {
        let Settings { name, pools, portal, lender, ssh, ssh_port } = settings;
        let zfs = marks::zfs();
        let side = stream::Side::new(zfs.clone(), pools.values().cloned().collect());
        let streams = Streams::new(side, ssh);
        let lio = Lio::new(lio::ROOT, marks::TARGETS, marks::BACKSTORES);
        Self { name, zfs, lio, pools, portal, lender, streams, ssh_port, jobs: Jobs::default() }
    }

    /// Whether this host can serve: the datasets are there, and the kernel's target.
    ///
    /// # Errors
    /// Naming what is missing, and how to get it.
    pub async fn ready(&self) -> Result<(), HostError> {
        self.lio.ready().await?;
        for dataset in self.pools.values() {
            if self.zfs.room(dataset).await?.is_none() {
                return Err(HostError(format!("there is no dataset {dataset} on this host; make it: zfs create -p {dataset}")));
            }
        }
        Ok(())
    }

    /// The name of a zvol of ours in these pools, if there is one: a ledger is not begun anew over it.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn anything(&self) -> Result<Option<String>, HostError> {
        for dataset in self.pools.values() {
            let found = self.zfs.volumes(dataset).await?.into_iter().find(|zvol| zvol.volume().is_some());
            if let Some(zvol) = found {
                return Ok(Some(zvol.name.to_string()));
            }
        }
        Ok(None)
    }

    /// Whether it has this pool.
    pub fn has(&self, pool: &PoolName) -> bool {
        self.pools.contains_key(pool)
    }

    /// The pools and their room.
    pub async fn pools(&self) -> Vec<PoolReport> {
        let mut reports = Vec::new();
        for (name, dataset) in &self.pools {
            reports.push(pool_report(&self.zfs, name.as_str(), dataset).await);
        }
        reports
    }

    fn dataset(&self, volume: &VolumeRef) -> Result<Dataset, HostError> {
        let pool = self.pools.get(&volume.pool).ok_or_else(|| HostError(format!("this NAS has no ZFS pool {}", volume.pool)))?;
        pool.child(volume.name.as_str()).map_err(|why| HostError(why.to_string()))
    }

    fn device(&self, volume: &VolumeRef) -> Result<PathBuf, HostError> {
        Ok(Zfs::device(&self.dataset(volume)?))
    }

    /// What is there of a volume; its zvol is looked at unless it is `carried` over.
    pub async fn look(&self, volume: &VolumeRef, carried: Option<Zvol>) -> NasFacts {
        // Before the zvol: what a stream that is over has brought is seen.
        let stream = self.jobs.look(volume.id);
        let import = self.lender.look(volume.id, Lent::Filled);
        let reader = self.lender.look(volume.id, Lent::Read);
        let anew = carried.is_none();
        let zvol = async {
            match carried {
                Some(zvol) => Ok(Some(zvol)),
                None => self.zvol(volume).await,
            }
        };
        let (mut zvol, exports, import, reader) = tokio::join!(zvol, self.exports(volume.id), import, reader);
        // What is exported is open, and nobody is in the way of a stream.
        if let (true, Ok(Some(zvol)), Ok([]), None) = (anew, &mut zvol, exports.as_deref(), &stream)
            && let Ok(name) = self.dataset(volume)
        {
            let newest = zvol.snapshots.last().map(|held| held.snapshot.id);
            if marks::unchanged(&self.zfs, &name, newest, zvol.written, Duration::ZERO).await == Some(true) {
                zvol.written = 0;
            }
        }
        NasFacts {
            zvol: fact(zvol),
            exports: fact(exports),
            import: fact(import),
            reader: fact(reader.map(|found| found.is_some())),
            stream,
        }
    }

    async fn zvol(&self, volume: &VolumeRef) -> Result<Option<Zvol>, HostError> {
        let name = self.dataset(volume)?;
        // What is another's, or nobody's, is not looked at further; making the volume will say so.
        let [found] = self.zfs.look([&name]).await?;
        let Some(Look { zvol, snapshots }) = found.filter(|look| look.zvol.volume() == Some(&volume.id.to_string())) else {
            return Ok(None);
        };
        let points = marks::points(&snapshots);
        let written = marks::written(&self.zfs, &zvol, &points).await?;
        Ok(Some(Zvol {
            size: zvol.size.unwrap_or(0),
            allocated: zvol.used,
            snapshots: points.ours.iter().map(|point| Held { snapshot: point.snapshot, held: point.held }).collect(),
            written,
            foreign: points.foreign,
            resume: zvol.resume_token,
        }))
    }

    async fn exports(&self, volume: VolumeId) -> Result<Vec<Export>, HostError> {
        let mut found = Vec::new();
        let (targets, backstores) = self.lio.of(&volume.0.simple().to_string()).await?;
        for target in &targets {
            let Some(epoch) = marks::epoch(&target.name) else { continue };
            let backstore = marks::backstore(volume, epoch);
            let stands = backstores.iter().any(|b| b.name == backstore && b.enabled);
            let acl = target.acls.first();
            found.push(Export {
                epoch,
                iqn: target.name.clone(),
                initiator: acl.map(|acl| acl.initiator.clone()),
                complete: stands && self.is_whole(target, &backstore),
                session: acl.is_some_and(|acl| acl.session.is_some()),
            });
        }
        // A backstore that lost its target holds the zvol all the same.
        for backstore in backstores {
            let Some(epoch) = marks::epoch(&backstore.name).filter(|epoch| found.iter().all(|e| e.epoch != *epoch)) else {
                continue;
            };
            let iqn = kernel::iqn(self.name.as_str(), volume, epoch);
            found.push(Export { epoch, iqn, initiator: None, complete: false, session: false });
        }
        Ok(found)
    }

    fn is_whole(&self, target: &Target, backstore: &str) -> bool {
        let lun = target.luns.iter().any(|lun| lun.number == 0 && lun.backstore.as_deref() == Some(backstore));
        let one = matches!(target.acls.as_slice(), [acl] if acl.luns.contains(&0) && acl.user.is_some());
        target.enabled && target.authentication && !target.open_to_all && lun && one && target.portals.contains(&self.portal)
    }

    /// Carries a step out.
    ///
    /// # Errors
    /// When it could not be done; what became of it is found by looking.
    pub async fn carry_out(&self, volume: &VolumeRef, step: NasStep) -> Result<StepResult, HostError> {
        let name = self.dataset(volume)?;
        match step {
            NasStep::CreateZvol { size } => {
                let new = NewVolume {
                    size: marks::whole_blocks(size.bytes()),
                    sparse: true,
                    block_size: None,
                    volume: volume.id.to_string(),
                    marks: Vec::new(),
                };
                self.zfs.create(&name, &new).await?;
                self.zfs.wait_for_device(&name).await?;
            }
            NasStep::GrowZvol { size } => self.zfs.grow(&name, marks::whole_blocks(size.bytes())).await?,
            NasStep::SyncZvol => {
                self.zfs.wait_for_device(&name).await?;
                block::flush(Zfs::device(&name), FLUSH).await?;
            }
            NasStep::DestroyZvol => self.zfs.destroy_volume(&name, &volume.id.to_string(), marks::HOLD).await?,
            NasStep::StartImport { epoch, name, peer, port } => {
                self.lend(volume, Lent::Filled, To { epoch, peer, port, name }).await?;
            }
            NasStep::StopImport => self.lender.stop(volume.id, Lent::Filled).await?,
            NasStep::StartReader { peer, port } => {
                self.lend(volume, Lent::Read, To { epoch: Epoch(0), peer, port, name: READER.to_owned() }).await?;
            }
            NasStep::StopReader => self.lender.stop(volume.id, Lent::Read).await?,
            NasStep::Export { epoch, iqn, initiator, login } => self.export(volume, epoch, iqn, initiator, login).await?,
            NasStep::Unexport { epoch } => {
                let target = kernel::iqn(self.name.as_str(), volume.id, epoch);
                self.lio.withdraw(&target, &marks::backstore(volume.id, epoch)).await?;
            }
            NasStep::TakeSnapshot { snapshot } => marks::take(&self.zfs, &name, snapshot).await?,
            NasStep::CountWritten { still } => return self.count_written(volume, &name, still.snapshot).await,
            NasStep::Hold { snapshot } => self.zfs.hold(&marks::at(&name, snapshot)?, marks::HOLD).await?,
            NasStep::DropSnapshot { snapshot } => marks::give_up(&self.zfs, &name, snapshot, volume.id).await?,
            NasStep::Send { peer, from, to, resume, speed } => {
                let ends = self.ends(volume, name, Way::ToNode, &peer)?;
                self.jobs.begin(self.streams.clone(), Plan { ends, from, to, resume, speed: speed.get() })?;
            }
            NasStep::Receive { peer, from, to, resume, speed } => {
                let ends = self.ends(volume, name, Way::FromNode, &peer)?;
                self.jobs.begin(self.streams.clone(), Plan { ends, from: Some(from), to, resume, speed: speed.get() })?;
            }
            NasStep::SetSpeed { speed } => self.jobs.set_speed(volume.id, speed.get()),
            NasStep::EndStream => return Ok(self.jobs.end(volume.id)),
            NasStep::DiscardReceived => self.zfs.discard_partial(&name).await?,
        }
        Ok(StepResult::Done)
    }

    /// ZFS counts what was written when it syncs.
    async fn count_written(
        &self,
        volume: &VolumeRef,
        name: &Dataset,
        since: snapshot::Snapshot,
    ) -> Result<StepResult, HostError> {
        self.zfs.sync(name).await?;
        let found = self.zvol(volume).await?.ok_or_else(|| HostError(format!("there is no zvol {name}")))?;
        match found.snapshots.last() {
            Some(newest) if newest.snapshot == since => Ok(StepResult::Written(found.written)),
            _ => Err(HostError(format!("the newest snapshot of {name} is not {} any more", since.id))),
        }
    }

    async fn lend(&self, volume: &VolumeRef, lent: Lent, to: To) -> Result<(), HostError> {
        let device = self.device(volume)?;
        self.zfs.wait_for_device(&self.dataset(volume)?).await?;
        self.lender.start(volume.id, lent, &device, &to).await
    }

    async fn export(
        &self,
        volume: &VolumeRef,
        epoch: Epoch,
        target: String,
        initiator: String,
        login: IscsiLogin,
    ) -> Result<(), HostError> {
        let name = self.dataset(volume)?;
        let found =
            marks::ours(&self.zfs, &name, volume.id).await?.ok_or_else(|| HostError(format!("there is no zvol {name}")))?;
        self.zfs.wait_for_device(&name).await?;
        // What is exported is open: from then on nobody can tell what of it was written.
        if !found.snapshots.is_empty() {
            marks::settle(&self.zfs, &name, volume.id).await?;
        }
        let export = lio::Export {
            backstore: marks::backstore(volume.id, epoch),
            device: Zfs::device(&name),
            serial: login.serial,
            target,
            portals: vec![self.portal],
            initiator,
            chap: Chap { user: login.user, password: login.password },
        };
        self.lio.export(&export).await
    }

    fn ends(&self, volume: &VolumeRef, here: Dataset, way: Way, peer: &Peer) -> Result<Ends, HostError> {
        Ok(Ends {
            volume: volume.id,
            way,
            here,
            there: Dataset::new(peer.dataset.clone()).map_err(|why| HostError(why.to_string()))?,
            peer: stream::Peer { host: peer.address.clone(), port: self.ssh_port },
            epoch: peer.epoch,
        })
    }
}

/// A pool's report; one that cannot be looked at has no room.
pub(super) async fn pool_report(zfs: &Zfs, name: &str, dataset: &Dataset) -> PoolReport {
    let room = zfs.room(dataset).await.unwrap_or_else(|error| {
        tracing::warn!(%error, pool = name, %dataset, "cannot look at the pool");
        None
    });
    let (size, free) = room.map_or((0, 0), |room| (room.used + room.available, room.available));
    PoolReport { name: name.to_owned(), size, free, plane: Plane::Kernel }
}
