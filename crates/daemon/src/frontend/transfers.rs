//! Images on their way into a volume or out of one. The front end moves them: it is where the operator's files are.

use super::Desk;
use img_storage_host::image::{self, ImageError, ImageFormat, Served};
use img_storage_model::{
    Fault, FaultKind, HostName, PoolName, Selector, Size, VolumeId, VolumeName,
    api::{Answer, Phase, Request, VolumeView},
    messages::Progress,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::rate::Rate;

/// A NAS may take so long to make room or to clear up.
const NAS_WITHIN: Duration = Duration::from_secs(600);
/// How soon a NAS that is away is told again.
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// An image may be on its way for so long.
const MOVED_WITHIN: Duration = Duration::from_secs(7 * 86_400);
/// How long the end of a transfer is remembered.
const REMEMBER: Duration = Duration::from_secs(3600);

/// Identity of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct TransferId(pub Uuid);

/// A transfer as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferView {
    /// Its identity.
    pub id: TransferId,
    /// Bytes done.
    pub done: u64,
    /// Bytes in total.
    pub total: u64,
    /// How it ended, when it has.
    #[schema(value_type = Option<Object>)]
    pub finished: Option<Result<(), Fault>>,
}

struct Transfer {
    view: TransferView,
    volume: VolumeId,
    name: (HostName, PoolName, VolumeName),
    import: bool,
    rate: Rate,
    ended: Option<Instant>,
}

/// Transfers under way and ended lately.
#[derive(Default)]
pub(super) struct Transfers(Mutex<BTreeMap<TransferId, Transfer>>);

impl Transfers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<TransferId, Transfer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, id: TransferId, volume: &VolumeView, total: u64, import: bool) {
        let mut all = self.all();
        all.retain(|_, t| t.ended.is_none_or(|at| at.elapsed() < REMEMBER));
        let name = (volume.nas.clone(), volume.pool.clone(), volume.name.clone());
        let view = TransferView { id, done: 0, total, finished: None };
        all.insert(id, Transfer { view, volume: volume.id, name, import, rate: Rate::default(), ended: None });
    }

    /// So many hundredths of a percent are done.
    fn progress(&self, id: TransferId, hundredths: u32) {
        if let Some(transfer) = self.all().get_mut(&id) {
            let done = u128::from(transfer.view.total) * u128::from(hundredths) / 10_000;
            transfer.view.done = u64::try_from(done).unwrap_or(u64::MAX).min(transfer.view.total);
            transfer.rate.at(transfer.view.done, Instant::now());
        }
    }

    fn end(&self, id: TransferId, how: Result<(), Fault>) {
        if let Some(transfer) = self.all().get_mut(&id) {
            if how.is_ok() {
                transfer.view.done = transfer.view.total;
            }
            transfer.view.finished = Some(how);
            transfer.ended = Some(Instant::now());
        }
    }

    /// Adds to a volume's view how far its filling is.
    pub(super) fn overlay(&self, volume: &mut VolumeView) {
        if volume.phase != Phase::Importing {
            return;
        }
        if let Some(transfer) = self.all().values().find(|t| t.volume == volume.id && t.view.finished.is_none()) {
            volume.progress = Some(Progress { done: transfer.view.done, total: transfer.view.total });
            volume.rate = transfer.rate.per_second();
        }
    }

    /// Why a volume that somebody asks for is not there: its import failed lately.
    pub(super) fn failed_import(&self, selector: &Selector) -> Option<Fault> {
        let all = self.all();
        let failed = all.values().filter(|t| t.import && selector.matches(&t.name.0, &t.name.1, &t.name.2));
        let fault = failed.max_by_key(|t| t.ended).and_then(|t| t.view.finished.clone()?.err())?;
        Some(Fault { kind: FaultKind::NotFound, ..fault })
    }
}

/// What a volume filled from an image will be: the image's format, the length of its disk, and the volume's size.
///
/// # Errors
/// [`FaultKind::Refused`] for an image that we do not take, [`FaultKind::Invalid`] when `size` is too small for it.
pub(super) async fn look_at_image(source: &Path, size: Option<Size>) -> Result<(image::ImageInfo, Size), Fault> {
    let image = image::inspect(source).await.map_err(|error| match error {
        // What it is; what to do about it.
        ImageError::Refused { path, why } => {
            let (why, next) = why.split_once("; ").unwrap_or((&why, "give a raw, qcow2, vmdk or vhdx image"));
            Fault::refused(format!("{} {why}", path.display())).next(next)
        }
        ImageError::Io { path, source, .. } if source.kind() == ErrorKind::NotFound => {
            Fault::not_found(format!("there is no image {}", path.display())).next("name a file on the front end's host")
        }
        error => Fault::failed(format!("the image {} cannot be used: {error}", source.display()))
            .next("see that the front end may read it, and that qemu-img is installed"),
    })?;
    let shown = source.display();
    let needed = Size::round_up(image.virtual_size).map_err(|fault| {
        Fault::new(FaultKind::Invalid, format!("{shown} holds a disk that no volume can: {}", fault.message))
            .next("give a smaller image")
    })?;
    let size = size.unwrap_or(needed);
    if size.bytes() < image.virtual_size {
        return Err(Fault::invalid(format!("{shown} holds a disk of {needed}; a volume of {size} is too small for it"))
            .next("leave --size out, or give more"));
    }
    Ok((image, size))
}

impl Desk {
    /// Tells a NAS how a transfer ended, however long that NAS is away: it waits for nothing else.
    async fn tell(&self, nas: &HostName, request: Request) -> Result<Answer, Fault> {
        let id = self.id();
        loop {
            match self.ask(nas, id, request.clone(), NAS_WITHIN).await {
                Err(Fault { kind: FaultKind::Unreachable | FaultKind::Unfinished, .. }) => tokio::time::sleep(TELL_AGAIN).await,
                answered => return answered,
            }
        }
    }

    /// How far a transfer is, or how it ended.
    pub fn transfer(&self, id: TransferId) -> Option<TransferView> {
        self.transfers.all().get(&id).map(|t| t.view.clone())
    }

    /// Makes a volume and begins to fill it from an image file; gives the volume as soon as it exists.
    ///
    /// # Errors
    /// When the image is not one we take, the size is too small for it, or the NAS refuses. Nothing is left then.
    pub async fn create_from(
        self: &Arc<Self>,
        nas: &HostName,
        pool: Option<PoolName>,
        name: VolumeName,
        size: Option<Size>,
        source: PathBuf,
    ) -> Result<VolumeView, Fault> {
        let (image, size) = look_at_image(&source, size).await?;
        let request = Request::Create { pool, name, size, import: true };
        let Answer::Served { volume, endpoint } = self.ask(nas, self.id(), request, NAS_WITHIN).await? else {
            return Err(Fault::failed(format!("{nas} gave an answer to another question")));
        };
        let id = TransferId(self.id().0);
        self.transfers.begin(id, &volume, image.virtual_size, true);
        let (desk, nas, view) = (Arc::clone(self), nas.clone(), (*volume).clone());
        self.tasks.spawn(async move {
            let teller = Arc::clone(&desk);
            let progress = move |hundredths| teller.transfers.progress(id, hundredths);
            let served = Served { endpoint, certificates: desk.credentials.clone() };
            let filled = image::import(&source, image.format, &served, MOVED_WITHIN, progress).await;
            let complete = filled.is_ok();
            let failed = filled.map_err(|why| {
                Fault::failed(format!("{} could not be filled from {}: {why}", volume.full_name(), source.display()))
                    .next("nothing is left of it on the NAS; mend the cause and create it again")
            });
            if failed.is_err() {
                // Before the volume goes: who asks for it from then on is told why it is not there.
                desk.transfers.end(id, failed.clone());
            }
            let told = desk.tell(&nas, Request::Imported { volume: volume.id, complete }).await;
            let how = match (failed, told) {
                (Ok(()), told) => told.map(drop),
                (Err(why), Ok(_)) => Err(why),
                (Err(why), Err(fault)) => Err(Fault::failed(format!("{}; and {fault}", why.message))),
            };
            if let Err(fault) = &how {
                tracing::warn!("{fault}");
            }
            desk.transfers.end(id, how);
        });
        Ok(view)
    }

    /// Begins to copy a volume into an image file.
    ///
    /// # Errors
    /// When the file exists or cannot be made, or the NAS refuses.
    pub async fn export_to(self: &Arc<Self>, volume: &VolumeView, file: PathBuf, format: String) -> Result<TransferId, Fault> {
        let format = match format.as_str() {
            "raw" => ImageFormat::Raw,
            "qcow2" => ImageFormat::Qcow2,
            "vmdk" => ImageFormat::Vmdk,
            "vhdx" => ImageFormat::Vhdx,
            _ => {
                return Err(
                    Fault::invalid(format!("{format:?} is no image format")).next("formats are raw, qcow2, vmdk and vhdx")
                );
            }
        };
        if file.symlink_metadata().is_ok() {
            return Err(Fault::refused(format!("{} exists already", file.display())).next("choose another name or remove it"));
        }
        let request = Request::Read { volume: volume.id };
        let served = self.ask(&volume.nas, self.id(), request, NAS_WITHIN).await;
        if let Err(Fault { kind: FaultKind::Unfinished | FaultKind::Unreachable, .. }) = &served {
            // It may have been served all the same, and nobody would read it.
            let _ = self.ask(&volume.nas, self.id(), Request::ReadDone { volume: volume.id }, NAS_WITHIN).await;
        }
        let Answer::Served { volume, endpoint } = served? else {
            return Err(Fault::failed(format!("{} gave an answer to another question", volume.nas)));
        };
        let id = TransferId(self.id().0);
        self.transfers.begin(id, &volume, volume.size.bytes(), false);
        let desk = Arc::clone(self);
        self.tasks.spawn(async move {
            let teller = Arc::clone(&desk);
            let progress = move |hundredths| teller.transfers.progress(id, hundredths);
            let served = Served { endpoint, certificates: desk.credentials.clone() };
            let copied = image::export(&served, &file, format, MOVED_WITHIN, progress).await;
            let how = copied.map_err(|why| {
                Fault::failed(format!("{} could not be exported to {}: {why}", volume.full_name(), file.display()))
                    .next("nothing is left of the file; mend the cause and export again")
            });
            desk.transfers.end(id, how);
            if let Err(fault) = desk.tell(&volume.nas, Request::ReadDone { volume: volume.id }).await {
                tracing::warn!("{}: {fault}", volume.full_name());
            }
        });
        Ok(id)
    }
}
