//! The verbs of a node on the kernel plane.
//!
//! Per volume there is one device-mapper device, `/dev/mapper/NAS.POOL.VOLUME`, which is the guest's from map to unmap. Under it lies the
//! disk of an iSCSI session, or the local zvol `DATASET/NAS.POOL.VOLUME`, with the overlay `…-overlay` between for a moment.

mod device;
mod local;
mod see;

use super::{
    block::{self, Holder as Has, Number},
    dm::Dm,
    iscsi::{self, Iscsi, State, Wanted},
    lio::Chap,
    marks,
    nas::pool_report,
    zfs::{PASSING, Zfs},
};
use crate::{HostError, LocalCopies};
use img_storage_model::{
    Dataset, Fact, Size,
    messages::{Endpoint, Holder, IscsiLogin, PoolReport},
    node::{
        Layer, NodeVolume, StepResult,
        kernel::{Disk, NodeFacts, NodeStep, Session, Zvols},
    },
};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

/// How long logging in may take; a target that is not there would hang for two minutes.
const LOGIN: Duration = Duration::from_secs(20);
/// How long the kernel may take to show a disk, or its new size.
const DISK: Duration = Duration::from_secs(20);
/// How long a disk may take to put everything on stable storage.
const FLUSH: Duration = Duration::from_secs(60);

/// A node of the kernel plane.
pub struct KernelNode {
    zfs: Zfs,
    iscsi: Iscsi,
    dm: Dm,
    within: Dataset,
    patience: Duration,
}

fn fact<T>(found: Result<T, HostError>) -> Fact<T> {
    match found {
        Ok(found) => Fact::Known(found),
        Err(error) => Fact::Unknown(error.0),
    }
}

impl KernelNode {
    /// A node whose local copies lie in the dataset `within`. `patience` is how long a guest waits for a NAS that is away before its
    /// reads and writes fail.
    pub fn new(within: Dataset, patience: Duration) -> Self {
        Self { zfs: marks::zfs(), iscsi: Iscsi::new(marks::TARGETS), dm: Dm::new(marks::DEVICES), within, patience }
    }

    /// Whether this host can serve: the dataset is there, and device-mapper answers.
    ///
    /// # Errors
    /// Naming what is missing, and how to get it.
    pub async fn ready(&self) -> Result<(), HostError> {
        self.dm.list().await?;
        match self.zfs.room(&self.within).await? {
            Some(_) => Ok(()),
            None => Err(HostError(format!("there is no dataset {0} on this host; make it: zfs create -p {0}", self.within))),
        }
    }

    /// The name of a zvol of ours in its dataset, if there is one: a ledger is not begun anew over it.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn anything(&self) -> Result<Option<String>, HostError> {
        let found = self.zfs.volumes(&self.within).await?.into_iter().find(|zvol| zvol.volume().is_some());
        Ok(found.map(|zvol| zvol.name.to_string()))
    }

    /// The pool for local copies.
    pub async fn pool(&self) -> PoolReport {
        pool_report(&self.zfs, self.within.as_str(), &self.within).await
    }

    /// The local copies, and their room.
    ///
    /// # Errors
    /// When they cannot be told.
    pub async fn copies(&self) -> Result<LocalCopies, HostError> {
        let (room, zvols) = tokio::try_join!(self.zfs.room(&self.within), self.zfs.volumes(&self.within))?;
        let room = room.ok_or_else(|| HostError(format!("there is no dataset {} on this host", self.within)))?;
        let mut used = BTreeMap::new();
        // An overlay has the volume's mark too, and says of which epoch it is.
        for zvol in zvols.iter().filter(|zvol| !zvol.marks.contains_key(marks::EPOCH)) {
            if let Some(volume) = zvol.volume().and_then(|id| id.parse().ok()) {
                *used.entry(volume).or_default() += zvol.used;
            }
        }
        Ok(LocalCopies { size: room.used.saturating_add(room.available), free: room.available, used })
    }

    /// The guest's device.
    pub fn device(volume: &NodeVolume) -> PathBuf {
        Dm::path(&volume.label)
    }

    /// Who has the guest's device open.
    ///
    /// # Errors
    /// When that cannot be told.
    pub async fn users(&self, volume: &NodeVolume) -> Result<Vec<Holder>, HostError> {
        let Some(state) = self.dm.find(&volume.label).await? else { return Ok(Vec::new()) };
        let shown = |has: Has| match has {
            Has::Process { pid, command } => Holder { pid: Some(pid), command: Some(command) },
            other => Holder { pid: None, command: Some(other.to_string()) },
        };
        let mut found: Vec<Holder> = block::holders(state.number).await?.into_iter().map(shown).collect();
        if found.is_empty() && state.open > 0 {
            found.push(Holder { pid: None, command: None });
        }
        Ok(found)
    }

    fn at<'a>(&'a self, volume: &'a NodeVolume) -> Result<Steps<'a>, HostError> {
        let bad = |why: img_storage_model::Fault| HostError(why.to_string());
        Ok(Steps {
            host: self,
            volume,
            local: self.within.child(&volume.label).map_err(bad)?,
            overlay: self.within.child(&format!("{}-overlay", volume.label)).map_err(bad)?,
        })
    }

    /// What is there of a volume; its zvols are looked at unless they are `carried` over.
    pub async fn look(&self, volume: &NodeVolume, carried: Option<Zvols>) -> NodeFacts {
        match self.at(volume) {
            Ok(steps) => steps.look(carried).await,
            Err(HostError(why)) => {
                fn blind<T>(why: &str) -> Fact<T> {
                    Fact::Unknown(why.to_owned())
                }
                NodeFacts {
                    session: blind(&why),
                    device: blind(&why),
                    local: blind(&why),
                    overlay: blind(&why),
                    dataset: String::new(),
                }
            }
        }
    }

    /// Carries a step out.
    ///
    /// # Errors
    /// When it could not be done; what became of it is found by looking.
    pub async fn carry_out(&self, volume: &NodeVolume, step: NodeStep) -> Result<StepResult, HostError> {
        let at = self.at(volume)?;
        match step {
            NodeStep::Login { endpoint, login, size } => at.log_in(&endpoint, login, size).await?,
            NodeStep::Logout => at.log_out().await?,
            NodeStep::Rescan { size } => at.rescan(size).await?,
            NodeStep::CreateDevice { epoch, table, size } => at.create_device(epoch, table, size.bytes()).await?,
            NodeStep::Swap { table, size } => at.swap(table, size.bytes()).await?,
            NodeStep::Move { writes, size } => at.move_device(writes, size.bytes()).await?,
            NodeStep::ResumeDevice => at.resume_device().await?,
            NodeStep::RemoveDevice { force: true } => at.cut_off().await?,
            NodeStep::RemoveDevice { force: false } => self.dm.remove(&volume.label).await?,
            NodeStep::FlushRemote => at.flush_remote().await?,
            NodeStep::SetReceives { epoch } => at.set_receives(epoch).await?,
            NodeStep::ReserveLocal => self.zfs.reserve(&at.local, None).await?,
            NodeStep::CloseLocal => self.zfs.reserve(&at.local, Some((marks::RECEIVES, marks::NOBODY))).await?,
            NodeStep::UnreserveLocal => self.zfs.unreserve(&at.local).await?,
            NodeStep::GrowLocal { size } => self.zfs.grow(&at.local, marks::whole_blocks(size.bytes())).await?,
            NodeStep::RollBackLocal { to } => at.roll_back(to).await?,
            NodeStep::SettleLocal => at.settle().await?,
            NodeStep::DestroyLocal => at.destroy_local().await?,
            NodeStep::DestroyWarm { home } => at.destroy_warm(home).await?,
            NodeStep::CreateOverlay { epoch, size } => at.create_overlay(epoch, size.bytes()).await?,
            NodeStep::RemoveOverlay => at.remove_overlay().await?,
            NodeStep::TakeSnapshot { snapshot } => marks::take(&self.zfs, &at.local, snapshot).await?,
            NodeStep::HoldSnapshot { snapshot } => self.zfs.hold(&marks::at(&at.local, snapshot)?, marks::HOLD).await?,
            NodeStep::DropSnapshot { snapshot } => marks::give_up(&self.zfs, &at.local, snapshot, volume.id).await?,
        }
        Ok(StepResult::Done)
    }
}

/// The steps on one volume.
struct Steps<'a> {
    host: &'a KernelNode,
    volume: &'a NodeVolume,
    local: Dataset,
    overlay: Dataset,
}

impl Steps<'_> {
    async fn look(&self, carried: Option<Zvols>) -> NodeFacts {
        let session = self.session().await;
        let disk = session.as_ref().ok().and_then(|found| found.as_ref()).and_then(|(_, disk)| disk.as_ref()).map(|d| d.number);
        let anew = carried.is_none();
        // Before the zvols: what was written to them through one that is gone is seen in them.
        let device = self.host.dm.spot(&self.volume.label).await;
        let device = async {
            match device? {
                Some(found) => self.look_at_device(found, disk).await.map(Some),
                None => Ok(None),
            }
        };
        let zvols = async {
            match carried {
                Some(Zvols { local, overlay }) => (Ok(local), Ok(overlay)),
                None => self.look_at_zvols().await,
            }
        };
        let (mut device, (mut local, overlay)) = tokio::join!(device, zvols);
        if let (true, Ok(Some(device))) = (anew, &mut device) {
            device.quiet = self.is_quiet(device).await;
        }
        // What has a guest is in use.
        if let (true, Ok(Some(local)), Ok(device)) = (anew, &mut local, &device)
            && device.as_ref().is_none_or(|device| device.table.as_ref().is_ok_and(|table| table.layer() == Layer::Remote))
        {
            let newest = local.snapshots.last().map(|newest| newest.id);
            local.unchanged = marks::unchanged(&self.host.zfs, &self.local, newest, local.written, PASSING).await;
        }
        let shown = session.map(|found| {
            found.map(|(session, disk)| Session {
                iqn: session.target,
                up: session.state == State::LoggedIn,
                disk: disk.map(|disk| Disk { serial: disk.serial.unwrap_or_default(), size: disk.size }),
            })
        });
        NodeFacts {
            session: fact(shown),
            device: fact(device),
            local: fact(local),
            overlay: fact(overlay),
            dataset: self.local.to_string(),
        }
    }

    async fn sessions(&self) -> Result<Vec<iscsi::Session>, HostError> {
        let part = self.volume.id.0.simple().to_string();
        let mut all = self.host.iscsi.sessions().await?;
        all.retain(|session| session.target.contains(&part));
        // An older epoch's comes first: it is the one to end.
        all.sort_by_key(|session| marks::epoch(&session.target));
        Ok(all)
    }

    /// The session with the volume's target, and its disk.
    async fn session(&self) -> Result<Option<(iscsi::Session, Option<iscsi::Disk>)>, HostError> {
        let Some(session) = self.sessions().await?.into_iter().next() else { return Ok(None) };
        let disk = self.host.iscsi.find_disk(&session, 0).await?;
        Ok(Some((session, disk)))
    }

    /// The NAS's disk.
    async fn disk(&self) -> Result<iscsi::Disk, HostError> {
        let found = self.session().await?.and_then(|(_, disk)| disk);
        found.ok_or_else(|| HostError(format!("the disk of {} is not there", self.volume.label)))
    }

    async fn log_in(&self, endpoint: &Endpoint, login: IscsiLogin, size: Size) -> Result<(), HostError> {
        let wanted = Wanted {
            target: endpoint.export.clone(),
            portal: portal(endpoint).await?,
            chap: Chap { user: login.user, password: login.password },
            replacement_timeout: self.host.patience,
            noop: (Duration::from_secs(5), Duration::from_secs(5)),
        };
        self.host.iscsi.login(&wanted, LOGIN).await?;
        let disk = self.host.iscsi.disk(&endpoint.export, 0, DISK).await?;
        if disk.serial.as_deref() != Some(login.serial.as_str()) {
            return Err(HostError(format!(
                "{} brought the disk {} with the serial number {:?} instead of {:?}; it is not used",
                endpoint.export, disk.name, disk.serial, login.serial
            )));
        }
        if disk.size < size.bytes() {
            return Err(HostError(format!("{} brought a disk of {} bytes; the volume has {size}", endpoint.export, disk.size)));
        }
        Ok(())
    }

    async fn log_out(&self) -> Result<(), HostError> {
        for session in self.sessions().await? {
            if let Some(disk) = self.host.iscsi.find_disk(&session, 0).await? {
                let held: Vec<String> = block::holders(disk.number).await?.iter().map(ToString::to_string).collect();
                if !held.is_empty() {
                    return Err(HostError(format!(
                        "{} is not logged out: its disk {} is in use by {}",
                        session.target,
                        disk.name,
                        held.join(", ")
                    )));
                }
            }
            let portal = session.portal.ok_or_else(|| HostError(format!("where {} is cannot be told", session.target)))?;
            self.host.iscsi.logout(&session.target, portal).await?;
        }
        Ok(())
    }

    /// Takes the device away from whoever has it open. What waits in it for a target that is away or gone would hold it for as long as the
    /// initiator is patient: such a session ends first, which is an error for whoever waits.
    async fn cut_off(&self) -> Result<(), HostError> {
        for session in self.sessions().await?.into_iter().filter(|session| session.state != State::LoggedIn) {
            if let Some(portal) = session.portal {
                self.host.iscsi.logout(&session.target, portal).await?;
            }
        }
        self.host.dm.cut_off(&self.volume.label).await
    }

    async fn rescan(&self, size: Size) -> Result<(), HostError> {
        let disk = self.disk().await?;
        self.host.iscsi.rescan(&disk, marks::whole_blocks(size.bytes()), DISK).await
    }

    async fn flush_remote(&self) -> Result<(), HostError> {
        block::flush(self.disk().await?.path, FLUSH).await
    }

    async fn zvol(&self, name: &Dataset) -> Result<Number, HostError> {
        marks::ours(&self.host.zfs, name, self.volume.id)
            .await?
            .ok_or_else(|| HostError(format!("there is no zvol {name} on this host")))?;
        self.host.zfs.wait_for_device(name).await
    }
}

/// The address of an endpoint.
async fn portal(endpoint: &Endpoint) -> Result<SocketAddr, HostError> {
    let Endpoint { host, port, .. } = endpoint;
    let found = tokio::time::timeout(Duration::from_secs(5), tokio::net::lookup_host((host.as_str(), *port))).await;
    let first = found.ok().and_then(Result::ok).and_then(|mut all| all.next());
    first.ok_or_else(|| HostError(format!("the address {host} of {} cannot be found", endpoint.server)))
}
